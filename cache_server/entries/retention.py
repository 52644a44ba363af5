"""Which entries are deleted for their age, their idleness or their number, and how.

Only the background job of the leader, and a person's `memopod cache gc`, delete for these reasons: an
admission never does. It goes by ranges of an index, in small batches, each a short transaction that asks
again whether its entries are still idle and not pinned.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import structlog
from prometheus_client import Counter
from sqlalchemy import ColumnElement, Select, and_, delete, false, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from cache_server.entries.calls import Database
from cache_server.entries.counts import drop_counts
from cache_server.entries.entry import EntriesUnavailable
from cache_server.entries.schema import EPOCH, entries
from cache_server.entries.tokens import change_tokens

_log = structlog.get_logger()
_DELETED = Counter("memopod_entries_deleted_total", "Entries deleted by retention, by reason.", ["reason"])
AGE: Final = "age"
IDLE: Final = "idle"
NUMBER: Final = "number"
_BATCH = 500
_PAUSE_SECONDS = 0.02
"""Between two batches, so that decisions get their turn."""
_FIRST_SECONDS = 10.0, 60.0
"""How soon a process that starts, or leads for the first time, sweeps: not all replicas at once, and not
while it still catches up with the Pods."""
_COUNTS_KEPT = timedelta(days=400)


_LONGEST = timedelta(days=365_000)
"""A thousand years: what is longer cannot be counted back from now."""


def span(seconds: float) -> timedelta:
    """A limit of so many seconds, however many: what is longer than a thousand years is that."""
    return timedelta(seconds=min(seconds, _LONGEST.total_seconds()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long entries are kept; None for no limit. A pinned entry is kept whatever they say.

    `age`: since its step finished. `idle`: since it was recorded or last used, whichever is later.
    `number`: the entries of a namespace, of which those that were idle longest go. So a use extends an
    entry's life, except beyond `age`.
    """

    age: timedelta | None = None
    idle: timedelta | None = None
    number: int | None = None


@dataclass(frozen=True, slots=True)
class _Range:
    """Entries whose `column` lies before `bound`, in one namespace or in all."""

    reason: str
    column: ColumnElement[datetime]
    bound: datetime
    namespace: str | None = None

    @property
    def condition(self) -> ColumnElement[bool]:
        within = self.column < self.bound
        return within if self.namespace is None else and_(entries.c.namespace == self.namespace, within)

    def batch(self, after: tuple[datetime, str] | None, size: int) -> Select[Any]:
        """The next entries of the range, in the order of its index."""
        statement = select(entries.c.id, entries.c.namespace, self.column.label("moment"))
        statement = statement.where(self.condition, entries.c.pinned == false())
        if after is not None:
            moment, last = after
            later = or_(self.column > moment, and_(self.column == moment, entries.c.id > last))
            statement = statement.where(self.column >= moment, later)
        return statement.order_by(self.column, entries.c.id).limit(size)


async def sweep(
    database: Database, limits: Limits, *, now: datetime, dry_run: bool = False, batch: int = _BATCH,
    go_on: Callable[[], bool] = lambda: True, namespace: str | None = None,
) -> Mapping[str, int]:  # fmt: skip
    """Delete what the limits say; returns how many entries, by reason.

    It ends early when `go_on()` is false before a batch. `namespace`: only there. Raises EntriesUnavailable;
    the batches before it are done.
    """
    deleted = {AGE: 0, IDLE: 0, NUMBER: 0}
    async for part in _ranges(database, limits, now, namespace):
        after: tuple[datetime, str] | None = None
        while go_on():
            found = await _select(database, part.batch(after, batch))
            if not found:
                break
            after = found[-1].moment, found[-1].id
            if dry_run:
                deleted[part.reason] += len(found)
                continue
            gone = await _delete(database, part, [row.id for row in found], {row.namespace for row in found})
            deleted[part.reason] += gone
            _DELETED.labels(part.reason).inc(gone)
            await asyncio.sleep(_PAUSE_SECONDS)
    return deleted


async def _ranges(
    database: Database, limits: Limits, now: datetime, namespace: str | None
) -> AsyncIterator[_Range]:
    if limits.age is not None:
        yield _Range(AGE, entries.c.finished_at, now - limits.age, namespace)
    if limits.idle is None and limits.number is None:
        return
    async for each in _namespaces(database, namespace):
        if limits.idle is not None:
            yield _Range(IDLE, entries.c.active_at, now - limits.idle, each)
        if limits.number is not None:
            bound = await _bound(database, each, limits.number)
            if bound is not None:
                yield _Range(NUMBER, entries.c.active_at, bound, each)


async def _namespaces(database: Database, only: str | None) -> AsyncIterator[str]:
    """The namespaces that have entries, one look into the index for each."""
    if only is not None:
        yield only
        return
    last = ""
    while True:
        statement = select(func.min(entries.c.namespace)).where(entries.c.namespace > last)
        found = await _select(database, statement)
        if found[0][0] is None:
            return
        last = found[0][0]
        yield last


async def _bound(database: Database, namespace: str, number: int) -> datetime | None:
    """When the last of so many entries was active that are to stay; None if there are no more than that."""
    if number <= 0:
        return datetime.max.replace(tzinfo=UTC)
    statement = (
        select(entries.c.active_at)
        .where(entries.c.namespace == namespace)
        .order_by(entries.c.active_at.desc())
        .limit(1)
        .offset(number - 1)
    )
    found = await _select(database, statement)
    bound: datetime | None = found[0][0] if found else None
    return bound


async def _select(database: Database, statement: Select[Any]) -> Any:
    async def work(connection: AsyncConnection) -> Any:
        return (await connection.execute(statement)).all()

    return await database.call("retention", work)


async def _delete(database: Database, part: _Range, ids: list[str], namespaces: set[str]) -> int:
    # Since they were read, one may have been used, pinned or replaced.
    statement = delete(entries).where(entries.c.id.in_(ids), part.condition, entries.c.pinned == false())

    async def work(connection: AsyncConnection) -> int:
        result = await connection.execute(statement)
        if result.rowcount:
            await change_tokens(connection, namespaces)
        return result.rowcount

    try:
        gone = await database.call("retention", work)
    finally:
        database.changed(namespaces)
    return gone


async def keep_within(
    database: Database, limits: Limits, *, leads: Callable[[], bool], interval: float,
    first: tuple[float, float] = _FIRST_SECONDS,
) -> None:  # fmt: skip
    """Sweep soon after the start, and every `interval` seconds, while `leads()` is true, until cancelled."""
    pause = 0.0
    while True:
        # Who does not lead looks again soon: it may have become the leader.
        await asyncio.sleep(pause or min(interval, random.uniform(*first)))  # noqa: S311  no secret
        pause = interval if leads() else 0.0
        if not pause:
            continue
        now = datetime.now(UTC)
        try:
            deleted = await sweep(database, limits, now=now, go_on=leads)
            await drop_counts(database, before=(now - _COUNTS_KEPT - EPOCH).days)
        except EntriesUnavailable as error:
            _log.warning("retention was broken off", cause=str(error))
        else:
            if any(deleted.values()):
                _log.info("entries deleted", **deleted)
