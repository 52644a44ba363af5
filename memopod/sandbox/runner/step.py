"""One task of a run: its node, its Pod, and what it put out. Pure: reads what the informers hold."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from memopod.sandbox.argo import Node, pod_name
from memopod.sandbox.argo.workflows import ERROR, FAILED, FULFILLED, OMITTED, RUNNING, SUCCEEDED
from memopod.sandbox.pipelines import Constant, FromRun, FromTask, Source, Task, as_text, from_text
from memopod.sandbox.pipelines.values import typed
from memopod.sandbox.runner import results
from memopod.steps import names
from memopod.steps.locations import resolve
from memopod.steps.outputs import is_complete


class BadValue(ValueError):
    """A step's output is not of the type that it declares, or that its reader wants."""


@dataclass(slots=True)
class StepState:
    """A task on its way. `values` and `artifacts` are its outputs, once it has succeeded."""

    task: Task
    node: Node
    pod_name: str
    template: Mapping[str, Any] | None = None
    trace: tuple[str, str] = ("", "")
    pod: Mapping[str, Any] | None = None
    gone: bool = False
    marked: bool = False
    values: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def begin(cls, workflow: str, task: Task, children: tuple[str, ...]) -> "StepState":
        """A task that waits for its turn."""
        node_name = f"{workflow}.{task.name}"
        node = Node(
            name=node_name,
            display_name=task.name,
            template=task.template,
            boundary=workflow,
            children=children,
        )
        return cls(task, node, pod_name(workflow, node_name, task.template))

    @property
    def fulfilled(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.node.phase in FULFILLED

    @property
    def succeeded(self) -> bool:
        """Whether its outputs can be used."""
        return self.node.phase == SUCCEEDED

    @property
    def held(self) -> bool:
        """Whether its Pod waits behind a scheduling gate."""
        return bool(self.pod and self.pod["spec"].get("schedulingGates") and not self.fulfilled)

    @property
    def decision(self) -> str:
        """`executed`, `reused`, or nothing for a task without a Pod."""
        if self.pod is None:
            return ""
        labels = self.pod["metadata"].get("labels") or {}
        return results.REUSED if labels.get(names.STEP_LABEL) == names.REUSED else results.EXECUTED

    def end(self, phase: str, message: str = "") -> None:
        """Nothing more will happen to it."""
        self.node.phase, self.node.message, self.node.finished_at = phase, message, datetime.now(UTC)

    def observe(self, result: Mapping[str, Any] | None) -> None:
        """Take over what Pod and WorkflowTaskResult say.

        A node succeeds when its Pod has and all its declared outputs are reported (as Argo 3.6.19,
        3.7.2 and later).
        """
        if self.pod is None or self.fulfilled:
            return
        status = self.pod.get("status") or {}
        phase = status.get("phase", "Pending")
        self.node.host = str(self.pod["spec"].get("nodeName") or "")
        if phase == "Succeeded":
            self._succeed(result)
        elif phase == "Failed":
            self.node.outputs = _exit_code(self.pod)
            self.end(FAILED, str(status.get("message") or "the Pod failed"))
        elif self.gone and self.node.phase == RUNNING:
            self.end(ERROR, "the Pod was deleted while it ran")
        elif self.gone:
            # Argo makes the Pod of a pending node anew, under the same name.
            self.pod, self.gone = None, False
        elif phase == "Running":
            self.node.phase = RUNNING

    def _succeed(self, result: Mapping[str, Any] | None) -> None:
        declared = bool(self.task.output_parameters or self.task.output_artifacts)
        if result is None or not is_complete(result):
            if not declared and result is None:
                self.node.outputs = _exit_code(self.pod)
                self.end(SUCCEEDED)
            return
        outputs = result.get("outputs") or {}
        self.node.outputs = {**outputs, **_exit_code(self.pod)}
        try:
            self._read(outputs)
        except BadValue as error:
            self.end(ERROR, str(error))
            return
        self.end(SUCCEEDED)

    def _read(self, outputs: Mapping[str, Any]) -> None:
        reported = {p["name"]: p.get("value") for p in outputs.get("parameters") or ()}
        for name, kind in self.task.output_parameters.items():
            if reported.get(name) is None:
                raise BadValue(f"the output parameter {name!r} was not reported")
            try:
                self.values[name] = from_text(str(reported[name]), kind)
            except ValueError as error:
                raise BadValue(f"output parameter {name!r}: {error}") from None
        artifacts = {a["name"]: a for a in outputs.get("artifacts") or ()}
        for name in self.task.output_artifacts:
            if name not in artifacts:
                raise BadValue(f"the output artifact {name!r} was not reported")
            self.artifacts[name] = artifacts[name]

    def uri(self, artifact: str) -> str:
        """Where an output artifact is."""
        location = resolve(self.artifacts[artifact], (self.template or {}).get("archiveLocation"))
        return location.uri if location is not None else ""

    def outcome(self) -> results.TaskOutcome:
        """What came of it."""
        node = self.node
        # A skipped task has an end only.
        started = node.started_at or node.finished_at or datetime.now(UTC)
        metadata = self.pod["metadata"] if self.pod is not None else {}
        annotations = metadata.get("annotations") or {}
        state = {SUCCEEDED: results.SUCCEEDED, OMITTED: "Skipped"}.get(node.phase, results.FAILED)
        return results.TaskOutcome(
            name=self.task.name,
            state=state,
            decision=self.decision,
            reason=str(annotations.get(names.REASON) or _unmarked(metadata)),
            pod=self.pod_name if self.pod is not None else "",
            pod_uid=str(metadata.get("uid", "")),
            seconds=((node.finished_at or datetime.now(UTC)) - started).total_seconds(),
            outputs={**self.values, **{name: self.uri(name) for name in self.artifacts}},
            message=node.message,
        )


def _unmarked(metadata: Mapping[str, Any]) -> str:
    """Why a Pod ran that carries no reason: nobody asked for more, or the webhook was away."""
    if not metadata:
        return ""
    opted_in = (metadata.get("labels") or {}).get(names.OPT_IN_LABEL) == "true"
    return "not-admitted" if opted_in else "not-opted-in"


def _exit_code(pod: Mapping[str, Any] | None) -> dict[str, str]:
    for status in ((pod or {}).get("status") or {}).get("containerStatuses") or ():
        terminated = (status.get("state") or {}).get("terminated")
        if status.get("name") == "main" and terminated:
            return {"exitCode": str(terminated.get("exitCode", 0))}
    return {}


@dataclass(frozen=True, slots=True)
class Given:
    """What the inputs of a run's tasks are taken from."""

    parameters: Mapping[str, Any]
    steps: Mapping[str, StepState]

    def value(self, source: Source | None) -> Any:
        """The value of a source, None for one that is absent."""
        match source:
            case None:
                return None
            case Constant(value):
                return value
            case FromRun(name, fallback):
                return self.parameters.get(name, fallback)
            case FromTask(task, output):
                return self.steps[task].values.get(output)
            case _:
                return "".join(p if isinstance(p, str) else as_text(self.value(p)) for p in source.parts)

    def inputs(self, task: Task) -> dict[str, Any]:
        """The parameters that a task gets, those that are absent left out. Raises BadValue."""
        values: dict[str, Any] = {}
        for name, wanted in task.parameters.items():
            value = self.value(wanted.source)
            if value is None:
                continue
            if wanted.kind == "STRING" and not isinstance(value, str):
                value = as_text(value)
            try:
                values[name] = typed(value, wanted.kind)
            except ValueError as error:
                raise BadValue(f"input {name!r}: {error}") from None
        return values

    def locations(self, task: Task) -> dict[str, Mapping[str, Any]]:
        """The artifacts that a task gets, as their producers reported them."""
        return {
            name: self.steps[wanted.source.task].artifacts[wanted.source.output]
            for name, wanted in task.artifacts.items()
        }
