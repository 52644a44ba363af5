"""What lineage is made of: executions, artifacts, values, and the edges between them.

Frozen values, no I/O. An edge points the way data flowed, from cause to effect, whichever way it was
followed; so `up` walks edges backwards and `down` forwards.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

Value = Any
"""A parameter's value as the store keeps it: text, number, bool, or decoded JSON."""


class State(StrEnum):
    """State of an execution; UNKNOWN where the writer recorded none, as upstream's never does."""

    UNKNOWN = "UNKNOWN"
    NEW = "NEW"
    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    FAILED = "FAILED"
    CACHED = "CACHED"
    CANCELED = "CANCELED"


class Relation(StrEnum):
    """How the target of an edge came from its source; the text is what people read."""

    PRODUCED = "produced"
    """An execution that ran wrote the artifact or the parameter."""
    HANDED_ON = "handed on"
    """A reused execution gave its run an output that another execution had produced."""
    USED = "used by"
    """The execution read the artifact."""
    REUSED = "reused by"
    """The target took over the outputs of the source instead of running."""
    SAME_VALUE = "same value"
    """The target's input has the value that the source wrote. Nothing recorded says that it came from
    there (see `memopod.lineage.values`)."""


class Direction(StrEnum):
    """Which way a question looks."""

    UP = "up"
    """Where does this come from?"""
    DOWN = "down"
    """What depends on it?"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """One step of one run. Times are milliseconds since the epoch; `run` is empty where unknown.

    `unresolved_inputs` and `unresolved_outputs` are the names of artifacts that the step had but the
    store did not know when the step was recorded: gaps of the lineage.
    """

    id: int
    step: str
    run: str
    component: str
    state: State
    inputs: Mapping[str, Value] = field(default_factory=dict)
    outputs: Mapping[str, Value] = field(default_factory=dict)
    started_at: int | None = None
    finished_at: int | None = None
    cached_execution_id: int | None = None
    reason: str = ""
    pod: str = ""
    namespace: str = ""
    image: str = ""
    fingerprint: str = ""
    unresolved_inputs: tuple[str, ...] = ()
    unresolved_outputs: tuple[str, ...] = ()
    workflow_uid: str = ""

    @property
    def key(self) -> str:
        """How this node is named in a graph, and by a user."""
        return execution_key(self.id)

    @property
    def seconds(self) -> float | None:
        """How long it took, where both times are known."""
        if self.started_at is None or self.finished_at is None:
            return None
        return max(0, self.finished_at - self.started_at) / 1000

    @property
    def title(self) -> str:
        """`run/step`, or the step alone where the run is unknown."""
        return f"{self.run}/{self.step}" if self.run else self.step


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A stored file or folder. `size` in bytes."""

    id: int
    name: str
    type: str
    uri: str
    run: str = ""
    size: int | None = None
    digest: str = ""

    @property
    def key(self) -> str:
        """How this node is named in a graph, and by a user."""
        return artifact_key(self.id)

    @property
    def title(self) -> str:
        """Its name, else its location."""
        return self.name or self.uri or self.key


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """An output value of an execution. The store has no node for it: it is the execution's property."""

    execution_id: int
    name: str
    value: Value
    title: str

    @property
    def key(self) -> str:
        """How this node is named in a graph."""
        return f"{execution_key(self.execution_id)}:{self.name}"


Node = Execution | Artifact | Parameter


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """`target` came from `source` by `relation`; `name` is the input's or output's name, if it has one."""

    source: str
    target: str
    relation: Relation
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """An answer to `up` or `down`, or a run as a graph.

    `nodes` is in the order of discovery, roots first, each once; `edges` join nodes of this graph only.
    `unfollowed` are the nodes at which the search stopped because of a limit, and `notes` say each
    limit that was reached and each gap that was found, for people.
    """

    direction: Direction
    roots: tuple[str, ...]
    nodes: Mapping[str, Node]
    edges: tuple[Edge, ...]
    unfollowed: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    def onward(self) -> dict[str, list[tuple[Edge, str]]]:
        """For each node the edges that lead on in this graph's direction, each with the node it leads to."""
        found: dict[str, list[tuple[Edge, str]]] = {key: [] for key in self.nodes}
        for edge in self.edges:
            ends = (edge.source, edge.target)
            here, there = ends if self.direction is Direction.DOWN else reversed(ends)
            found[here].append((edge, there))
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """An artifact as an input or output of a step, under the name that the step gives it."""

    name: str
    artifact: Artifact


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """A step of a run. `reused_from` is the execution that really ran, None where nothing was reused
    or the store does not have it any more.
    """

    execution: Execution
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    reused_from: Execution | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """One run with its steps in the order in which they started."""

    run: str
    namespace: str
    steps: tuple[StepReport, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """One line about a run. Times are milliseconds since the epoch; `finished_at` is None while a step
    still runs. `states` counts the steps by state.
    """

    run: str
    namespace: str
    created_at: int
    started_at: int | None
    finished_at: int | None
    states: Mapping[State, int]

    @property
    def steps(self) -> int:
        """How many steps were recorded."""
        return sum(self.states.values())

    @property
    def seconds(self) -> float | None:
        """From the first step's start to the last one's end, where both are known."""
        if self.started_at is None or self.finished_at is None:
            return None
        return max(0, self.finished_at - self.started_at) / 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class RunList:
    """The latest runs, newest first; `more` says that the store has further ones."""

    runs: tuple[RunSummary, ...]
    more: bool


def execution_key(number: int) -> str:
    """The key of an execution by its id in the store."""
    return f"execution:{number}"


def artifact_key(number: int) -> str:
    """The key of an artifact by its id in the store."""
    return f"artifact:{number}"
