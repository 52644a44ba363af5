import contextlib
import json
import socket
from concurrent import futures

import grpc
import pytest
from typer.testing import CliRunner

from memopod.cli.lineage import VARIABLE, app, find_target
from memopod.sandbox.state import State


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A folder without a sandbox, an environment without an address."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(VARIABLE, raising=False)


def ask(*arguments, address=None):
    where = ["--address", address] if address else []
    return CliRunner().invoke(app, [*arguments, *where])


def unused_address():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


def test_runs_are_listed_and_the_next_step_is_said_apart_from_them(store):
    result = ask("runs", "--limit", "2", address=store)
    assert result.exit_code == 0
    assert "many-1" in result.stdout
    assert "the latest 2; there are more" in result.stdout
    assert result.stderr == f"next: memopod lineage show many-1 --address {store}\n"


def test_an_empty_store_says_so(empty_store):
    result = ask("runs", address=empty_store)
    assert (result.exit_code, result.stdout) == (0, "no runs are recorded\n")
    assert result.stderr == "next: memopod run PIPELINE.yaml\n"


def test_a_run_leads_to_the_question_where_its_output_comes_from(store):
    result = ask("show", "message-2", address=store)
    assert "reused message-1/comp" in result.stdout
    following = result.stderr.removeprefix("next: memopod lineage ").split()
    assert following[:2] == ["up", "message-2/comp:Output"]
    assert ask(*following).exit_code == 0


@pytest.mark.parametrize("command", [["show", "iris-2"], ["up", "iris-2/train"], ["down", "iris-1/load"]])
@pytest.mark.parametrize(
    ("form", "beginning"),
    [("tree", ""), ("table", "┏"), ("json", "{"), ("dot", "digraph"), ("mermaid", "flowchart LR")],
)
def test_every_graph_is_written_in_every_form(store, command, form, beginning):
    result = ask(*command, "-o", form, address=store)
    assert result.exit_code == 0
    assert result.stdout.lstrip().startswith(beginning)
    assert "iris-" in result.stdout


@pytest.mark.parametrize(
    "command", [["runs"], ["show", "iris-2"], ["up", "iris-2/train"], ["down", "iris-1/load"]]
)
def test_json_is_one_object_and_nothing_else(store, command):
    result = ask(*command, "--json", address=store)
    assert isinstance(json.loads(result.stdout), dict)
    assert result.stderr == ""


def test_where_nobody_watches_a_row_stays_on_a_line(store):
    result = ask("show", "iris-2", address=store)
    line = next(line for line in result.stdout.splitlines() if "input examples" in line)
    assert line.endswith("[artifact:1]")


def test_depth_limit_and_recorded_only_reach_the_question(store):
    shallow = json.loads(ask("up", "iris-1/report", "--depth", "1", "--json", address=store).stdout)
    assert shallow["notes"] == ["stopped at depth 1: 1 node not followed further"]
    few = json.loads(ask("down", "many-1/first", "--limit", "5", "--json", address=store).stdout)
    assert "stopped at the limit of 5" in few["notes"][0]
    recorded = json.loads(ask("up", "iris-1/report", "--recorded-only", "--json", address=store).stdout)
    assert recorded["edges"] == []


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["show", "iris-3"], "run 'iris-3' is not recorded; did you mean iris-"),
        (["up", "iris-1"], "'iris-1' is a run; name a step of it: "),
        (["up", "odd-1/again"], "'odd-1/again' fits 2 nodes; name one of execution:"),
        (["down", "artifact:x"], "'artifact:x' names no node: expected run/step"),
        (["runs", "--pipeline", "a b"], "pipeline 'a b': expected letters, digits"),
    ],
)
def test_a_question_that_cannot_be_answered_is_one_line_on_stderr(store, command, message):
    result = ask(*command, address=store)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1


def test_a_store_that_does_not_answer_is_named():
    address = unused_address()
    result = ask("runs", address=address)
    assert result.exit_code == 1
    assert result.stderr == (
        f"error: no metadata store answers at {address}; start `memopod sandbox up`, "
        "or give --address HOST:PORT\n"
    )


def test_a_server_that_is_no_metadata_store_is_said():
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        result = ask("runs", address=f"127.0.0.1:{port}")
    finally:
        server.stop(None).wait()
    assert result.exit_code == 1
    assert f"what answers at 127.0.0.1:{port} is no metadata store" in result.stderr


def test_an_address_from_the_environment_is_named_as_such(monkeypatch):
    address = unused_address()
    monkeypatch.setenv(VARIABLE, address)
    result = ask("runs")
    assert result.exit_code == 1
    assert f"answers at {address} (from MEMOPOD_STORE)" in result.stderr


def test_the_environment_gives_the_address(store, monkeypatch):
    monkeypatch.setenv(VARIABLE, store)
    assert "many-1" in ask("runs").stdout


@pytest.mark.parametrize("address", ["nowhere", "host:", ":9090", "host:99999", "http://host:9090", "a b:1"])
def test_an_address_that_is_none_is_a_usage_error(address):
    result = ask("runs", address=address)
    assert result.exit_code == 2
    assert "expected HOST:PORT" in " ".join(result.stderr.split())


def test_an_address_and_a_state_folder_are_one_too_many(store):
    assert ask("runs", "--state", "x", address=store).exit_code == 2


@contextlib.contextmanager
def sandbox(folder, description):
    """A state folder as it is while a sandbox runs in it."""
    state = State.acquire(folder)
    try:
        state.describe(description)
        yield
    finally:
        state.release()


def test_a_sandbox_gives_the_address_of_its_envoy(store, tmp_path):
    with sandbox(tmp_path / "state", {"envoy": {"address": store}}):
        result = ask("runs", "--state", "state")
    assert "many-1" in result.stdout
    assert result.stderr == "next: memopod lineage show many-1 --state state\n"


def test_the_default_sandbox_is_found(store, tmp_path):
    with sandbox(tmp_path / ".memopod/sandbox", {"envoy": {"address": store}}):
        result = ask("runs")
    assert "many-1" in result.stdout
    assert result.stderr == "next: memopod lineage show many-1\n"


@pytest.mark.parametrize("description", [[], {}, {"envoy": None}, {"envoy": {}}])
def test_a_sandbox_that_describes_no_envoy_is_said(tmp_path, description):
    with sandbox(tmp_path / "state", description):
        result = ask("runs", "--state", "state")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: the sandbox in state describes no Envoy")


def test_a_state_folder_in_which_no_sandbox_runs_says_how_to_start_one():
    result = ask("runs", "--state", "nowhere")
    assert result.exit_code == 1
    assert "no sandbox runs in nowhere" in result.stderr
    assert "memopod sandbox up --state nowhere" in result.stderr
    assert result.stderr.count("\n") == 1


def test_without_any_address_what_was_looked_for_is_said(tmp_path):
    target = find_target(None, None)
    assert target.address == "localhost:9090"
    assert "no --address, no --state, no MEMOPOD_STORE, and no sandbox runs in .memopod/" in target.tried


@pytest.mark.parametrize("command", [[], ["runs"], ["show"], ["up"], ["down"]])
def test_help_shows_an_example(command):
    result = ask(*command, "--help")
    assert result.exit_code == 0
    assert "memopod lineage" in result.stdout
    assert "Example" in result.stdout
