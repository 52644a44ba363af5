"""What people ask of the entries and do to them: look, find, pin, take back, count.

Both `memopod cache`, straight from a database, and the HTTP API go through `Catalog`.
"""

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, and_, delete, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from cache_server.entries.calls import Database
from cache_server.entries.counts import HIT, Count, read_counts
from cache_server.entries.entry import Entry
from cache_server.entries.retention import Limits, sweep
from cache_server.entries.rows import from_row, reading
from cache_server.entries.schema import EPOCH, entries
from cache_server.entries.tokens import change_tokens

_BATCH = 500
_FIELDS = {
    "namespace": entries.c.namespace,
    "template": entries.c.template_name,
    "workflow": entries.c.workflow,
    "pod": entries.c.pod_name,
    "key": entries.c.entry_key,
    "image": entries.c.image_id,
}
_PLACE = re.compile(r"([0-9]{1,17})-([0-9a-f]{1,32})")
_NAMED = ("parameter", "component")


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which entries; what is empty does not matter.

    `fields` are names of `Filter.EXPLAINED` with their values, exactly; `id_prefix` is how an id begins.
    """

    namespace: str | None = None
    id_prefix: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, pairs: Sequence[str], *, namespace: str | None = None, id_prefix: str = "") -> "Filter":
        """From `field=value` texts. Raises ValueError, which says what a field may be."""
        fields: dict[str, str] = {}
        for pair in pairs:
            name, equals, value = pair.partition("=")
            kind, dot, rest = name.partition(".")
            known = name in _FIELDS or name == "artifact" or (kind in _NAMED and dot and rest)
            if not equals or not known:
                raise ValueError(f"expected FIELD=VALUE, where FIELD is {EXPLAINED}; got {pair!r}")
            if name in fields:
                raise ValueError(f"expected {name} once: of two values none is both")
            fields[name] = value
        return cls(namespace=namespace, id_prefix=id_prefix, fields=fields)

    def conditions(self) -> list[ColumnElement[bool]]:
        """What the database can tell; `matches` tells the rest."""
        found: list[ColumnElement[bool]] = []
        if self.namespace is not None:
            found.append(entries.c.namespace == self.namespace)
        if self.id_prefix:
            found.append(entries.c.id.startswith(self.id_prefix, autoescape=True))
        for name, value in self.fields.items():
            found.append(_condition(name, value))
        return found

    def matches(self, entry: Entry) -> bool:
        """Whether an entry that the database found is one of those that are meant."""
        return all(_matches(entry, name, value) for name, value in self.fields.items())


EXPLAINED = (
    "namespace, template, workflow, pod, key, image, artifact (a URI), parameter.NAME or component.NAME"
)
"""The fields that can be asked for."""


def _condition(name: str, value: str) -> ColumnElement[bool]:
    if name in _FIELDS:
        return _FIELDS[name] == value
    if name == "artifact":
        key = value.partition("://")[2].partition("/")[2] or value
        return entries.c.outputs.contains(_json(key), autoescape=True)
    kind, _, rest = name.partition(".")
    column = entries.c.outputs if kind == "parameter" else entries.c.components
    return column.contains(f"{_json(rest)}:{_json(value)}", autoescape=True)


def _matches(entry: Entry, name: str, value: str) -> bool:
    kind, _, rest = name.partition(".")
    if kind == "parameter":
        return entry.outputs.parameters.get(rest) == value
    if kind == "component":
        return entry.components.get(rest) == value
    if name == "artifact":
        return any(value in (a.location.uri, a.location.key) for a in entry.outputs.artifacts)
    return True


def _json(text: str) -> str:
    return msgspec.json.encode(text).decode()


@dataclass(frozen=True, slots=True)
class Page:
    """Some entries, newest first, and what to give as `after` for those that follow; None at the end."""

    entries: Sequence[Entry]
    after: str | None


@dataclass(frozen=True, slots=True)
class Stats:
    """What was reused and what was not, since a moment, for one template or in all.

    `missed`: reason -> how often. `entries` are those that stand now.
    """

    namespace: str
    template: str
    entries: int
    hits: int
    seconds_saved: float
    missed: Mapping[str, int]

    @property
    def misses(self) -> int:
        """How often a step ran."""
        return sum(self.missed.values())


class Catalog:
    """Questions and orders about the entries of one database. All of them raise EntriesUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(self, which: Filter, *, limit: int, after: str | None = None) -> Page:
        """The first `limit` entries after a place. Raises ValueError for an `after` that is none."""
        found: list[Entry] = []
        place = None if after is None else _place(after)
        while True:
            read = await self._read(which, place, limit=max(limit, _BATCH) if which.fields else limit)
            for entry in read:
                place = entry.finished_at, entry.id
                if which.matches(entry):
                    found.append(entry)
                    if len(found) == limit:
                        return Page(found, _after(place))
            if not read:
                return Page(found, None)

    async def all(self, which: Filter) -> AsyncIterator[Sequence[Entry]]:
        """All entries, batch by batch."""
        after: str | None = None
        while True:
            page = await self.page(which, limit=_BATCH, after=after)
            if page.entries:
                yield page.entries
            if page.after is None:
                return
            after = page.after

    async def pin(self, entry_id: str, pinned: bool) -> bool:
        """Keep an entry from retention, or no more. Returns whether there is one."""
        there = select(entries.c.id).where(entries.c.id == entry_id)
        statement = update(entries).where(entries.c.id == entry_id).values(pinned=pinned)

        async def work(connection: AsyncConnection) -> bool:
            await connection.execute(statement)
            return await connection.scalar(there) is not None

        return await self._database.call("pin", work)

    async def invalidate(self, which: Filter, *, dry_run: bool = False) -> int:
        """Take entries out of reuse for good, pinned ones too; returns how many.

        No look-up that begins `LEASE_SECONDS` later finds one of them: wait so long before saying that
        it is done.
        """
        gone = 0
        async for found in self.all(which):
            gone += len(found) if dry_run else await self._delete(found)
        return gone

    async def gc(self, limits: Limits, *, namespace: str | None, dry_run: bool) -> Mapping[str, int]:
        """Delete what the limits say; returns how many entries, by reason."""
        return await sweep(
            self._database, limits, now=datetime.now(UTC), dry_run=dry_run, namespace=namespace
        )

    async def stats(self, namespace: str | None, *, days: int) -> Sequence[Stats]:
        """By namespace and template, those that saved most first, over today and the days before."""
        first_day = (datetime.now(UTC) - timedelta(days=days - 1) - EPOCH).days
        counts = await read_counts(self._database, namespace=namespace, first_day=first_day)
        return _stats(counts, await self._standing(namespace))

    async def _standing(self, namespace: str | None) -> Mapping[tuple[str, str], int]:
        names = entries.c.namespace, entries.c.template_name
        statement = select(*names, func.count().label("number")).group_by(*names)
        if namespace is not None:
            statement = statement.where(entries.c.namespace == namespace)

        async def work(connection: AsyncConnection) -> Sequence[Any]:
            return (await connection.execute(statement)).all()

        rows = await self._database.call("stats", work)
        return {(row.namespace, row.template_name): row.number for row in rows}

    async def _read(
        self, which: Filter, place: tuple[datetime, str] | None, *, limit: int
    ) -> Sequence[Entry]:
        statement = select(entries).where(*which.conditions())
        if place is not None:
            moment, last = place
            same = and_(entries.c.finished_at == moment, entries.c.id > last)
            statement = statement.where(or_(entries.c.finished_at < moment, same))
        statement = statement.order_by(entries.c.finished_at.desc(), entries.c.id).limit(limit)

        async def work(connection: AsyncConnection) -> Sequence[Any]:
            return (await connection.execute(statement)).all()

        with reading("list"):
            return [from_row(row) for row in await self._database.call("list", work)]

    async def _delete(self, found: Sequence[Entry]) -> int:
        namespaces = {entry.namespace for entry in found}
        statement = delete(entries).where(entries.c.id.in_([entry.id for entry in found]))

        async def work(connection: AsyncConnection) -> int:
            result = await connection.execute(statement)
            await change_tokens(connection, namespaces)
            return result.rowcount

        try:
            return await self._database.call("invalidate", work)
        finally:
            self._database.changed(namespaces)


def _after(place: tuple[datetime, str]) -> str:
    moment, entry_id = place
    return f"{(moment - EPOCH) // timedelta(microseconds=1)}-{entry_id}"


def _place(after: str) -> tuple[datetime, str]:
    place = _PLACE.fullmatch(after)
    if place is None:
        raise ValueError("expected what an earlier page gave to go on after")
    return EPOCH + timedelta(microseconds=int(place[1])), place[2]


def _stats(counts: Sequence[Count], standing: Mapping[tuple[str, str], int]) -> Sequence[Stats]:
    by_name: dict[tuple[str, str], list[Count]] = {name: [] for name in standing}
    for count in counts:
        by_name.setdefault((count.namespace, count.template), []).append(count)
    stats = [
        Stats(
            namespace, template, standing.get((namespace, template), 0),
            sum(c.decided for c in found if c.reason == HIT),
            sum(c.seconds_saved for c in found),
            {c.reason: c.decided for c in found if c.reason != HIT},
        )
        for (namespace, template), found in by_name.items()
    ]  # fmt: skip
    return sorted(stats, key=lambda s: (-s.seconds_saved, -s.hits, -s.misses, s.namespace, s.template))
