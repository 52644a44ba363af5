import socket
import subprocess
import sys

import pytest

from memopod.sandbox.apiserver.app import Server
from memopod.sandbox.apiserver.settings import Settings


@pytest.fixture
def run():
    def run_(*arguments):
        command = [sys.executable, "-m", "memopod.sandbox.apiserver", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=30)

    return run_


def test_a_port_in_use_is_a_clear_error_and_leaves_the_state_alone(run, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        answer = run("--state", str(tmp_path), "--listen-port", str(port))
    assert answer.returncode == 1
    assert "in use" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_a_clear_error(run, tmp_path):
    (tmp_path / "state").write_text("")
    answer = run("--state", str(tmp_path / "state"))
    assert answer.returncode == 1
    assert "cannot start" in answer.stderr


def test_without_a_folder_it_does_not_start(run):
    answer = run()
    assert answer.returncode == 2
    assert "--state" in answer.stderr


def test_it_tells_its_flags(run):
    assert "--listen-port" in run("--help").stdout


async def test_two_servers_with_their_own_folders_run_side_by_side(tmp_path):
    one = await Server.start(Settings(state=str(tmp_path / "one")))
    two = await Server.start(Settings(state=str(tmp_path / "two")))
    assert one.port != two.port
    await one.stop()
    await two.stop()
