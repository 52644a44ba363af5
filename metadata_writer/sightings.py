"""What the cluster looks like now, by step: its Pod, its node, what it put out, and whether they are gone.

Pods, Workflows and WorkflowTaskResults are watched apart, and nothing orders them. So nobody acts on an
event: each one only says which steps to look at, and `look` shows the newest of all. What the API server
can show again is kept packed, as far as there is room, until its step is recorded in full. What it cannot
(a Pod, a Workflow that was deleted) has room of its own, for nothing else remembers what it alone said.
"""

import asyncio
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import structlog

from memopod.kube import identity
from memopod.steps import names
from memopod.steps.argo import containers, environment, owner_workflow
from memopod.steps.outputs import NodesOffloaded, is_complete, workflow_nodes
from metadata_writer.bodies import Bodies
from metadata_writer.essentials import (
    essential_pod,
    essential_workflow,
    node_facts,
    pod_facts,
    workflow_facts,
)
from metadata_writer.reader import node_skip_reason, skip_reason

StepKey = tuple[str, str]
"""UID of the Workflow, id of the node."""
Kind = Literal["pod", "node", "workflow", "result"]


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
    was last. `result` is the WorkflowTaskResult, once it is complete.
    """

    pod: Mapping[str, Any] | None
    pod_at: ObjectRef | None
    workflow: Mapping[str, Any] | None
    workflow_at: ObjectRef | None
    node: Mapping[str, Any] | None
    workflow_gone: bool
    result: Mapping[str, Any] | None = None

    @property
    def pod_gone(self) -> bool:
        """Whether there is no Pod, or not any more."""
        return self.pod_at is None


@dataclass(slots=True)
class _Step:
    """`settled`: it is recorded as it was last seen, so nothing has to be kept for it."""

    namespace: str
    pod: ObjectRef | None = None
    pod_facts: int = 0
    node_facts: str = ""
    settled: bool = False


@dataclass(slots=True)
class _Seen:
    ref: ObjectRef
    facts: str


class Sightings:
    """Told of every event by the informers; calls `changed` for each step worth a look.

    `live` and `gone` are the bytes to keep of what the API server has, and of what it has no more.
    """

    def __init__(self, changed: Callable[[StepKey], None], *, live: int, gone: int) -> None:
        self._changed = changed
        self._steps: dict[str, dict[str, _Step]] = {}
        self._workflows: dict[str, _Seen] = {}
        self._live = Bodies(live)
        self._gone = Bodies(gone)
        self._unreadable: set[str] = set()
        self._log = structlog.get_logger()
        self.pods_listed = asyncio.Event()
        """The informer's `synced`: before that a missing Pod is not a deleted one."""
        self.workflows_listed = asyncio.Event()
        """The same of Workflows."""

    @property
    def bytes_kept(self) -> int:
        """What is kept for steps that are not recorded in full."""
        return self._live.size + self._gone.size

    @property
    def steps(self) -> int:
        """Steps of which there is a Pod or a node."""
        return sum(map(len, self._steps.values()))

    @property
    def unreadable_workflows(self) -> int:
        """Workflows whose nodes are in Argo's own database, or broken: their Pods alone speak for them."""
        return len(self._unreadable)

    @staticmethod
    def keep_pod(pod: dict[str, Any]) -> dict[str, Any]:
        """What the informer of Pods is to keep of one."""
        try:
            key = step_key(pod) if skip_reason(pod) is None else None
        except (TypeError, ValueError, KeyError, AttributeError):
            key = None  # of a shape that nobody expects: `on_pod` tells of it
        return {**identity(pod), "step": key}

    def on_pod(self, event: str, pod: Mapping[str, Any]) -> None:
        """A Pod was added, modified or deleted."""
        self._take(self._take_pod, event, pod)

    def on_workflow(self, event: str, workflow: Mapping[str, Any]) -> None:
        """A Workflow was added, modified or deleted."""
        self._take(self._take_workflow, event, workflow)

    def on_result(self, event: str, result: Mapping[str, Any]) -> None:
        """A WorkflowTaskResult was added, modified or deleted."""
        self._take(self._take_result, event, result)

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
        if "spec" not in pod:  # it was deleted while nobody watched: no more is left than `keep_pod` kept
            if pod["step"] is not None:
                self._delete_pod(pod["step"], str(pod["metadata"]["uid"]), None)
            return
        key = step_key(pod)
        if key is None or skip_reason(pod) is not None:
            return
        if event == "DELETED":
            self._delete_pod(key, str(pod["metadata"]["uid"]), pod)
            return
        metadata, facts = pod["metadata"], pod_facts(pod)
        step = self._step(key, pod)
        same = step.pod is not None and step.pod.uid == metadata["uid"] and step.pod_facts == facts
        step.pod = ObjectRef(metadata.get("namespace", ""), metadata["name"], metadata["uid"])
        if same:
            return
        step.pod_facts, step.settled = facts, False
        self._gone.drop(("pod", key))
        self._live.put(("pod", key), essential_pod(pod))
        self._changed(key)

    def _delete_pod(self, key: StepKey, uid: str, pod: Mapping[str, Any] | None) -> None:
        step = self._step(key, pod) if pod is not None else self._steps.get(key[0], {}).get(key[1])
        if step is None or (step.pod is not None and step.pod.uid != uid):
            return  # forgotten already, or Argo has made it anew
        step.pod = None
        if step.settled:
            self._live.drop(("pod", key))
            self._forget_if_over(key)
            return
        dropped = 0
        if pod is not None:
            self._live.drop(("pod", key))
            dropped = self._gone.put(("pod", key), essential_pod(pod))
        else:
            dropped = self._live.move(("pod", key), self._gone)
        self._tell_dropped(dropped)
        self._changed(key)

    def _take_workflow(self, event: str, workflow: Mapping[str, Any]) -> None:
        metadata = workflow["metadata"]
        uid = str(metadata["uid"])
        nodes = self._nodes(uid, workflow) if "status" in workflow else {}
        for node_id, node in nodes.items():
            self._take_node(uid, node_id, node, workflow)
        if event == "DELETED":
            self._delete_workflow(uid, nodes)
            return
        facts = workflow_facts(workflow)
        before = self._workflows.get(uid)
        self._workflows[uid] = _Seen(ObjectRef(metadata.get("namespace", ""), metadata["name"], uid), facts)
        lacking = ("workflow", uid) not in self._live and not self._all_settled(uid)
        if before is None or before.facts != facts or lacking:
            self._live.put(("workflow", uid), essential_workflow(workflow))

    def _take_node(
        self, uid: str, node_id: str, node: Mapping[str, Any], workflow: Mapping[str, Any]
    ) -> None:
        if node.get("type") != "Pod":
            return
        facts = node_facts(node)
        known = self._steps.get(uid, {}).get(node_id)
        if known is not None and known.node_facts == facts:
            return
        if node_skip_reason(workflow, node) is not None:
            return
        step = self._step((uid, node_id), workflow)
        step.node_facts, step.settled = facts, False
        self._live.put(("node", (uid, node_id)), node)
        self._changed((uid, node_id))

    def _take_result(self, event: str, result: Mapping[str, Any]) -> None:
        if event == "DELETED" or not is_complete(result):
            return  # what it said stays known: Argo deletes all when the workflow ends
        owner = owner_workflow(result)
        if owner is None:
            return
        key = (owner[1], str(result["metadata"]["name"]))
        step = self._steps.get(key[0], {}).get(key[1])
        if step is None or not step.settled:
            body = {
                "metadata": {"labels": result["metadata"].get("labels")},
                "outputs": result.get("outputs"),
            }
            self._live.put(("result", key), body)
        if step is not None and not step.settled:
            self._changed(key)

    def look(self, key: StepKey) -> Sighting:
        """The newest that is known of a step."""
        uid, node_id = key
        step = self._steps.get(uid, {}).get(node_id) or _Step("")
        seen = self._workflows.get(uid)
        return Sighting(
            pod=self._body("pod", key),
            pod_at=step.pod,
            workflow=self._body("workflow", uid),
            workflow_at=seen.ref if seen is not None else None,
            node=self._body("node", key),
            workflow_gone=seen is None and self.workflows_listed.is_set(),
            result=self._body("result", key),
        )

    def lacks_node(self, key: StepKey) -> bool:
        """Whether a node was seen that there was no room to keep."""
        step = self._steps.get(key[0], {}).get(key[1])
        return step is not None and bool(step.node_facts) and self._body("node", key) is None

    def namespace(self, key: StepKey) -> str:
        """The namespace of a step; empty for one that was forgotten."""
        step = self._steps.get(key[0], {}).get(key[1])
        return step.namespace if step is not None else ""

    def settle(self, key: StepKey) -> None:
        """A step is recorded as it was last seen: what was kept of it may go."""
        for bodies in (self._live, self._gone):
            for kind in ("pod", "node", "result"):
                bodies.drop((kind, key))
        step = self._steps.get(key[0], {}).get(key[1])
        if step is not None:
            step.settled = True
            self._forget_if_over(key)
        if self._all_settled(key[0]):
            self._live.drop(("workflow", key[0]))

    def _all_settled(self, uid: str) -> bool:
        return all(step.settled for step in self._steps.get(uid, {}).values())

    def _forget_if_over(self, key: StepKey) -> None:
        uid, node_id = key
        if uid in self._workflows or not self.workflows_listed.is_set():
            return
        steps = self._steps.get(uid, {})
        if node_id in steps and steps[node_id].pod is None and steps[node_id].settled:
            del steps[node_id]
        if not steps:
            self._steps.pop(uid, None)
            self._gone.drop(("workflow", uid))

    def _delete_workflow(self, uid: str, nodes: Mapping[str, Mapping[str, Any]]) -> None:
        self._workflows.pop(uid, None)
        self._unreadable.discard(uid)
        self._tell_dropped(self._live.move(("workflow", uid), self._gone))
        for node_id, step in list(self._steps.get(uid, {}).items()):
            key = (uid, node_id)
            pending = (nodes.get(node_id) or {}).get("phase") == "Pending" and step.pod is None
            if pending and ("pod", key) not in self._gone:
                step.settled = True  # it never began
            if step.settled:
                self._forget_if_over(key)
                continue
            self._tell_dropped(self._live.move(("node", key), self._gone))
            self._changed(key)

    def _step(self, key: StepKey, of: Mapping[str, Any]) -> _Step:
        steps = self._steps.setdefault(key[0], {})
        if key[1] not in steps:
            steps[key[1]] = _Step(sys.intern(of["metadata"].get("namespace", "")))
        return steps[key[1]]

    def _body(self, kind: Kind, key: StepKey | str) -> Any | None:
        return self._live.get((kind, key)) or self._gone.get((kind, key))

    def _tell_dropped(self, dropped: int) -> None:
        if dropped:
            self._log.warning("deleted objects were let go before they were recorded", objects=dropped)

    def _nodes(self, uid: str, workflow: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
        try:
            nodes = workflow_nodes(workflow)
            if not all(isinstance(node, dict) for node in nodes.values()):
                raise TypeError("a node that is no object")  # noqa: TRY301 (one place tells of all)
        except NodesOffloaded as error:
            reason = str(error)
        except Exception as error:  # noqa: BLE001 (nobody validates a Workflow: one may hold anything)
            reason = f"its nodes cannot be read: {type(error).__name__}"
        else:
            self._unreadable.discard(uid)
            return nodes
        if uid not in self._unreadable:
            self._unreadable.add(uid)
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
    return (sys.intern(owner[1]), node_id) if node_id else None
