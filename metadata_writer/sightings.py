"""What the cluster looks like now, by step: its Pod, its node, what it put out, and whether they are gone.

Pods, Workflows and WorkflowTaskResults are watched apart, and nothing orders them. So nobody acts on an
event: each one only says which steps to look at, and `look` shows the newest of all. What the API server
can show again is kept packed, as far as there is room, until its step is recorded in full. What it cannot
(a Pod, a Workflow that was deleted) has room of its own, for nothing else remembers what it alone said.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import structlog

from memopod.kube import Traces
from memopod.steps.argo import owner_workflow
from memopod.steps.outputs import is_complete
from metadata_writer.bodies import Bodies
from metadata_writer.essentials import (
    essential_pod,
    essential_workflow,
    is_over,
    node_facts,
    pod_facts,
    workflow_facts,
)
from metadata_writer.first_lists import FirstLists
from metadata_writer.nodes import Nodes
from metadata_writer.settled import NO_POD, TOKEN, WORKFLOW, digest
from metadata_writer.sighting import ObjectRef, Sighting, StepKey, step_key
from metadata_writer.skipping import node_skip_reason, skip_reason
from metadata_writer.states import is_step
from metadata_writer.step_table import Step, StepTable, token_of

Kind = Literal["pod", "node", "workflow", "result"]
_POD: Final = 18_000
"""Bytes of a decoded Pod, in the recordings."""
_NODE: Final = 2_000
"""The same of a node or a result."""


class Sightings:
    """Told of every event by the informers; calls `changed` for each step worth a look.

    `live` and `gone` are the bytes to keep of what the API server has, and of what it has no more.
    """

    def __init__(self, changed: Callable[[StepKey], None], *, live: int, gone: int) -> None:
        self._changed = changed
        self._steps = StepTable()
        self._workflows = Traces(WORKFLOW)
        self._version = 0
        self._live = Bodies(live)
        self._gone = Bodies(gone)
        self._nodes = Nodes()
        self._log = structlog.get_logger()
        self.first_lists = FirstLists(changed)
        """Which objects were listed, and the steps that wait for that."""

    @property
    def bytes_kept(self) -> int:
        """What is kept for steps that are not recorded in full."""
        return self._live.size + self._gone.size

    @property
    def steps(self) -> int:
        """Steps of which there is a Pod or a node."""
        return len(self._steps)

    @property
    def unsettled(self) -> int:
        """Those of them that are not recorded as they were last seen."""
        return self._steps.open_count()

    @property
    def unreadable_workflows(self) -> int:
        """Workflows whose nodes are in Argo's own database, or broken: their Pods alone speak for them."""
        return len(self._nodes)

    @staticmethod
    def keep_pod(pod: dict[str, Any]) -> bytes:
        """What the informer of Pods is to keep of one, for `on_pod_lost`."""
        try:
            key = step_key(pod) if skip_reason(pod) is None else None
            return token_of(key) + digest(str(pod["metadata"]["uid"])) if key is not None else b""
        except (TypeError, ValueError, KeyError, AttributeError):
            return b""  # of a shape that nobody expects: `on_pod` tells of it

    @staticmethod
    def keep_workflow(workflow: dict[str, Any]) -> bytes:
        """The same of a Workflow, for `on_workflow_lost`."""
        return digest(str(workflow["metadata"]["uid"]), WORKFLOW)

    def on_pod_lost(self, kept: bytes) -> None:
        """A Pod was deleted while nobody watched."""
        if kept:
            self._delete_pod(kept[:TOKEN], kept[TOKEN:], None)

    def on_workflow_lost(self, kept: bytes) -> None:
        """A Workflow was deleted while nobody watched."""
        self._delete_workflow(kept, {})

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
        key = step_key(pod)
        if key is None or skip_reason(pod) is not None:
            return
        metadata, token = pod["metadata"], token_of(key)
        own = digest(str(metadata["uid"]))
        if event == "DELETED":
            self._delete_pod(token, own, pod)
            return
        facts = pod_facts(pod)
        mark = self._steps.settled.get(token)
        if mark is not None and (mark.pod, mark.pod_facts) == (own, facts):
            return
        step = self._steps.open(key, token, _named(pod))
        same = (step.pod_digest, step.pod_facts) == (own, facts)
        named = step.pod is not None
        step.pod = ObjectRef(metadata.get("namespace", ""), metadata["name"], metadata["uid"])
        if same and named:
            if ("pod", key) in self._live:
                self._live.put(
                    ("pod", key), essential_pod(pod), _POD
                )  # its labels may be new: nothing to record
            return
        if step.pod_digest not in (NO_POD, own) or ("pod", key) in self._gone:
            self._live.drop(("result", key))  # it may be what an earlier Pod of the step put out
        step.pod_digest, step.pod_facts = own, facts
        self._gone.drop(("pod", key))
        self._live.put(("pod", key), essential_pod(pod), _POD)
        self._tell_changed(key, step)

    def _delete_pod(self, token: bytes, own: bytes, pod: Mapping[str, Any] | None) -> None:
        mark = self._steps.settled.get(token)
        if mark is not None:
            if mark.pod == own:
                self._steps.settled.put(token, mark._replace(pod=NO_POD))
                self._forget_if_over(token)
            return
        key = self._steps.key(token)
        if key is None and pod is not None:
            key = step_key(pod)
        if key is None:
            return  # forgotten already
        named = _named(pod) if pod is not None else ("", "")
        step = self._steps.open(key, token, named)
        if step.pod_digest not in (NO_POD, own):
            return  # Argo has made it anew
        step.pod, step.pod_digest = None, NO_POD
        if pod is not None:
            self._live.drop(("pod", key))
            dropped = self._gone.put(("pod", key), essential_pod(pod), _POD)
        else:
            dropped = self._live.move(("pod", key), self._gone)
        self._tell_dropped(dropped)
        self._tell_changed(key, step)

    def _take_workflow(self, event: str, workflow: Mapping[str, Any]) -> None:
        uid = str(workflow["metadata"]["uid"])
        own = digest(uid, WORKFLOW)
        if event == "DELETED":
            nodes = self._nodes.read(own, workflow)
            failed = self._take_nodes(uid, own, nodes, workflow)
            self._delete_workflow(own, nodes)
            if failed is not None:
                raise failed
            return
        before, facts = self._workflows.get(own), workflow_facts(workflow)
        self._workflows.put(own, facts)
        failed = self._take_nodes(uid, own, self._nodes.read(own, workflow), workflow)
        if before is None:
            self._let_go(uid)
        kept = ("workflow", own) in self._live
        # Of one that has ended no step is to come that is not here, but where its nodes do not show them.
        if self._steps.of(uid) or not is_over(facts) or self._nodes.unreadable(own):
            if before != facts or (self._steps.of(uid) and not kept):
                self._live.put(("workflow", own), essential_workflow(workflow))
        elif kept:
            self._live.drop(("workflow", own))
        if failed is not None:
            raise failed

    def _take_nodes(
        self, uid: str, own: bytes, nodes: Mapping[str, Any], workflow: Mapping[str, Any]
    ) -> Exception | None:
        """Take all nodes; the first error, since a malformed node keeps none behind it from being seen."""
        failed = None
        for node_id, node in nodes.items():
            try:
                self._take_node((uid, node_id), own, node, workflow)
            except Exception as error:  # noqa: BLE001 (raised when all is taken)
                failed = failed or error
        return failed

    def _let_go(self, uid: str) -> None:
        """Steps that waited for their Workflow, of which it has no node (yet)."""
        for node_id, step in self._steps.of(uid).items():
            if step.pod is not None and self.first_lists.let_go((uid, node_id)):
                self._changed((uid, node_id))

    def _take_node(
        self, key: StepKey, own: bytes, node: Mapping[str, Any], workflow: Mapping[str, Any]
    ) -> None:
        if not is_step(node):
            return
        facts, token = node_facts(node), own + digest(key[1])
        known = self._steps.get(key) or self._steps.settled.get(token)
        if known is not None and known.node_facts == facts:
            return
        if node_skip_reason(workflow, node) is not None:
            return
        metadata = workflow["metadata"]
        step = self._steps.open(key, token, (metadata.get("namespace", ""), metadata["name"]))
        step.node_facts = facts
        self._live.put(("node", key), node, _NODE)
        self._tell_changed(key, step)

    def _take_result(self, event: str, result: Mapping[str, Any]) -> None:
        if event == "DELETED" or not is_complete(result):
            return  # what it said stays known: Argo deletes all when the workflow ends
        owner = owner_workflow(result)
        if owner is None:
            return
        key = (owner[1], str(result["metadata"]["name"]))
        token = token_of(key)
        if self._steps.settled.get(token) is not None:
            return
        body = {
            "metadata": {"labels": result["metadata"].get("labels")},
            "outputs": result.get("outputs"),
        }
        self._live.put(("result", key), body, _NODE)
        step = self._steps.get(key)
        if step is not None:
            self._tell_changed(key, step)
        else:
            self.first_lists.result_alone(key)

    def look(self, key: StepKey) -> Sighting:
        """The newest that is known of a step; next to nothing of one that is settled."""
        uid, step = key[0], self._steps.get(key)
        own = digest(uid, WORKFLOW)
        there = own in self._workflows
        return Sighting(
            pod=self._body("pod", key),
            pod_at=step.pod if step is not None else None,
            workflow=self._body("workflow", own),
            workflow_at=ObjectRef(step.namespace, step.workflow, uid) if step is not None and there else None,
            node=self._body("node", key),
            workflow_gone=not there and self.first_lists.workflows_listed.is_set(),
            result=self._body("result", key),
            version=step.version if step is not None else 0,
        )

    def lacks_node(self, key: StepKey) -> bool:
        """Whether a node was seen that there was no room to keep."""
        step = self._steps.get(key)
        return step is not None and bool(step.node_facts) and not self._has("node", key)

    def waiting(self) -> list[StepKey]:
        """Unsettled steps, but those that wait for a list."""
        return [key for key in self._steps.open_keys() if not self.first_lists.holds(key)]

    def namespace(self, key: StepKey) -> str:
        """The namespace of a step; empty for one that is settled or was forgotten."""
        step = self._steps.get(key)
        return step.namespace if step is not None else ""

    def settle(self, key: StepKey, version: int) -> None:
        """A step is recorded as it was when it had this `version`; if it still is, nothing is kept of it."""
        step = self._steps.get(key)
        if step is not None and step.version != version:
            return  # it has another turn
        for bodies in (self._live, self._gone):
            for kind in ("pod", "node", "result"):
                bodies.drop((kind, key))
        if step is None:
            return
        self.first_lists.let_go(key)
        self._steps.settle(key)
        token = token_of(key)
        self._forget_if_over(token)
        if not self._steps.of(key[0]):
            workflow = token[:WORKFLOW]
            self._gone.drop(("workflow", workflow))
            if is_over(self._workflows.get(workflow)):
                self._live.drop(("workflow", workflow))

    def _forget_if_over(self, token: bytes) -> None:
        """Forget a settled step whose Pod and Workflow are gone."""
        mark = self._steps.settled.get(token)
        over = token[:WORKFLOW] not in self._workflows and self.first_lists.workflows_listed.is_set()
        if mark is not None and mark.pod == NO_POD and over:
            self._steps.settled.pop(token)

    def _delete_workflow(self, own: bytes, nodes: Mapping[str, Mapping[str, Any]]) -> None:
        self._workflows.pop(own)
        self._nodes.forget(own)
        self._steps.settled.close(own)
        uid = self._steps.uid(own)
        if uid is None:
            self._live.drop(("workflow", own))
            return
        self._tell_dropped(self._live.move(("workflow", own), self._gone))
        for node_id, step in list(self._steps.of(uid).items()):
            key = (uid, node_id)
            pending = (nodes.get(node_id) or {}).get("phase") == "Pending" and step.pod is None
            if pending and ("pod", key) not in self._gone:
                self.settle(key, step.version)  # it never began
                continue
            self._tell_dropped(self._live.move(("node", key), self._gone))
            self._tell_changed(key, step)

    def _tell_changed(self, key: StepKey, step: Step) -> None:
        self._version += 1
        step.version = self._version
        lists = self.first_lists
        if not lists.over:
            there = digest(key[0], WORKFLOW) in self._workflows
            if lists.hold_back(key, pod=step.pod is not None, workflow=there):
                return
        self._changed(key)

    def _has(self, kind: Kind, key: StepKey | bytes) -> bool:
        return (kind, key) in self._live or (kind, key) in self._gone

    def _body(self, kind: Kind, key: StepKey | bytes) -> Any | None:
        return self._live.get((kind, key)) or self._gone.get((kind, key))

    def _tell_dropped(self, dropped: int) -> None:
        if dropped:
            self._log.warning("deleted objects were let go before they were recorded", objects=dropped)


def _named(pod: Mapping[str, Any]) -> tuple[str, str]:
    """Namespace and name of the Workflow that a Pod belongs to."""
    owner = owner_workflow(pod)
    return pod["metadata"].get("namespace", ""), owner[0] if owner is not None else ""
