"""What the cluster looks like now, by step: its Pod, its node, and whether they are gone.

Pods and Workflows are watched apart, and nothing orders the two. So nobody acts on an event: each one
only says which steps to look at, and `look` shows the newest of both. A Pod that was deleted is kept
until its step is recorded as finished, for nothing else remembers what it alone said.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from memopod.steps import names
from memopod.steps.argo import containers, environment, owner_workflow
from memopod.steps.outputs import NodesOffloaded, workflow_nodes
from metadata_writer.reader import is_fulfilled, node_skip_reason, skip_reason

StepKey = tuple[str, str]
"""UID of the Workflow, id of the node."""
_Facts = tuple[bool, bool, bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """What is to be seen of a step.

    `pod` may be one that is deleted. `workflow_gone`: there is no such Workflow any more; `workflow`
    may still show it as it was last.
    """

    pod: Mapping[str, Any] | None
    pod_gone: bool
    workflow: Mapping[str, Any] | None
    node: Mapping[str, Any] | None
    workflow_gone: bool


@dataclass(slots=True)
class _Seen:
    """A Workflow and its nodes that stand for Pods. `awaited`: steps to record before it is forgotten."""

    workflow: Mapping[str, Any]
    nodes: Mapping[str, Mapping[str, Any]]
    awaited: set[str]


class Sightings:
    """Told of every event by the informers; calls `changed` for each step worth a look."""

    def __init__(self, changed: Callable[[StepKey], None], *, limit: int) -> None:
        self._changed = changed
        self._limit = limit
        self._pods: dict[str, dict[str, Mapping[str, Any]]] = {}
        self._deleted_pods: OrderedDict[StepKey, Mapping[str, Any]] = OrderedDict()
        self._workflows: dict[str, _Seen] = {}
        self._deleted_workflows: OrderedDict[str, _Seen] = OrderedDict()
        self._log = structlog.get_logger()
        self.pods_listed = asyncio.Event()
        """The informer's `synced`: before that a missing Pod is not a deleted one."""
        self.workflows_listed = asyncio.Event()
        """The same of Workflows."""

    def on_pod(self, event: str, pod: Mapping[str, Any]) -> None:
        """A Pod was added, modified or deleted."""
        self._take(self._take_pod, event, pod)

    def on_workflow(self, event: str, workflow: Mapping[str, Any]) -> None:
        """A Workflow was added, modified or deleted."""
        self._take(self._take_workflow, event, workflow)

    def _take(
        self, take: Callable[[str, Mapping[str, Any]], None], event: str, item: Mapping[str, Any]
    ) -> None:
        """Take one object in; one of a shape that nobody expects is told of, and stands in no other's way.

        Argo's objects are hardly validated: whoever may create a Workflow can write anything into it.
        """
        try:
            take(event, item)
        except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
            name = (item.get("metadata") or {}).get("name")
            self._log.warning("an object cannot be read", name=name, error=type(error).__name__)

    def _take_pod(self, event: str, pod: Mapping[str, Any]) -> None:
        key = step_key(pod)
        if key is None or skip_reason(pod) is not None:
            return
        if event == "DELETED":
            self._delete_pod(key, pod)
        else:
            self._pods.setdefault(key[0], {})[key[1]] = pod
            self._deleted_pods.pop(key, None)
        self._changed(key)

    def _take_workflow(self, event: str, workflow: Mapping[str, Any]) -> None:
        uid = str(workflow["metadata"]["uid"])
        nodes = self._pod_nodes(workflow)
        before = self._workflows.pop(uid, None)
        if event == "DELETED":
            self._delete_workflow(uid, workflow, nodes)
            return
        self._workflows[uid] = _Seen(workflow, nodes, set())
        known = before.nodes if before is not None else {}
        for node_id, node in nodes.items():
            if _facts(node) != _facts(known.get(node_id)):
                self._changed((uid, node_id))

    def look(self, key: StepKey) -> Sighting:
        """The newest that is known of a step."""
        uid, node_id = key
        pod = self._pods.get(uid, {}).get(node_id)
        seen = self._workflows.get(uid)
        gone = seen is None and self.workflows_listed.is_set()
        seen = seen or self._deleted_workflows.get(uid)
        return Sighting(
            pod=pod if pod is not None else self._deleted_pods.get(key),
            pod_gone=pod is None,
            workflow=seen.workflow if seen else None,
            node=seen.nodes.get(node_id) if seen else None,
            workflow_gone=gone,
        )

    def settle(self, key: StepKey) -> None:
        """A step is recorded as finished: what was kept of it only for that may go."""
        uid, node_id = key
        self._deleted_pods.pop(key, None)
        seen = self._deleted_workflows.get(uid)
        if seen is not None:
            seen.awaited.discard(node_id)
            if not seen.awaited:
                del self._deleted_workflows[uid]

    def _delete_pod(self, key: StepKey, pod: Mapping[str, Any]) -> None:
        uid, node_id = key
        current = self._pods.get(uid, {}).get(node_id)
        if current is not None and current["metadata"]["uid"] == pod["metadata"]["uid"]:
            del self._pods[uid][node_id]
            if not self._pods[uid]:
                del self._pods[uid]
        if node_id in self._pods.get(uid, {}):
            return  # Argo has made it anew
        self._deleted_pods[key] = pod
        if len(self._deleted_pods) > self._limit:
            dropped, _ = self._deleted_pods.popitem(last=False)
            self._log.warning("a deleted Pod was let go before it was recorded", node=dropped[1])

    def _delete_workflow(
        self, uid: str, workflow: Mapping[str, Any], nodes: Mapping[str, Mapping[str, Any]]
    ) -> None:
        begun = {node_id for node_id, node in nodes.items() if node.get("phase") != "Pending"}
        if begun:
            self._deleted_workflows[uid] = _Seen(workflow, nodes, set(begun))
            if len(self._deleted_workflows) > self._limit:
                self._deleted_workflows.popitem(last=False)
        for node_id in begun | set(self._pods.get(uid, {})) | self._deleted_of(uid):
            self._changed((uid, node_id))

    def _deleted_of(self, uid: str) -> set[str]:
        return {node_id for workflow_uid, node_id in self._deleted_pods if workflow_uid == uid}

    def _pod_nodes(self, workflow: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        try:
            return dict(_recorded_nodes(workflow, workflow_nodes(workflow)))
        except NodesOffloaded as error:
            reason = str(error)
        except Exception as error:  # noqa: BLE001 (nobody validates a Workflow: one may hold anything)
            reason = f"its nodes cannot be read: {type(error).__name__}"
        name = workflow["metadata"]["name"]
        self._log.warning("steps whose Pods are gone cannot be closed", workflow=name, error=reason)
        return {}


def step_key(pod: Mapping[str, Any]) -> StepKey | None:
    """Which step a Pod runs, without reading its template; None for no step of a workflow."""
    owner = owner_workflow(pod)
    if owner is None:
        return None
    annotations = pod["metadata"].get("annotations") or {}
    named = (environment(container, "ARGO_NODE_ID") for container in containers(pod))
    node_id = annotations.get(names.ARGO_NODE_ID) or next(filter(None, named), None)
    return (owner[1], node_id) if node_id else None


def _recorded_nodes(
    workflow: Mapping[str, Any], nodes: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for node_id, node in nodes.items():
        if node.get("type") == "Pod" and node_skip_reason(workflow, node) is None:
            yield node_id, node


def _facts(node: Mapping[str, Any] | None) -> _Facts:
    """What a node can add to its Pod; it changes three times at most in a node's life."""
    if node is None:
        return False, False, False
    return is_fulfilled(node), bool(node.get("inputs")), bool(node.get("outputs"))
