"""The table of Kubeflow's cache server (v1), `execution_caches`, in MySQL or MariaDB, and what its rows tell.

The table has a row for each run that was stored, several of one key in older installations: `ID`,
`ExecutionCacheKey` (the fingerprint; varchar(191), formerly 255), `ExecutionTemplate`,
`ExecutionOutput` (JSON: the annotation `workflows.argoproj.io/outputs` and the execution's id as texts),
`MaxCacheStaleness` (seconds, below 0 for no limit), `StartedAtInSec`, `EndedAtInSec` (both the time of the
insert). Its rows have no namespace: whoever imports chooses one, and vouches for it.

Left out are rows that could make a step be taken for another: those whose template is no container's
(Kubeflow's fingerprint of all scripts and resources is the same), whose key is not their template's, and
those without the outputs that their template declares; and rows whose reuse was disabled.
"""

import hashlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    MetaData,
    String,
    Table,
    Text,
    func,
    select,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from cache_server.entries.calls import Database
from cache_server.entries.databases import create_engine, describe, kind_of, parse_url
from cache_server.entries.entry import Entry
from cache_server.entries.imported import (
    FORM,
    KEY_VERSION_IMPORTED,
    imported_components,
    imported_key,
)
from memopod.steps.kubeflow import FingerprintError, fingerprint
from memopod.steps.outputs import Outputs, declared, read_outputs

_BATCH = 200
_SOURCE_SECONDS = 60.0
_OUTPUTS = "workflows.argoproj.io/outputs"
_EXECUTION = "pipelines.kubeflow.org/metadata_execution_id"

NO_CONTAINER = "not a container's template"
OTHER_KEY = "its key is not its template's"
UNREADABLE = "its template or outputs cannot be read"
NO_OUTPUTS = "declared outputs are missing"
DISABLED = "its reuse is disabled"
OLDER = "an older row of its key"

_table = Table(
    "execution_caches",
    MetaData(),
    Column("ID", BigInteger, primary_key=True),
    Column("ExecutionCacheKey", String(255)),
    Column("ExecutionTemplate", Text),
    Column("ExecutionOutput", Text),
    Column("MaxCacheStaleness", BigInteger),
    Column("StartedAtInSec", BigInteger),
    Column("EndedAtInSec", BigInteger),
)


class NotImportable(ValueError):
    """A row that is left out; the message is one of the constants above."""


def read_row(row: Mapping[str, Any], *, namespace: str, source: str, now: datetime) -> Entry:
    """The entry of a row. Raises NotImportable."""
    template = _template(row)
    try:
        envelope = json.loads(row["ExecutionOutput"])
        reported = json.loads(envelope[_OUTPUTS]) if envelope.get(_OUTPUTS) else {}
        outputs = read_outputs(reported, template.get("archiveLocation"))
        started = datetime.fromtimestamp(row["StartedAtInSec"], UTC)
        execution = envelope.get(_EXECUTION) or ""
        components = imported_components(template)
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError, OSError) as error:
        raise NotImportable(UNREADABLE) from error
    if row["MaxCacheStaleness"] == 0:
        raise NotImportable(DISABLED)
    which = f"{FORM}\n{source}\n{namespace}\n{row['ID']}".encode()
    return Entry(
        id=hashlib.sha256(which).hexdigest()[:32],
        namespace=namespace,
        key=imported_key(row["ExecutionCacheKey"]),
        key_version=KEY_VERSION_IMPORTED,
        components=components,
        template_name=str(template.get("name") or "")[:253],
        workflow="",
        workflow_uid="",
        node_id="",
        pod_name="",
        pod_uid=f"kubeflow-{row['ID']}-{hashlib.sha256(source.encode()).hexdigest()[:16]}",
        image_id="",
        outputs=_declared_only(outputs, template),
        execution_id=int(execution) if str(execution).isascii() and str(execution).isdigit() else None,
        started_at=started,
        finished_at=started,
        recorded_at=now,
        max_staleness_seconds=None if row["MaxCacheStaleness"] < 0 else row["MaxCacheStaleness"],
    )


def _template(row: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        template = json.loads(row["ExecutionTemplate"])
        key = fingerprint(row["ExecutionTemplate"])
    except FingerprintError as error:
        raise NotImportable(NO_CONTAINER) from error
    except (ValueError, RecursionError) as error:
        raise NotImportable(UNREADABLE) from error
    if not isinstance(template, dict) or not isinstance(template.get("container"), dict):
        raise NotImportable(NO_CONTAINER)
    if key != row["ExecutionCacheKey"]:
        raise NotImportable(OTHER_KEY)
    return template


def _declared_only(outputs: Outputs, template: Mapping[str, Any]) -> Outputs:
    try:
        parameters = {str(p["name"]) for p in declared(template, "parameters")}
        artifacts = {str(a["name"]) for a in declared(template, "artifacts")}
    except (TypeError, KeyError, AttributeError) as error:
        raise NotImportable(UNREADABLE) from error
    kept = tuple(a for a in outputs.artifacts if a.name in artifacts)
    if not parameters <= set(outputs.parameters) or {a.name for a in kept} != artifacts:
        raise NotImportable(NO_OUTPUTS)
    chosen = {name: outputs.parameters[name] for name in sorted(parameters)}
    return Outputs(parameters=chosen, artifacts=kept, result=outputs.result)


class Source:
    """Kubeflow's table. Raises EntriesUnavailable when it cannot be read."""

    def __init__(self, database: Database, name: str) -> None:
        self._database = database
        self.name = name

    async def highest(self) -> int:
        """The highest ID, 0 if there is no row."""
        return int(await self._scalar(select(func.max(_table.c.ID))) or 0)

    async def count(self, *, above: int, below: int) -> int:
        """How many rows lie between two IDs."""
        between = above < _table.c.ID, below > _table.c.ID
        return int(await self._scalar(select(func.count()).select_from(_table).where(*between)))

    async def rows(self, *, above: int, below: int) -> Sequence[Mapping[str, Any]]:
        """The next rows below an ID, the highest first."""
        between = above < _table.c.ID, below > _table.c.ID
        statement = select(_table).where(*between).order_by(_table.c.ID.desc()).limit(_BATCH)

        async def work(connection: AsyncConnection) -> Sequence[Mapping[str, Any]]:
            return [dict(row._mapping) for row in (await connection.execute(statement)).all()]  # noqa: SLF001

        return await self._database.call("import", work)

    async def _scalar(self, statement: Any) -> Any:
        async def work(connection: AsyncConnection) -> Any:
            return await connection.scalar(statement)

        return await self._database.call("import", work)


@asynccontextmanager
async def open_source(url: str) -> AsyncIterator[Source]:
    """Kubeflow's database at a `mysql://` URL, for reading. Raises ValueError for another URL."""
    if kind_of(url) != "mysql":
        raise ValueError(f"expected mysql://USER:PASSWORD@HOST:PORT/NAME, got {parse_url(url).drivername}://")
    database = Database(
        create_engine(url, busy_timeout=_SOURCE_SECONDS, read_only=True), timeout=_SOURCE_SECONDS
    )
    try:
        # Without the user: who reads it does not make it another source.
        yield Source(database, describe(url).partition("@")[2])
    finally:
        await database.close()
