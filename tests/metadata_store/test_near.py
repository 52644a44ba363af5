"""Light reads of SQLite, which the server answers itself."""

import os
import signal
import sqlite3
import time
from pathlib import Path

import pytest
from ml_metadata.proto import metadata_store_pb2 as mlmd
from ml_metadata.proto import metadata_store_service_pb2 as service

from metadata_store.connection import for_core, from_url, opened_again, prepare_sqlite, write_ahead
from metadata_store.core import CannotOpenStore
from metadata_store.frames import Answer
from metadata_store.near import LIGHT, Near
from metadata_store.process import Opening
from metadata_store.rpcs import LISTS, writes


def light_reads(client):
    """One of each light RPC that finds something."""
    ids = {
        "artifact": client.put_artifact_type(mlmd.ArtifactType(name="near")),
        "execution": client.put_execution_type(mlmd.ExecutionType(name="near")),
        "context": client.put_context_type(mlmd.ContextType(name="near")),
    }
    for kind, number in ids.items():
        node = getattr(mlmd, kind.title())(type_id=number, name="one")
        getattr(client, f"put_{kind}s")([node])
        yield f"Get{kind.title()}Type", {"type_name": "near"}
        yield f"Get{kind.title()}ByTypeAndName", {"type_name": "near", f"{kind}_name": "one"}


def test_light_reads_are_answered_while_no_worker_works(start_store):
    store = start_store()
    reads = dict(light_reads(store.client()))
    assert set(reads) == LIGHT
    workers = store.workers()
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    try:
        for rpc, fields in reads.items():
            answer = store.call(rpc, getattr(service, f"{rpc}Request")(**fields), timeout=20).result()
            assert answer.ByteSize() > 0, rpc
        with pytest.raises(Exception, match="NOT_FOUND"):
            store.call("GetContextType", service.GetContextTypeRequest(type_name="no"), timeout=20).result()
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
    # What gRPC prints, the server's own logs, and those of its workers are told still.
    assert Path(f"/proc/{store.process.pid}/fd/2").readlink() == store.log
    os.kill(workers[0], signal.SIGKILL)
    deadline = time.monotonic() + 30
    while '"worker replaced"' not in store.log.read_text():
        assert time.monotonic() < deadline
        store.call("GetContextTypes", service.GetContextTypesRequest()).result()


def test_only_reads_of_a_single_row_are_light():
    assert not any(writes(rpc) or rpc in LISTS for rpc in LIGHT)


def opening(config):
    return Opening(for_core(config).SerializeToString(), b"")


@pytest.fixture
def near(tmp_path):
    config = from_url(f"sqlite:///{tmp_path}/near.db")
    prepare_sqlite(config)
    near = Near(opening(config))
    yield near
    near.close()


REQUEST = service.GetContextTypeRequest(type_name="x").SerializeToString()


def test_other_calls_are_left_to_the_workers(near):
    assert near.answer("GetContextType", REQUEST).code == 5
    for rpc in ("GetContexts", "PutContextType", "GetContextsByID", "GetLineageSubgraph"):
        assert near.answer(rpc, b"") is None


def test_a_long_request_is_left_to_the_workers(near):
    for size, near_by in ((4000, True), (5000, False)):
        request = service.GetContextTypeRequest(type_name="'" * size).SerializeToString()
        assert (near.answer("GetContextType", request) is not None) is near_by


def test_what_another_process_just_wrote_is_read(store):
    client = store.client()
    for number in range(100):
        name = f"fresh-{number}"
        type_id = client.put_context_type(mlmd.ContextType(name=name))
        assert client.get_context_type(name).id == type_id
        for value in (1, 2):
            context = mlmd.Context(type_id=type_id, name="c")
            context.custom_properties["value"].int_value = value
            if known := client.get_context_by_type_and_name(name, "c"):
                context.id = known.id
            client.put_contexts([context])
            found = client.get_context_by_type_and_name(name, "c")
            assert found.custom_properties["value"].int_value == value


def test_only_while_the_core_works_is_nothing_told_on_descriptor_2(near, tmp_path):
    during = []
    place = Path("/proc/self/fd/2")
    near._core.once = lambda *_: during.append(place.readlink())
    before = place.readlink()
    near.answer("GetContextType", REQUEST)
    assert (during, place.readlink()) == ([Path(os.devnull)], before)
    with pytest.raises(CannotOpenStore):
        Near(opening(opened_again(from_url(f"sqlite:///{tmp_path}/no/such.db"))))
    assert place.readlink() == before


def test_after_a_stop_all_is_in_the_database_file(start_store):
    store = start_store()
    store.client().put_context_type(mlmd.ContextType(name="t"))
    assert store.client().get_context_type("t").id
    store.stop()
    assert {path.name for path in store.folder.iterdir()} == {"metadata.db", "store.log"}


def test_after_a_read_that_took_long_all_are_left_to_the_workers_for_a_while(near, monkeypatch):
    now = 1000.0
    took = 0.0

    def once(rpc, request):
        nonlocal now
        now += took
        return Answer(0, b"", b"")

    monkeypatch.setattr("metadata_store.near.time.monotonic", lambda: now)
    near._core.once = once
    assert near.answer("GetContextType", REQUEST) == Answer(0, b"", b"")
    took = 0.2
    assert near.answer("GetContextType", REQUEST) == Answer(0, b"", b"")
    now += 29
    assert near.answer("GetContextType", REQUEST) is None
    now += 2
    assert near.answer("GetContextType", REQUEST) == Answer(0, b"", b"")


@pytest.mark.parametrize("code", [10, 13])
def test_what_the_database_would_not_answer_is_asked_of_a_worker(near, code):
    near._core._methods["GetContextType"] = lambda _store, _request: (b"", b"database is locked", code)
    assert near.answer("GetContextType", REQUEST) is None


def test_a_file_without_a_write_ahead_log_is_left_to_the_workers(tmp_path):
    path = tmp_path / "m.db"
    for mode, expected in (("WAL", True), ("DELETE", False)):
        connection = sqlite3.connect(path)
        connection.execute(f"PRAGMA journal_mode={mode}")
        connection.execute("CREATE TABLE IF NOT EXISTS t (x)")
        connection.close()
        assert write_ahead(str(path)) is expected
