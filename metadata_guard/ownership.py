"""The namespaces that a node belongs to, as the store tells.

- A context: its property `namespace`, as the metadata writer and Kubeflow's v2 driver write it for a run.
- An execution: its own property `namespace`; where it has none, those of all its contexts that have one.
- An artifact: those of the executions that put it out; where none did, those of its contexts.

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


async def of_executions(ask: Ask, ids: Collection[int]) -> dict[int, Namespaces]:
    """The namespaces of executions by id."""
    found: dict[int, Namespaces] = {}
    for batch in _batches(ids):
        answer = await ask("GetExecutionsByID", service.GetExecutionsByIDRequest(execution_ids=batch))
        found.update({execution.id: own(execution) for execution in answer.executions})
    silent = [number for number in ids if found.get(number, UNKNOWN) == UNKNOWN]
    return found | await _of_members(ask, "executions", silent)


async def of_artifacts(ask: Ask, ids: Collection[int]) -> dict[int, Namespaces]:
    """The namespaces of artifacts by id."""
    makers: defaultdict[int, set[int]] = defaultdict(set)
    for batch in _batches(ids):
        request = service.GetEventsByArtifactIDsRequest(artifact_ids=batch)
        for event in (await ask("GetEventsByArtifactIDs", request)).events:
            if event.type in _OUTPUTS:
                makers[event.artifact_id].add(event.execution_id)
    executions = await of_executions(ask, {number for numbers in makers.values() for number in numbers})
    found = {
        artifact: _union(executions.get(number, UNKNOWN) for number in numbers)
        for artifact, numbers in makers.items()
    }
    return found | await _of_members(ask, "artifacts", [number for number in ids if number not in makers])


async def of_contexts(ask: Ask, ids: Collection[int]) -> dict[int, Namespaces]:
    """The namespaces of contexts by id."""
    found: dict[int, Namespaces] = {}
    for batch in _batches(ids):
        answer = await ask("GetContextsByID", service.GetContextsByIDRequest(context_ids=batch))
        found.update({context.id: own(context) for context in answer.contexts})
    return found


async def _of_members(ask: Ask, kind: str, ids: Collection[int]) -> dict[int, Namespaces]:
    """The namespaces of the contexts of each node; of `kind` executions or artifacts."""
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
    contexts = await of_contexts(ask, {number for numbers in members.values() for number in numbers})
    # A context without a namespace (Kubeflow's `system.Pipeline`) says nothing; none at all is unknown.
    return {node: _named(contexts.get(number, UNKNOWN) for number in members[node]) for node in ids}


def _union(parts: Iterable[Namespaces]) -> Namespaces:
    return frozenset().union(*parts)


def _named(parts: Iterable[Namespaces]) -> Namespaces:
    return (_union(parts) - UNKNOWN) or UNKNOWN


def _batches(ids: Collection[int]) -> Iterable[list[int]]:
    ordered = sorted(ids)
    return (ordered[start : start + _BATCH] for start in range(0, len(ordered), _BATCH))
