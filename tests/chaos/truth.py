"""Workflows made up from a seed, what Argo and the kubelet do with them, and the graph that must come out.

A step may fail and be tried again, fail for good (then what depends on it is left out), be canceled with
its workflow, or be reused from another workflow's step. Pods and nodes are built from a recording of Argo
4.1.2.
"""

import base64
import gzip
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

SAMPLES = Path(__file__).parent.parent / "samples" / "argo-4.1.2"
_POD = (SAMPLES / "artifacts.use.pod.json").read_text()
_BEGIN = datetime(2026, 11, 1, tzinfo=UTC)
_REPOSITORY = {"s3": {"endpoint": "minio-service.kubeflow:9000", "bucket": "mlpipeline", "insecure": True}}
_LEFT_OUT = 1.6
"""So many more steps are planned, since what follows on a failure has no Pod."""
COMPLETE, FAILED, CACHED, CANCELED = "COMPLETE", "FAILED", "CACHED", "CANCELED"


@dataclass
class Graph:
    """What is in the store, or should be: plain values by external ids, edges as tuples."""

    executions: dict = field(default_factory=dict)
    artifacts: dict = field(default_factory=dict)
    edges: set = field(default_factory=set)

    def differences(self, other) -> list[str]:
        """The first few things in which two graphs differ."""
        found = []
        for name in ("executions", "artifacts"):
            mine, theirs = getattr(self, name), getattr(other, name)
            keys = sorted(mine.keys() | theirs.keys())
            found += [
                f"{name} {key}: {mine.get(key)} / {theirs.get(key)}"
                for key in keys
                if mine.get(key) != theirs.get(key)
            ]
        found += [f"missing edge {edge}" for edge in sorted(self.edges - other.edges)]
        found += [f"extra edge {edge}" for edge in sorted(other.edges - self.edges)]
        return found


@dataclass
class _Made:
    """An artifact that a step put out."""

    external_id: str
    name: str
    key: str

    @property
    def uri(self):
        return f"minio://mlpipeline/{self.key}"


@dataclass
class _Workflow:
    name: str
    namespace: str
    uid: str
    templates: list
    steps: int
    nodes: dict = field(default_factory=dict)
    made: list = field(default_factory=list)
    phase: str = "Running"
    packed: bool = False


class World:
    """`play` yields after each change that a real cluster makes apart; `truth` grows with it."""

    def __init__(self, api, *, seed, pods, workflows, at_once=20, delete_pods=0.3, delete_workflows=0.0):
        self._api = api
        self._random = random.Random(seed)
        self._pods, self._workflows, self._at_once = pods, workflows, at_once
        self._delete_pods, self._delete_workflows = delete_pods, delete_workflows
        self._clock = 0
        self._sources = []
        self.made_pods = 0
        self.truth = Graph()

    def play(self) -> Iterator[None]:
        """All workflows, some at a time."""
        waiting = iter(range(self._workflows))
        running = []
        while True:
            while len(running) < self._at_once and (number := next(waiting, None)) is not None:
                running.append(self._run(number))
            if not running:
                return
            one = self._random.choice(running)
            try:
                next(one)
            except StopIteration:
                running.remove(one)
            yield

    def _now(self):
        self._clock += 1
        return (_BEGIN + timedelta(seconds=self._clock)).strftime("%Y-%m-%dT%H:%M:%SZ")

    def _run(self, number):
        steps = max(1, round(_LEFT_OUT * self._pods / self._workflows * self._random.uniform(0.5, 1.5)))
        names = sorted({f"t{self._random.randrange(12)}" for _ in range(6)})
        workflow = _Workflow(
            f"wf-{number:04}", f"ns-{number % 7}", f"uid-{number:06}", names, steps,
            packed=self._random.random() < 0.2,
        )  # fmt: skip
        self._show(workflow)
        yield
        failed = False
        for index in range(steps):
            if failed and self._random.random() < 0.7:
                continue  # what depends on it has no Pod
            fate = self._random.random()
            if fate < 0.2 and self._sources:
                yield from self._reuse(workflow, index)
            elif fate < 0.27:
                yield from self._attempt(workflow, index, "(0)", FAILED)
                last = COMPLETE if self._random.random() < 0.7 else FAILED
                failed |= last == FAILED
                yield from self._attempt(workflow, index, "(1)", last)
            elif fate < 0.30:
                failed = True
                yield from self._attempt(workflow, index, "", FAILED)
            elif fate < 0.31:
                yield from self._attempt(workflow, index, "", CANCELED)
                failed = True
                break
            else:
                yield from self._attempt(workflow, index, "", COMPLETE)
        workflow.phase = "Failed" if failed else "Succeeded"
        self._show(workflow)
        yield
        for node_id in workflow.nodes:
            self._api.delete("workflowtaskresults", workflow.namespace, node_id)
        yield
        if self._random.random() < self._delete_pods:
            for node in workflow.nodes.values():
                self._api.delete("pods", workflow.namespace, f"{node['id']}-pod")
                yield
        if self._delete_workflows and self._random.random() < self._delete_workflows:
            self._api.delete("workflows", workflow.namespace, workflow.name)
            yield
            for node in workflow.nodes.values():  # Kubernetes collects what it owned
                self._api.delete("pods", workflow.namespace, f"{node['id']}-pod")
                yield

    def _attempt(self, workflow, index, attempt, fate):
        template = self._random.choice(workflow.templates)
        node = self._node(
            workflow, f"s{index}{attempt}", f"{workflow.name}-{index}a{attempt[1:-1]}", template
        )
        inputs = self._random.sample(workflow.made, k=min(len(workflow.made), self._random.randrange(3)))
        inputs = list({made.external_id: made for made in inputs}.values())
        outside = self._random.random() < 0.1
        node["inputs"] = self._inputs(inputs, outside, index)
        pod = self._pod(workflow, node, template)
        self.made_pods += 1
        self._api.put("pods", pod)
        yield
        self._show(workflow)
        yield
        started = self._now()
        node |= {"phase": "Running", "startedAt": started, "hostNodeName": "node-1"}
        pod["spec"]["nodeName"] = "node-1"
        self._status(pod, "Running", started)
        yield
        if self._random.random() < 0.5:
            self._show(workflow)
            yield
        execution = f"{workflow.uid}/{node['id']}"
        self._note(workflow, execution, template, fate, index, inputs, outside)
        if fate == CANCELED:
            node |= {"phase": "Failed", "message": "workflow shutdown with strategy:  Terminate"}
            node["finishedAt"] = self._now()
            self._api.delete("pods", workflow.namespace, pod["metadata"]["name"])
            yield
            self._show(workflow)
            yield
            return
        made = []
        if fate == COMPLETE:
            made = self._make(workflow, execution, node)
            node["outputs"] = self._outputs(made, index)
            self._note_outputs(workflow, execution, template, made, index)
        self._result(workflow, node, "false")
        yield
        self._result(workflow, node, "true")
        yield
        ended = self._now()
        self._status(pod, "Succeeded" if fate == COMPLETE else "Failed", started, ended)
        yield
        yield from self._close(workflow, node, "Succeeded" if fate == COMPLETE else "Failed", ended)
        if self._random.random() < self._delete_pods:
            self._api.delete("pods", workflow.namespace, pod["metadata"]["name"])
            yield
        workflow.made += made
        if made:
            self._sources.append((execution, made, index))

    def _reuse(self, workflow, index):
        source, made, source_index = self._random.choice(self._sources)
        template = self._random.choice(workflow.templates)
        node = self._node(workflow, f"s{index}", f"{workflow.name}-{index}r", template)
        node["inputs"] = self._inputs([], False, index)
        pod = self._pod(workflow, node, template)
        self.made_pods += 1
        self._api.put("pods", pod)
        yield
        execution = f"{workflow.uid}/{node['id']}"
        self._note(workflow, execution, template, CACHED, index, [], False)
        self.truth.executions[execution] |= {"source": source, "output:o": f"o{source_index}"}
        for artifact in made:
            self._edge(workflow, execution, "OUTPUT", artifact)
        node["outputs"] = self._outputs(made, source_index)
        self._result(workflow, node, "true")
        yield
        ended = self._now()
        pod["metadata"]["labels"] |= {
            "memopod.io/step": "reused", "pipelines.kubeflow.org/metadata_written": "true",
        }  # fmt: skip
        pod["metadata"]["annotations"]["memopod.io/source-execution"] = source
        self._status(pod, "Succeeded", ended, ended)
        yield
        yield from self._close(workflow, node, "Succeeded", ended)
        workflow.made += made

    def _node(self, workflow, name, node_id, template):
        node = {
            "id": node_id, "name": f"{workflow.name}.{name}", "displayName": name, "type": "Pod",
            "phase": "Pending", "templateName": template, "startedAt": self._now(),
        }  # fmt: skip
        workflow.nodes[node_id] = node
        return node

    def _pod(self, workflow, node, template):
        pod = json.loads(_POD)
        pod["metadata"] = {
            "name": f"{node['id']}-pod", "namespace": workflow.namespace, "uid": f"pod-{self._now()}",
            "creationTimestamp": self._now(),
            "labels": {"workflows.argoproj.io/workflow": workflow.name},
            "annotations": {
                "workflows.argoproj.io/node-id": node["id"], "workflows.argoproj.io/node-name": node["name"],
            },
            "ownerReferences": [{
                "apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": workflow.name,
                "uid": workflow.uid, "controller": True,
            }],
        }  # fmt: skip
        del pod["spec"]["nodeName"]
        outputs = {"artifacts": [], "parameters": []}
        inputs = {"artifacts": node["inputs"]["artifacts"]}
        text = json.dumps(
            {"name": template, "inputs": inputs, "outputs": outputs, "archiveLocation": _REPOSITORY}
        )
        for container in pod["spec"]["initContainers"]:
            for variable in container["env"]:
                if variable["name"] == "ARGO_TEMPLATE":
                    variable["value"] = text
        pod["status"] = {"phase": "Pending"}
        return pod

    def _status(self, pod, phase, started, ended=None):
        state = {"running": {"startedAt": started}}
        if ended is not None:
            state = {"terminated": {"startedAt": started, "finishedAt": ended, "exitCode": 0}}
        pod["status"] = {
            "phase": phase,
            "startTime": started,
            "containerStatuses": [{"name": "main", "imageID": "python@sha256:1", "state": state}],
        }
        self._api.put("pods", pod)

    def _close(self, workflow, node, phase, ended):
        node |= {"phase": phase, "finishedAt": ended}
        if self._random.random() < 0.8:  # else the Workflow's next change shows it
            self._show(workflow)
            yield

    def _show(self, workflow):
        status = {"phase": workflow.phase, "artifactRepositoryRef": {"artifactRepository": _REPOSITORY}}
        if workflow.packed:
            packed = gzip.compress(json.dumps(workflow.nodes).encode())
            status["compressedNodes"] = base64.b64encode(packed).decode()
        else:
            status["nodes"] = workflow.nodes
        body = {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Workflow",
            "metadata": {"name": workflow.name, "namespace": workflow.namespace, "uid": workflow.uid},
            "spec": {"templates": [{"name": name, "container": {}} for name in workflow.templates]},
            "status": status,
        }
        self._api.put("workflows", body)

    def _result(self, workflow, node, complete):
        body = {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "WorkflowTaskResult",
            "metadata": {
                "name": node["id"], "namespace": workflow.namespace, "uid": f"result-{node['id']}",
                "labels": {
                    "workflows.argoproj.io/workflow": workflow.name,
                    "workflows.argoproj.io/report-outputs-completed": complete,
                },
                "ownerReferences": [{
                    "apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": workflow.name,
                    "uid": workflow.uid,
                }],
            },
            "outputs": node.get("outputs") or {} if complete == "true" else {},
        }  # fmt: skip
        self._api.put("workflowtaskresults", body)

    def _inputs(self, artifacts, outside, index):
        found = [
            {"name": f"in{n}", "path": f"/tmp/inputs/in{n}/data", "s3": {"key": made.key}}
            for n, made in enumerate(artifacts)
        ]
        if outside:
            found.append({"name": "x", "path": "/tmp/inputs/x/data", "s3": {"key": f"outside/{index}"}})
        return {"artifacts": found, "parameters": [{"name": "n", "value": f"n{index}"}]}

    def _make(self, workflow, execution, node):
        return [
            _Made(f"{execution}/out{n}", f"out{n}", f"artifacts/{workflow.name}/{node['id']}/out{n}.tgz")
            for n in range(self._random.randrange(3))
        ]

    def _outputs(self, made, index):
        artifacts = [{"name": a.name, "path": f"/tmp/{a.name}", "s3": {"key": a.key}} for a in made]
        return {"artifacts": artifacts, "parameters": [{"name": "o", "value": f"o{index}"}], "exitCode": "0"}

    def _note(self, workflow, execution, template, state, index, inputs, outside):
        self.truth.executions[execution] = {
            "type": f"components.{template}", "state": state, "input:n": f"n{index}", "output:o": None,
            "source": None, "unresolved": "x" if outside else None,
        }  # fmt: skip
        self.truth.edges.add((workflow.name, "execution", execution))
        for number, made in enumerate(inputs):
            self._edge(workflow, execution, "INPUT", made, f"in{number}")

    def _note_outputs(self, workflow, execution, template, made, index):
        self.truth.executions[execution]["output:o"] = f"o{index}"
        for artifact in made:
            self.truth.artifacts[artifact.external_id] = {"type": "NoType", "uri": artifact.uri}
            self._edge(workflow, execution, "OUTPUT", artifact)

    def _edge(self, workflow, execution, kind, made, name=None):
        self.truth.edges.add((execution, kind, name or made.name, made.external_id))
        self.truth.edges.add((workflow.name, "artifact", made.external_id))
