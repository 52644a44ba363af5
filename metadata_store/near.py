"""Light reads, answered in the server's own process (`light` says which and how).

Handing a call to a worker and its answer back costs many times what SQLite takes for such a read, and on
MySQL the core asks six statements where one does. Whatever is not answered here is None: a worker is asked
then, which has the time for it. After a read that took long (a slow disk, a server that hangs) none is
answered here for a while.
"""

import asyncio
import mmap
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import asyncmy
import structlog
from asyncmy.errors import MySQLError
from ml_metadata.proto import metadata_store_pb2

from metadata_store.frames import Answer
from metadata_store.light import LIGHT, Row, parameters, response_to

_LONG: Final = 0.05
_REST_SECONDS: Final = 30.0
_PATIENCE: Final = 0.5
_CONNECTIONS: Final = 8
_HEAD: Final = 48  # bytes of each of the head's two copies; https://sqlite.org/walformat.html, 2.1
_KEPT, _KEPT_BYTES = 1000, 4096


class Near(Protocol):
    """What the pool asks first."""

    async def answer(self, rpc: str, request: bytes) -> Answer | None:
        """The answer to a light read; None where a worker must be asked."""

    def close(self) -> None:
        """Close the database; from then on all calls are left to the workers."""


class _Rest:
    """For how long no call is answered here."""

    def __init__(self) -> None:
        self._until = 0.0

    def over(self) -> bool:
        return time.monotonic() >= self._until

    def begin(self, why: str, seconds: float = _REST_SECONDS) -> None:
        self._until = time.monotonic() + seconds
        structlog.get_logger().warning("light reads are left to the workers", reason=why, seconds=seconds)

    def for_ever(self) -> None:
        self._until = float("inf")


class SqliteNear:
    """A connection to SQLite's file. The server does nothing else while it reads, so it waits for no lock.

    What was read is known until something is committed: SQLite itself tells by the head of the write-ahead
    log's index whether what it has in memory is still what is in the database, and so it is done here.
    A commit changes the head before its client hears of it.

    As long as it is open, nothing else in this process may open and close the file or the index, the core
    neither: that would drop the locks which SQLite's library holds (a rule of POSIX). Raises OSError if they
    cannot be opened.
    """

    def __init__(self, path: str) -> None:
        self._rest = _Rest()
        try:
            self._connection = sqlite3.connect(
                f"{Path(path).absolute().as_uri()}?mode=rw", uri=True, timeout=0, isolation_level=None
            )
            self._connection.execute("PRAGMA query_only = 1")
            self._connection.execute("PRAGMA schema_version").fetchall()  # opens the index
        except sqlite3.Error as error:
            raise OSError(f"cannot open the database {path}: {error}") from error
        self._file = Path(f"{path}-shm").open("rb")  # noqa: SIM115 (see `close`)
        self._index = mmap.mmap(self._file.fileno(), 2 * _HEAD, prot=mmap.PROT_READ)
        self._head = b""
        self._known: dict[tuple[str, bytes], Answer] = {}

    def close(self) -> None:
        """Close the files, the index last."""
        self._rest.for_ever()
        self._connection.close()
        self._index.close()
        self._file.close()

    async def answer(self, rpc: str, request: bytes) -> Answer | None:
        """The answer to a light read; None where a worker must be asked."""
        if rpc not in LIGHT or not self._rest.over():
            return None
        head = self._index[: 2 * _HEAD]
        if head[:_HEAD] != head[_HEAD:]:  # it is being written, by whoever may take long to end it
            return None
        if head != self._head:
            self._known.clear()
            self._head = head
        elif (known := self._known.get((rpc, request))) is not None:
            return known
        answer = self._read(rpc, request)
        if (
            answer is not None
            and len(answer.response) <= _KEPT_BYTES
            and len(self._known) < _KEPT
            and head == self._index[: 2 * _HEAD]
        ):
            self._known[rpc, request] = answer
        return answer

    def _read(self, rpc: str, request: bytes) -> Answer | None:
        if (names := parameters(rpc, request)) is None:
            return None
        started = time.monotonic()
        try:
            rows = self._connection.execute(LIGHT[rpc].statement, names).fetchall()
        except sqlite3.Error:  # locked, damaged, not UTF-8: the core says what it is
            rows = None
        took = time.monotonic() - started
        if took > _LONG:
            self._rest.begin(f"{rpc} took {took:.3f} s")
        return _answered(rpc, rows)


class MysqlNear:
    """Connections to MySQL or MariaDB, opened as they are needed and given up when one of them fails."""

    def __init__(self, config: "metadata_store_pb2.MySQLDatabaseConfig") -> None:
        self._rest = _Rest()
        self._where: dict[str, Any] = (
            {"unix_socket": config.socket}
            if config.socket
            else {"host": config.host, "port": config.port or 3306}
        )
        self._where |= {"user": config.user, "password": config.password, "database": config.database}
        self._idle: list[Any] = []
        self._used = 0
        self._statements = {rpc: light.statement.replace("?", "%s") for rpc, light in LIGHT.items()}

    def close(self) -> None:
        """Close the connections."""
        self._rest.for_ever()
        self._close_idle()

    async def answer(self, rpc: str, request: bytes) -> Answer | None:
        """The answer to a light read; None where a worker must be asked."""
        if rpc not in LIGHT or self._used >= _CONNECTIONS or not self._rest.over():
            return None
        if (names := parameters(rpc, request)) is None:
            return None
        self._used += 1
        try:
            return _answered(rpc, await self._rows(self._statements[rpc], names))
        finally:
            self._used -= 1

    async def _rows(self, statement: str, names: tuple[str, ...]) -> Sequence[Row] | None:
        connection, new = None, not self._idle
        try:
            async with asyncio.timeout(_PATIENCE):
                if new:
                    # Each statement reads what is committed when it begins.
                    connection = await asyncmy.connect(autocommit=True, **self._where)
                else:
                    connection = self._idle.pop()
                cursor = connection.cursor()
                await cursor.execute(statement, names)
                rows: Sequence[Row] = await cursor.fetchall()
        except BaseException as error:
            if connection is not None:
                connection.close()
            if not isinstance(error, (MySQLError, OSError, RuntimeError, UnicodeDecodeError)):
                raise
            self._close_idle()
            if new or isinstance(error, TimeoutError):
                self._rest.begin(type(error).__name__)
            return None
        self._idle.append(connection)
        return rows

    def _close_idle(self) -> None:
        while self._idle:
            self._idle.pop().close()


def _answered(rpc: str, rows: Sequence[Row] | None) -> Answer | None:
    response = None if rows is None else response_to(rpc, rows)
    return None if response is None else Answer(0, b"", response)
