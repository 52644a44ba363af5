"""Light reads, which the server answers itself."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
from ml_metadata.proto import metadata_store_pb2 as mlmd
from ml_metadata.proto import metadata_store_service_pb2 as service

from metadata_store.connection import for_core, from_url, prepare_sqlite, write_ahead
from metadata_store.core import Core
from metadata_store.frames import Answer
from metadata_store.light import LIGHT
from metadata_store.near import MysqlNear, SqliteNear


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


@pytest.mark.parametrize("kind", ["sqlite", "mysql"])
def test_light_reads_are_answered_while_no_worker_works(start_store, request, database_on, kind):
    url = None if kind == "sqlite" else database_on(request.getfixturevalue("mariadb"), kind).url
    store = start_store(url=url)
    reads = dict(light_reads(store.client()))
    assert set(reads) == set(LIGHT)
    workers = store.workers()
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    try:
        for rpc, fields in reads.items():
            for _ in range(2):
                answer = store.call(rpc, getattr(service, f"{rpc}Request")(**fields), timeout=20).result()
                assert answer.ByteSize() > 0, rpc
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
    with pytest.raises(Exception, match="NOT_FOUND"):
        store.call("GetContextType", service.GetContextTypeRequest(type_name="no"), timeout=20).result()


@pytest.fixture
def path(tmp_path):
    """A file as the store's workers leave it, with a type and a context."""
    config = from_url(f"sqlite:///{tmp_path}/near.db")
    prepare_sqlite(config)
    core = Core(for_core(config).SerializeToString(), b"")
    for rpc, fields in (
        ("PutContextType", {"context_type": mlmd.ContextType(name="x")}),
        ("PutContexts", {"contexts": [mlmd.Context(type_id=10, name="one", external_id="0")]}),
    ):
        answer = core.call(rpc, getattr(service, f"{rpc}Request")(**fields).SerializeToString())
        assert answer.code == 0, answer.error
    return tmp_path / "near.db"


class Other:
    """Another program with the file open; it does what it is told, a line of Python at a time."""

    def __init__(self, path):
        self.process = subprocess.Popen(
            [sys.executable, "-c", OTHER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, line):
        print(line, file=self.process.stdin, flush=True)
        assert self.process.stdout.readline() == "done\n", line

    def end(self):
        with self.process:
            self.process.kill()


OTHER = """
import fcntl, sqlite3, sys
path = sys.argv[1]
file = sqlite3.connect(path, isolation_level=None)
file.execute("SELECT * FROM Type").fetchall()
index = open(path + "-shm", "r+b")
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""


@pytest.fixture
def other(path, near):
    other = Other(path)
    yield other
    other.end()


@pytest.fixture
def near(path):
    near = SqliteNear(str(path))
    yield near
    near.close()


REQUEST = service.GetContextTypeRequest(type_name="x").SerializeToString()


async def test_other_calls_are_left_to_the_workers(near):
    assert (await near.answer("GetContextType", REQUEST)).code == 0
    for rpc in ("GetContexts", "PutContextType", "GetContextsByID", "GetLineageSubgraph"):
        assert await near.answer(rpc, b"") is None


CONTEXT = service.GetContextByTypeAndNameRequest(type_name="x", context_name="one").SerializeToString()


async def external_id(near):
    answer = await near.answer("GetContextByTypeAndName", CONTEXT)
    return service.GetContextByTypeAndNameResponse.FromString(answer.response).context.external_id


async def test_what_is_known_is_known_until_the_next_commit_of_whomever(near, other, monkeypatch):
    for number in range(50):
        other(f"file.execute('UPDATE Context SET external_id = {number}')")
        assert await external_id(near) == str(number)
        assert await external_id(near) == str(number)
        if number % 10 == 5:
            other("file.execute('PRAGMA wal_checkpoint(TRUNCATE)')")
            assert await external_id(near) == str(number)
    monkeypatch.setattr("metadata_store.near.parameters", None)  # nothing is read now
    assert await external_id(near) == "49"


async def test_a_change_that_is_not_committed_is_neither_waited_for_nor_seen(near, other):
    other("file.execute('BEGIN IMMEDIATE')")
    other("file.execute('UPDATE Context SET external_id = 7')")
    assert await external_id(near) == "0"
    other("file.execute('COMMIT')")
    assert await external_id(near) == "7"


async def test_what_is_known_is_bounded(near, monkeypatch):
    monkeypatch.setattr("metadata_store.near._KEPT", 3)
    for number in range(10):
        request = service.GetContextByTypeAndNameRequest(type_name="x", context_name=f"n{number}")
        assert await near.answer("GetContextByTypeAndName", request.SerializeToString()) == Answer(
            0, b"", b""
        )
    assert len(near._known) == 3


@pytest.mark.parametrize("locks", [1, 3], ids=["a writer that hangs", "one that rebuilds it"])
async def test_an_index_that_another_program_keeps_locked_and_torn_stops_nobody(near, other, locks):
    """The bytes are those of SQLite's locks: https://sqlite.org/walformat.html, 2.3."""
    assert await external_id(near) == "0"
    other(f"fcntl.lockf(index, fcntl.LOCK_EX, {locks}, 120)")
    other("index.seek(8); index.write(b'torn'); index.flush()")
    started = time.monotonic()
    assert await near.answer("GetContextByTypeAndName", CONTEXT) is None
    assert time.monotonic() - started < 1


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


def test_after_a_stop_all_is_in_the_database_file(start_store):
    store = start_store()
    store.client().put_context_type(mlmd.ContextType(name="t"))
    assert store.client().get_context_type("t").id
    store.stop()
    assert {path.name for path in store.folder.iterdir()} == {"metadata.db", "store.log"}


async def test_after_a_read_that_took_long_all_are_left_to_the_workers_for_a_while(near, monkeypatch):
    now = 1000.0
    took = 0.0

    class Slow:
        def execute(self, *_):
            nonlocal now
            now += took
            return near_connection.execute(*_)

        def close(self):
            near_connection.close()

    near_connection = near._connection
    monkeypatch.setattr("metadata_store.near.time.monotonic", lambda: now)
    monkeypatch.setattr("metadata_store.near._KEPT", 0)
    near._connection = Slow()
    assert await external_id(near) == "0"
    took = 0.2
    assert await external_id(near) == "0"
    now += 29
    assert await near.answer("GetContextByTypeAndName", CONTEXT) is None
    now += 2
    assert await external_id(near) == "0"


async def test_a_server_that_hangs_or_hangs_up_is_left_to_the_workers(mariadb, database_on, start_store):
    database = database_on(mariadb, "mysql")
    start_store(url=database.url)
    near = MysqlNear(from_url(database.url).mysql)
    try:
        assert (await near.answer("GetContextByTypeAndName", CONTEXT)).response == b""
        await asyncio.to_thread(database.disconnect_all)
        assert await near.answer("GetContextByTypeAndName", CONTEXT) is None
        assert (await near.answer("GetContextByTypeAndName", CONTEXT)).response == b""
        os.kill(mariadb.process.pid, signal.SIGSTOP)
        try:
            started = time.monotonic()
            assert await near.answer("GetContextByTypeAndName", CONTEXT) is None
            assert time.monotonic() - started < 10
        finally:
            os.kill(mariadb.process.pid, signal.SIGCONT)
        assert await near.answer("GetContextByTypeAndName", CONTEXT) is None  # for a while
    finally:
        near.close()


def test_a_file_without_a_write_ahead_log_is_left_to_the_workers(tmp_path):
    path = tmp_path / "m.db"
    for mode, expected in (("WAL", True), ("DELETE", False)):
        connection = sqlite3.connect(path)
        connection.execute(f"PRAGMA journal_mode={mode}")
        connection.execute("CREATE TABLE IF NOT EXISTS t (x)")
        connection.close()
        assert write_ahead(str(path)) is expected
