"""What a step put out, from wherever Argo keeps it at this moment.

Argo deletes all WorkflowTaskResults of a workflow as soon as it has ended; from then on the outputs
are in the Workflow's `status.nodes`. Before 3.4 they were in an annotation of the Pod.
"""

from collections.abc import Mapping
from typing import Any

from memopod.kube.client import Client
from memopod.kube.errors import Forbidden, NotFound
from memopod.kube.resources import TASK_RESULTS, WORKFLOWS
from memopod.steps import Outputs, Step
from memopod.steps.argo import has_template_everywhere
from memopod.steps.outputs import (
    annotated_outputs,
    declared,
    is_complete,
    is_of,
    read_outputs,
    workflow_nodes,
)  # fmt: skip


async def fetch_outputs(client: Client, step: Step) -> Outputs | None:
    """Outputs of a step that has ended; None while they are not (or no longer) there.

    `step` must have its template. Raises ApiError when the API server does not answer, and
    NodesOffloaded when Argo keeps the nodes in a database of its own.
    """
    archive = (step.template or {}).get("archiveLocation")
    try:
        result = await client.get(TASK_RESULTS, step.node_id, namespace=step.namespace)
    except (NotFound, Forbidden) as error:
        if error.status == 401:
            raise
        # Kubeflow's own account may read Workflows, and no results.
        return await _from_workflow(client, step, archive)
    if not is_complete(result) or not is_of(result, step.workflow_uid):
        return None
    return read_outputs(result.get("outputs") or {}, archive)


async def _from_workflow(client: Client, step: Step, archive: Mapping[str, Any] | None) -> Outputs | None:
    try:
        workflow = await client.get(WORKFLOWS, step.workflow, namespace=step.namespace)
    except NotFound:
        workflow = {}
    if workflow and workflow["metadata"]["uid"] == step.workflow_uid:
        node = workflow_nodes(workflow).get(step.node_id) or {}
        if node.get("phase") == "Succeeded":
            return read_outputs(node.get("outputs") or {}, archive)
    annotated = annotated_outputs(step)
    if annotated is not None:
        return read_outputs(annotated, archive)
    return Outputs(parameters={}) if _reports_nothing(step) else None


def _reports_nothing(step: Step) -> bool:
    """Argo 3.4 writes no WorkflowTaskResult for a step without outputs: that it succeeded suffices.

    Versions up to 3.5 are told by the template on every container; 3.5 does write one, before the
    Pod ends, so reading this as "no outputs" is right there too.
    """
    template = step.template or {}
    puts_out = declared(template, "parameters") or declared(template, "artifacts") or step.wants_result
    return has_template_everywhere(step.pod) and not puts_out
