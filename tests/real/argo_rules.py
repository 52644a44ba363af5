"""How Argo's controller takes a Pod and a WorkflowTaskResult for the state of a node. Pure.

From runs of the real controllers, each of which these rules name; "guarded" versions wait for outputs that a
template declares, the others let a node succeed before they are seen.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from memopod.steps import names

GUARDED = {"3.7.18": True, "4.0.10": True, "4.1.2": True, "3.4.17": False, "3.5.15": False}
"""Version -> whether it waits for declared outputs (3.6.7, 3.6.10, 3.7.0 and 3.7.1 do not either)."""
READS_ANNOTATION = ("3.4.17", "3.5.15")
ENDED = ("Succeeded", "Failed", "Error")


@dataclass(frozen=True)
class Node:
    """What a Workflow's status says of one step."""

    id: str
    name: str
    template: str
    phase: str = "Pending"
    outputs: dict[str, Any] = field(default_factory=dict)
    message: str = ""
    result_seen: bool = False
    result_complete: bool = True
    stuck: bool = False
    """Its workflow never ends: Argo still waits for a WorkflowTaskResult that nobody will write."""

    @property
    def ended(self):
        return self.phase in ENDED


def take_result(node, result):
    """Outputs are copied into the node as soon as they are seen; nothing takes them back."""
    reported = result["metadata"].get("labels", {}).get(names.ARGO_OUTPUTS_COMPLETED)
    outputs = {**node.outputs, **(result.get("outputs") or {})}
    return replace(node, outputs=outputs, result_seen=True, result_complete=reported != "false")


def assess(node, pod, *, version, declares):
    """The node after a look at its Pod. `declares`: the template has outputs."""
    status = pod.get("status") or {}
    phase = status.get("phase", "Pending")
    if node.ended:
        return node
    if phase == "Failed":
        return replace(node, phase="Failed", message=status.get("message", ""))
    if phase == "Running":
        return replace(node, phase="Running")
    if phase != "Succeeded":
        return node
    main = next((s for s in status.get("containerStatuses") or () if s["name"] == "main"), None)
    if main and "terminated" in main.get("state", {}):
        code = str(main["state"]["terminated"]["exitCode"])
        node = replace(node, outputs={**node.outputs, "exitCode": code})
    if not node.result_complete:
        return node
    if node.result_seen or not declares:
        return replace(node, phase="Succeeded")
    if version in READS_ANNOTATION:
        node = _take_annotation(node, pod)
    if status.get("containerStatuses"):
        return node if GUARDED[version] else replace(node, phase="Succeeded")
    return replace(node, phase="Succeeded", stuck=True)


def _take_annotation(node, pod):
    import json

    text = (pod["metadata"].get("annotations") or {}).get(names.ARGO_OUTPUTS)
    return replace(node, outputs={**json.loads(text), **node.outputs}) if text else node
