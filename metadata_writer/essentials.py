"""What the record of a step needs of the objects that Argo and the API server show: the rest is not kept."""

from collections.abc import Mapping
from typing import Any

from memopod.steps import names
from metadata_writer.finalizer import holds

_PHASES = ("", "Pending", "Running", "Succeeded", "Skipped", "Failed", "Error", "Omitted")

_OVER = 4
"""Of a Workflow's facts: it has ended."""
_WRITTEN_BY_US = "pipelines.kubeflow.org/metadata_"
"""Labels and annotations that say what was recorded: nothing to record in turn."""


def essential_pod(pod: Mapping[str, Any]) -> dict[str, Any]:
    """A Pod without volumes, mounts, probes and the environment that is not Argo's own."""
    metadata, spec, status = pod["metadata"], pod["spec"], pod.get("status") or {}
    return {
        "apiVersion": pod.get("apiVersion", "v1"),
        "kind": pod.get("kind", "Pod"),
        "metadata": {k: v for k, v in metadata.items() if k != "managedFields"},
        "spec": {
            "nodeName": spec.get("nodeName"),
            "initContainers": [_container(c) for c in spec.get("initContainers") or ()],
            "containers": [_container(c) for c in spec.get("containers") or ()],
        },
        "status": {
            "phase": status.get("phase"),
            "startTime": status.get("startTime"),
            "containerStatuses": [
                {"name": s.get("name"), "imageID": s.get("imageID"), "state": s.get("state")}
                for s in status.get("containerStatuses") or ()
            ],
        },
    }


def _container(container: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": container.get("name"),
        "image": container.get("image"),
        "env": [v for v in container.get("env") or () if str(v.get("name")).startswith("ARGO_")],
    }


def pod_facts(pod: Mapping[str, Any]) -> int:
    """Equal for two versions of a Pod from which the same is recorded."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    annotations = metadata.get("annotations") or {}
    return hash(
        repr(
            (
                metadata.get("uid"),
                holds(pod),
                status.get("phase"),
                (metadata.get("labels") or {}).get(names.STEP_LABEL),
                sorted(item for item in annotations.items() if not item[0].startswith(_WRITTEN_BY_US)),
                [
                    (s.get("name"), s.get("imageID"), s.get("state"))
                    for s in status.get("containerStatuses") or ()
                ],
            )
        )
    )


def essential_workflow(workflow: Mapping[str, Any]) -> dict[str, Any]:
    """A Workflow without its nodes."""
    metadata, spec, status = (workflow.get(field) or {} for field in ("metadata", "spec", "status"))
    named = ("name", "namespace", "uid", "labels", "annotations")
    return {
        "metadata": {k: metadata[k] for k in named if k in metadata},
        "spec": {k: spec[k] for k in ("templates", "podMetadata", "workflowTemplateRef") if k in spec},
        "status": {
            k: status[k]
            for k in ("artifactRepositoryRef", "storedWorkflowTemplateSpec", "storedTemplates")
            if k in status
        },
    }


def workflow_facts(workflow: Mapping[str, Any]) -> bytes:
    """Changes when `essential_workflow` may say more than before, and when the Workflow ends."""
    status = workflow.get("status") or {}
    ended = status.get("phase") in ("Succeeded", "Failed", "Error")
    said = 2 * ("artifactRepositoryRef" in status) + ("storedWorkflowTemplateSpec" in status)
    stored = len(status.get("storedTemplates") or ()) % 32
    return bytes((8 * stored + _OVER * ended + said,))


def is_over(facts: bytes | None) -> bool:
    """Whether a Workflow with these facts has ended; true of one that is not there."""
    return facts is None or bool(facts[0] & _OVER)


def node_facts(node: Mapping[str, Any]) -> int:
    """Equal for two versions of a node that add the same to its Pod; 1 - 255."""
    phase = node.get("phase")
    known = _PHASES.index(phase) if phase in _PHASES else len(_PHASES)
    return 1 + 4 * known + 2 * bool(node.get("inputs")) + bool(node.get("outputs"))
