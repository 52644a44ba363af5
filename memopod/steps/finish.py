"""The two objects that finish a held Pod: a WorkflowTaskResult, then the Pod's status.

The WorkflowTaskResult is the point of no return: Argo copies its outputs into the node as soon as it
sees it, and deleting it does not take them back (seen with 3.5 and 4.1). It therefore carries all
that is needed to finish the Pod, so that anybody who finds one can go forward without a database.
"""

import json
from collections.abc import Mapping
from typing import Any

from memopod.steps import names
from memopod.steps.argo import Step, has_template_everywhere
from memopod.steps.outputs import declared

_FORWARDED = (names.REASON, names.SOURCE_POD, names.SOURCE_EXECUTION, names.SOURCE_LOGS)
"""Annotations of the WorkflowTaskResult that the finished Pod gets too."""
_ANNOTATIONS_LIMIT = 262_144 - 4_096
"""Bytes that the annotations of one object may hold in all (Kubernetes), less room for our own."""


def task_result(
    step: Step,
    outputs: Mapping[str, Any],
    *,
    entry: str,
    source_pod: str,
    source_execution: str,
    source_logs: str | None = None,
) -> dict[str, Any]:
    """A finished WorkflowTaskResult, as Argo's executor leaves one behind, marked as memopod's.

    `outputs` are those of `fill_declared`; `entry` is the id of the entry that they come from.
    """
    labels = {
        names.ARGO_WORKFLOW: step.workflow,
        names.ARGO_OUTPUTS_COMPLETED: "true",
        names.ENTRY: entry,
    }
    instance = step.labels.get(names.ARGO_INSTANCE_ID)
    if instance:
        labels[names.ARGO_INSTANCE_ID] = instance
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "WorkflowTaskResult",
        "metadata": {
            "name": step.node_id,
            "namespace": step.namespace,
            "labels": labels,
            "annotations": {
                names.REASON: "hit",
                names.SOURCE_POD: source_pod,
                names.SOURCE_EXECUTION: source_execution,
                **({names.SOURCE_LOGS: source_logs} if source_logs else {}),
            },
            "ownerReferences": [
                {
                    "apiVersion": "argoproj.io/v1alpha1",
                    "kind": "Workflow",
                    "name": step.workflow,
                    "uid": step.workflow_uid,
                }
            ],
        },
        "outputs": dict(outputs),
    }


def finished_patch(pod: Mapping[str, Any], result: Mapping[str, Any], *, at: str) -> dict[str, Any]:
    """Merge patch of the Pod's `status` subresource that makes it a succeeded, reused step.

    `at` is an RFC 3339 time. The patch holds the Pod's resourceVersion, so that it fails (409) if
    anybody changed the Pod in between. Every container has terminated with exit code 0: that is what
    Argo takes the node's exit code from, and what keeps a second writer from reviving the Pod.
    """
    annotations = {
        names.DECISION: names.REUSE,
        names.ENTRY: result["metadata"]["labels"][names.ENTRY],
    }
    given = result["metadata"].get("annotations") or {}
    annotations |= {name: given[name] for name in _FORWARDED if name in given}
    if reads_outputs_annotation(pod) and fits(pod, result.get("outputs") or {}):
        annotations[names.ARGO_OUTPUTS] = outputs_text(result.get("outputs") or {})
    spec = pod["spec"]
    return {
        "metadata": {
            "resourceVersion": pod["metadata"]["resourceVersion"],
            "labels": {names.STEP_LABEL: names.REUSED},
            "annotations": annotations,
        },
        "status": {
            "phase": "Succeeded",
            "reason": "Reused",
            "message": f"outputs of {annotations.get(names.SOURCE_POD, 'an earlier run')} were reused",
            "startTime": at,
            "containerStatuses": [_terminated(c, at) for c in spec.get("containers") or ()],
            "initContainerStatuses": [_terminated(c, at) for c in spec.get("initContainers") or ()],
        },
    }


def needs_result(step: Step) -> bool:
    """Whether Argo waits for a WorkflowTaskResult of this step: 3.6 and later, where it puts anything out."""
    template = step.template or {}
    puts_out = declared(template, "parameters") or declared(template, "artifacts") or step.wants_result
    return bool(puts_out) and not reads_outputs_annotation(step.pod)


def fits(pod: Mapping[str, Any], outputs: Mapping[str, Any]) -> bool:
    """Whether the outputs fit into the annotation that the Pod's version of Argo reads, if it reads one."""
    if not reads_outputs_annotation(pod):
        return True
    present: Mapping[str, str] = pod["metadata"].get("annotations") or {}
    used = sum(len(f"{k}{v}".encode()) for k, v in present.items() if k != names.ARGO_OUTPUTS)
    return used + len(outputs_text(outputs).encode()) <= _ANNOTATIONS_LIMIT


def outputs_text(outputs: Mapping[str, Any]) -> str:
    """The value of the annotation that Argo 3.5 and earlier read outputs from."""
    return json.dumps(outputs, separators=(",", ":"))


def _terminated(container: Mapping[str, Any], at: str) -> dict[str, Any]:
    ended = {"exitCode": 0, "reason": "Reused", "startedAt": at, "finishedAt": at}
    return {
        "name": container["name"],
        "image": container.get("image", ""),
        "imageID": "",
        "ready": False,
        "started": False,
        "restartCount": 0,
        "lastState": {},
        "state": {"terminated": ended},
    }


def reads_outputs_annotation(pod: Mapping[str, Any]) -> bool:
    """Argo 3.5 and earlier read a step's outputs from an annotation too."""
    return has_template_everywhere(pod)
