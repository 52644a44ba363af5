"""What the store says of many steps at once: asked in few calls, and looked up step by step."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ml_metadata.proto import metadata_store_pb2 as mlmd
from ml_metadata.proto import metadata_store_service_pb2 as service

from memopod.mlmd import NotFound, StoreClient
from metadata_writer.known import Known
from metadata_writer.provenance import event_names, maker_of, presumed_source
from metadata_writer.records import StepRecord


@dataclass(slots=True)
class Lore:
    """What the store said about many steps at once, by external id, execution id and URI."""

    executions: Mapping[str, Any] = field(default_factory=dict)
    events: Mapping[int, Sequence[Any]] = field(default_factory=dict)
    artifacts: Mapping[int, Any] = field(default_factory=dict)
    by_uri: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def of(self, record: StepRecord) -> Known:
        """What is known of one step."""
        own = self.executions.get(record.external_id)
        source = self.executions.get(record.source_execution or self.presumed(record) or "")
        return Known(
            execution=own,
            events=self.events.get(own.id, ()) if own is not None else (),
            source=source,
            source_outputs=self._outputs(source) if source is not None else (),
            by_uri=self.by_uri,
            makers=self.executions,
        )

    def presumed(self, record: StepRecord) -> str | None:
        """Identity of the step that a reused one seems to reuse."""
        return presumed_source(record, self.by_uri, self.executions)

    def _outputs(self, source: Any) -> list[tuple[str, Any]]:
        """Output artifacts by the names under which they were put out."""
        return [
            (name, self.artifacts[event.artifact_id])
            for event in self.events.get(source.id, ())
            if event.type == mlmd.Event.OUTPUT and event.artifact_id in self.artifacts
            for name in event_names(event) or [""]
        ]


class Lookup:
    """Asks the store. Raises StoreError."""

    def __init__(self, store: StoreClient) -> None:
        self._store = store

    async def ask(self, records: Sequence[StepRecord]) -> Lore:
        """All that is there of these steps, of those that they reuse, and of what they read."""
        lore = Lore()
        lore.by_uri = await self._artifacts_at([place for record in records for place in places(record)])
        makers = (maker_of(artifact) for artifacts in lore.by_uri.values() for artifact in artifacts)
        own = [record.external_id for record in records]
        named = [record.source_execution for record in records if record.source_execution is not None]
        lore.executions = await self._executions([*own, *named, *filter(None, makers)])
        sources = {*named, *filter(None, map(lore.presumed, records))} & set(lore.executions)
        wanted = dict.fromkeys([*own, *sources])
        lore.events = await self._events(
            [lore.executions[name].id for name in wanted if name in lore.executions]
        )
        shared = [
            event.artifact_id
            for source in sources
            for event in lore.events.get(lore.executions[source].id, ())
            if event.type == mlmd.Event.OUTPUT
        ]
        lore.artifacts = await self._artifacts(shared)
        return lore

    async def _executions(self, external_ids: Iterable[str]) -> dict[str, Any]:
        request = service.GetExecutionsByExternalIdsRequest(external_ids=dict.fromkeys(external_ids))
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

    async def _artifacts(self, ids: Sequence[int]) -> dict[int, Any]:
        if not ids:
            return {}
        request = service.GetArtifactsByIDRequest(artifact_ids=dict.fromkeys(ids))
        answer = await self._store.call("GetArtifactsByID", request)
        return {artifact.id: artifact for artifact in answer.artifacts}

    async def _artifacts_at(self, uris: Sequence[str]) -> Mapping[str, list[Any]]:
        found: defaultdict[str, list[Any]] = defaultdict(list)
        if uris:
            request = service.GetArtifactsByURIRequest(uris=dict.fromkeys(uris))
            for artifact in (await self._store.call("GetArtifactsByURI", request)).artifacts:
                found[artifact.uri].append(artifact)
        return found


def places(record: StepRecord) -> list[str]:
    """Where the artifacts are that others made: what the step read, and what it shares."""
    places = [item.uri for item in record.inputs]
    if record.shares_outputs:
        places += [output.uri for output in record.outputs]
    return places
