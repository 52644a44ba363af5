import asyncio
import contextlib
import os
import socket
import ssl
import sys

import pytest
import structlog

from memopod.kube import Client
from memopod.sandbox.apiserver.app import Server
from memopod.sandbox.apiserver.settings import Settings
from memopod.sandbox.certificates import prepare_state


@pytest.fixture(autouse=True)
def _own_logs():
    """What a service's `main` set up in another test of this process would write to a closed file."""
    structlog.reset_defaults()


@pytest.fixture
async def server(tmp_path):
    """A real API server; it keeps few changes, so that a version is soon too old."""
    server = await Server.start(Settings(state=str(tmp_path), history=5, bookmark_seconds=0.05))
    yield server
    await server.stop()


@pytest.fixture
async def client(server, tmp_path):
    async with Client.from_kubeconfig(str(tmp_path / "kubeconfig")) as client:
        yield client


@pytest.fixture
async def wire(server):
    """A connection to the server that can be cut, closed or made to hang."""
    wire = Wire(server.port)
    await wire.open()
    yield wire
    await wire.close()


@pytest.fixture
async def wired(wire, server, tmp_path):
    """A client whose traffic goes over `wire`."""
    kubeconfig = (tmp_path / "kubeconfig").read_text()
    path = tmp_path / "wired.kubeconfig"
    path.write_text(kubeconfig.replace(f":{server.port}", f":{wire.port}"))
    async with Client.from_kubeconfig(str(path)) as client:
        yield client


@pytest.fixture
async def process(tmp_path):
    """The server as a process of its own, which can be killed and started again on its port."""
    process = ServerProcess(tmp_path)
    await process.start()
    yield process
    await process.kill()


@pytest.fixture
async def start():
    """Run coroutines as tasks that end with the test; `start(coroutine)` returns the task."""
    tasks = []

    def start_(coroutine, name="test"):
        tasks.append(asyncio.create_task(coroutine, name=name))
        return tasks[-1]

    yield start_
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
def eventually():
    async def wait_for(condition, seconds=8.0):
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110 - any condition, not only events
                await asyncio.sleep(0.01)

    return wait_for


class Wire:
    """Forwards bytes to a port. `hang` keeps connections open and silent, `cut` breaks them."""

    def __init__(self, target):
        self._target = target
        self._tasks = set()
        self._writers = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self._listener = None
        self.port = 0

    async def open(self):
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._listener.sockets[0].getsockname()[1]

    def cut(self):
        for writer in self._writers:
            writer.transport.abort()

    def hang(self):
        self._flows.clear()

    def flow(self):
        self._flows.set()

    async def close(self):
        """Cut, and refuse new connections until `open`."""
        self._listener.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._listener.wait_closed()

    async def _accept(self, reader, writer):
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers |= {writer, there_writer}
        for source, sink in ((reader, there_writer), (there_reader, writer)):
            task = asyncio.create_task(self._pump(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source, sink):
        with contextlib.suppress(ConnectionError):
            while chunk := await source.read(65536):
                await self._flows.wait()
                sink.write(chunk)
                await sink.drain()
        sink.close()
        self._writers.discard(sink)


class ServerProcess:
    def __init__(self, state):
        self.state = state
        self.kubeconfig = str(state / "kubeconfig")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._process = None

    async def start(self):
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "memopod.sandbox.apiserver", "--state", str(self.state)),
            *("--listen-port", str(self.port), "--bookmark-seconds", "0.05"),
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )
        await self._ready()

    async def kill(self):
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def _ready(self):
        async with asyncio.timeout(20):
            while not await self._listens():  # noqa: ASYNC110 - a process tells nobody that it is ready
                await asyncio.sleep(0.05)

    async def _listens(self):
        context = ssl.create_default_context(cafile=str(prepare_state(self.state, self.port).ca))
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=context)
        except OSError:
            return False
        writer.close()
        await writer.wait_closed()
        return True
