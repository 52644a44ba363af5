"""Which inputs of a run have the value that another step of it wrote.

The store records artifacts as nodes, but parameters only as properties: that one step's parameter
became another's input is written nowhere. Equal values are a hint, and are shown as such ("same
value"), under conditions that make an accident unlikely:

- both steps belong to the same run of the same Workflow, and the one had ended when the other started;
- the value has at least six characters (`true`, `false`, `10`, `0.25` are equal by accident);
- exactly one output of the run has it. Of two that have it, none can be told from the other.
"""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from memopod.lineage.model import Execution, Value

TELLING = 6
"""Shortest text of a value, in characters, that is taken for more than an accident."""


@dataclass(frozen=True, slots=True)
class Match:
    """Input `input` of execution `target` has the value of output `output` of execution `source`."""

    source: int
    output: str
    target: int
    input: str


def matches(executions: Iterable[Execution]) -> list[Match]:
    """All matches among the executions of one run."""
    steps = list(executions)
    written: dict[tuple[str, str], list[tuple[Execution, str]]] = defaultdict(list)
    for step in steps:
        for name, value in step.outputs.items():
            written[step.workflow_uid, canonical(value)].append((step, name))
    found = []
    for step in steps:
        for name, value in step.inputs.items():
            text = canonical(value)
            sources = written.get((step.workflow_uid, text), [])
            if len(text) >= TELLING and len(sources) == 1 and _before(sources[0][0], step):
                found.append(Match(sources[0][0].id, sources[0][1], step.id, name))
    return found


def canonical(value: Value) -> str:
    """A value as text: a list that was kept as JSON text and one that was decoded are the same."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)


def _before(source: Execution, target: Execution) -> bool:
    if source.id == target.id or source.finished_at is None or target.started_at is None:
        return False
    return source.finished_at <= target.started_at
