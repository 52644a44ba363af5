"""A worker process as the server sees it: started, given one call at a time, ended."""

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NamedTuple, Self

from metadata_store.frames import ANSWER, Answer, pack_pair
from metadata_store.login import PLUGINS

_OPEN_SECONDS = 60.0  # a schema upgrade of a large database happens here
_END_SECONDS = 5.0


class Opening(NamedTuple):
    """What the core needs to open a store: serialized ConnectionConfig and MigrationOptions."""

    connection: bytes
    migration: bytes


class CannotOpen(OSError):
    """The core could not open its store; the text is the core's."""


class WorkerProcess(asyncio.Protocol):
    """One process with one open store. It answers calls in the order in which they are sent.

    `on_answer(process, answer)` is called for each answer, `on_lost(process)` once, when the process
    is gone or going, with the call it had in `current` unanswered.
    """

    def __init__(self) -> None:
        self.on_answer: Callable[[WorkerProcess, Answer], None] | None = None
        self.on_lost: Callable[[WorkerProcess], None] | None = None
        self.lost = asyncio.Event()
        self.busy_since: float | None = None
        self._opened: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._under_way = 0
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    async def open(cls, opening: Opening) -> Self:
        """Start a process and wait until its store is open.

        Raises CannotOpen with the core's message if the database cannot be opened.
        """
        worker = cls()
        ours, theirs = socket.socketpair()
        with theirs:
            worker._process = _spawn(theirs)
        transport, _ = await asyncio.get_running_loop().create_connection(lambda: worker, sock=ours)
        worker._transport = transport
        transport.writelines(pack_pair(*opening))
        try:
            async with asyncio.timeout(_OPEN_SECONDS):
                answer = await worker._opened
        except TimeoutError:
            await worker.end(kill=True)
            raise CannotOpen(f"the database did not open within {_OPEN_SECONDS:.0f} s") from None
        except asyncio.CancelledError:
            await worker.end(kill=True)
            raise
        if answer.code != 0:
            await worker.end(kill=True)
            raise CannotOpen(answer.error.decode(errors="replace"))
        return worker

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process is not None
        return self._process.pid

    def send(self, rpc: str, request: bytes) -> None:
        """Hand a call over; the answer comes through `on_answer`."""
        assert self._transport is not None
        if not self._under_way:
            self.busy_since = time.monotonic()
        self._under_way += 1
        self._transport.writelines(pack_pair(rpc.encode(), request))

    def kill(self) -> None:
        """End the process at once; `on_lost` follows."""
        assert self._process is not None
        self._process.kill()

    async def end(self, *, kill: bool = False) -> None:
        """Close the socket, upon which the process ends, and reap it; killed if it takes too long."""
        assert self._process is not None
        if kill:
            self._process.kill()
        if self._transport is not None:
            self._transport.close()
        await asyncio.to_thread(_reap, self._process)

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        """Collect the bytes of answers."""
        self._buffer += data
        while (answer := self._next_answer()) is not None:
            if not self._opened.done():
                self._opened.set_result(answer)
                continue
            self._under_way -= 1
            self.busy_since = time.monotonic() if self._under_way else None
            if self.on_answer is not None:
                self.on_answer(self, answer)

    def _next_answer(self) -> Answer | None:
        buffer = self._buffer
        if len(buffer) < ANSWER.size:
            return None
        code, error_size, response_size = ANSWER.unpack_from(buffer)
        split, end = ANSWER.size + error_size, ANSWER.size + error_size + response_size
        if len(buffer) < end:
            return None
        with memoryview(buffer) as view:
            answer = Answer(code, bytes(view[ANSWER.size : split]), bytes(view[split:end]))
        del buffer[:end]
        return answer

    def connection_lost(self, _error: Exception | None) -> None:
        """The process is gone or going."""
        if not self._opened.done():
            self._opened.set_result(Answer(14, b"the worker process ended while it opened the database", b""))
        self.lost.set()
        if self.on_lost is not None:
            self.on_lost(self)


def _environment() -> dict[str, str]:
    """What the client libraries inside the core read from the environment."""
    return {"MARIADB_PLUGIN_DIR": PLUGINS, "PGCONNECT_TIMEOUT": "10", "PGAPPNAME": "memopod", **os.environ}


def _spawn(theirs: socket.socket) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 (our own module)
        [sys.executable, "-m", "metadata_store.worker", str(theirs.fileno()), str(os.getpid())],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr.fileno(),
        env=_environment(),
    )


def _reap(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(_END_SECONDS)
