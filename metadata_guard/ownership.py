"""The namespaces that a node belongs to, as the store tells.

- A context: its property `namespace`, as the metadata writer and Kubeflow's v2 driver write it for a run.
- An execution: its own property `namespace`.
- An artifact: those of the executions that put it out.

An execution without one, and an artifact that none put out, is nobody's, unless `inherit` names the type of
a context that it is in: then it is of these contexts' namespaces. (Runs of one name may share a context, and
whoever may write can put a node into any: so a context says whose its members are only where that is asked
for.)

A namespace of "" stands for what is not known. Nobody may read that.
"""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Any, Final

from ml_metadata.proto import metadata_store_pb2 as mlmd
from ml_metadata.proto import metadata_store_service_pb2 as service

Namespaces = frozenset[str]
"""Who would read a node must be allowed to read all of these."""
UNKNOWN: Final[Namespaces] = frozenset({""})
Owners = dict[int, Namespaces]

Ask = Callable[[str, Any], Awaitable[Any]]
"""Sends an RPC's request to the store; NOT_FOUND is an empty answer."""

_BATCH: Final = 200
_OUTPUTS: Final = frozenset(
    {mlmd.Event.OUTPUT, mlmd.Event.DECLARED_OUTPUT, mlmd.Event.INTERNAL_OUTPUT, mlmd.Event.PENDING_OUTPUT}
)


def own(node: Any) -> Namespaces:
    """The namespace that a context or an execution names itself."""
    for properties in (node.custom_properties, node.properties):
        if "namespace" in properties:
            return frozenset({properties["namespace"].string_value})
    return UNKNOWN


async def of_executions(ask: Ask, ids: Collection[int], inherit: Collection[str] = ()) -> Owners:
    """The namespaces of executions by id."""
    found: dict[int, Namespaces] = {}
    for batch in _batches(ids):
        answer = await ask("GetExecutionsByID", service.GetExecutionsByIDRequest(execution_ids=batch))
        found.update({execution.id: own(execution) for execution in answer.executions})
    silent = [number for number, names in found.items() if names == UNKNOWN]
    return found | await _of_members(ask, "executions", silent, inherit)


async def of_artifacts(ask: Ask, ids: Collection[int], inherit: Collection[str] = ()) -> Owners:
    """The namespaces of artifacts by id."""
    makers: defaultdict[int, set[int]] = defaultdict(set)
    for batch in _batches(ids):
        request = service.GetEventsByArtifactIDsRequest(artifact_ids=batch)
        for event in (await ask("GetEventsByArtifactIDs", request)).events:
            if event.type in _OUTPUTS:
                makers[event.artifact_id].add(event.execution_id)
    every = {number for numbers in makers.values() for number in numbers}
    executions = await of_executions(ask, every, inherit)
    found = {
        artifact: _union(executions.get(number, UNKNOWN) for number in numbers)
        for artifact, numbers in makers.items()
    }
    silent = [number for number in ids if number not in makers]
    return found | await _of_members(ask, "artifacts", silent, inherit)


async def of_contexts(ask: Ask, ids: Collection[int]) -> Owners:
    """The namespaces of contexts by id."""
    return {context.id: own(context) for context in await _contexts(ask, ids)}


async def _contexts(ask: Ask, ids: Collection[int]) -> list[Any]:
    found: list[Any] = []
    for batch in _batches(ids):
        answer = await ask("GetContextsByID", service.GetContextsByIDRequest(context_ids=batch))
        found.extend(answer.contexts)
    return found


async def _of_members(ask: Ask, kind: str, ids: Collection[int], inherit: Collection[str]) -> Owners:
    """The namespaces of each node's contexts of the types in `inherit`; `kind`: executions or artifacts."""
    if not inherit:
        return dict.fromkeys(ids, UNKNOWN)
    members: defaultdict[int, set[int]] = defaultdict(set)
    for batch in _batches(ids):
        request = service.GetLineageSubgraphRequest()
        options = request.lineage_subgraph_query_options
        options.max_num_hops = 0
        start = getattr(options, f"starting_{kind}")
        start.filter_query = f"id IN ({','.join(map(str, batch))})"
        request.read_mask.paths.extend(["contexts", "associations", "attributions"])
        graph = (await ask("GetLineageSubgraph", request)).lineage_subgraph
        for edge in graph.associations if kind == "executions" else graph.attributions:
            node = edge.execution_id if kind == "executions" else edge.artifact_id
            members[node].add(edge.context_id)
    every = {number for numbers in members.values() for number in numbers}
    contexts = {c.id: own(c) for c in await _contexts(ask, every) if c.type in inherit}
    return {
        node: _union(contexts[number] for number in members[node] if number in contexts) or UNKNOWN
        for node in ids
    }


def _union(parts: Iterable[Namespaces]) -> Namespaces:
    return frozenset().union(*parts)


def _batches(ids: Collection[int]) -> Iterable[list[int]]:
    ordered = sorted(ids)
    return (ordered[start : start + _BATCH] for start in range(0, len(ordered), _BATCH))
