"""`runs` and `show`: what ran lately, and what happened in one run."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from ml_metadata.proto import metadata_store_pb2 as mlmd

from memopod.lineage import records
from memopod.lineage.errors import BadReference
from memopod.lineage.model import (
    Artifact,
    Direction,
    Edge,
    Execution,
    Graph,
    Node,
    Port,
    Relation,
    RunList,
    RunReport,
    RunSummary,
    State,
    StepReport,
)
from memopod.lineage.reader import Reader, at_once
from memopod.lineage.references import find_run
from memopod.mlmd import StoreClient

_NAME = re.compile(r"[A-Za-z0-9._-]*")
_ENDED = frozenset({State.COMPLETE, State.FAILED, State.CACHED, State.CANCELED})


async def runs(client: StoreClient, limit: int = 20, pipeline: str = "") -> RunList:
    """The latest runs, newest first, of all pipelines or of those runs whose names start with `pipeline`.

    (A run is named after its pipeline, with a suffix; the store has no other record of the pipeline.)
    Raises BadReference for a `pipeline` that cannot begin a run's name, StoreError where the store does
    not answer.
    """
    if not _NAME.fullmatch(pipeline):
        raise BadReference(f"pipeline {pipeline!r}: expected letters, digits, '-', '_' and '.'")
    reader = Reader(client)
    contexts, more = await reader.runs(limit=limit, prefix=pipeline)

    async def summary(context: mlmd.Context) -> RunSummary:
        executions, _ = await reader.executions_of(context)
        return _summary(context, executions)

    return RunList(runs=tuple(await at_once(summary, contexts)), more=more)


async def show(client: StoreClient, run: str) -> RunReport:
    """One run: its steps, their inputs and outputs, and what was reused from where.

    Raises NotRecorded for an unknown run, StoreError where the store does not answer.
    """
    reader = Reader(client)
    context = await find_run(reader, run)
    executions, _ = await reader.executions_of(context)
    events = await reader.events_of_executions(execution.id for execution in executions)
    artifacts = await reader.artifacts(event.artifact_id for event in events)
    origins = await reader.executions(
        execution.cached_execution_id for execution in executions if execution.cached_execution_id
    )
    by_execution: dict[int, list[mlmd.Event]] = defaultdict(list)
    for event in events:
        by_execution[event.execution_id].append(event)
    ordered = sorted(executions, key=lambda e: (math.inf if e.started_at is None else e.started_at, e.id))
    steps = tuple(
        StepReport(
            execution=execution,
            inputs=_ports(by_execution[execution.id], artifacts, records.INPUT_EVENTS),
            outputs=_ports(by_execution[execution.id], artifacts, records.OUTPUT_EVENTS),
            reused_from=origins.get(execution.cached_execution_id or 0),
        )
        for execution in ordered
    )
    return RunReport(run=context.name, namespace=records.context_namespace(context), steps=steps)


def as_graph(report: RunReport) -> Graph:
    """A run as a graph: its steps, their artifacts, and the executions that were reused."""
    nodes: dict[str, Node] = {}
    edges: dict[Edge, None] = {}

    def edge(source: Node, target: Node, relation: Relation, name: str = "") -> None:
        ends = [nodes.setdefault(node.key, node).key for node in (source, target)]
        edges[Edge(source=ends[0], target=ends[1], relation=relation, name=name)] = None

    for step in report.steps:
        execution = step.execution
        nodes.setdefault(execution.key, execution)
        made = Relation.HANDED_ON if execution.state is State.CACHED else Relation.PRODUCED
        for port in step.inputs:
            edge(port.artifact, execution, Relation.USED, port.name)
        for port in step.outputs:
            edge(execution, port.artifact, made, port.name)
        if step.reused_from is not None:
            edge(step.reused_from, execution, Relation.REUSED)
    targets = {edge.target for edge in edges}
    return Graph(
        direction=Direction.DOWN,
        roots=tuple(key for key in nodes if key not in targets),
        nodes=nodes,
        edges=tuple(edges),
    )


def _ports(
    events: Sequence[mlmd.Event], artifacts: Mapping[int, Artifact], kinds: frozenset[int]
) -> tuple[Port, ...]:
    found = []
    for event in events:
        artifact = artifacts.get(event.artifact_id)
        if artifact is not None and event.type in kinds:
            names = records.event_names(event) or (artifact.name,)
            found += [Port(name=name, artifact=artifact) for name in names]
    return tuple(sorted(found, key=lambda port: (port.name, port.artifact.id)))


def _summary(context: mlmd.Context, executions: Sequence[Execution]) -> RunSummary:
    started = [e.started_at for e in executions if e.started_at is not None]
    finished = [e.finished_at for e in executions if e.finished_at is not None]
    ended = bool(executions) and all(e.state in _ENDED for e in executions)
    return RunSummary(
        run=context.name,
        namespace=records.context_namespace(context),
        created_at=context.create_time_since_epoch,
        started_at=min(started, default=None),
        finished_at=max(finished, default=None) if ended else None,
        states=dict(Counter(execution.state for execution in executions)),
    )
