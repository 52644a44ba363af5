"""What came of a run."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EXECUTED, REUSED = "executed", "reused"
SUCCEEDED, FAILED = "Succeeded", "Failed"
_TAIL_BYTES = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOutcome:
    """One task of a run. `outputs` are parameters by value and artifacts as URIs.

    `decision` is `executed` or `reused`, empty for a task that never began; `reason` is memopod's for
    it; `seconds` count from the Pod's creation to its end, holding included.
    """

    name: str
    state: str
    decision: str
    reason: str
    pod: str
    pod_uid: str
    seconds: float
    outputs: Mapping[str, Any] = field(default_factory=dict)
    message: str = ""

    def to_json(self) -> dict[str, Any]:
        """As the command line prints it; a failed task says why."""
        told: dict[str, Any] = {
            "name": self.name,
            "decision": self.decision,
            "reason": self.reason,
            "pod": self.pod,
            "seconds": round(self.seconds, 3),
            "outputs": dict(self.outputs),
        }
        if self.state != SUCCEEDED:
            told |= {"state": self.state, "message": self.message}
        return told


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """A run that has ended. `stopped` says that a person or a deadline ended it."""

    run: str
    state: str
    seconds: float
    outputs: Mapping[str, Any]
    tasks: tuple[TaskOutcome, ...]
    message: str = ""
    stopped: bool = False

    def to_json(self) -> dict[str, Any]:
        """`{"run", "state", "seconds", "outputs", "tasks"}`, and `message` where a run failed."""
        told: dict[str, Any] = {
            "run": self.run,
            "state": self.state,
            "seconds": round(self.seconds, 3),
            "outputs": dict(self.outputs),
            "tasks": [task.to_json() for task in self.tasks],
        }
        if self.message:
            told["message"] = self.message
        return told


def log_tail(state: Path, pod_uid: str, *, lines: int = 20) -> list[str]:
    """The last lines of a step's log, none if it never started. `state` is the sandbox's folder."""
    path = state / "pods" / pod_uid / "main.log"
    if not pod_uid or not path.is_file():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES), os.SEEK_SET)
        return file.read().decode(errors="replace").splitlines()[-lines:]
