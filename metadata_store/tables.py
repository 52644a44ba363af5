"""The tables of ML Metadata's schema 10 that pruning touches, for SQL beside the core."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import BigInteger, Column, Integer, MetaData, String, Table, event, make_url, select
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from metadata_store.prune import REFERENCES, RUN_TYPES, Deleted, ExecutionRow, Graph, Plan

SCHEMA_VERSION = 10
_BATCH = 200
_TRIES, _LONGEST_PAUSE = 5, 0.2
_CONFLICTS = frozenset({"40001", "40P01", "55P03", 1213, 1205, 1020})
"""PostgreSQL's states and MySQL's numbers: deadlock, serialization, a lock that came too late."""
_DRIVERS = {
    "sqlite": "sqlite+aiosqlite", "mysql": "mysql+asyncmy", "mariadb": "mysql+asyncmy",
    "postgresql": "postgresql+asyncpg", "postgres": "postgresql+asyncpg",
}  # fmt: skip
_COLUMNS: dict[str, str] = {
    "MLMDEnv": "schema_version",
    "Type": "id name",
    "Execution": "id type_id last_known_state external_id last_update_time_since_epoch",
    "ExecutionProperty": "execution_id name int_value",
    "Artifact": "id last_update_time_since_epoch",
    "ArtifactProperty": "artifact_id",
    "Context": "id type_id last_update_time_since_epoch",
    "ContextProperty": "context_id",
    "ParentContext": "context_id parent_context_id",
    "Event": "id artifact_id execution_id type",
    "EventPath": "event_id",
    "Association": "context_id execution_id",
    "Attribution": "context_id artifact_id",
}
Result = TypeVar("Result")
_TEXTS = frozenset({"name", "external_id"})


class CannotPrune(Exception):
    """The database cannot be read or is not what is expected; the text holds no password."""


class Records:
    """The records of one store."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._sqlite = engine.dialect.name == "sqlite"
        metadata = MetaData()
        # The core does not quote PostgreSQL's names, so there they are in lower case.
        lower = engine.dialect.name == "postgresql"
        self._tables = {
            name: Table(
                name.lower() if lower else name, metadata,
                *(Column(column, _type(column)) for column in columns.split()), quote=True,
            )
            for name, columns in _COLUMNS.items()
        }  # fmt: skip

    async def check(self) -> None:
        """Raise CannotPrune unless the schema is the one that is known here."""
        async with self._engine.connect() as connection:
            versions = (
                (await connection.execute(select(self._tables["MLMDEnv"].c.schema_version))).scalars().all()
            )
        if list(versions) != [SCHEMA_VERSION]:
            raise CannotPrune(f"expected a database of schema version {SCHEMA_VERSION}, got {list(versions)}")

    async def read(self) -> Graph:
        """Read all ids, in one transaction."""
        tables, graph = self._tables, Graph()
        runs = select(tables["Type"].c.id).where(tables["Type"].c.name.in_(RUN_TYPES))
        async with self._engine.connect() as opened:
            # On PostgreSQL each statement would see another moment; SQLite's writers need not wait.
            connection = await opened.execution_options(
                reading=True, **({} if self._sqlite else {"isolation_level": "REPEATABLE READ"})
            )
            e = tables["Execution"].c
            async for row in _rows(
                connection, select(e.id, e.last_known_state, e.last_update_time_since_epoch, e.external_id)
            ):
                graph.executions[row[0]] = ExecutionRow(row[0], row[1] or 0, row[2] or 0, row[3])
            a = tables["Artifact"].c
            async for row in _rows(connection, select(a.id, a.last_update_time_since_epoch)):
                graph.artifacts[row[0]] = row[1] or 0
            c = tables["Context"].c
            query = select(c.id, c.last_update_time_since_epoch).where(c.type_id.in_(runs))
            async for row in _rows(connection, query):
                graph.runs[row[0]] = row[1] or 0
            v = tables["Event"].c
            async for row in _rows(connection, select(v.artifact_id, v.execution_id, v.type)):
                graph.events.append((row[0], row[1], row[2] or 0))
            m = tables["Association"].c
            async for row in _rows(connection, select(m.context_id, m.execution_id)):
                if row[0] in graph.runs:
                    graph.members.append((row[0], row[1]))
            p = tables["ExecutionProperty"].c
            query = select(p.execution_id, p.int_value).where(
                p.name.in_(REFERENCES), p.int_value.is_not(None)
            )
            async for row in _rows(connection, query):
                graph.references.append((row[0], row[1]))
            t = tables["Attribution"].c
            async for row in _rows(connection, select(t.context_id, t.artifact_id)):
                if row[0] in graph.runs:
                    graph.attributed.append((row[0], row[1]))
            query = select(tables["ParentContext"].c.parent_context_id)
            graph.parents = {row[0] async for row in _rows(connection, query)} & graph.runs.keys()
        return graph

    async def delete(self, chosen: Plan, *, before: int) -> AsyncIterator[Deleted]:
        """Delete what was chosen, each batch in a transaction; yields what is gone so far, after each.

        A batch leaves out what was changed since the plan was made, and what an execution from after it uses
        (see `_newly_needed`). Interrupted, what is left is whole, and the next plan goes on.
        """
        left = {artifact: set(by) for artifact, by in chosen.artifacts.items()}
        of: dict[int, list[int]] = {}
        for artifact, by in chosen.artifacts.items():
            for execution in by:
                of.setdefault(execution, []).append(artifact)
        gone = Deleted()
        for batch in _batches(chosen.executions):
            artifacts = []
            for execution in batch:
                for artifact in of.get(execution, ()):
                    left[artifact].discard(execution)
                    if not left[artifact]:
                        artifacts.append(artifact)

            async def both(
                connection: AsyncConnection, batch: list[int] = batch, artifacts: list[int] = artifacts
            ) -> tuple[int, int]:
                return (
                    await self._delete_executions(connection, batch, before),
                    await self._delete_artifacts(connection, artifacts, before),
                )

            executions, some = await self._committed(both)
            gone.executions += executions
            gone.artifacts += some
            gone.done += len(batch)
            yield gone
        for batch in _batches(chosen.runs):
            gone.runs += await self._committed(partial(self._delete_runs, ids=batch, before=before))
        yield gone

    async def _committed(self, work: Callable[[AsyncConnection], Awaitable[Result]]) -> Result:
        """Do the work in a transaction; again, where another one won."""
        for left in reversed(range(_TRIES)):
            try:
                async with self._engine.begin() as connection:
                    return await work(connection)
            except DBAPIError as error:
                if not left or not _lost_conflict(error):
                    raise
            await asyncio.sleep(random.uniform(0, _LONGEST_PAUSE))  # noqa: S311 (spreads load)
        raise AssertionError("the last try raises or returns")

    async def _delete_executions(self, connection: AsyncConnection, batch: Sequence[int], before: int) -> int:
        table = self._tables["Execution"]
        query = select(table.c.id).where(
            table.c.id.in_(batch), table.c.last_update_time_since_epoch < before,
            *(~each for each in self._newly_needed(before)),
        )  # fmt: skip
        ids = (await connection.execute(_locked(query))).scalars().all()
        events = self._tables["Event"]
        numbers = (
            (await connection.execute(select(events.c.id).where(events.c.execution_id.in_(ids))))
            .scalars()
            .all()
        )
        for some in _batches(numbers):
            await self._delete(connection, "EventPath", "event_id", some)
        for name in ("Event", "Association", "ExecutionProperty"):
            await self._delete(connection, name, "execution_id", ids)
        await self._delete(connection, "Execution", "id", ids)
        return len(ids)

    def _newly_needed(self, before: int) -> Iterator[Any]:
        """Conditions of an execution that a younger one shares an artifact or a run with, or is named by one.

        The plan keeps all of which one of these is true, so where one is, it became true after it.
        """
        one, other = self._tables["Execution"], self._tables["Execution"].alias()
        young = other.c.last_update_time_since_epoch >= before
        event, theirs = self._tables["Event"], self._tables["Event"].alias()
        same_artifact = theirs.c.artifact_id == event.c.artifact_id
        yield (
            select(event.c.id)
            .join(theirs, same_artifact)
            .join(other, other.c.id == theirs.c.execution_id)
            .where(event.c.execution_id == one.c.id, young)
            .correlate(one)
            .exists()
        )
        member, beside = self._tables["Association"], self._tables["Association"].alias()
        context, kind = self._tables["Context"], self._tables["Type"]
        yield (
            select(member.c.context_id)
            .join(context, context.c.id == member.c.context_id)
            .join(kind, kind.c.id == context.c.type_id)
            .join(beside, beside.c.context_id == member.c.context_id)
            .join(other, other.c.id == beside.c.execution_id)
            .where(member.c.execution_id == one.c.id, kind.c.name.in_(RUN_TYPES), young)
            .correlate(one)
            .exists()
        )
        named = self._tables["ExecutionProperty"]
        yield (
            select(named.c.execution_id)
            .join(other, other.c.id == named.c.execution_id)
            .where(named.c.int_value == one.c.id, named.c.name.in_(REFERENCES), young)
            .correlate(one)
            .exists()
        )

    async def _delete_artifacts(self, connection: AsyncConnection, ids: Sequence[int], before: int) -> int:
        table, events = self._tables["Artifact"], self._tables["Event"]
        used = select(events.c.id).where(events.c.artifact_id == table.c.id).exists()
        count = 0
        for some in _batches(ids):
            query = select(table.c.id).where(
                table.c.id.in_(some), table.c.last_update_time_since_epoch < before, ~used
            )
            free = (await connection.execute(_locked(query))).scalars().all()
            for name in ("Attribution", "ArtifactProperty"):
                await self._delete(connection, name, "artifact_id", free)
            await self._delete(connection, "Artifact", "id", free)
            count += len(free)
        return count

    async def _delete_runs(self, connection: AsyncConnection, ids: Sequence[int], before: int) -> int:
        table = self._tables["Context"]
        busy = [
            select(each.c[column]).where(each.c[column] == table.c.id).exists()
            for each, column in (
                (self._tables["Association"], "context_id"),
                (self._tables["Attribution"], "context_id"),
                (self._tables["ParentContext"], "parent_context_id"),
            )
        ]
        query = select(table.c.id).where(
            table.c.id.in_(ids), table.c.last_update_time_since_epoch < before, *(~each for each in busy)
        )
        free = (await connection.execute(_locked(query))).scalars().all()
        for name in ("ContextProperty", "ParentContext"):
            await self._delete(connection, name, "context_id", free)
        await self._delete(connection, "Context", "id", free)
        return len(free)

    async def _delete(self, connection: AsyncConnection, name: str, column: str, ids: Sequence[int]) -> None:
        if ids:
            table = self._tables[name]
            await connection.execute(table.delete().where(table.c[column].in_(ids)))


@asynccontextmanager
async def open_records(url: str) -> AsyncIterator[Records]:
    """The records of the store at a database URL.

    Raises CannotPrune for another URL, a database that cannot be opened, and one of another schema.
    """
    try:
        parsed = make_url(url)
        parsed = parsed.set(drivername=_DRIVERS[parsed.drivername.partition("+")[0]])
    except (ArgumentError, ValueError, KeyError):
        raise CannotPrune("--database: expected sqlite:///PATH, mysql://... or postgresql://...") from None
    engine = create_async_engine(parsed, hide_parameters=True)
    if engine.dialect.name == "sqlite":
        # A typing error must not make an empty file.
        if not Path(parsed.database or "").is_file():  # noqa: ASYNC240 (once, before anything runs)
            raise CannotPrune(f"there is no file {parsed.database}")
        # A transaction takes the one writer's place at its beginning, as the store's own do.
        engine = create_async_engine(
            parsed.set(database=f"file:{parsed.database}", query={"mode": "rw", "uri": "true"}),
            hide_parameters=True, connect_args={"timeout": 30},
        )  # fmt: skip
        event.listen(engine.sync_engine, "connect", _no_implicit_begin)
        event.listen(engine.sync_engine, "begin", _begin)
    records = Records(engine)
    try:
        await records.check()
        yield records
    except (DBAPIError, OSError) as error:
        cause = getattr(error, "orig", error)
        raise CannotPrune(f"{parsed.render_as_string(hide_password=True)}: {cause}") from None
    finally:
        await engine.dispose()


def _no_implicit_begin(connection: Any, _record: Any) -> None:
    connection.isolation_level = None


def _begin(connection: Any) -> None:
    reading = connection.get_execution_options().get("reading")
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


def _lost_conflict(error: DBAPIError) -> bool:
    """Whether another transaction won, so that this one was rolled back."""
    cause = error.orig
    state = getattr(cause, "sqlstate", None) or (cause.args[0] if cause is not None and cause.args else None)
    return state in _CONFLICTS


def _type(column: str) -> Any:
    if column in _TEXTS:
        return String(255)
    return BigInteger() if "time" in column else Integer()


def _locked(query: Any) -> Any:
    """Nobody may change these rows until the transaction ends (SQLite has one writer anyway)."""
    return query.with_for_update()


async def _rows(connection: AsyncConnection, query: Any) -> AsyncIterator[Any]:
    async with connection.stream(query) as rows:
        async for row in rows:
            yield row


def _batches(ids: Iterable[int]) -> Iterator[list[int]]:
    every = list(ids)
    for first in range(0, len(every), _BATCH):
        yield every[first : first + _BATCH]
