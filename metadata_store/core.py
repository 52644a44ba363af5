"""One store of ml-metadata's core: opened, called, and opened again when its connection breaks."""

import os
import random
import re
import select
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ml_metadata.metadata_store.pywrap.metadata_store_extension import metadata_store as binding
from ml_metadata.proto import metadata_store_pb2

from metadata_store.failures import ABORTED, INVALID_ARGUMENT, UNAVAILABLE, Failure, failure
from metadata_store.frames import Answer
from metadata_store.guard import Refused, guard_for
from metadata_store.repeat import outcome_unknown
from metadata_store.rpcs import OF_CORE, writes

_TRIES = 5
_LONGEST_PAUSE = 0.05  # a lost deadlock is won on the next try, most times
_QUICK = 1.0  # seconds: an attempt to connect that took longer is not repeated within a call
# glog's lines begin with their level and the date.
_REASON = re.compile(r"PostgreSQL error: (.*?)(?=\n[IWEF]\d{4} |\Z)", re.DOTALL)


class CannotOpenStore(Exception):
    """The core could not open the database; the text says why, as far as the core knows."""


class Core:
    """Answers calls on one database. A read is asked again after a broken connection or a lost conflict,
    a write only where it was rolled back for certain (see `repeat` for the others).
    """

    def __init__(self, connection: bytes, migration: bytes) -> None:
        self._connection = connection
        self._methods = {name: getattr(binding, name) for name in OF_CORE}
        config = metadata_store_pb2.ConnectionConfig.FromString(connection)
        self._guard = guard_for(config.WhichOneof("config"))
        self._sockets = select.poll()
        self._store: object | None = None
        self._open(migration)

    def call(self, rpc: str, request: bytes) -> Answer:
        """The answer to one call."""
        try:
            guarded = self._guard.request(rpc, request)
        except Refused as error:
            return Answer(INVALID_ARGUMENT, str(error).encode(), b"")
        answer = self._tried(rpc, guarded)
        if answer.code == 0:
            return Answer(0, b"", self._guard.response(rpc, answer.response))
        return Answer(answer.code, self._guard.error(answer.error), b"")

    def _tried(self, rpc: str, request: bytes) -> Answer:
        for left in reversed(range(_TRIES)):
            if self._store is None or self._sockets.poll(0):
                started = time.monotonic()
                try:
                    self._open()
                except CannotOpenStore as error:
                    if left and time.monotonic() - started < _QUICK:
                        _pause()
                        continue
                    return Answer(UNAVAILABLE, f"cannot open the database: {error}".encode(), b"")
            response, text, code = self._methods[rpc](self._store, request)
            answer = Answer(code, text, response)
            why = failure(answer)
            if why is Failure.VALUE:
                return answer._replace(code=INVALID_ARGUMENT)
            if why is Failure.NONE:
                return answer
            if why is Failure.LOST:
                self._store = None
                if writes(rpc):
                    return outcome_unknown(rpc, request, "the connection to the database was lost")
            _pause()
        return answer._replace(code=UNAVAILABLE if why is Failure.LOST else ABORTED)

    def _open(self, migration: bytes = b"") -> None:
        self._store = None  # closes the old connection first
        before = _sockets()
        with _printed() as read:
            try:
                self._store = binding.CreateMetadataStore(self._connection, migration)
            except RuntimeError as trouble:  # the binding's only exception
                reasons = _REASON.findall(read())
                text = " ".join(reasons[-1].split()) if reasons else str(trouble)
                raise CannotOpenStore(text) from None
        # The connection's descriptor: it tells at no cost that a server hung up on an idle connection,
        # before a write goes down it whose outcome nobody would know.
        self._sockets = select.poll()
        for number in _sockets() - before:
            self._sockets.register(number, select.POLLRDHUP)


def _pause() -> None:
    time.sleep(random.uniform(0, _LONGEST_PAUSE))  # noqa: S311 (spreads load, guards nothing)


def _sockets() -> set[int]:
    found = set()
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the listing's own descriptor is closed by now
            if str(path.readlink()).startswith("socket:"):
                found.add(int(path.name))
    return found


@contextmanager
def _printed() -> Iterator[Callable[[], str]]:
    """Collects what C++ prints to descriptor 2: only there does the core say why PostgreSQL refused it.

    From then on nothing that it prints is kept: of a statement that fails it prints the values, too.
    """
    paper = os.memfd_create("core")
    os.dup2(paper, 2)
    try:
        yield lambda: os.pread(paper, 1 << 16, 0).decode(errors="replace")
    finally:
        os.close(paper)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
