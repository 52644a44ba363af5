"""What is recorded of one step, before it meets the store: plain values, no MLMD messages.

The names of types and properties are Kubeflow's metadata writer's where it has one, so that its user
interface and its users' queries go on working.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

Value = str | int | float | bool
"""A property's value. MLMD keeps integers of 32 bits on some databases: see `fits`."""

RUN_TYPE: Final = "KfpRun"
"""Type of the context that stands for a workflow."""
PIPELINE_TYPE: Final = "system.Pipeline"
"""Type of the context that stands for a pipeline: that of Kubeflow Pipelines v2."""
EXECUTION_TYPE_PREFIX: Final = "components."
"""An execution's type is this and its component's name and version."""
UNTYPED: Final = "NoType"
"""Type of an artifact whose component declares none."""


class State(Enum):
    """How far a step is; the value is the name of MLMD's `Execution.State`."""

    RUNNING = "RUNNING"
    CANCELED = "CANCELED"
    FAILED = "FAILED"
    COMPLETE = "COMPLETE"
    CACHED = "CACHED"

    @property
    def rank(self) -> int:
        """Later states outrank earlier ones, whatever order they are seen in.

        `argo retry` runs a failed node again under the same id, so success outranks failure.
        """
        return list(State).index(self)

    @property
    def finished(self) -> bool:
        """Whether nothing more is to come."""
        return self is not State.RUNNING


@dataclass(frozen=True, slots=True)
class Run:
    """The workflow that a step belongs to, and the pipeline that it is a run of, where that is known."""

    name: str
    namespace: str
    workflow_uid: str
    pipeline: str | None = None


@dataclass(frozen=True, slots=True)
class Input:
    """An artifact that the step read: the name it had there, and where it was."""

    name: str
    uri: str


@dataclass(frozen=True, slots=True)
class Output:
    """An artifact that the step put out; `custom` are the artifact's custom properties."""

    name: str
    type_name: str
    uri: str
    custom: Mapping[str, Value]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One step of one run, as far as it is known.

    `external_id` is the step's identity, `<Workflow UID>/<node id>`; `source_execution` that of the
    step whose outputs it reuses, None where it is not known to reuse any. `from_pod` is False for a
    record read from the Workflow's status alone, which says less and never overrules a Pod.
    """

    external_id: str
    run: Run
    type_name: str
    component_id: str
    state: State
    custom: Mapping[str, Value]
    inputs: tuple[Input, ...] = ()
    outputs: tuple[Output, ...] = ()
    source_execution: str | None = None
    from_pod: bool = True

    @property
    def shares_outputs(self) -> bool:
        """Whether the outputs are another step's: they are looked up, never made."""
        return self.state is State.CACHED


def fits(value: int) -> bool:
    """Whether an integer that a user gave can be kept as one on every database (32 bits)."""
    return -(2**31) <= value < 2**31
