"""What is to be seen of one step, and how a step is told from others."""

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from memopod.steps import names
from memopod.steps.argo import containers, environment, owner_workflow

StepKey = tuple[str, str]
"""UID of the Workflow, id of the node."""


class ObjectRef(NamedTuple):
    """An object that the API server has."""

    namespace: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """What is to be seen of a step.

    `pod` may be one that is deleted; it is None although `pod_at` says that there is one where there was
    no room to keep it, and so is `workflow` (which comes without its nodes) or `node` beside
    `workflow_at`. `workflow_gone`: there is no such Workflow any more; `workflow` may still show it as it
    was last. `result` is the WorkflowTaskResult, once it is complete. `version` changes with every event
    that says something new.
    """

    pod: Mapping[str, Any] | None
    pod_at: ObjectRef | None
    workflow: Mapping[str, Any] | None
    workflow_at: ObjectRef | None
    node: Mapping[str, Any] | None
    workflow_gone: bool
    result: Mapping[str, Any] | None = None
    version: int = dataclasses.field(default=0, compare=False)

    @property
    def pod_gone(self) -> bool:
        """Whether there is no Pod, or not any more."""
        return self.pod_at is None


def step_key(pod: Mapping[str, Any]) -> StepKey | None:
    """Which step a Pod runs, without reading its template; None for no step of a workflow."""
    owner = owner_workflow(pod)
    if owner is None:
        return None
    annotations = pod["metadata"].get("annotations") or {}
    node_id = annotations.get(names.ARGO_NODE_ID)
    if not node_id:
        named = (environment(container, "ARGO_NODE_ID") for container in containers(pod))
        node_id = next(filter(None, named), None)
    return (sys.intern(owner[1]), node_id) if node_id else None
