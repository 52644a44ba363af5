"""What is asked: five calls, on a store that holds what they find."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ml_metadata.proto import metadata_store_pb2 as mlmd
from ml_metadata.proto import metadata_store_service_pb2 as service

from metadata_store.connection import for_core, from_url, prepare_sqlite
from metadata_store.core import Core

CONTEXTS = 20_000
EXECUTIONS = 1_000
STEPS = 100
names = (f"bench-{number}-" for number in itertools.count())


@dataclass(frozen=True)
class Asked:
    """One kind of call: a request for each time that it is asked."""

    rpc: str
    request: Callable[[], bytes]
    name: str = ""
    seconds: float = 1.5


def open_core(url: str, *, first: bool = False) -> Core:
    """The core in this process. Only the `first` may touch SQLite's file with Python's own library: closing
    it drops the locks that another library holds in the same process.
    """
    config = from_url(url)
    if first:
        prepare_sqlite(config)
    return Core(for_core(config).SerializeToString(), b"")


def fill(core: Core) -> dict[str, int]:
    """Make the types and nodes that the calls need; returns ids."""
    ids = {
        "run": put(core, "PutContextType", context_type=mlmd.ContextType(name="run")).type_id,
        "other": put(core, "PutContextType", context_type=mlmd.ContextType(name="other")).type_id,
        "step": put(core, "PutExecutionType", execution_type=mlmd.ExecutionType(name="step")).type_id,
        "data": put(core, "PutArtifactType", artifact_type=mlmd.ArtifactType(name="data")).type_id,
    }
    for first in range(0, CONTEXTS, 1000):
        contexts = [mlmd.Context(type_id=ids["other"], name=f"c{n}") for n in range(first, first + 1000)]
        put(core, "PutContexts", contexts=contexts)
    ids["context"] = put(core, "PutContexts", contexts=[context(ids, "large")]).context_ids[0]
    for _ in range(EXECUTIONS // STEPS):
        core.call("PutLineageSubgraph", lineage(ids, "large"))
    return ids


def put(core: Core, rpc: str, **fields: Any) -> Any:
    answer = core.call(rpc, getattr(service, f"{rpc}Request")(**fields).SerializeToString())
    assert answer.code == 0, answer.error
    return getattr(service, f"{rpc}Response").FromString(answer.response)


def asked(ids: dict[str, int]) -> dict[str, Asked]:
    """The calls, by RPC, or by name where there are two of one."""
    by_name = service.GetContextByTypeAndNameRequest(type_name="other", context_name="c7")
    others = itertools.cycle(
        service.GetContextByTypeAndNameRequest(type_name="other", context_name=f"c{n}").SerializeToString()
        for n in range(CONTEXTS)
    )
    by_context = service.GetExecutionsByContextRequest(context_id=ids["context"])
    options = mlmd.LineageSubgraphQueryOptions(max_num_hops=2)
    options.starting_executions.filter_query = "id < 20"
    subgraph = service.GetLineageSubgraphRequest(lineage_subgraph_query_options=options)
    calls = (
        Asked("GetContextByTypeAndName", constant(by_name)),
        Asked("GetContextByTypeAndName", lambda: next(others), "GetContextByTypeAndName, 20,000 names"),
        Asked("PutExecution", lambda: one_step(ids)),
        Asked("GetExecutionsByContext", constant(by_context)),
        Asked("PutLineageSubgraph", lambda: lineage(ids, "written"), seconds=3.0),
        Asked("GetLineageSubgraph", constant(subgraph)),
    )
    return {call.name or call.rpc: call for call in calls}


def constant(message: Any) -> Callable[[], bytes]:
    request: bytes = message.SerializeToString()
    return lambda: request


def everything() -> bytes:
    """All contexts: the heavy query."""
    return service.GetContextsRequest().SerializeToString()


def context(ids: dict[str, int], name: str) -> mlmd.Context:
    return mlmd.Context(type_id=ids["run"], name=name)


def execution(ids: dict[str, int], name: str) -> mlmd.Execution:
    made = mlmd.Execution(type_id=ids["step"], name=name, last_known_state=mlmd.Execution.COMPLETE)
    made.custom_properties["pod_name"].string_value = f"{name}-pod"
    made.custom_properties["namespace"].string_value = "pipelines"
    made.custom_properties["cached"].bool_value = False
    return made


def one_step(ids: dict[str, int]) -> bytes:
    name = next(names)
    request = service.PutExecutionRequest(
        execution=execution(ids, name), contexts=[context(ids, "written")],
        options=service.PutExecutionRequest.Options(reuse_context_if_already_exist=True),
    )  # fmt: skip
    pair = request.artifact_event_pairs.add()
    pair.artifact.CopyFrom(mlmd.Artifact(type_id=ids["data"], name=name, uri=f"s3://bucket/{name}"))
    pair.event.type = mlmd.Event.OUTPUT
    return request.SerializeToString()


def lineage(ids: dict[str, int], run: str) -> bytes:
    """A run of STEPS steps, each with an output that the next one reads."""
    name = next(names)
    request = service.PutLineageSubgraphRequest(
        executions=[execution(ids, f"{name}{n}") for n in range(STEPS)],
        artifacts=[
            mlmd.Artifact(type_id=ids["data"], name=f"{name}{n}", uri=f"s3://bucket/{name}{n}")
            for n in range(STEPS)
        ],
        contexts=[context(ids, run)],
        options=service.PutLineageSubgraphRequest.Options(reuse_context_if_already_exist=True),
    )
    for n in range(STEPS):
        edge = request.event_edges.add(execution_index=n, artifact_index=n)
        edge.event.type = mlmd.Event.OUTPUT
        if n:
            edge = request.event_edges.add(execution_index=n, artifact_index=n - 1)
            edge.event.type = mlmd.Event.INPUT
    return request.SerializeToString()
