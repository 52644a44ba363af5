"""What a search through the store has found so far, and the reads that `up` and `down` share."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from ml_metadata.proto import metadata_store_pb2 as mlmd

from memopod.lineage import records, values
from memopod.lineage.model import Direction, Edge, Execution, Node, Relation, State
from memopod.lineage.reader import Reader
from memopod.lineage.references import Start

_COMPARED = 2000
"""Executions of a run whose parameters are compared at most: one request for each hundred."""


class Found:
    """What a search has come across, each once, in order, and the reads that both directions share."""

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

    async def outputs_of(self, executions: Iterable[int]) -> list[mlmd.Event]:
        """The events that made artifacts outputs of these executions."""
        events = await self.reader.events_of_executions(executions)
        return [event for event in events if event.type in records.OUTPUT_EVENTS]

    async def inputs_of(self, executions: Iterable[int]) -> list[mlmd.Event]:
        """The events that made artifacts inputs of these executions."""
        events = await self.reader.events_of_executions(executions)
        return [event for event in events if event.type in records.INPUT_EVENTS]

    async def producers(self, artifacts: Iterable[int]) -> dict[int, list[tuple[Execution, str]]]:
        """For each artifact the executions that it is an output of, each with the output's name there."""
        producers: dict[int, list[tuple[Execution, str]]] = defaultdict(list)
        for event, producer in await self._ends_of(artifacts, records.OUTPUT_EVENTS):
            producers[event.artifact_id].append((producer, records.event_name(event)))
        return producers

    async def users(self, artifacts: Iterable[int]) -> list[tuple[mlmd.Event, Execution]]:
        """The executions that used these artifacts, each with the event that says so."""
        return await self._ends_of(artifacts, records.INPUT_EVENTS)

    async def _ends_of(
        self, artifacts: Iterable[int], kinds: frozenset[int]
    ) -> list[tuple[mlmd.Event, Execution]]:
        events = [e for e in await self.reader.events_of_artifacts(artifacts) if e.type in kinds]
        executions = await self.executions(event.execution_id for event in events)
        return [(e, executions[e.execution_id]) for e in events if e.execution_id in executions]

    async def matches(self, runs: Iterable[str]) -> list[values.Match]:
        """The equal values in these runs; each run is compared once."""
        if not self._same_values:
            return []
        wanted = [run for run in dict.fromkeys(runs) if run]
        for run in wanted:
            if run not in self._matches:
                self._matches[run] = await self._compare(run)
        return [match for run in wanted for match in self._matches[run]]

    async def same_values(self, executions: Sequence[Execution], direction: Direction) -> list[Execution]:
        """The executions at the other end of equal values, above or below these; takes the edges in."""
        by_id = {execution.id: execution for execution in executions}
        matches = [
            match
            for match in await self.matches(execution.run for execution in executions)
            if (match.target if direction is Direction.UP else match.source) in by_id
        ]
        others = await self.executions(
            match.source if direction is Direction.UP else match.target for match in matches
        )
        known = others | by_id
        for match in matches:
            name = f"{match.output} = {match.input}"
            self.edge(known[match.source], known[match.target], Relation.SAME_VALUE, name)
        return list(others.values())

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


def made(execution: Execution) -> Relation:
    """How an execution came to have an output: by running, or by handing on what another made."""
    return Relation.HANDED_ON if execution.state is State.CACHED else Relation.PRODUCED
