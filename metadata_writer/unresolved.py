"""Joins steps to what was not known when they were recorded, however long ago: artifacts, a reused run.

The store itself remembers who lacks what: an execution names the artifacts it could not be joined to, and
their places. So nothing is lost when Pod, Workflow and writer are gone. What was never recorded (a file
that somebody put there) stays unresolved, and costs one question in each round.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, Final

import structlog
from ml_metadata.proto import metadata_store_pb2 as mlmd
from ml_metadata.proto import metadata_store_service_pb2 as service

from memopod.mlmd import NotFound, StoreClient, StoreError, from_properties, list_all
from metadata_writer import metrics
from metadata_writer.notes import PLACES, UNRESOLVED_INPUTS, UNRESOLVED_OUTPUTS, UNRESOLVED_SOURCE, noted
from metadata_writer.recorder import Recorder, Wish
from metadata_writer.records import UNTYPED, Input, Output, Run, State, StepRecord, Value
from metadata_writer.shards import Shards

_FIRST_PAUSE: Final = 2.0
"""Seconds to the second round, doubled each time: what a writer before this one left open goes on at once."""
_EVERY: Final = 60.0
"""Seconds between rounds at last: whoever is here then was tried for three minutes already."""
_REST: Final = 50
"""So many times as long as a round took: what nobody ever records is named by ever more steps."""
_TOGETHER: Final = 100
"""Steps whose places are asked for at once."""


class Unresolved:
    """Goes round through the store, for the namespaces that this replica writes."""

    def __init__(self, store: StoreClient, recorder: Recorder, shards: Shards) -> None:
        self._store = store
        self._recorder = recorder
        self._shards = shards
        self._log = structlog.get_logger()

    async def run(self, up: asyncio.Event) -> None:
        """Go round until cancelled, while the store is `up`."""
        pause = _FIRST_PAUSE
        while True:
            await up.wait()
            begun = time.monotonic()
            try:
                await self.round()
            except StoreError as error:
                self._log.warning("unresolved artifacts were not looked for", error=str(error))
            await asyncio.sleep(max(pause, _REST * (time.monotonic() - begun)))
            pause = min(2 * pause, _EVERY)

    async def round(self) -> int:
        """Look for all artifacts that are not known yet; how many steps were joined to some."""
        joined = lacking = 0
        records: list[StepRecord] = []
        async for record in self._lacking():
            lacking += 1
            records.append(record)
            if len(records) == _TOGETHER:
                joined += await self._join(records)
                records = []
        joined += await self._join(records)
        metrics.UNRESOLVED.set(lacking - joined)
        return joined

    async def _lacking(self) -> AsyncIterator[StepRecord]:
        seen: set[int] = set()
        for name in (*PLACES.values(), UNRESOLVED_SOURCE):
            # A filter with OR would find only those that have both: it joins the two.
            request = service.GetExecutionsRequest()
            request.options.filter_query = f"custom_properties.{name}.string_value != ''"
            async for execution in list_all(self._store, "GetExecutions", request):
                record = as_record(execution) if execution.id not in seen else None
                seen.add(execution.id)
                if record is not None and self._shards.leads(record.run.namespace):
                    yield record

    async def _join(self, records: list[StepRecord]) -> int:
        known = await self._known([place for record in records for place in _places(record)])
        known |= await self._recorded([r.source_execution for r in records if r.source_execution is not None])
        wishes = [
            Wish(record)
            for record in records
            if record.source_execution in known or not known.isdisjoint(_places(record))
        ]
        if not wishes:
            return 0
        results = await self._recorder.record_all(wishes)
        done = [result for result in results if not isinstance(result, StoreError) and result.written]
        self._log.info("joined to artifacts that were not known before", steps=len(done))
        return len(done)

    async def _known(self, uris: list[str]) -> set[str]:
        if not uris:
            return set()
        request = service.GetArtifactsByURIRequest(uris=dict.fromkeys(uris))
        return {artifact.uri for artifact in (await self._store.call("GetArtifactsByURI", request)).artifacts}

    async def _recorded(self, external_ids: list[str]) -> set[str]:
        if not external_ids:
            return set()
        request = service.GetExecutionsByExternalIdsRequest(external_ids=dict.fromkeys(external_ids))
        try:
            answer = await self._store.call("GetExecutionsByExternalIds", request)
        except NotFound:
            return set()
        return {execution.external_id for execution in answer.executions}


def as_record(execution: Any) -> StepRecord | None:
    """What an execution says of its step, as far as it takes to join it; None for no step of ours.

    Nothing of it overrules what is stored.
    """
    custom = from_properties(execution.custom_properties)
    uid, _, node = execution.external_id.partition("/")
    state = mlmd.Execution.State.Name(execution.last_known_state)
    if not node or state not in State.__members__:
        return None
    times: dict[str, Value] = {
        name: int(value)
        for name in ("started_at", "finished_at")
        if isinstance(value := custom.get(name), int | float)
    }
    return StepRecord(
        external_id=execution.external_id,
        run=Run(execution.properties["run_id"].string_value, str(custom.get("namespace", "")), uid),
        type_name=execution.type,
        component_id=execution.properties["component_id"].string_value,
        state=State[state],
        custom=times,
        inputs=tuple(Input(name, uri) for name, uri in noted(custom, UNRESOLVED_INPUTS).items()),
        outputs=tuple(
            Output(name, UNTYPED, uri, {}) for name, uri in noted(custom, UNRESOLVED_OUTPUTS).items()
        ),
        source_execution=str(custom[UNRESOLVED_SOURCE]) if UNRESOLVED_SOURCE in custom else None,
        from_pod=False,
    )


def _places(record: StepRecord) -> list[str]:
    return [item.uri for item in record.inputs] + [item.uri for item in record.outputs]
