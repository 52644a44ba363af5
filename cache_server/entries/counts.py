"""How often was decided what: a row for each day, namespace, template and reason.

A decision costs no write: counts are collected in memory and written every half minute. A process that is
killed loses those; a write without an answer can count twice. They are statistics, and nothing rests on them.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import structlog
from sqlalchemy import Insert, delete, func, select
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from cache_server.entries.calls import Database
from cache_server.entries.entry import EntriesUnavailable
from cache_server.entries.schema import EPOCH, decisions, entries

_log = structlog.get_logger()
HIT: Final = "hit"
"""The reason of a reuse; every other one is of a step that ran."""
_WRITE_SECONDS = 30.0
_MOST = 10_000
"""Counts waiting to be written at most: while the database is away for long, new kinds are not counted."""

_Which = tuple[int, str, str, str]


@dataclass(slots=True)
class _Tally:
    decided: int = 0
    saved_ms: int = 0


@dataclass(frozen=True, slots=True)
class Count:
    """What was decided for one template, in a time: how often, and what that saved (seconds)."""

    namespace: str
    template: str
    reason: str
    decided: int
    seconds_saved: float


class Counts:
    """Collects counts until they are written."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: dict[_Which, _Tally] = {}
        self._reused: dict[tuple[_Which, str], int] = {}

    def add(
        self, *, namespace: str, template: str, reason: str, entry_id: str = "", at: datetime | None = None
    ) -> None:
        """Count one decision; `entry_id` is that of the reused entry. Never waits, never fails."""
        day = ((at or datetime.now(UTC)) - EPOCH).days
        which = day, namespace[:63], template[:253], reason[:63]
        if which not in self._waiting and len(self._waiting) >= _MOST:
            return
        self._waiting.setdefault(which, _Tally()).decided += 1
        if entry_id and len(self._reused) < _MOST:
            self._reused[which, entry_id] = self._reused.get((which, entry_id), 0) + 1

    async def write(self) -> None:
        """Write what was collected. Raises EntriesUnavailable; then it is kept for the next time."""
        waiting, self._waiting = self._waiting, {}
        reused, self._reused = self._reused, {}
        if not waiting:
            return
        statement = _UPSERTS[self._database.dialect]

        async def work(connection: AsyncConnection) -> None:
            took = await _took(connection, {entry_id for _, entry_id in reused})
            saved = dict.fromkeys(waiting, 0)
            for (which, entry_id), times in reused.items():
                saved[which] = saved.get(which, 0) + times * took.get(entry_id, 0)
            # In one order for all replicas: nobody waits in a circle.
            rows = [_row(which, waiting[which], saved[which]) for which in sorted(waiting)]
            await connection.execute(statement, rows)

        try:
            await self._database.call("counts", work)
        except EntriesUnavailable:
            self._put_back(waiting, reused)
            raise

    def _put_back(self, waiting: dict[_Which, _Tally], reused: dict[tuple[_Which, str], int]) -> None:
        for which, tally in waiting.items():
            self._waiting.setdefault(which, _Tally()).decided += tally.decided
        for key, times in reused.items():
            self._reused[key] = self._reused.get(key, 0) + times

    async def write_regularly(self) -> None:
        """Write every half minute until cancelled, and a last time then."""
        try:
            while True:
                await asyncio.sleep(_WRITE_SECONDS)
                await self._try()
        finally:
            await self._try()

    async def _try(self) -> None:
        try:
            await self.write()
        except EntriesUnavailable as error:
            _log.info("decisions are not counted yet", cause=str(error))


async def _took(connection: AsyncConnection, ids: Iterable[str]) -> dict[str, int]:
    """How long the steps of entries ran, in milliseconds; nothing for an entry that is gone."""
    took: dict[str, int] = {}
    wanted = sorted(ids)
    for start in range(0, len(wanted), 500):
        statement = select(entries.c.id, entries.c.started_at, entries.c.finished_at).where(
            entries.c.id.in_(wanted[start : start + 500])
        )
        for row in (await connection.execute(statement)).all():
            took[row.id] = max(0, round((row.finished_at - row.started_at).total_seconds() * 1000))
    return took


def _row(which: _Which, tally: _Tally, saved_ms: int) -> dict[str, Any]:
    day, namespace, template, reason = which
    return {
        "day": day,
        "namespace": namespace,
        "template_name": template,
        "reason": reason,
        "decided": tally.decided,
        "saved_ms": saved_ms,
    }


_KEY = ["day", "namespace", "template_name", "reason"]


def _sqlite_upsert() -> Insert:
    added = sqlite.insert(decisions)
    return added.on_conflict_do_update(index_elements=_KEY, set_=_sums(added.excluded))


def _postgresql_upsert() -> Insert:
    added = postgresql.insert(decisions)
    return added.on_conflict_do_update(index_elements=_KEY, set_=_sums(added.excluded))


def _mysql_upsert() -> Insert:
    added = mysql.insert(decisions)
    return added.on_duplicate_key_update(**_sums(added.inserted))


def _sums(new: Any) -> dict[str, Any]:
    return {name: decisions.c[name] + new[name] for name in ("decided", "saved_ms")}


_UPSERTS: Mapping[str, Insert] = {
    "sqlite": _sqlite_upsert(),
    "postgresql": _postgresql_upsert(),
    "mysql": _mysql_upsert(),
}


async def read_counts(database: Database, *, namespace: str | None, first_day: int) -> Sequence[Count]:
    """The counts since a day (since 1970, UTC), the most frequent first. Raises EntriesUnavailable."""
    decided, saved = func.sum(decisions.c.decided), func.sum(decisions.c.saved_ms)
    names = decisions.c.namespace, decisions.c.template_name, decisions.c.reason
    statement = (
        select(*names, decided.label("decided"), saved.label("saved"))
        .where(decisions.c.day >= first_day)
        .group_by(*names)
        .order_by(decided.desc(), *names)
    )
    if namespace is not None:
        statement = statement.where(decisions.c.namespace == namespace)

    async def work(connection: AsyncConnection) -> Sequence[Any]:
        return (await connection.execute(statement)).all()

    return [
        Count(row.namespace, row.template_name, row.reason, int(row.decided), int(row.saved) / 1000)
        for row in await database.call("stats", work)
    ]


async def drop_counts(database: Database, *, before: int) -> None:
    """Delete the counts of the days before one. Raises EntriesUnavailable."""

    async def work(connection: AsyncConnection) -> None:
        await connection.execute(delete(decisions).where(decisions.c.day < before))

    await database.call("counts", work)
