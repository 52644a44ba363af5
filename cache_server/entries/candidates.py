"""The entries of one template, as much of each as it takes to compare a step with them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import msgspec
from sqlalchemy import Row, select
from sqlalchemy.ext.asyncio import AsyncConnection

from cache_server.entries.calls import Database
from cache_server.entries.entry import Entry
from cache_server.entries.rows import from_row, reading
from cache_server.entries.schema import entries

MOST = 300
"""How many entries of a template a step is compared with: the newest."""
_COLUMNS = (
    *("id", "namespace", "entry_key", "key_version", "components", "template_name", "workflow", "pod_name"),
    *("pod_uid", "image_id", "finished_at", "max_staleness_seconds"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An entry, without its outputs: see `Entry`."""

    id: str
    namespace: str
    entry_key: str
    key_version: int
    components: Mapping[str, str]
    template_name: str
    workflow: str
    pod_name: str
    pod_uid: str
    image_id: str
    finished_at: datetime
    max_staleness_seconds: int | None


def candidate_of(entry: Entry) -> Candidate:
    """As much of an entry as it takes."""
    values: dict[str, Any] = {name: getattr(entry, name) for name in _COLUMNS if name != "entry_key"}
    return Candidate(**values, entry_key=entry.key)


class Earlier(Protocol):
    """The entries that a step is compared with, wherever they are. Every call raises EntriesUnavailable."""

    async def of_template(
        self, namespace: str, template: str, *, before: datetime | None = None, limit: int = MOST
    ) -> Sequence[Candidate]:
        """Those of a template in a namespace that finished last (`before` a time), newest first."""

    async def of_key(self, key: str, *, namespace: str | None = None) -> Sequence[Candidate]:
        """The newest with that key; None for those of any namespace."""

    async def of_pod(self, namespace: str, pod: str) -> Sequence[Candidate]:
        """Those that a Pod of that name has left."""

    async def entry(self, namespace: str, entry_id: str) -> Entry | None:
        """A whole one, None if it is gone."""


class InDatabase:
    """See `Earlier`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of_template(
        self, namespace: str, template: str, *, before: datetime | None = None, limit: int = MOST
    ) -> Sequence[Candidate]:
        """See `Earlier.of_template`."""
        return await of_template(self._database, namespace, template, before=before, limit=limit)

    async def of_key(self, key: str, *, namespace: str | None = None) -> Sequence[Candidate]:
        """See `Earlier.of_key`."""
        return await of_key(self._database, key, namespace=namespace)

    async def of_pod(self, namespace: str, pod: str) -> Sequence[Candidate]:
        """See `Earlier.of_pod`."""
        return await of_pod(self._database, namespace, pod)

    async def entry(self, namespace: str, entry_id: str) -> Entry | None:
        """See `Earlier.entry`."""
        statement = select(entries).where(entries.c.id == entry_id, entries.c.namespace == namespace)

        async def work(connection: AsyncConnection) -> Row[Any] | None:
            return (await connection.execute(statement)).one_or_none()

        with reading("entry"):
            row = await self._database.call("entry", work)
            return None if row is None else from_row(row)


async def of_template(
    database: Database, namespace: str, template: str, *, before: datetime | None = None, limit: int = MOST
) -> Sequence[Candidate]:
    """The entries of a template in a namespace that finished last (`before` a time), newest first.

    Raises EntriesUnavailable.
    """
    conditions = [entries.c.namespace == namespace, entries.c.template_name == template]
    if before is not None:
        conditions.append(entries.c.finished_at < before)
    return await _read(database, *conditions, limit=limit)


async def of_key(database: Database, key: str, *, namespace: str | None = None) -> Sequence[Candidate]:
    """The newest entries with that key, None for those of any namespace. Raises EntriesUnavailable."""
    scope = [] if namespace is None else [entries.c.namespace == namespace]
    return await _read(database, entries.c.entry_key == key, *scope, limit=10)


async def of_pod(database: Database, namespace: str, pod: str) -> Sequence[Candidate]:
    """The entries that a Pod of that name has left. Raises EntriesUnavailable."""
    return await _read(database, entries.c.namespace == namespace, entries.c.pod_name == pod, limit=10)


async def _read(database: Database, *conditions: Any, limit: int) -> Sequence[Candidate]:
    statement = (
        select(*(entries.c[name] for name in _COLUMNS))
        .where(*conditions)
        .order_by(entries.c.finished_at.desc(), entries.c.id)
        .limit(limit)
    )

    async def work(connection: AsyncConnection) -> Sequence[Row[Any]]:
        return (await connection.execute(statement)).all()

    with reading("candidates"):
        return [_candidate(row) for row in await database.call("candidates", work)]


def _candidate(row: Row[Any]) -> Candidate:
    values = dict(row._mapping)  # noqa: SLF001  SQLAlchemy's public name for a row as a mapping
    return Candidate(**{**values, "components": msgspec.json.decode(values["components"])})
