"""Entries in a SQL database."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from typing import Any

import msgspec
import structlog
from sqlalchemy import ColumnElement, Row, case, delete, exists, literal, or_, select, update
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from cache_server.entries.databases import cause_of, create_engine
from cache_server.entries.entry import EntriesUnavailable, Entry
from cache_server.entries.migrations import check_schema, migrate
from cache_server.entries.schema import Instant, entries
from memopod.steps.locations import Location
from memopod.steps.outputs import Outputs

_log = structlog.get_logger()

_BUSY_SHARE = 0.75
"""Part of the deadline that a statement waits for other writers: the database is to give up first,
so that its connection stays usable."""


class SqlEntries:
    """`Entries` over one table; made by `open_entries`."""

    def __init__(self, engine: AsyncEngine, *, timeout: float) -> None:
        self._engine = engine
        self._timeout = timeout

    async def find(self, namespace: str, key: str) -> Entry | None:
        """See `Entries.find`."""
        return await self._first("find", entries.c.namespace == namespace, entries.c.entry_key == key)

    async def get(self, entry_id: str) -> Entry | None:
        """See `Entries.get`."""
        return await self._first("get", entries.c.id == entry_id)

    async def put(self, entry: Entry) -> bool:
        """See `Entries.put`."""
        row = {**_to_row(entry), "uses": 0, "last_used_at": None}
        added = insert(entries).values(row)
        statement = added.on_conflict_do_update(
            index_elements=[entries.c.namespace, entries.c.entry_key],
            set_={name: added.excluded[name] for name in row},
            where=(added.excluded.finished_at > entries.c.finished_at)
            & (added.excluded.pod_uid != entries.c.pod_uid),
        )
        stands = select(exists().where(entries.c.id == entry.id))
        async with self._deadline("put"), self._engine.begin() as connection:
            await connection.execute(statement)
            return bool(await connection.scalar(stands))

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
        async with self._deadline("used"), self._engine.begin() as connection:
            await connection.execute(statement)

    async def retire(self, entry_id: str, reason: str) -> bool:
        """See `Entries.retire`."""
        async with self._deadline("retire"), self._engine.begin() as connection:
            result = await connection.execute(delete(entries).where(entries.c.id == entry_id))
            there = result.rowcount > 0
        if there:
            _log.info("entry retired", entry=entry_id, reason=reason)
        return there

    async def recorded(self, pod_uid: str) -> bool:
        """See `Entries.recorded`."""
        statement = select(exists().where(entries.c.pod_uid == pod_uid))
        async with self._deadline("recorded"), self._engine.connect() as connection:
            return bool(await connection.scalar(statement))

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
        async with self._deadline(call), self._engine.connect() as connection:
            result = await connection.execute(statement)
        with _unreadable(call):
            return [_from_row(row) for row in result]

    @asynccontextmanager
    async def _deadline(self, call: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._timeout):
                yield
        except TimeoutError as error:
            raise EntriesUnavailable(f"entries: {call}: no answer within {self._timeout:g} s") from error
        except (SQLAlchemyError, OSError) as error:
            raise EntriesUnavailable(f"entries: {call}: {cause_of(error)}") from error


_CANDIDATES = 100
"""How many entries are looked at for the producer of one location. More than one mentions it only
where runs write to each other's places, or where keys differ in case."""


@asynccontextmanager
async def open_entries(
    url: str, *, call_timeout: float = 2.0, read_only: bool = False
) -> AsyncIterator[SqlEntries]:
    """The entries in the database at `url` (`sqlite:///PATH`), brought to the newest schema first.

    `call_timeout` (seconds) is each call's deadline. With `read_only` nothing is created or changed.
    Raises ValueError for an unsupported URL, and OSError, which says what to do, for a database that
    cannot be opened or written, or has another schema than this program's.
    """
    if read_only:
        await check_schema(url)
    else:
        await migrate(url)
    engine = create_engine(url, busy_timeout=call_timeout * _BUSY_SHARE, read_only=read_only)
    try:
        yield SqlEntries(engine, timeout=call_timeout)
    finally:
        await engine.dispose()


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
