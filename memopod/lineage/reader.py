"""What lineage reads from a store, in batches, a few at a time; what was read is kept for the question.

Works on any server of MLMD's service, directly or through Envoy, and only reads.
"""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

from ml_metadata.proto import metadata_store_pb2 as mlmd
from ml_metadata.proto import metadata_store_service_pb2 as service

from memopod.lineage import records
from memopod.lineage.model import Artifact, Execution
from memopod.mlmd import NotFound, StoreClient, list_all

_BATCH = 100
"""Ids in a request: an answer stays far below the largest message."""
_AT_ONCE = 4
"""Requests under way: enough to hide a network's latency, few enough to leave the store to others."""
RUN_TYPES = ("KfpRun", "system.PipelineRun")
"""Types of the contexts that stand for runs: the metadata writer's, and Kubeflow's v2 driver's."""

_ORDER = mlmd.ListOperationOptions.OrderByField
_BY_ID = _ORDER(field=_ORDER.ID, is_asc=True)
_NEWEST_FIRST = _ORDER(field=_ORDER.CREATE_TIME, is_asc=False)

T = TypeVar("T")
R = TypeVar("R")


class Reader:
    """The reads of one question. Every method raises StoreError where the store does not answer."""

    def __init__(self, client: StoreClient) -> None:
        self._client = client
        self._executions: dict[int, Execution] = {}
        self._artifacts: dict[int, Artifact] = {}

    async def executions(self, ids: Iterable[int]) -> dict[int, Execution]:
        """Executions by id; those that the store does not have are absent."""
        wanted = dict.fromkeys(ids)
        missing = [number for number in wanted if number not in self._executions]

        async def read(batch: Sequence[int]) -> list[Execution]:
            request = service.GetExecutionsByIDRequest(execution_ids=batch)
            answer: Any = await self._client.call("GetExecutionsByID", request)
            return [records.execution(message) for message in answer.executions]

        await self._keep(await _batches(read, missing))
        return {number: self._executions[number] for number in wanted if number in self._executions}

    async def artifacts(self, ids: Iterable[int]) -> dict[int, Artifact]:
        """Artifacts by id; those that the store does not have are absent."""
        wanted = dict.fromkeys(ids)
        missing = [number for number in wanted if number not in self._artifacts]

        async def read(batch: Sequence[int]) -> list[Artifact]:
            request = service.GetArtifactsByIDRequest(artifact_ids=batch)
            answer: Any = await self._client.call("GetArtifactsByID", request)
            return [records.artifact(message) for message in answer.artifacts]

        for found in await _batches(read, missing):
            self._artifacts[found.id] = found
        return {number: self._artifacts[number] for number in wanted if number in self._artifacts}

    async def events_of_executions(self, ids: Iterable[int]) -> list[mlmd.Event]:
        """All events of these executions."""

        async def read(batch: Sequence[int]) -> list[mlmd.Event]:
            request = service.GetEventsByExecutionIDsRequest(execution_ids=batch)
            answer: Any = await self._client.call("GetEventsByExecutionIDs", request)
            return list(answer.events)

        return await _batches(read, list(dict.fromkeys(ids)))

    async def events_of_artifacts(self, ids: Iterable[int]) -> list[mlmd.Event]:
        """All events of these artifacts."""

        async def read(batch: Sequence[int]) -> list[mlmd.Event]:
            request = service.GetEventsByArtifactIDsRequest(artifact_ids=batch)
            answer: Any = await self._client.call("GetEventsByArtifactIDs", request)
            return list(answer.events)

        return await _batches(read, list(dict.fromkeys(ids)))

    async def artifacts_at(self, uri: str) -> list[Artifact]:
        """The artifacts whose location is exactly `uri`."""
        answer: Any = await self._client.call(
            "GetArtifactsByURI", service.GetArtifactsByURIRequest(uris=[uri])
        )
        return [records.artifact(message) for message in answer.artifacts]

    async def reusers(self, ids: Iterable[int]) -> list[Execution]:
        """The executions that took over the outputs of one of these instead of running."""

        async def read(batch: Sequence[int]) -> list[Execution]:
            prop = "custom_properties.cached_execution_id"
            numbers = ",".join(str(number) for number in batch)
            texts = ",".join(f"'{number}'" for number in batch)
            request = service.GetExecutionsRequest()
            request.options.filter_query = (
                f"{prop}.int_value IN ({numbers}) OR {prop}.string_value IN ({texts})"
            )
            request.options.order_by_field.CopyFrom(_BY_ID)
            return [
                records.execution(message)
                async for message in list_all(self._client, "GetExecutions", request)
            ]

        found = await _batches(read, list(dict.fromkeys(ids)))
        await self._keep(found)
        return [self._executions[execution.id] for execution in found]

    async def run(self, name: str) -> mlmd.Context | None:
        """The context that stands for the run of this name."""
        for kind in RUN_TYPES:
            request = service.GetContextByTypeAndNameRequest(type_name=kind, context_name=name)
            answer: Any = await self._client.call("GetContextByTypeAndName", request)
            if answer.HasField("context"):
                context: mlmd.Context = answer.context
                return context
        return None

    async def runs(self, *, limit: int, prefix: str = "") -> tuple[list[mlmd.Context], bool]:
        """The latest runs, newest first, whose names start with `prefix`; and whether there are more."""
        kinds = ",".join(f"'{kind}'" for kind in RUN_TYPES)
        request = service.GetContextsRequest()
        request.options.order_by_field.CopyFrom(_NEWEST_FIRST)
        request.options.filter_query = f"type IN ({kinds})"
        if prefix:
            request.options.filter_query += f" AND name LIKE '{prefix}%'"
        found: list[mlmd.Context] = []
        async for context in list_all(self._client, "GetContexts", request):
            # An underscore in the prefix is a wildcard to the store.
            if context.name.startswith(prefix):
                if len(found) == limit:
                    return found, True
                found.append(context)
        return found, False

    async def executions_of(
        self, context: mlmd.Context, *, limit: int | None = None
    ) -> tuple[list[Execution], bool]:
        """The first `limit` executions of a run, and whether there are more."""
        request = service.GetExecutionsByContextRequest(context_id=context.id)
        request.options.order_by_field.CopyFrom(_BY_ID)
        found: list[Execution] = []
        async for message in list_all(self._client, "GetExecutionsByContext", request):
            if limit is not None and len(found) == limit:
                return found, True
            execution = records.execution(message)
            if not execution.run:
                execution = dataclasses.replace(execution, run=context.name)
            self._executions[execution.id] = execution
            found.append(execution)
        return found, False

    async def _keep(self, found: Iterable[Execution]) -> None:
        """Keep executions, and look up the run of those that do not name theirs."""
        unnamed = []
        for execution in found:
            known = self._executions.setdefault(execution.id, execution)
            if not known.run:
                unnamed.append(execution.id)

        async def name_run(number: int) -> None:
            request = service.GetContextsByExecutionRequest(execution_id=number)
            try:
                answer: Any = await self._client.call("GetContextsByExecution", request)
            except NotFound:
                return  # MLMD's answer for an execution that belongs to no context
            name = next((c.name for c in answer.contexts if c.type in RUN_TYPES), "")
            self._executions[number] = dataclasses.replace(self._executions[number], run=name)

        await at_once(name_run, unnamed)


async def _batches(read: Callable[[Sequence[T]], Awaitable[list[R]]], items: Sequence[T]) -> list[R]:
    batches = [items[start : start + _BATCH] for start in range(0, len(items), _BATCH)]
    return [row for rows in await at_once(read, batches) for row in rows]


async def at_once(act: Callable[[T], Awaitable[R]], items: Sequence[T]) -> list[R]:
    """`act` on every item, a few at a time; the results in the order of the items.

    The first failure ends the others and is raised as it is.
    """
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(item: T) -> R:
        async with gate:
            return await act(item)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(item), name=f"lineage-read-{n}") for n, item in enumerate(items)]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from failed
    return [task.result() for task in tasks]
