"""Writes one step into the store, however often it is told to: what is there already is not put again.

Ask what the store knows, plan the difference, put it in one transaction. Whoever else writes the
same step in between makes the store refuse the put (ALREADY_EXISTS), and everything is asked again.
"""

import asyncio
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc
from ml_metadata.proto import metadata_store_pb2 as mlmd
from ml_metadata.proto import metadata_store_service_pb2 as service

from memopod.mlmd import NotFound, StoreClient, StoreError
from metadata_writer import metrics
from metadata_writer.graph import Known, awaits_source, event_names, plan, presumed_source
from metadata_writer.records import StepRecord
from metadata_writer.type_registry import TypeRegistry

_ATTEMPTS: Final = 8
"""How often one recording asks again before it gives up: collisions with other writers are short."""
_FIRST_PAUSE: Final = 0.02
"""Seconds before the second attempt, doubled each time: a transaction of the store takes milliseconds."""
_ASK_AGAIN: Final = frozenset(
    {
        grpc.StatusCode.ALREADY_EXISTS,  # somebody else put the step, or one of its types, first
        grpc.StatusCode.ABORTED,  # a deadlock or a lock held too long
        grpc.StatusCode.NOT_FOUND,  # ids from before the store was wiped
        grpc.StatusCode.INVALID_ARGUMENT,  # the same, as other calls put it
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one recording.

    `written`: the store did not have it all. `unresolved`: names of artifacts that the store does
    not know. `awaits_source`: nothing was written, since the run that the step reuses is not there.
    """

    written: bool
    unresolved: tuple[str, ...] = ()
    awaits_source: bool = False


class Recorder:
    """Records steps; any number of tasks may share one, and any number of processes one store."""

    def __init__(self, store: StoreClient) -> None:
        self._store = store
        self._types = TypeRegistry(store)

    async def record(self, record: StepRecord, *, patient: bool = False) -> Outcome:
        """Make the store say what `record` says.

        `patient`: a reused step whose source is not recorded yet is left for later.
        Raises StoreUnavailable while the store is away, StoreError when it goes on refusing.
        """
        for attempt in range(_ATTEMPTS):
            try:
                return await self._record(record, patient=patient)
            except StoreError as error:
                if error.code is not grpc.StatusCode.ABORTED:
                    self._types.forget()  # the store may come back as another one, or be another already
                if error.code not in _ASK_AGAIN or attempt == _ATTEMPTS - 1:
                    raise
                metrics.RETRIES.labels(reason=error.code.name.lower()).inc()
            await asyncio.sleep(_FIRST_PAUSE * 2**attempt * random.uniform(0.5, 1.5))  # noqa: S311 (jitter)
        raise AssertionError("the last attempt returns or raises")

    async def _record(self, record: StepRecord, *, patient: bool) -> Outcome:
        types = await self._types.ids(record)
        known = await self._ask(record)
        if patient and awaits_source(record, known):
            return Outcome(written=False, awaits_source=True)
        planned = plan(record, known, types)
        if planned.request is not None:
            await self._store.call("PutLineageSubgraph", planned.request)
        return Outcome(written=planned.request is not None, unresolved=planned.unresolved)

    async def _ask(self, record: StepRecord) -> Known:
        by_uri = await self._artifacts_at(_places(record))
        source_id = record.source_execution or presumed_source(record, by_uri)
        executions = await self._executions([record.external_id, *([source_id] if source_id else ())])
        own, source = executions.get(record.external_id), executions.get(source_id or "")
        events = await self._events([e.id for e in (own, source) if e is not None])
        return Known(
            execution=own,
            events=events[own.id] if own is not None else (),
            source=source,
            source_outputs=await self._outputs(events[source.id]) if source is not None else (),
            by_uri=by_uri,
        )

    async def _executions(self, external_ids: Sequence[str]) -> dict[str, Any]:
        request = service.GetExecutionsByExternalIdsRequest(external_ids=external_ids)
        try:
            answer = await self._store.call("GetExecutionsByExternalIds", request)
        except NotFound:  # unknown ids are left out of the answer, unless all of them are
            return {}
        return {execution.external_id: execution for execution in answer.executions}

    async def _events(self, execution_ids: Sequence[int]) -> Mapping[int, list[Any]]:
        events: defaultdict[int, list[Any]] = defaultdict(list)
        if execution_ids:
            request = service.GetEventsByExecutionIDsRequest(execution_ids=execution_ids)
            for event in (await self._store.call("GetEventsByExecutionIDs", request)).events:
                events[event.execution_id].append(event)
        return events

    async def _outputs(self, events: Iterable[Any]) -> list[tuple[str, Any]]:
        """Output artifacts by the names under which they were put out."""
        put_out = [event for event in events if event.type == mlmd.Event.OUTPUT]
        if not put_out:
            return []
        request = service.GetArtifactsByIDRequest(artifact_ids=[event.artifact_id for event in put_out])
        answer = await self._store.call("GetArtifactsByID", request)
        artifacts = {artifact.id: artifact for artifact in answer.artifacts}
        return [
            (name, artifacts[event.artifact_id])
            for event in put_out
            if event.artifact_id in artifacts
            for name in event_names(event) or [""]
        ]

    async def _artifacts_at(self, uris: Sequence[str]) -> Mapping[str, list[Any]]:
        found: defaultdict[str, list[Any]] = defaultdict(list)
        if uris:
            request = service.GetArtifactsByURIRequest(uris=uris)
            for artifact in (await self._store.call("GetArtifactsByURI", request)).artifacts:
                found[artifact.uri].append(artifact)
        return found


def _places(record: StepRecord) -> list[str]:
    """Where the artifacts are that others made: what the step read, and what it shares."""
    places = [item.uri for item in record.inputs]
    if record.shares_outputs:
        places += [output.uri for output in record.outputs]
    return list(dict.fromkeys(places))
