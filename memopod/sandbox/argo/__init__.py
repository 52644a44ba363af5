"""The objects that Argo Workflows' controller (4.1) makes for a run: its Workflow and its Pods.

`build_pod` gives a plain container template the Pod that Argo gives it; `container_template` makes
such a template from a pipeline's task; `Node` and `workflow_status` are what Argo keeps about a step
in `status.nodes`. Pure functions over JSON objects.
"""

from memopod.sandbox.argo.names import node_id, pod_name
from memopod.sandbox.argo.pods import build_pod
from memopod.sandbox.argo.repository import BUCKET, ENDPOINT, archive_location
from memopod.sandbox.argo.templates import container_template
from memopod.sandbox.argo.workflows import Node, build_workflow, workflow_status

__all__ = [
    "BUCKET",
    "ENDPOINT",
    "Node",
    "archive_location",
    "build_pod",
    "build_workflow",
    "container_template",
    "node_id",
    "pod_name",
    "workflow_status",
]
