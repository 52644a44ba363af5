"""Which old records may be deleted, and deleting them: ML Metadata itself deletes nothing.

Executions are what is chosen; their events, properties and edges go with them, then the artifacts that
nothing else touched, and the contexts of runs that nothing is left in. Types, and contexts that span runs
(a pipeline, an experiment), stay.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

RUN_TYPES = frozenset({"KfpRun", "system.PipelineRun", "pipeline_run"})
"""Types of contexts that are one run each."""
REFERENCES = ("cached_execution_id", "parent_dag_id")
"""Properties of an execution that hold another one's id."""

NEW, RUNNING = 1, 2
OUTPUTS = frozenset({1, 4, 6})
"""Event types by which an execution made an artifact: DECLARED_OUTPUT, OUTPUT, INTERNAL_OUTPUT. (Unknown
ones are taken for both directions.)"""
INPUTS = frozenset({2, 3, 5})


@dataclass(frozen=True, slots=True)
class ExecutionRow:
    """What decides about an execution; `changed` in milliseconds since 1970."""

    id: int
    state: int
    changed: int
    external_id: str | None


@dataclass(slots=True)
class Graph:
    """All that is in a store, as ids."""

    executions: dict[int, ExecutionRow] = field(default_factory=dict)
    artifacts: dict[int, int] = field(default_factory=dict)  # id -> changed
    runs: dict[int, int] = field(default_factory=dict)  # contexts of RUN_TYPES: id -> changed
    events: list[tuple[int, int, int]] = field(default_factory=list)  # (artifact, execution, type)
    members: list[tuple[int, int]] = field(default_factory=list)  # (run, execution)
    references: list[tuple[int, int]] = field(default_factory=list)  # (execution, the one it names)
    attributed: list[tuple[int, int]] = field(default_factory=list)  # (run, artifact)
    parents: set[int] = field(default_factory=set)  # runs that have child contexts


@dataclass(slots=True)
class Deleted:
    """How many records are gone, and how many executions of the plan are `done` with."""

    done: int = 0
    executions: int = 0
    artifacts: int = 0
    runs: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """What can be deleted, and how much is kept for which reason."""

    executions: list[int]
    artifacts: dict[int, frozenset[int]]
    """Each with the executions that touched it: the last of them takes it along."""
    runs: list[int]
    kept: dict[str, int]


def plan(graph: Graph, *, before: int, ids: Collection[int] = (), external_ids: Collection[str] = ()) -> Plan:
    """Choose what was last changed `before` a time (milliseconds since 1970) and what nothing kept needs.

    Kept are: what is younger or not finished; what the cache's entries came from (`ids`, `external_ids`);
    and, from there on, the whole run of a kept execution, what made the artifacts that a kept execution
    touched, and the executions that it names.
    """
    kept: dict[int, str] = {}
    for row in graph.executions.values():
        if row.changed >= before:
            kept[row.id] = "younger"
        elif row.state in (NEW, RUNNING):
            kept[row.id] = "not finished"
        elif row.id in ids or (row.external_id is not None and row.external_id in external_ids):
            kept[row.id] = "a cache entry came from it"
    for run, execution in graph.members:
        if graph.runs[run] >= before:
            kept.setdefault(execution, "younger")
    _spread(graph, kept)
    touched: dict[int, set[int]] = defaultdict(set)
    for artifact, execution, _ in graph.events:
        touched[artifact].add(execution)
    reasons: dict[str, int] = defaultdict(int)
    for reason in kept.values():
        reasons[reason] += 1
    members: dict[int, set[int]] = defaultdict(set)
    for run, execution in graph.members:
        members[run].add(execution)
    artifacts = {
        artifact: frozenset(by)
        for artifact, by in touched.items()
        if graph.artifacts.get(artifact, before) < before and not by & kept.keys()
    }
    holds = {run for run, artifact in graph.attributed if artifact not in artifacts}
    return Plan(
        executions=sorted(graph.executions.keys() - kept.keys()),
        artifacts=artifacts,
        runs=sorted(
            run
            for run, changed in graph.runs.items()
            if changed < before
            and not members[run] & kept.keys()
            and run not in holds
            and run not in graph.parents
        ),
        kept=dict(reasons),
    )


def _spread(graph: Graph, kept: dict[int, str]) -> None:
    """Keep what kept executions need, and what that needs."""
    runs_of, in_run = defaultdict(list), defaultdict(list)
    for run, execution in graph.members:
        runs_of[execution].append(run)
        in_run[run].append(execution)
    artifacts_of, makers = defaultdict(list), defaultdict(list)
    for artifact, execution, kind in graph.events:
        artifacts_of[execution].append(artifact)
        if kind not in INPUTS:
            makers[artifact].append(execution)
    named = defaultdict(list)
    for execution, other in graph.references:
        named[execution].append(other)

    def needed(execution: int) -> Iterable[int]:
        for run in runs_of.pop(execution, ()):
            yield from in_run.pop(run, ())
        for artifact in artifacts_of[execution]:
            yield from makers.pop(artifact, ())
        yield from named[execution]

    todo = list(kept)
    while todo:
        for other in needed(todo.pop()):
            if other in graph.executions and other not in kept:
                kept[other] = "what is kept refers to it"
                todo.append(other)
