"""`up` and `down`: where something comes from, and what depends on it.

A question walks from execution to execution, a layer at a time; artifacts are what lies between.
Depth is therefore counted in steps of pipelines.

An artifact that was reused is an output of every execution that reused it, so following all of them
would lead from any run into all others. Hence two rules:

- *up* from an artifact that a step used: to the reused execution of the same run that handed it on,
  if there is one, and from there to what really ran; else to what really ran. Upwards from an
  artifact itself: to what really ran.
- *down* from a reused execution: to those users of its artifacts that belong to its own run. Down from
  what really ran, and from an artifact itself: to all users.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Protocol

from memopod.lineage import records, values
from memopod.lineage.model import (
    Artifact,
    Direction,
    Edge,
    Execution,
    Graph,
    Node,
    Parameter,
    Relation,
    State,
)
from memopod.lineage.reader import Reader
from memopod.lineage.references import Start, parameter, resolve
from memopod.lineage.walk import Reach, walk
from memopod.mlmd import StoreClient

DEPTH = 10
"""Steps that are followed unless told otherwise: deeper than most pipelines, still a readable tree."""
LIMIT = 500
"""Nodes that are taken in unless told otherwise: what a terminal can show, and a few dozen requests."""
_COMPARED = 2000
"""Executions of a run whose parameters are compared at most: one request for each hundred."""


async def up(
    client: StoreClient, reference: str, depth: int = DEPTH, *, limit: int = LIMIT, same_values: bool = True
) -> Graph:
    """Where the node that `reference` names comes from: what produced it, from what, and so on.

    `depth` counts steps, `limit` executions (and parameters); the graph's notes say when one was
    reached. `same_values` adds the edges of `memopod.lineage.values`.
    Raises LineageError for a reference that names no node, StoreError where the store does not answer.
    """
    reader = Reader(client)
    start = await resolve(reader, reference)
    return await _trace(_Up(reader, start, same_values=same_values), start, depth, limit)


async def down(
    client: StoreClient, reference: str, depth: int = DEPTH, *, limit: int = LIMIT, same_values: bool = True
) -> Graph:
    """What depends on the node that `reference` names: who used or reused it, what that produced, and so on.

    Arguments and errors are those of `up`.
    """
    reader = Reader(client)
    start = await resolve(reader, reference)
    return await _trace(_Down(reader, start, same_values=same_values), start, depth, limit)


class _Search(Protocol):
    direction: Direction
    found: "_Found"

    async def neighbours(self, keys: Sequence[str]) -> Iterable[str]: ...


async def _trace(search: _Search, start: Start, depth: int, limit: int) -> Graph:
    search.found.node(start.node)
    reach = await walk([start.node.key], search.neighbours, depth=depth, limit=limit)
    reached = set(reach.reached)
    nodes = {
        key: node for key, node in search.found.nodes.items() if key in reached or isinstance(node, Artifact)
    }
    edges = tuple(edge for edge in search.found.edges if edge.source in nodes and edge.target in nodes)
    return Graph(
        direction=search.direction,
        roots=(start.node.key,),
        nodes=nodes,
        edges=edges,
        unfollowed=frozenset((*reach.at_depth, *reach.at_limit)),
        notes=(*_limits(reach, depth, limit), *search.found.notes),
    )


def _limits(reach: Reach[str], depth: int, limit: int) -> list[str]:
    notes = []
    if reach.at_depth:
        notes.append(f"stopped at depth {depth}: {_nodes(len(reach.at_depth))} not followed further")
    if reach.at_limit:
        notes.append(
            f"stopped at the limit of {limit}: at least {_nodes(reach.beyond)} left out, "
            f"{_nodes(len(reach.at_limit))} not followed to the end"
        )
    return notes


def _nodes(count: int) -> str:
    return f"{count} node{'' if count == 1 else 's'}"


class _Found:
    """What a search has come across, each once, in order."""

    def __init__(self, reader: Reader, start: Start, *, same_values: bool) -> None:
        self.reader = reader
        self.start = start
        self.nodes: dict[str, Node] = {}
        self.edges: dict[Edge, None] = {}
        self.notes: dict[str, None] = {}
        self._same_values = same_values
        self._matches: dict[str, list[values.Match]] = {}

    def node(self, node: Node) -> str:
        """Take a node in, and return its key."""
        return self.nodes.setdefault(node.key, node).key

    def edge(self, source: Node, target: Node, relation: Relation, name: str = "") -> None:
        """Take an edge and its ends in."""
        edge = Edge(source=self.node(source), target=self.node(target), relation=relation, name=name)
        self.edges[edge] = None

    def gap(self, execution: Execution, side: str, names: Sequence[str]) -> None:
        """Note the artifacts that an execution had but the store did not know."""
        if names:
            plural = "s" if len(names) > 1 else ""
            text = f"{side}{plural} {', '.join(names)} of {execution.title} ({execution.key})"
            self.notes[f"{text}: no such artifact was recorded, so it is not followed"] = None

    async def executions(self, ids: Iterable[int]) -> dict[int, Execution]:
        """Read executions; a note says which are missing."""
        wanted = list(dict.fromkeys(ids))
        found = await self.reader.executions(wanted)
        for number in wanted:
            if number not in found:
                self.notes[f"execution {number} is named by another record but not recorded itself"] = None
        return found

    async def matches(self, runs: Iterable[str]) -> list[values.Match]:
        """The equal values in these runs; each run is compared once."""
        if not self._same_values:
            return []
        wanted = [run for run in dict.fromkeys(runs) if run]
        for run in wanted:
            if run not in self._matches:
                self._matches[run] = await self._compare(run)
        return [match for run in wanted for match in self._matches[run]]

    async def _compare(self, run: str) -> list[values.Match]:
        context = await self.reader.run(run)
        if context is None:
            return []
        executions, more = await self.reader.executions_of(context, limit=_COMPARED)
        if more:
            note = f"run {run} has more than {_COMPARED} steps: equal values were not looked for"
            self.notes[note] = None
            return []
        return values.matches(executions)


class _Up:
    direction = Direction.UP

    def __init__(self, reader: Reader, start: Start, *, same_values: bool) -> None:
        self.found = _Found(reader, start, same_values=same_values)

    async def neighbours(self, keys: Sequence[str]) -> Iterable[str]:
        """The executions that these nodes come from directly."""
        nodes = [self.found.nodes[key] for key in keys]
        before = [
            *await self._of_artifacts([n for n in nodes if isinstance(n, Artifact)]),
            *await self._of_parameters([n for n in nodes if isinstance(n, Parameter)]),
            *await self._of_executions([n for n in nodes if isinstance(n, Execution)]),
        ]
        return [self.found.node(execution) for execution in before]

    async def _of_artifacts(self, artifacts: Sequence[Artifact]) -> list[Execution]:
        start = self.found.start
        if start.through is not None and artifacts:
            self.found.edge(start.through, artifacts[0], _made(start.through), start.output)
            return [start.through]
        producers = await self._producers([artifact.id for artifact in artifacts])
        before = []
        for artifact in artifacts:
            for producer, name in _origin(producers[artifact.id], run=""):
                self.found.edge(producer, artifact, _made(producer), name)
                before.append(producer)
        return before

    async def _of_parameters(self, parameters: Sequence[Parameter]) -> list[Execution]:
        writers = await self.found.executions(value.execution_id for value in parameters)
        for value in parameters:
            writer = writers[value.execution_id]
            self.found.edge(writer, value, _made(writer), value.name)
        return list(writers.values())

    async def _of_executions(self, executions: Sequence[Execution]) -> list[Execution]:
        for execution in executions:
            self.found.gap(execution, "input", execution.unresolved_inputs)
        return [
            *await self._through_inputs(executions),
            *await self._through_reuse(executions),
            *await self._through_values(executions),
        ]

    async def _through_inputs(self, executions: Sequence[Execution]) -> list[Execution]:
        by_id = {execution.id: execution for execution in executions}
        events = [
            event
            for event in await self.found.reader.events_of_executions(by_id)
            if event.type in records.INPUT_EVENTS
        ]
        artifacts = await self.found.reader.artifacts(event.artifact_id for event in events)
        producers = await self._producers(artifacts)
        before = []
        for event in events:
            user, artifact = by_id[event.execution_id], artifacts.get(event.artifact_id)
            if artifact is None:
                continue
            self.found.edge(artifact, user, Relation.USED, records.event_name(event))
            for producer, name in _origin(producers[artifact.id], run=user.run):
                self.found.edge(producer, artifact, _made(producer), name)
                before.append(producer)
        return before

    async def _through_reuse(self, executions: Sequence[Execution]) -> list[Execution]:
        reused = [execution for execution in executions if execution.cached_execution_id is not None]
        origins = await self.found.executions(
            execution.cached_execution_id for execution in reused if execution.cached_execution_id
        )
        before = []
        for execution in reused:
            origin = origins.get(execution.cached_execution_id or 0)
            if origin is not None:
                self.found.edge(origin, execution, Relation.REUSED)
                before.append(origin)
        return before + await self._through_outputs(
            [e for e in executions if e.state is State.CACHED and e.cached_execution_id not in origins]
        )

    async def _through_outputs(self, executions: Sequence[Execution]) -> list[Execution]:
        """For reused executions that don't name what they reused: who really produced their outputs."""
        by_id = {execution.id: execution for execution in executions}
        events = [
            event
            for event in await self.found.reader.events_of_executions(by_id)
            if event.type in records.OUTPUT_EVENTS
        ]
        producers = await self._producers(event.artifact_id for event in events)
        before = []
        for event in events:
            for producer, _ in producers[event.artifact_id]:
                if producer.state is not State.CACHED:
                    self.found.edge(producer, by_id[event.execution_id], Relation.REUSED)
                    before.append(producer)
        return before

    async def _through_values(self, executions: Sequence[Execution]) -> list[Execution]:
        by_id = {execution.id: execution for execution in executions}
        matches = [
            match
            for match in await self.found.matches(execution.run for execution in executions)
            if match.target in by_id
        ]
        sources = await self.found.executions(match.source for match in matches)
        for match in matches:
            name = f"{match.output} = {match.input}"
            self.found.edge(sources[match.source], by_id[match.target], Relation.SAME_VALUE, name)
        return list(sources.values())

    async def _producers(self, artifacts: Iterable[int]) -> dict[int, list[tuple[Execution, str]]]:
        """For each artifact the executions that it is an output of, each with the output's name there."""
        events = [
            event
            for event in await self.found.reader.events_of_artifacts(artifacts)
            if event.type in records.OUTPUT_EVENTS
        ]
        executions = await self.found.executions(event.execution_id for event in events)
        producers: dict[int, list[tuple[Execution, str]]] = defaultdict(list)
        for event in events:
            if event.execution_id in executions:
                producer = executions[event.execution_id]
                producers[event.artifact_id].append((producer, records.event_name(event)))
        return producers


class _Down:
    direction = Direction.DOWN

    def __init__(self, reader: Reader, start: Start, *, same_values: bool) -> None:
        self.found = _Found(reader, start, same_values=same_values)

    async def neighbours(self, keys: Sequence[str]) -> Iterable[str]:
        """The executions and parameters that depend on these nodes directly."""
        nodes = [self.found.nodes[key] for key in keys]
        artifacts = {node.id: node for node in nodes if isinstance(node, Artifact)}
        executions = [node for node in nodes if isinstance(node, Execution)]
        for execution in executions:
            self.found.gap(execution, "output", execution.unresolved_outputs)
        after: list[Node] = [
            *await self._users(artifacts, runs=None),
            *await self._of_parameters([node for node in nodes if isinstance(node, Parameter)]),
            *await self._through_outputs(executions),
            *await self._through_reuse(executions),
            *await self._through_values(executions),
        ]
        return [self.found.node(node) for node in after]

    async def _through_outputs(self, executions: Sequence[Execution]) -> list[Execution]:
        by_id = {execution.id: execution for execution in executions}
        events = [
            event
            for event in await self.found.reader.events_of_executions(by_id)
            if event.type in records.OUTPUT_EVENTS
        ]
        artifacts = await self.found.reader.artifacts(event.artifact_id for event in events)
        everywhere: set[int] = set()
        runs: dict[int, set[str]] = defaultdict(set)
        for event in events:
            execution, artifact = by_id[event.execution_id], artifacts.get(event.artifact_id)
            if artifact is None:
                continue
            self.found.edge(execution, artifact, _made(execution), records.event_name(event))
            runs[artifact.id].add(execution.run)
            if execution.state is not State.CACHED:
                everywhere.add(artifact.id)
        only_here = {number: found for number, found in artifacts.items() if number not in everywhere}
        return [
            *await self._users({number: artifacts[number] for number in everywhere}, runs=None),
            *await self._users(only_here, runs=runs),
        ]

    async def _users(
        self, artifacts: dict[int, Artifact], *, runs: dict[int, set[str]] | None
    ) -> list[Execution]:
        """The executions that used these artifacts: all, or those of the runs given for each."""
        events = [
            event
            for event in await self.found.reader.events_of_artifacts(artifacts)
            if event.type in records.INPUT_EVENTS
        ]
        users = await self.found.executions(event.execution_id for event in events)
        after = []
        for event in events:
            user = users.get(event.execution_id)
            if user is None or (runs is not None and user.run not in runs[event.artifact_id]):
                continue
            self.found.edge(artifacts[event.artifact_id], user, Relation.USED, records.event_name(event))
            after.append(user)
        return after

    async def _through_reuse(self, executions: Sequence[Execution]) -> list[Execution]:
        by_id = {execution.id: execution for execution in executions}
        reusers = await self.found.reader.reusers(by_id)
        for reuser in reusers:
            self.found.edge(by_id[reuser.cached_execution_id or 0], reuser, Relation.REUSED)
        return reusers

    async def _through_values(self, executions: Sequence[Execution]) -> list[Execution]:
        by_id = {execution.id: execution for execution in executions}
        matches = [
            match
            for match in await self.found.matches(execution.run for execution in executions)
            if match.source in by_id
        ]
        targets = await self.found.executions(match.target for match in matches)
        for match in matches:
            name = f"{match.output} = {match.input}"
            self.found.edge(by_id[match.source], targets[match.target], Relation.SAME_VALUE, name)
        return list(targets.values())

    async def _of_parameters(self, parameters: Sequence[Parameter]) -> list[Node]:
        """The steps whose input has the parameter's value, and the same parameter of those that reused it."""
        by_writer = {value.execution_id: value for value in parameters}
        writers = await self.found.executions(by_writer)
        after: list[Node] = []
        matches = await self.found.matches(writer.run for writer in writers.values())
        targets = await self.found.executions(match.target for match in matches if _written(match, by_writer))
        for match in matches:
            if _written(match, by_writer):
                target = targets[match.target]
                self.found.edge(by_writer[match.source], target, Relation.SAME_VALUE, match.input)
                after.append(target)
        for reuser in await self.found.reader.reusers(by_writer):
            value = by_writer[reuser.cached_execution_id or 0]
            if value.name in reuser.outputs:
                twin = parameter(reuser, value.name)
                self.found.edge(value, twin, Relation.REUSED)
                after.append(twin)
        return after


def _written(match: values.Match, by_writer: dict[int, Parameter]) -> bool:
    value = by_writer.get(match.source)
    return value is not None and value.name == match.output


def _made(execution: Execution) -> Relation:
    return Relation.HANDED_ON if execution.state is State.CACHED else Relation.PRODUCED


def _origin(producers: Sequence[tuple[Execution, str]], *, run: str) -> list[tuple[Execution, str]]:
    """Of all that an artifact is an output of, what a user in `run` has it from."""
    here = [made for made in producers if made[0].state is State.CACHED and run and made[0].run == run]
    ran = [made for made in producers if made[0].state is not State.CACHED]
    return here or ran or list(producers)
