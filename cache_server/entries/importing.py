"""Imports Kubeflow's entries, newest first, in batches that each stand once they are done.

Kubeflow's server reuses the row of a key that started last; of those that started together, the one with the
highest ID. So does the import, which goes from the highest ID down. What it has done stands in the same
transaction as what it did: when it is killed, it goes on from there, and does nothing twice.

What an earlier version imported in another form (`imported.FORM`) is never found: all rows are imported again
then, and what is left of the other form is deleted at the end.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Insert, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from cache_server.entries.calls import Database
from cache_server.entries.entry import EntriesUnavailable, Entry
from cache_server.entries.imported import ANY_FORM, FORM, THIS_FORM
from cache_server.entries.kubeflow import OLDER, NotImportable, Source, read_row
from cache_server.entries.schema import entries, imports
from cache_server.entries.sql import put_within

_BATCH = 500
"""Entries of another form that are deleted at once."""


@dataclass(slots=True)
class Progress:
    """How far an import is: rows of `total` that were looked at, in all calls for these rows; what was
    imported and left out by this call; `replaced`: entries of another form that it deleted. `resumed`: an
    earlier call had begun.
    """

    total: int
    looked_at: int = 0
    imported: int = 0
    replaced: int = 0
    resumed: bool = False
    left_out: dict[str, int] = field(default_factory=dict)

    def leave_out(self, reason: str) -> None:
        """Count a row that is not imported."""
        self.left_out[reason] = self.left_out.get(reason, 0) + 1


async def import_rows(
    source: Source, database: Database, *, namespace: str, now: datetime
) -> AsyncIterator[Progress]:
    """Import what is new in the source since the last import into this namespace, or go on with it.

    Yields after each batch, which is there to stay. Raises EntriesUnavailable.
    """
    top, cursor, bottom = await _begin(source, database, namespace)
    progress = Progress(total=await source.count(above=bottom, below=top + 1), resumed=cursor <= top)
    progress.looked_at = progress.total - await source.count(above=bottom, below=cursor)
    yield progress
    while rows := await source.rows(above=bottom, below=cursor):
        cursor = rows[-1]["ID"]
        added = _read(rows, progress, namespace, source.name, now)
        await _write(database, added, progress, source.name, namespace, cursor)
        progress.looked_at += len(rows)
        yield progress
    await _move(database, source.name, namespace, cursor_id=bottom + 1)
    while gone := await _delete_other_form(database, namespace):
        progress.replaced += gone
        yield progress
    progress.looked_at = progress.total
    yield progress


def _read(
    rows: Sequence[Mapping[str, Any]], progress: Progress, namespace: str, source: str, now: datetime
) -> Sequence[Entry]:
    """The entries of a batch: of each key the one that started last, else the first, whose ID is highest."""
    best: dict[str, Entry] = {}
    for row in rows:
        try:
            entry = read_row(row, namespace=namespace, source=source, now=now)
        except NotImportable as error:
            progress.leave_out(str(error))
            continue
        standing = best.get(entry.key)
        if standing is None or entry.finished_at > standing.finished_at:
            best[entry.key] = entry
        if standing is not None:
            progress.leave_out(OLDER)
    return list(best.values())


async def _begin(source: Source, database: Database, namespace: str) -> tuple[int, int, int]:
    """The range to import: from `top` down to above `bottom`, and the ID that the next batch lies below."""
    which = _of(source.name, namespace)
    highest = await source.highest()
    first = {"top_id": highest, "cursor_id": highest + 1, "bottom_id": 0}
    added: Insert = insert(imports).values(source=_imported_from(source.name), namespace=namespace, **first)

    async def work(connection: AsyncConnection) -> tuple[int, int, int]:
        row = (await connection.execute(select(imports).where(*which))).one_or_none()
        if row is None:
            await connection.execute(added)
            return highest, highest + 1, 0
        if row.cursor_id > row.bottom_id + 1:
            return row.top_id, row.cursor_id, row.bottom_id
        values = {"top_id": highest, "cursor_id": highest + 1, "bottom_id": row.top_id}
        await connection.execute(update(imports).where(*which).values(**values))
        return highest, highest + 1, row.top_id

    return await database.call("import", work)


async def _write(
    database: Database, added: Sequence[Entry], progress: Progress, source: str, namespace: str, cursor: int
) -> None:
    which = _of(source, namespace)

    async def work(connection: AsyncConnection) -> tuple[int, frozenset[str]]:
        await connection.execute(update(imports).where(*which).values(cursor_id=cursor))
        if not added:
            return 0, frozenset()
        stored = await put_within(connection, added)
        return sum(stored.stand), stored.changed

    try:
        stand, changed = await database.call("import", work)
    except EntriesUnavailable:
        database.changed([namespace])
        raise
    database.changed(changed)
    progress.imported += stand
    for _ in range(len(added) - stand):
        progress.leave_out(OLDER)


async def _move(database: Database, source: str, namespace: str, *, cursor_id: int) -> None:
    moved = update(imports).where(*_of(source, namespace)).values(cursor_id=cursor_id)

    async def work(connection: AsyncConnection) -> None:
        await connection.execute(moved)

    await database.call("import", work)


async def _delete_other_form(database: Database, namespace: str) -> int:
    """Delete a batch of the entries that an earlier version imported, and nobody finds; how many it was."""
    key = entries.c.entry_key
    other = entries.c.namespace == namespace, key.startswith(ANY_FORM), ~key.startswith(THIS_FORM)
    batch = select(entries.c.id).where(*other).limit(_BATCH)

    async def work(connection: AsyncConnection) -> int:
        ids = list(await connection.scalars(batch))
        if ids:
            await connection.execute(delete(entries).where(entries.c.id.in_(ids)))
        return len(ids)

    return await database.call("import", work)


def _of(source: str, namespace: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return imports.c.source == _imported_from(source), imports.c.namespace == namespace


def _imported_from(source: str) -> str:
    """What an import's progress stands under: in another form, all is to be imported again."""
    return f"{source[:240]} {FORM}"
