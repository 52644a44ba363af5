"""Whether a step that ran may become an entry: pure rules, each with its reason."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from memopod.steps import Step, names
from memopod.steps.outputs import Outputs, declared
from memopod.steps.times import from_text

_SCHEDULED = (
    "workflows.argoproj.io/cron-workflow",
    "scheduledworkflows.kubeflow.org/scheduledWorkflowName",
)
"""Labels of Workflows that a schedule made, with its name."""
_TIME_OR_COUNT = re.compile(r"-(\d{9,}|\d+-[0-9a-f]+)")
"""How their names go on after the schedule's: with a time, or a count and a digest."""
_KILLED = (137, 143)
"""Exit codes of a sidecar that Argo ended after the step's own program: SIGKILL and SIGTERM."""
_GARBAGE_COLLECTED = ("OnWorkflowCompletion", "OnWorkflowDeletion")


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """What was seen of a step's own program: when it ran, and which image.

    `ended_at` is when the last container ended: by then Argo's executor had saved all outputs.
    """

    started_at: datetime
    finished_at: datetime
    ended_at: datetime
    image_id: str


CLOCK_TOLERANCE = timedelta(seconds=5)
"""How far the clocks of a node and of an object store may be apart. More than that makes no entries."""


class NotRecordable(ValueError):
    """The step does not become an entry. The message says why, and names no values."""


def is_candidate(pod: Mapping[str, Any]) -> bool:
    """Whether a Pod may be one of a step that was released, ran and succeeded."""
    labels = pod["metadata"].get("labels") or {}
    succeeded = (pod.get("status") or {}).get("phase") == "Succeeded"
    return succeeded and labels.get(names.STEP_LABEL) == names.RELEASED


def execution_of(step: Step) -> Execution:
    """What ran, as the kubelet reported it. Raises NotRecordable unless it was seen to run and succeed."""
    status = step.pod.get("status") or {}
    if status.get("phase") != "Succeeded" or not step.pod["spec"].get("nodeName"):
        raise NotRecordable("the Pod was not seen to run on a node and succeed")
    ends = []
    sidecars = {str(sidecar.get("name")) for sidecar in (step.template or {}).get("sidecars") or ()}
    for container in status.get("containerStatuses") or ():
        ended = (container.get("state") or {}).get("terminated") or {}
        killed = container.get("name") in sidecars and ended.get("exitCode") in _KILLED
        if ended.get("exitCode") != 0 and not killed:
            raise NotRecordable("a container did not end with exit code 0")
        ends.append(from_text(ended.get("finishedAt")))
    main = _main_status(status)
    ended = (main.get("state") or {}).get("terminated") or {}
    started, finished = from_text(ended.get("startedAt")), from_text(ended.get("finishedAt"))
    if not (main.get("containerID") or ended.get("containerID")) or not started or not finished:
        raise NotRecordable("the kubelet did not report that the step's program ran")
    return Execution(
        started_at=started,
        finished_at=finished,
        ended_at=max(end for end in ends if end),
        image_id=str(main.get("imageID") or ""),
    )


def _main_status(status: Mapping[str, Any]) -> Mapping[str, Any]:
    statuses = status.get("containerStatuses") or ()
    return next((c for c in statuses if c.get("name") == "main"), {})


def check_evidence(step: Step, *, base: str, evidence: str, fixed: bool) -> None:
    """Compare what the step could read when it was released with what it could read at its end.

    `base` is the base key computed now. A step that nobody decided for carries no evidence: it is
    taken only if all that it reads is in its Pod (`fixed`), and that is as it was admitted.
    Raises NotRecordable.
    """
    at_release = step.annotations.get(names.INPUTS)
    if at_release is None:
        if not fixed:
            raise NotRecordable("nobody saw what the step could read when it started")
        if base != step.annotations.get(names.KEY):
            raise NotRecordable("the Pod was changed after its admission")
    elif at_release != evidence:
        raise NotRecordable("something that the step could read changed while it ran")


def check_unwritten(execution: Execution, modified: datetime) -> None:
    """Raise NotRecordable if an output artifact was written after the step had ended.

    A recorder can come late: what is there by then need not be what the step put there.
    """
    if modified > execution.ended_at + CLOCK_TOLERANCE:
        raise NotRecordable("an output artifact was written after the step had ended")


def check_place(outputs: Outputs, workflow: Mapping[str, Any] | None) -> None:
    """Raise NotRecordable if another run may write, or may have written, over an output artifact unseen.

    Keys hold the names of Workflow and Pod. Where an object store can be asked, its ETag tells of a later
    write; where none can, only a name that no other Workflow ever gets keeps the place to this run.
    """
    unseen = any(a.etag is None and a.digest is None for a in outputs.artifacts)
    if unseen and not _has_a_name_of_its_own(workflow or {"metadata": {}}):
        raise NotRecordable(
            "no object store can be asked about an output artifact, and another Workflow of the same name "
            "could write over it: the name was not generated"
        )


def _has_a_name_of_its_own(workflow: Mapping[str, Any]) -> bool:
    """Whether the API server made the name up, or a schedule did, from the time."""
    metadata = workflow["metadata"]
    prefix = metadata.get("generateName")
    name, labels = str(metadata.get("name", "")), metadata.get("labels") or {}
    generated = bool(prefix) and name.removeprefix(prefix) not in ("", name)
    # A label alone says no more than that somebody started it in the schedule's place, by whatever name.
    return generated or any(
        _is_scheduled(name, str(labels[label])) for label in _SCHEDULED if label in labels
    )


def _is_scheduled(name: str, schedule: str) -> bool:
    return name.startswith(schedule) and _TIME_OR_COUNT.fullmatch(name.removeprefix(schedule)) is not None


def check_lifetime(step: Step, workflow: Mapping[str, Any] | None) -> None:
    """Raise NotRecordable if Argo will delete an output artifact together with its workflow.

    `workflow` may be None only for a step without output artifacts.
    """
    artifacts = declared(step.template or {}, "artifacts")
    if not artifacts:
        return
    if workflow is None:
        raise NotRecordable("the Workflow is gone, and with it what it says of its artifacts")
    spec = workflow.get("spec") or {}
    stored = (workflow.get("status") or {}).get("storedWorkflowTemplateSpec")
    if spec.get("workflowTemplateRef") and not stored:
        raise NotRecordable("the Workflow's template is not known, and with it what it says of artifacts")
    defaults = {((s or {}).get("artifactGC") or {}).get("strategy") for s in (spec, stored)}
    for artifact in artifacts:
        own = (artifact.get("artifactGC") or {}).get("strategy")
        if not ({own} if own else defaults).isdisjoint(_GARBAGE_COLLECTED):
            raise NotRecordable("Argo deletes an output artifact together with its workflow")
