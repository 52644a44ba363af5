import asyncio
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from urllib.parse import quote

import asyncmy
import asyncpg
import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass
from ml_metadata.metadata_store import MetadataStore
from ml_metadata.metadata_store.pywrap.metadata_store_extension import metadata_store as binding
from ml_metadata.proto import metadata_store_pb2, metadata_store_service_pb2

from metadata_store.connection import for_core, from_url

SERVICE = metadata_store_service_pb2.DESCRIPTOR.services_by_name["MetadataStoreService"]
CODES = {code.value[0]: code for code in grpc.StatusCode}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def until(condition, *, seconds=20.0):
    """Wait for a condition; what it returns."""
    end = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < end, f"not so within {seconds} s: {condition}"
        time.sleep(0.02)
    return result


@pytest.fixture
def run_store():
    """Runs `python -m metadata_store` to its end."""

    def run(*flags):
        return subprocess.run(
            [sys.executable, "-m", "metadata_store", "--grpc_port=0", *flags],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    return run


@pytest.fixture(name="until")
def _until():
    return until


class StoreServer:
    """`python -m metadata_store` as a process of its own."""

    def __init__(self, folder, *flags, url=None):
        self.folder = folder
        self.database = folder / "metadata.db"
        self.url = url or f"sqlite:///{self.database}"
        self.port, self.health_port = free_port(), free_port()
        self.log = folder / "store.log"
        self.flags = flags
        self.process = None
        self.channel = None

    def start(self, *flags):
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "metadata_store", f"--grpc_port={self.port}",
                    "--database", self.url, "--health-port", str(self.health_port),
                    *self.flags, *flags,
                ],
                stdout=log, stderr=log,
            )  # fmt: skip
        until(lambda: self.process.poll() is not None or self.ready())
        assert self.process.poll() is None, self.log.read_text()
        self.channel = grpc.insecure_channel(
            f"127.0.0.1:{self.port}",
            options=[
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_metadata_size", 32768),
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )
        return self

    def ready(self):
        return self.http("/readyz")[0] == 200

    def http(self, path):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.health_port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def client(self):
        return MetadataStore(
            metadata_store_pb2.MetadataStoreClientConfig(
                host="127.0.0.1", port=self.port, client_timeout_sec=30
            )
        )

    def call(self, rpc, request, **options):
        """The future of a raw call."""
        method = SERVICE.methods_by_name[rpc]
        send = self.channel.unary_unary(
            f"/{SERVICE.full_name}/{rpc}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        return send.future(request, timeout=options.pop("timeout", 30), **options)

    def workers(self):
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in children.read_text().split()]

    def kill(self):
        self.process.kill()
        self.process.wait(10)
        self.channel.close()

    def stop(self):
        if self.process is not None and self.process.poll() is None:
            self.channel.close()
            self.process.send_signal(signal.SIGTERM)
            assert self.process.wait(30) == 0, self.log.read_text()


@pytest.fixture(scope="module")
def start_store(tmp_path_factory):
    """Starts stores; all are stopped at the end of the module."""
    stores = []

    def start(*flags, url=None, folder=None):
        store = StoreServer(folder or tmp_path_factory.mktemp("store"), *flags, url=url)
        stores.append(store)
        return store.start()

    yield start
    for store in stores:
        store.stop()


@pytest.fixture(scope="module")
def store(start_store):
    return start_store()


class ServedDatabase:
    """A database of its own on a server; the store creates it."""

    def __init__(self, server, kind):
        self.server, self.kind = server, kind
        self.name = f"m{uuid.uuid4().hex[:12]}"
        self.url = (
            f"{kind}://{server.user}:{quote(server.password, safe='')}@127.0.0.1:{server.port}/{self.name}"
        )

    def query(self, statement):
        """Run a statement beside the store; returns its rows."""
        return asyncio.run(self._query(statement))

    async def _query(self, statement):
        place = {
            "host": "127.0.0.1", "port": self.server.port,
            "user": self.server.user, "password": self.server.password,
        }  # fmt: skip
        if self.kind == "postgresql":
            connection = await asyncpg.connect(**place, database=self.name)
            rows = await connection.fetch(statement)
            await connection.close()
            return [tuple(row) for row in rows]
        connection = await asyncmy.connect(**place, db=self.name, autocommit=True)
        async with connection.cursor() as cursor:
            await cursor.execute(statement)
            rows = [] if cursor.description is None else await cursor.fetchall()
        await connection.ensure_closed()
        return list(rows)

    def disconnect_all(self):
        """Cut every connection to the database, as a failover does."""
        if self.kind == "postgresql":
            self.query(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                f"WHERE datname = '{self.name}' AND pid <> pg_backend_pid()"
            )
            return
        for (number,) in self.query(
            f"SELECT id FROM information_schema.processlist WHERE db = '{self.name}' "
            "AND id <> connection_id()"
        ):
            self.query(f"KILL {number}")


@pytest.fixture(scope="module", params=["mysql", "postgresql"])
def served_database(request):
    server = request.getfixturevalue({"mysql": "mariadb", "postgresql": "postgresql"}[request.param])
    return ServedDatabase(server, request.param)


class Twins:
    """The server and the core in this process, given the same calls: their answers must be equal."""

    def __init__(self, store, url):
        self._store = store
        self.calls = 0
        self._core = binding.CreateMetadataStore(for_core(from_url(url)).SerializeToString(), b"")

    def __call__(self, rpc, **fields):
        """(code, error message, response) of a call."""
        self.calls += 1
        method = SERVICE.methods_by_name[rpc]
        request = GetMessageClass(method.input_type)(**fields)
        body, error, code = getattr(binding, rpc)(self._core, request.SerializeToString())
        expected = GetMessageClass(method.output_type).FromString(body if code == 0 else b"")
        call = self._store.call(rpc, request)
        served = call.result() if call.exception() is None else type(expected)()
        listed = rpc.startswith("Get") and "options" in fields  # only then rows are asked for in an order
        outcome = (call.code(), _timeless(call.details() or ""), _comparable(served, listed))
        assert outcome == (CODES[code], _timeless(error.decode()), _comparable(expected, listed))
        return call.code(), call.details() or "", served


@pytest.fixture
def twins_of():
    """Makes twins of a server and of the core on another database of the same kind."""
    return Twins


@pytest.fixture
def database_on():
    """Makes databases on a server."""
    return ServedDatabase


def _timeless(text):
    # Messages quote nodes: with times of each database, and with maps and sets in any order. Of several
    # properties that are wrong they name any one, and of several ways in which types differ.
    text = re.sub(r"(Type already exists with different properties)[\s\S]*", r"\1", text)
    text = re.sub(r"Found (un\w+) property( type)?: .*", "Found property", text)
    return sorted(re.findall(r"[^\s,{}]+", re.sub(r"\b\d{13}\b", "TIME", text)))


def _comparable(message, in_order):
    _without_times(message)
    holder = message
    if isinstance(message, metadata_store_service_pb2.GetLineageSubgraphResponse):
        holder, in_order = message.lineage_subgraph, False  # the core's sets have no order
    for field, value in () if in_order else holder.ListFields():
        if field.label == field.LABEL_REPEATED and field.message_type is not None:
            value.sort(key=lambda part: part.SerializeToString(deterministic=True))
    return message


def _without_times(message):
    for field, value in message.ListFields():
        if field.name in {
            "create_time_since_epoch", "last_update_time_since_epoch", "milliseconds_since_epoch",
        }:  # fmt: skip
            message.ClearField(field.name)
        elif field.message_type is not None and not field.message_type.GetOptions().map_entry:
            for part in value if field.label == field.LABEL_REPEATED else [value]:
                _without_times(part)
    return message


@pytest.fixture(scope="module")
def twins(store, tmp_path_factory):
    return Twins(store, f"sqlite:///{tmp_path_factory.mktemp('twin')}/twin.db")
