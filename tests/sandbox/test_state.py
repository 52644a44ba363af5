import json
import os

import pytest

from memopod.sandbox.errors import SandboxError
from memopod.sandbox.state import State, read_description


def test_a_folder_is_made_and_described(tmp_path):
    state = State.acquire(tmp_path / "a" / "b")
    state.describe({"pid": 1})
    assert read_description(tmp_path / "a" / "b") == {"pid": 1}
    state.release()


def test_a_folder_in_use_is_refused(tmp_path):
    state = State.acquire(tmp_path)
    with pytest.raises(SandboxError, match="is in use by another sandbox; choose another with --state"):
        State.acquire(tmp_path)
    state.release()
    State.acquire(tmp_path).release()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SandboxError, match="cannot be written: Not a directory"):
        State.acquire(tmp_path / "file" / "below")


@pytest.fixture
def unprivileged():
    """The superuser may write everywhere: be nobody for a while."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)


def test_a_folder_without_permission_is_refused(tmp_path, request):
    (tmp_path / "closed").mkdir(mode=0o500)
    request.getfixturevalue("unprivileged")
    with pytest.raises(SandboxError, match="cannot be written: Permission denied"):
        State.acquire(tmp_path / "closed" / "below")


@pytest.mark.parametrize("name", ["a b", "a?b", "a%20", "a'b", "ä"])
def test_a_path_that_would_break_commands_or_urls_is_refused(tmp_path, name):
    with pytest.raises(SandboxError, match="expected a path of letters"):
        State.acquire(tmp_path / name)


def test_a_folder_where_no_sandbox_runs_says_how_to_start_one(tmp_path):
    with pytest.raises(SandboxError, match="memopod sandbox up --state"):
        read_description(tmp_path)


def test_what_a_killed_sandbox_left_behind_is_not_taken_for_a_running_one(tmp_path):
    state = State.acquire(tmp_path)
    state.describe({"pid": 1})
    state._lock.close()
    assert json.loads((tmp_path / "sandbox.json").read_text()) == {"pid": 1}
    with pytest.raises(SandboxError, match="no sandbox runs in"):
        read_description(tmp_path)
