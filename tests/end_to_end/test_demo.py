import os
import signal
import subprocess

import pytest

MESSAGE = "My ML pipeline running on HuaweiCloud CCE."


def start(memopod, folder):
    log = folder / "demo.log"
    (folder / "tmp").mkdir()
    with log.open("wb") as output:
        process = subprocess.Popen(
            (*memopod, "demo"),
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(folder / "tmp")},
            cwd=folder,
        )
    return process, log


def test_the_demo_shows_what_it_promises_and_leaves_nothing(memopod, tmp_path, processes):
    process, log = start(memopod, tmp_path)
    status = process.wait(100)
    text = log.read_text()
    assert status == 0, text
    assert "executed its step in" in text
    assert "reused: held by its gate, never bound to a node, never started as a process" in text
    assert text.count(f"Output = {MESSAGE}") == 2
    assert "read through Envoy" in text
    assert "CACHED" in text
    assert processes(tmp_path) == []
    assert list((tmp_path / "tmp").iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo.log", "tmp"]


@pytest.mark.parametrize("moment", ["started api-server", "run 2"])
def test_an_interrupted_demo_leaves_nothing(memopod, tmp_path, processes, eventually, moment):
    process, log = start(memopod, tmp_path)
    eventually(lambda: moment in log.read_text() or process.poll() is not None, moment)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130, log.read_text()
    assert processes(tmp_path) == []
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_killed_demo_leaves_no_process(memopod, tmp_path, processes, eventually):
    process, log = start(memopod, tmp_path)
    eventually(lambda: "run 1" in log.read_text() or process.poll() is not None, "run 1")
    process.kill()
    process.wait(10)
    eventually(lambda: not processes(tmp_path), "all processes are gone")


def test_a_demo_whose_sandbox_dies_fails(memopod, tmp_path, processes, eventually):
    process, log = start(memopod, tmp_path)

    def supervisors():
        return [
            pid for pid, command in processes(tmp_path) if "sandbox up" in command and "guard" not in command
        ]

    eventually(supervisors, "the sandbox starts")
    for pid in supervisors():
        os.kill(pid, signal.SIGKILL)
    assert process.wait(100) == 1, log.read_text()
    assert processes(tmp_path) == []
    assert list((tmp_path / "tmp").iterdir()) == []
