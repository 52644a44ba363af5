"""Entries in a SQL database: the truth, whatever is remembered above it."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
import structlog
from sqlalchemy import (
    ColumnElement,
    Row,
    Select,
    String,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from cache_server.entries.calls import Database
from cache_server.entries.databases import create_engine, create_reader
from cache_server.entries.entry import EntriesUnavailable, Entry
from cache_server.entries.layer import Place, Reading
from cache_server.entries.migrations import check_schema, migrate
from cache_server.entries.rows import from_row, reading, to_row, upsert
from cache_server.entries.schema import Instant, entries, tokens
from cache_server.entries.tokens import change_token, change_tokens, ensure_token
from memopod.steps.locations import Location

_log = structlog.get_logger()

_BUSY_SHARE = 0.75
"""Part of the deadline that a statement waits for other writers: the database is to give up first,
so that its connection stays usable."""

_CANDIDATES = 100
"""How many entries are looked at for the producer of one location. More than one mentions it only
where runs write to each other's places, or where keys differ in case."""


class SqlEntries:
    """`Entries` over one database, and the lowest layer of them; made by `open_entries`."""

    name = "sql"

    def __init__(self, database: Database) -> None:
        self.database = database

    async def find(self, namespace: str, key: str) -> Entry | None:
        """See `Entries.find`."""
        return (await self.read(namespace, key)).entry

    async def read(self, namespace: str, key: str) -> Reading:
        """What stands under a key, and the namespace's token, in one statement.

        Raises EntriesUnavailable.
        """
        row = await self.database.read("find", _READING, {"of_namespace": namespace, "of_key": key})
        with reading("find"):
            entry = None if row.id is None else from_row(row)
        return Reading(entry, row.namespace_token)

    async def look(self, place: Place) -> Reading:
        """See `Layer.look`."""
        return await self.read(place.namespace, place.key)

    async def keep(self, place: Place, reading: Reading) -> None:
        """See `Layer.keep`. Here is where readings come from."""

    async def last_key(self, namespace: str) -> str | None:
        """See `Entries.last_key`. One step in the index, however many entries there are."""
        statement = select(func.max(entries.c.entry_key).label("last")).where(
            entries.c.namespace == namespace
        )
        last: str | None = (await self.database.read("last_key", statement, {})).last
        return last

    async def get(self, entry_id: str) -> Entry | None:
        """See `Entries.get`."""
        found = await self._newest("get", entries.c.id == entry_id, limit=1)
        return found[0] if found else None

    async def put(self, entry: Entry) -> bool:
        """See `Entries.put`."""
        return (await self.put_all([entry]))[0]

    async def put_all(self, added: Sequence[Entry]) -> Sequence[bool]:
        """`put` of several entries, all of them or, if EntriesUnavailable is raised, none.

        No two of them may have the same namespace and key.
        """

        async def work(connection: AsyncConnection) -> Stored:
            return await put_within(connection, added)

        try:
            stored = await self.database.call("put", work)
        except EntriesUnavailable:
            self.database.changed(entry.namespace for entry in added)
            raise
        self.database.changed(stored.changed)
        return stored.stand

    async def used(self, entry_id: str, at: datetime) -> None:
        """See `Entries.used`."""
        moment = literal(at, Instant())
        later = or_(entries.c.last_used_at.is_(None), entries.c.last_used_at < at)
        statement = (
            update(entries)
            .where(entries.c.id == entry_id)
            .values(
                uses=entries.c.uses + 1,
                last_used_at=case((later, moment), else_=entries.c.last_used_at),
                active_at=case((entries.c.active_at < at, moment), else_=entries.c.active_at),
            )
        )

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(statement)

        await self.database.call("used", work)

    async def retire(self, entry_id: str, reason: str) -> bool:
        """See `Entries.retire`."""

        async def work(connection: AsyncConnection) -> str | None:
            row = select(entries.c.namespace).where(entries.c.id == entry_id)
            namespace: str | None = await connection.scalar(row)
            if namespace is None:
                return None
            result = await connection.execute(delete(entries).where(entries.c.id == entry_id))
            if result.rowcount == 0:
                return None
            await change_token(connection, namespace)
            return namespace

        try:
            namespace = await self.database.call("retire", work)
        except EntriesUnavailable:
            self.database.changed([None])
            raise
        if namespace is None:
            return False
        self.database.changed([namespace])
        _log.info("entry retired", entry=entry_id, reason=reason)
        return True

    async def recorded(self, pod_uid: str) -> bool:
        """See `Entries.recorded`."""
        statement = select(exists().where(entries.c.pod_uid == pod_uid))

        async def work(connection: AsyncConnection) -> bool:
            return bool(await connection.scalar(statement))

        return await self.database.call("recorded", work)

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
        # The database looks for the key in the outputs of these Pods' entries, so that only few are read.
        # What it finds is looked at exactly below.
        key_in_json = msgspec.json.encode(location.key).decode()
        mentions = entries.c.outputs.contains(key_in_json, autoescape=True)
        of_pods = entries.c.pod_name.in_(segments)
        found = await self._newest(
            "producer", entries.c.namespace == namespace, of_pods, mentions, limit=_CANDIDATES
        )
        return next((entry for entry in found if entry.names_producer_of(location)), None)

    async def _newest(self, call: str, *conditions: ColumnElement[bool], limit: int) -> Sequence[Entry]:
        statement = (
            select(entries)
            .where(*conditions)
            .order_by(entries.c.finished_at.desc(), entries.c.id)
            .limit(limit)
        )

        async def work(connection: AsyncConnection) -> Sequence[Row[Any]]:
            return (await connection.execute(statement)).all()

        with reading(call):
            return [from_row(row) for row in await self.database.call(call, work)]

    async def close(self) -> None:
        """Close every connection."""
        await self.database.close()


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of entries that were put: which of them stand, and whose namespaces' tokens changed."""

    stand: Sequence[bool]
    changed: frozenset[str]


async def put_within(connection: AsyncConnection, added: Sequence[Entry]) -> Stored:
    """`SqlEntries.put_all` as a part of a transaction. Whoever commits it tells of the changes."""
    rows = [to_row(entry) for entry in added]
    await connection.execute(upsert(connection.dialect.name), rows)
    ids = [entry.id for entry in added]
    standing = select(entries.c.id, entries.c.namespace, entries.c.replaced).where(entries.c.id.in_(ids))
    stand = {row.id: row for row in (await connection.execute(standing)).all()}
    changed = frozenset(row.namespace for row in stand.values() if row.replaced)
    for namespace in sorted({entry.namespace for entry in added} - changed):
        await ensure_token(connection, namespace)
    await change_tokens(connection, changed)
    return Stored([entry.id in stand for entry in added], changed)


def _reading() -> Select[Any]:
    """One row, whether there is an entry or not."""
    namespace = bindparam("of_namespace", type_=String())
    one = select(literal(1).label("one")).subquery()
    token = select(tokens.c.token).where(tokens.c.namespace == namespace).scalar_subquery()
    own = and_(entries.c.namespace == namespace, entries.c.entry_key == bindparam("of_key", type_=String()))
    return select(token.label("namespace_token"), entries).select_from(one.join(entries, own, isouter=True))


_READING = _reading()


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
    busy = call_timeout * _BUSY_SHARE
    engine = create_engine(url, busy_timeout=busy, read_only=read_only)
    reader = create_reader(url, busy_timeout=busy)
    opened = SqlEntries(Database(engine, timeout=call_timeout, reader=reader))
    try:
        yield opened
    finally:
        await opened.close()
