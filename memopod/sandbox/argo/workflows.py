"""A run's Workflow: what Argo keeps about it in `spec` and `status`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from memopod.sandbox.argo.names import label_name, node_id
from memopod.sandbox.argo.repository import repository
from memopod.sandbox.argo.templates import pipeline_templates
from memopod.sandbox.pipelines import Plan

PENDING, RUNNING, SUCCEEDED, FAILED, ERROR, OMITTED = (
    "Pending",
    "Running",
    "Succeeded",
    "Failed",
    "Error",
    "Omitted",
)
FULFILLED = frozenset({SUCCEEDED, FAILED, ERROR, OMITTED})


def timestamp(moment: datetime) -> str:
    """A time as Kubernetes writes it: RFC 3339, UTC, whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(slots=True, kw_only=True)
class Node:
    """One step of a run, as `status.nodes[<id>]` tells it."""

    name: str
    display_name: str
    template: str
    boundary: str
    phase: str = PENDING
    message: str = ""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    host: str = ""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    outputs: Mapping[str, Any] = field(default_factory=dict)
    children: tuple[str, ...] = ()

    def to_json(self, workflow: str) -> dict[str, Any]:
        """The node as Argo writes it; fields without a value are absent."""
        succeeded = "1" if self.phase == SUCCEEDED else "0"
        known: dict[str, Any] = {
            "id": node_id(workflow, self.name),
            "name": self.name,
            "displayName": self.display_name,
            "type": "Pod",
            "templateName": self.template,
            "templateScope": f"local/{workflow}",
            "boundaryID": self.boundary,
            "phase": self.phase,
            "progress": f"{succeeded}/1",
            "startedAt": timestamp(self.started_at) if self.started_at else None,
            "finishedAt": timestamp(self.finished_at) if self.finished_at else None,
            "message": self.message or None,
            "hostNodeName": self.host or None,
            "inputs": dict(self.inputs) or None,
            "outputs": dict(self.outputs) or None,
            "children": list(self.children) or None,
            "taskResultSynced": True if self.phase in FULFILLED else None,
        }
        return {key: value for key, value in known.items() if value is not None}


def build_workflow(
    plan: Plan, parameters: Mapping[str, str], *, namespace: str, trace_id: str, cached: bool
) -> dict[str, Any]:
    """The Workflow of a run, ready to be created; the API server completes its name."""
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {
            "generateName": f"{label_name(plan.name)}-",
            "namespace": namespace,
            "annotations": {
                "workflows.argoproj.io/pod-name-format": "v2",
                "workflows.argoproj.io/trace-id": trace_id,
            },
            "labels": {"workflows.argoproj.io/phase": RUNNING},
        },
        "spec": {
            "entrypoint": "root",
            "arguments": {
                "parameters": [{"name": name, "value": value} for name, value in parameters.items()]
            },
            "templates": pipeline_templates(plan, cached=cached),
        },
    }


def workflow_status(
    workflow: str,
    nodes: Iterable[Node],
    *,
    phase: str,
    message: str,
    started_at: datetime,
    finished_at: datetime | None,
) -> dict[str, Any]:
    """The Workflow's `status`: its own phase, and a node for the DAG and for each step begun."""
    steps = list(nodes)
    done = sum(node.phase == SUCCEEDED for node in steps)
    progress = f"{done}/{len(steps)}"
    ids = {node.name: node_id(workflow, node.name) for node in steps}
    inner = {child for node in steps for child in node.children}
    root: dict[str, Any] = {
        "id": workflow,
        "name": workflow,
        "displayName": workflow,
        "type": "DAG",
        "templateName": "root",
        "templateScope": f"local/{workflow}",
        "phase": phase,
        "progress": progress,
        "startedAt": timestamp(started_at),
        "children": [node_id_ for node_id_ in ids.values() if node_id_ not in inner],
    }
    if finished_at is not None:
        root["finishedAt"] = timestamp(finished_at)
        root["outboundNodes"] = [ids[node.name] for node in steps if not node.children]
    status: dict[str, Any] = {
        "phase": phase,
        "progress": progress,
        "startedAt": timestamp(started_at),
        "artifactRepositoryRef": {"default": True, "artifactRepository": repository()},
        "conditions": [
            {"type": "PodRunning", "status": str(any(n.phase == RUNNING for n in steps))},
            {"type": "Completed", "status": str(finished_at is not None)},
        ],
        "nodes": {workflow: root, **{ids[node.name]: node.to_json(workflow) for node in steps}},
    }
    if message:
        status["message"] = message
    if finished_at is not None:
        status["finishedAt"] = timestamp(finished_at)
    return status
