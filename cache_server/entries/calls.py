"""Calls to the database: each has a deadline, and is tried again where its server asks for that."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import AsyncExitStack
from typing import Any, TypeVar

import structlog
from sqlalchemy import Executable, Row
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.pool import QueuePool

from cache_server.entries.databases import cause_of, is_transient
from cache_server.entries.entry import EntriesUnavailable

_log = structlog.get_logger()

_ATTEMPTS = 5
"""How often a transaction is tried that its server gives up in favour of another (a deadlock)."""

_BACKOFF_SECONDS = 0.02
"""Longest pause before the second attempt; it doubles with each."""

_CLOSING_SECONDS = 5.0
"""How long calls that were given up may take to let go of their connections when the database closes."""

T = TypeVar("T")


class Database:
    """An engine, and one deadline (`timeout`, seconds) for each call.

    A call that reaches its deadline is cancelled and not waited for: closing a connection to a server
    that does not answer takes its own time. `_ending` holds those calls until they have ended.
    """

    def __init__(self, engine: AsyncEngine, *, timeout: float, reader: AsyncEngine | None = None) -> None:
        """`reader`: an engine of `create_reader`, for `read`; without one the other is used."""
        self.engine = engine
        self._reader = reader or engine
        self._timeout = timeout
        self._ending: set[asyncio.Task[Any]] = set()
        self._listeners: list[Callable[[str | None], None]] = []

    def patient(self, timeout: float) -> "Database":
        """The same connections and listeners with another deadline. Only the first one is to be closed."""
        other = Database(self.engine, timeout=timeout, reader=self._reader)
        other._listeners = self._listeners
        return other

    def on_change(self, listener: Callable[[str | None], None]) -> None:
        """Have `listener(namespace)` called after each change of a namespace's token by this process.

        None stands for any namespace: a call had no answer, so that nobody knows what it did.
        """
        self._listeners.append(listener)

    def changed(self, namespaces: Iterable[str | None]) -> None:
        """Tell the listeners that the tokens of these namespaces have changed, or may have."""
        for namespace in set(namespaces):
            for listener in self._listeners:
                listener(namespace)

    @property
    def dialect(self) -> str:
        """`sqlite`, `mysql` (MariaDB too) or `postgresql`."""
        return self.engine.dialect.name

    async def call(self, name: str, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Do `work` in one transaction. Raises EntriesUnavailable, which names the call.

        `work` may run several times; of those, one is committed at most.
        """
        return await self._within(name, self._transact(work))

    async def read(self, name: str, statement: Executable, values: Mapping[str, Any]) -> Row[Any]:
        """The only row that a statement finds, which stands alone. Raises EntriesUnavailable."""
        return await self._within(name, self._read(statement, values))

    async def connect(self) -> None:
        """Open the connections that `read` uses, so that nobody who asks waits for one to be opened.

        Raises EntriesUnavailable; they are opened when they are needed then.
        """
        await self._within("connect", self._connect())

    async def _connect(self) -> None:
        pool = self._reader.pool
        assert isinstance(pool, QueuePool), "as `create_reader` makes it"
        async with AsyncExitStack() as held:
            opening = (held.enter_async_context(self._reader.connect()) for _ in range(pool.size()))
            for opened in await asyncio.gather(*opening, return_exceptions=True):
                if isinstance(opened, BaseException):
                    raise opened

    async def _read(self, statement: Executable, values: Mapping[str, Any]) -> Row[Any]:
        try:
            async with self._reader.connect() as connection:
                return (await connection.execute(statement, values)).one()
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
        # The server has closed it, and so all others that were open: this one is new.
        async with self._reader.connect() as connection:
            return (await connection.execute(statement, values)).one()

    async def _within(self, name: str, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.create_task(work, name=f"entries:{name}")
        try:
            await asyncio.wait({task}, timeout=self._timeout)
        finally:
            if not task.done():
                self._ending.add(task)
                task.add_done_callback(self._ended)
                task.cancel()
        if task in self._ending:
            raise EntriesUnavailable(f"entries: {name}: no answer within {self._timeout:g} s")
        try:
            return task.result()
        except (SQLAlchemyError, OSError) as error:
            raise EntriesUnavailable(f"entries: {name}: {cause_of(error)}") from error

    async def _transact(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        for attempt in range(1, _ATTEMPTS):
            try:
                async with self.engine.begin() as connection:
                    return await work(connection)
            except DBAPIError as error:
                if not is_transient(error):
                    raise
                pause = random.uniform(0, _BACKOFF_SECONDS * 2**attempt)  # noqa: S311  no secret
                _log.info("transaction tried again", attempt=attempt, cause=cause_of(error))
            await asyncio.sleep(pause)
        async with self.engine.begin() as connection:
            return await work(connection)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._ending.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.debug("a call past its deadline ended", call=task.get_name(), cause=cause_of(error))

    async def close(self) -> None:
        """Close every connection; calls past their deadline are waited for, but not for long."""
        if self._ending:
            await asyncio.wait(self._ending, timeout=_CLOSING_SECONDS)
        await self.engine.dispose()
        await self._reader.dispose()
