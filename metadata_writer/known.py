"""What the store says of a step before it is recorded, and names that only memopod gives: MLMD messages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

CACHED_ID: Final = "cached_execution_id"
"""Custom property of an execution: the store's id of the one that really ran."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TypeIds:
    """The store's ids of the types that some records need."""

    run: int
    pipeline: int
    executions: Mapping[str, int]
    artifacts: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the store said about a step: MLMD messages.

    `source` is the execution whose outputs the step reuses, `source_outputs` its output artifacts
    by the names of their events, `by_uri` the artifacts that are at the places the record names, and
    `makers` the executions that made those, by external id.
    """

    execution: Any | None = None
    events: Sequence[Any] = ()
    source: Any | None = None
    source_outputs: Sequence[tuple[str, Any]] = ()
    by_uri: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    makers: Mapping[str, Any] = field(default_factory=dict)
