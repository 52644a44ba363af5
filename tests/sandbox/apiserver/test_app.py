import socket
import subprocess
import sys

import pytest

from memopod.sandbox.apiserver.app import Server, main
from memopod.sandbox.apiserver.settings import Settings


def test_a_port_in_use_is_a_clear_error_and_leaves_the_state_alone(tmp_path, capfd):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--state", str(tmp_path), "--listen-port", str(port)]) == 1
    assert "in use" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_a_clear_error(tmp_path, capfd):
    (tmp_path / "state").write_text("")
    assert main(["--state", str(tmp_path / "state")]) == 1
    assert "cannot start" in capfd.readouterr().err


def test_without_a_folder_it_does_not_start(capfd):
    with pytest.raises(SystemExit) as exit_:
        main([])
    assert exit_.value.code == 2
    assert "--state" in capfd.readouterr().err


async def test_two_servers_with_their_own_folders_run_side_by_side(tmp_path):
    one = await Server.start(Settings(state=str(tmp_path / "one")))
    two = await Server.start(Settings(state=str(tmp_path / "two")))
    assert one.port != two.port
    await one.stop()
    await two.stop()


def test_it_runs_as_a_module():
    command = [sys.executable, "-m", "memopod.sandbox.apiserver", "--help"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    assert "--listen-port" in answer.stdout
