"""The entries of one template, as much of each as it takes to compare a step with them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Row, select
from sqlalchemy.ext.asyncio import AsyncConnection

from cache_server.entries.calls import Database
from cache_server.entries.rows import reading
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
