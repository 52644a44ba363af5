"""Entries in a SQL database."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from typing import Any, TypeVar

import msgspec
import structlog
from sqlalchemy import (
    ColumnElement,
    Insert,
    Row,
    and_,
    case,
    delete,
    exists,
    func,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from cache_server.entries.databases import cause_of, create_engine, is_transient
from cache_server.entries.entry import EntriesUnavailable, Entry
from cache_server.entries.migrations import check_schema, migrate
from cache_server.entries.schema import Instant, entries
from memopod.steps.locations import Location
from memopod.steps.outputs import Outputs

_log = structlog.get_logger()

_BUSY_SHARE = 0.75
"""Part of the deadline that a statement waits for other writers: the database is to give up first,
so that its connection stays usable."""


_ATTEMPTS = 5
"""How often a transaction is tried that its server gives up in favour of another (a deadlock)."""

_BACKOFF_SECONDS = 0.02
"""Longest pause before the second attempt; it doubles with each."""

_CLOSING_SECONDS = 5.0
"""How long calls that were given up may take to let go of their connections when the entries close."""

T = TypeVar("T")


class SqlEntries:
    """`Entries` over one table; made by `open_entries`.

    A call that reaches its deadline is cancelled and not waited for: closing a connection to a server
    that does not answer takes its own time. `_ending` holds those calls until they have ended.
    """

    def __init__(self, engine: AsyncEngine, *, timeout: float) -> None:
        self._engine = engine
        self._timeout = timeout
        self._ending: set[asyncio.Task[Any]] = set()

    async def find(self, namespace: str, key: str) -> Entry | None:
        """See `Entries.find`."""
        return await self._first("find", entries.c.namespace == namespace, entries.c.entry_key == key)

    async def get(self, entry_id: str) -> Entry | None:
        """See `Entries.get`."""
        return await self._first("get", entries.c.id == entry_id)

    async def put(self, entry: Entry) -> bool:
        """See `Entries.put`."""
        row = {**_to_row(entry), "uses": 0, "last_used_at": None}
        statement = _UPSERTS[self._engine.dialect.name](row)
        stands = select(exists().where(entries.c.id == entry.id))

        async def work(connection: AsyncConnection) -> bool:
            await connection.execute(statement)
            return bool(await connection.scalar(stands))

        return await self._call("put", work)

    async def used(self, entry_id: str, at: datetime) -> None:
        """See `Entries.used`."""
        later = or_(entries.c.last_used_at.is_(None), entries.c.last_used_at < at)
        statement = (
            update(entries)
            .where(entries.c.id == entry_id)
            .values(
                uses=entries.c.uses + 1,
                last_used_at=case((later, literal(at, Instant())), else_=entries.c.last_used_at),
            )
        )

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(statement)

        await self._call("used", work)

    async def retire(self, entry_id: str, reason: str) -> bool:
        """See `Entries.retire`."""

        async def work(connection: AsyncConnection) -> bool:
            result = await connection.execute(delete(entries).where(entries.c.id == entry_id))
            return result.rowcount > 0

        there = await self._call("retire", work)
        if there:
            _log.info("entry retired", entry=entry_id, reason=reason)
        return there

    async def recorded(self, pod_uid: str) -> bool:
        """See `Entries.recorded`."""
        statement = select(exists().where(entries.c.pod_uid == pod_uid))

        async def work(connection: AsyncConnection) -> bool:
            return bool(await connection.scalar(statement))

        return await self._call("recorded", work)

    async def list(
        self,
        namespace: str | None = None,
        template: str | None = None,
        *,
        id_prefix: str = "",
        limit: int = 100,
    ) -> Sequence[Entry]:
        """See `Entries.list`."""
        conditions: Sequence[ColumnElement[bool]] = [
            *([] if namespace is None else [entries.c.namespace == namespace]),
            *([] if template is None else [entries.c.template_name == template]),
            *([entries.c.id.startswith(id_prefix, autoescape=True)] if id_prefix else []),
        ]
        return await self._newest("list", *conditions, limit=limit)

    async def producer(self, namespace: str, location: Location) -> Entry | None:
        """See `Entries.producer`."""
        segments = [segment for segment in location.key.split("/") if segment]
        # A large workflow has thousands of entries: the database looks for the key in their outputs,
        # so that only few are read. What it finds is looked at exactly below.
        key_in_json = msgspec.json.encode(location.key).decode()
        mentions = entries.c.outputs.contains(key_in_json, autoescape=True)
        for name in (entries.c.pod_name, entries.c.workflow):
            candidates = await self._newest(
                "producer", entries.c.namespace == namespace, name.in_(segments), mentions, limit=_CANDIDATES
            )
            for entry in candidates:
                if entry.names_producer_of(location):
                    return entry
        return None

    async def _first(self, call: str, *conditions: ColumnElement[bool]) -> Entry | None:
        found = await self._newest(call, *conditions, limit=1)
        return found[0] if found else None

    async def _newest(self, call: str, *conditions: ColumnElement[bool], limit: int) -> Sequence[Entry]:
        statement = (
            select(entries)
            .where(*conditions)
            .order_by(entries.c.finished_at.desc(), entries.c.id)
            .limit(limit)
        )

        async def work(connection: AsyncConnection) -> Sequence[Row[Any]]:
            return (await connection.execute(statement)).all()

        with _unreadable(call):
            return [_from_row(row) for row in await self._call(call, work)]

    async def _call(self, call: str, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        task = asyncio.create_task(self._transact(work), name=f"entries:{call}")
        try:
            await asyncio.wait({task}, timeout=self._timeout)
        finally:
            if not task.done():
                self._ending.add(task)
                task.add_done_callback(self._ended)
                task.cancel()
        if task in self._ending:
            raise EntriesUnavailable(f"entries: {call}: no answer within {self._timeout:g} s")
        try:
            return task.result()
        except (SQLAlchemyError, OSError) as error:
            raise EntriesUnavailable(f"entries: {call}: {cause_of(error)}") from error

    async def _transact(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        for attempt in range(1, _ATTEMPTS):
            try:
                async with self._engine.begin() as connection:
                    return await work(connection)
            except DBAPIError as error:
                if not is_transient(error):
                    raise
                pause = random.uniform(0, _BACKOFF_SECONDS * 2**attempt)  # noqa: S311  no secret
                _log.info("transaction tried again", attempt=attempt, cause=cause_of(error))
            await asyncio.sleep(pause)
        async with self._engine.begin() as connection:
            return await work(connection)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._ending.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.debug("a call past its deadline ended", call=task.get_name(), cause=cause_of(error))

    async def close(self) -> None:
        """Close every connection; calls past their deadline are waited for, but not for long."""
        if self._ending:
            await asyncio.wait(self._ending, timeout=_CLOSING_SECONDS)
        await self._engine.dispose()


_CANDIDATES = 100
"""How many entries are looked at for the producer of one location. More than one mentions it only
where runs write to each other's places, or where keys differ in case."""


@asynccontextmanager
async def open_entries(
    url: str, *, call_timeout: float = 2.0, read_only: bool = False
) -> AsyncIterator[SqlEntries]:
    """The entries in the database at `url`, brought to the newest schema first.

    `call_timeout` (seconds) is each call's deadline. With `read_only` nothing is created or changed.
    Raises ValueError for an unsupported URL, and OSError, which says what to do, for a database that
    cannot be opened or written, or has another schema than this program's.
    """
    if read_only:
        await check_schema(url)
    else:
        await migrate(url)
    engine = create_engine(url, busy_timeout=call_timeout * _BUSY_SHARE, read_only=read_only)
    opened = SqlEntries(engine, timeout=call_timeout)
    try:
        yield opened
    finally:
        await opened.close()


def _replaces(new: Any) -> ColumnElement[bool]:
    """Whether a row replaces the one that stands: a newer success, of another Pod."""
    return and_(new.finished_at > entries.c.finished_at, new.pod_uid != entries.c.pod_uid)


def _sqlite_upsert(row: dict[str, Any]) -> Insert:
    added = sqlite.insert(entries).values(row)
    return added.on_conflict_do_update(
        index_elements=[entries.c.namespace, entries.c.entry_key],
        set_={name: added.excluded[name] for name in row},
        where=_replaces(added.excluded),
    )


def _postgresql_upsert(row: dict[str, Any]) -> Insert:
    added = postgresql.insert(entries).values(row)
    return added.on_conflict_do_update(
        index_elements=[entries.c.namespace, entries.c.entry_key],
        set_={name: added.excluded[name] for name in row},
        where=_replaces(added.excluded),
    )


def _mysql_upsert(row: dict[str, Any]) -> Insert:
    """MySQL's upsert knows no condition, and each assignment sees what those before it have set.

    So the two columns of the condition come last; the very last one asks for the id, which by then is
    the new one if the row is replaced.
    """
    added = mysql.insert(entries).values(row)
    new = added.inserted
    replaces = _replaces(new)
    others = [name for name in row if name not in {"finished_at", "pod_uid"}]
    assignments = [
        (name, func.if_(replaces, new[name], entries.c[name])) for name in [*others, "finished_at"]
    ]
    same_id = entries.c.id == new.id
    return added.on_duplicate_key_update(
        [*assignments, ("pod_uid", func.if_(same_id, new.pod_uid, entries.c.pod_uid))]
    )


_UPSERTS: Mapping[str, Callable[[dict[str, Any]], Insert]] = {
    "sqlite": _sqlite_upsert,
    "postgresql": _postgresql_upsert,
    "mysql": _mysql_upsert,
}


@contextmanager
def _unreadable(call: str) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise EntriesUnavailable(f"entries: {call}: a row that is no entry's") from error


def _to_row(entry: Entry) -> dict[str, Any]:
    row = {name: getattr(entry, name) for name in entries.c.keys() if name != "entry_key"}  # noqa: SIM118
    return {
        **row,
        "entry_key": entry.key,
        "components": msgspec.json.encode(dict(entry.components)).decode(),
        "outputs": msgspec.json.encode(entry.outputs.to_json()).decode(),
    }


def _from_row(row: Row[Any]) -> Entry:
    values = dict(row._mapping)  # noqa: SLF001  SQLAlchemy's public name for a row as a mapping
    return Entry(
        **{
            **{name: value for name, value in values.items() if name != "entry_key"},
            "key": values["entry_key"],
            "components": msgspec.json.decode(values["components"]),
            "outputs": Outputs.from_json(msgspec.json.decode(values["outputs"])),
        }
    )
