"""Plays Argo's workflow-controller on a real API server, by what the real ones were seen to do.

Workflows and Pods are the recordings of `tests/samples/`, under fresh names. Pods and WorkflowTaskResults
are followed by two watches that are not ordered; each can be made to lag. `argo_rules` decides.
"""

import asyncio
import json
import re
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path

from memopod.kube import CONFIG_MAPS, PODS, TASK_RESULTS, WORKFLOWS, Conflict, Informer, NotFound
from memopod.sandbox.argo.names import fnv32a, node_id
from memopod.steps import names
from tests.real.argo_rules import Node, assess, take_result

SAMPLES = Path(__file__).parents[1] / "samples"
MESSAGE = "hello"
"""What the recorded steps are given; a step's own `message` stands in its place."""
DELETE_DELAY = 0.2
"""Seconds from a node's end to the deletion of its Pod (Argo: 5 by default)."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a workflow: a recorded Pod (`parameters.make`), with a message of its own.

    `change(pod)` may alter the Pod before it is created. `after` names steps that must have succeeded.
    """

    name: str = "make"
    sample: str = "parameters.make"
    message: str = MESSAGE
    after: tuple = ()
    labels: dict = field(default_factory=dict)
    annotations: dict = field(default_factory=dict)
    timeout: float | None = None
    change: object = None


@cache
def recorded(version, name):
    return (SAMPLES / f"argo-{version}" / f"{name}.json").read_text()


def build_pod(version, step, workflow, steps):
    """The Pod that Argo creates for a step of `workflow`, before admission; also its node's id."""
    text = recorded(version, f"{step.sample}.admission")
    pod = json.loads(text)["request"]["object"]
    owner = pod["metadata"]["ownerReferences"][0]
    name, namespace = workflow["metadata"]["name"], workflow["metadata"]["namespace"]
    text = json.dumps(pod)
    # Hashes in the names of nodes: this step's own, and those of recorded siblings that it refers to.
    group = step.sample.partition(".")[0]
    for other in sorted(steps, key=lambda other: other is not step):
        if other.sample.partition(".")[0] != group:
            continue
        sibling = json.loads(recorded(version, f"{other.sample}.admission"))["request"]["object"]["metadata"]
        number = re.search(r"\d+$", sibling["annotations"][names.ARGO_NODE_ID])
        if number:
            text = text.replace(number.group(), str(fnv32a(f"{name}.{other.name}")))
        text = text.replace(f"{owner['name']}.{other.sample.partition('.')[2]}", f"{name}.{other.name}")
    text = text.replace(owner["uid"], workflow["metadata"]["uid"]).replace(owner["name"], name)
    if step.message != MESSAGE:
        text = text.replace(f"echo {MESSAGE} ", f"echo {step.message} ")
    pod = json.loads(text)
    pod["metadata"]["namespace"] = namespace
    pod["metadata"]["labels"] |= step.labels
    pod["metadata"]["annotations"] |= step.annotations
    pod.pop("status", None)
    _without_token_volume(pod["spec"])
    if step.change:
        step.change(pod)
    return pod, pod["metadata"]["annotations"].get(names.ARGO_NODE_ID) or node_id(name, name)


def _without_token_volume(spec):
    """The API server's own admission adds it again, under another name."""

    def kept(items):
        return [item for item in items or [] if not item["name"].startswith("kube-api-access-")]

    spec["volumes"] = kept(spec.get("volumes"))
    for container in (*spec.get("initContainers", ()), *spec["containers"]):
        container["volumeMounts"] = kept(container.get("volumeMounts"))


def template_of(pod):
    """The template in a Pod's environment; {} where it is offloaded."""
    for container in (*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]):
        for variable in container.get("env", ()):
            if variable["name"] == names.ENV_TEMPLATE:
                value = variable.get("value", "")
                return {} if value == names.OFFLOADED else json.loads(value)
    return {}


def edit_template(pod, edit):
    """Have `edit(template)` change the template wherever the Pod carries it."""
    for container in (*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]):
        for variable in container.get("env", ()):
            if variable["name"] == names.ENV_TEMPLATE:
                template = json.loads(variable["value"])
                edit(template)
                variable["value"] = json.dumps(template)


def _hand_on(produced, template):
    """An input artifact is its producer's, with whatever was reported of it beside its place."""
    reported = {a["name"]: a for outputs in produced for a in outputs.get("artifacts", ())}
    for artifact in (template.get("inputs") or {}).get("artifacts", ()):
        told = reported.get(artifact["name"], {})
        artifact.update({k: told[k] for k in ("artifactGC", "deleted") if k in told})


def only_default_artifact(pod):
    """Of the artifacts of `artifacts.make`, leave the one that Argo places: it can be reused."""

    def edit(template):
        template["outputs"]["artifacts"] = [
            a for a in template["outputs"]["artifacts"] if a["name"] == "default"
        ]

    edit_template(pod, edit)


def wants_result(pod):
    return any(
        variable["name"] == names.ENV_INCLUDE_RESULT and variable.get("value") == "true"
        for container in pod["spec"]["containers"]
        for variable in container.get("env", ())
    )


class Run:
    """One Workflow, as its controller sees it. `nodes`: step name -> Node."""

    def __init__(self, argo, workflow, steps):
        self.argo = argo
        self.workflow = workflow
        self.name = workflow["metadata"]["name"]
        self.uid = workflow["metadata"]["uid"]
        self.spec = workflow["spec"]
        self.steps = {step.name: step for step in steps}
        self.nodes = {}
        self.pods = {}
        self.created = {}
        self.ended_at = {}
        self.phase = "Running"
        self.begun = time.monotonic()
        self.changed = asyncio.Event()
        self.declares = {}

    @property
    def over(self):
        return self.phase != "Running"

    def pod_name(self, step="make"):
        return self.pods[step]["metadata"]["name"]

    async def until(self, condition, what, limit=30):
        async with asyncio.timeout(limit):
            while not condition():
                self.changed.clear()
                await self.changed.wait()
        return self

    async def end(self, limit=30):
        """Wait until the Workflow has ended; returns its phase."""
        try:
            await self.until(lambda: self.over, "the workflow has ended", limit)
        except TimeoutError:
            raise AssertionError(f"{self.name} has not ended in {limit} s: {self.nodes}") from None
        return self.phase


class Argo:
    """The controller of one namespace. Made by `playing`."""

    def __init__(self, client, namespace, *, version, requeue, pod_lag, result_lag, finalizer):
        self.client = client
        self.namespace = namespace
        self.version = version
        self.requeue = requeue
        self.lag = {"pods": pod_lag, "results": result_lag}
        self.finalizer = finalizer
        self.runs = {}
        self.recreated = []
        self._view = {"pods": {}, "results": {}}
        self._gone = set()
        self._dirty = set()
        self._wake = asyncio.Event()
        self._group = None
        self._slots = asyncio.Semaphore(32)

    @classmethod
    @asynccontextmanager
    async def playing(
        cls, client, namespace, *, version="4.1.2", requeue=0.05, pod_lag=0.0, result_lag=0.0, finalizer=False
    ):  # fmt: skip
        argo = cls(
            client, namespace, version=version, requeue=requeue, pod_lag=pod_lag, result_lag=result_lag,
            finalizer=finalizer,
        )  # fmt: skip
        watches = {
            "pods": Informer(
                client, PODS, namespace=namespace, label_selector=names.ARGO_WORKFLOW,
                on_event=lambda kind, item: argo._see("pods", kind, item),
            ),
            "results": Informer(
                client, TASK_RESULTS, namespace=namespace,
                on_event=lambda kind, item: argo._see("results", kind, item),
            ),
        }  # fmt: skip
        async with asyncio.TaskGroup() as group:
            argo._group = group
            tasks = [group.create_task(w.run(), name=f"argo:{kind}") for kind, w in watches.items()]
            tasks.append(group.create_task(argo._reconcile_all(), name="argo:reconcile"))
            for watch in watches.values():
                await asyncio.wait_for(watch.synced.wait(), 30)
            try:
                yield argo
            finally:
                for task in tasks:
                    task.cancel()

    async def submit(self, *steps, **spec):
        """Create a Workflow of these steps; `spec` may set podGC, parallelism, activeDeadlineSeconds."""
        steps = steps or (Step(),)
        group = steps[0].sample.partition(".")[0]
        given = json.loads(recorded(self.version, f"{group}.workflow"))["spec"]
        body = {
            "apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow",
            "metadata": {"generateName": f"{group[:8]}-", "namespace": self.namespace},
            "spec": {**given, **spec},
        }  # fmt: skip
        workflow = await self.client.create(WORKFLOWS, body, namespace=self.namespace)
        run = Run(self, workflow, steps)
        self.runs[run.name] = run
        self._mark(run.name)
        return run

    async def stop(self, run):
        """`argo stop`: held Pods are deleted, their nodes fail at once."""
        patch = {"spec": {"shutdown": "Stop"}}
        run.workflow = await self.client.patch(WORKFLOWS, run.name, patch, namespace=self.namespace)
        run.spec = run.workflow["spec"]
        self._mark(run.name)

    # What is seen.

    def _see(self, watch, kind, item):
        if self.lag[watch]:
            asyncio.get_running_loop().call_later(self.lag[watch], self._deliver, watch, kind, item)
        else:
            self._deliver(watch, kind, item)

    def _deliver(self, watch, kind, item):
        name = item["metadata"]["name"]
        if kind == "DELETED":
            self._view[watch].pop(name, None)
            if watch == "pods":
                self._gone.add(item["metadata"]["uid"])
        else:
            self._view[watch][name] = item
        owner = (item["metadata"].get("labels") or {}).get(names.ARGO_WORKFLOW)
        if owner in self.runs:
            self._mark(owner)

    def _mark(self, name):
        self._dirty.add(name)
        self._wake.set()

    async def _reconcile_all(self):
        while True:
            await self._wake.wait()
            self._wake.clear()
            for name in list(self._dirty):
                self._dirty.discard(name)
                await self._reconcile(self.runs[name])
            await asyncio.sleep(self.requeue)

    # What is done.

    async def _reconcile(self, run):
        if run.over:
            return
        before = dict(run.nodes)
        for name, node in list(run.nodes.items()):
            run.nodes[name] = self._look(run, name, node)
        for name, node in run.nodes.items():
            if node.ended and not before[name].ended:
                run.ended_at[name] = time.monotonic()
                self._do(self._clean(run, name), f"clean:{run.name}.{name}")
        if run.spec.get("shutdown") == "Stop" or self._is_late(run):
            self._stop_nodes(run)
        await self._start_ready(run)
        self._judge(run)
        if run.nodes != before or run.over:
            await self._write_status(run, before)
        if run.over:
            await self._end(run)
        run.changed.set()

    def _look(self, run, name, node):
        if node.ended:
            return node
        result = self._view["results"].get(node.id)
        if result is not None:
            node = take_result(node, result)
        created = run.pods.get(name)
        if created is None:
            return node
        step = run.steps[name]
        if step.timeout and time.monotonic() - run.created[name] > step.timeout:
            self._do(self._delete(created), f"timeout:{name}")
            return replace(node, phase="Failed", message="Step exceeded its deadline")
        pod = self._view["pods"].get(created["metadata"]["name"])
        if pod is not None and pod["metadata"]["uid"] == created["metadata"]["uid"]:
            return assess(node, pod, version=self.version, declares=run.declares[name])
        if created["metadata"]["uid"] in self._gone:
            if node.phase == "Pending":
                # Made again under the same name, with a new uid and a new admission.
                del run.pods[name]
                self.recreated.append(created["metadata"]["name"])
                return node
            return replace(node, phase="Error", message="pod deleted")
        return node

    def _is_late(self, run):
        limit = run.spec.get("activeDeadlineSeconds")
        return limit is not None and time.monotonic() - run.begun > limit

    def _stop_nodes(self, run):
        for name in run.steps:
            node = run.nodes.get(name) or Node(node_id(run.name, f"{run.name}.{name}"), name, name)
            if not node.ended:
                run.nodes[name] = replace(node, phase="Failed", message="workflow shutdown")
                if name in run.pods:
                    self._do(self._delete(run.pods[name]), f"stop:{name}")

    async def _start_ready(self, run):
        active = sum(1 for node in run.nodes.values() if not node.ended)
        room = run.spec.get("parallelism", len(run.steps)) - active
        ready = [
            step for step in run.steps.values()
            if step.name not in run.nodes
            and all(a in run.nodes and run.nodes[a].phase == "Succeeded" for a in step.after)
        ][: max(room, 0)]  # fmt: skip
        again = [run.steps[n] for n, node in run.nodes.items() if not node.ended and n not in run.pods]
        await asyncio.gather(*(self._create(run, step) for step in (*ready, *again)))

    async def _create(self, run, step):
        pod, node = build_pod(self.version, step, run.workflow, run.steps.values())
        produced = [run.nodes[name].outputs or {} for name in step.after]
        if any(outputs.get("artifacts") for outputs in produced) and template_of(pod):
            edit_template(pod, partial(_hand_on, produced))
        if self.finalizer:
            pod["metadata"]["finalizers"] = ["workflows.argoproj.io/status"]
        template = template_of(pod)
        if not template:
            await self._create_template(run, pod, step)
        outputs = template.get("outputs") or {}
        run.declares[step.name] = bool(
            outputs.get("parameters") or outputs.get("artifacts") or wants_result(pod)
        )
        async with self._slots:
            run.created[step.name] = time.monotonic()
            try:
                created = await self.client.create(PODS, pod, namespace=self.namespace)
            except Conflict:
                # A namesake that is still terminating: tried again at the next look.
                self._mark(run.name)
                return
        run.pods[step.name] = created
        run.nodes.setdefault(
            step.name, Node(node, f"{run.name}.{step.name}", template.get("name", step.name))
        )
        if step.timeout:
            asyncio.get_running_loop().call_later(step.timeout + 0.05, self._mark, run.name)

    async def _create_template(self, run, pod, step):
        """An offloaded template: the ConfigMap exists before the Pod is admitted."""
        text = json.loads(recorded(self.version, f"{step.sample}.workflow"))
        template = next(t for t in text["spec"]["templates"] if t.get("container") or t.get("script"))
        body = {
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": pod["metadata"]["name"], "namespace": self.namespace},
            "data": {names.ENV_TEMPLATE: json.dumps(template), names.ENV_ARGS_FILE: json.dumps(["x"])},
        }  # fmt: skip
        with suppress(Conflict):
            await self.client.create(CONFIG_MAPS, body, namespace=self.namespace)

    def _judge(self, run):
        nodes = run.nodes.values()
        if any(node.stuck for node in nodes):
            return
        if len(run.nodes) == len(run.steps) and all(node.ended for node in nodes):
            run.phase = "Succeeded" if all(n.phase == "Succeeded" for n in nodes) else "Failed"
        elif any(n.phase in ("Failed", "Error") for n in nodes) and all(n.ended for n in nodes):
            run.phase = "Failed"

    async def _write_status(self, run, before):
        nodes = {
            node.id: {
                "id": node.id, "name": node.name, "displayName": name, "templateName": node.template,
                "type": "Pod", "phase": node.phase, "message": node.message, "outputs": node.outputs or None,
            }
            for name, node in run.nodes.items() if before.get(name) != node
        }  # fmt: skip
        status = {"phase": run.phase, "nodes": nodes}
        labels = {}
        if run.over:
            status["finishedAt"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            labels = {names.ARGO_COMPLETED: "true", f"{names.ARGO_PREFIX}phase": run.phase}
        patch = {"status": status, "metadata": {"labels": labels}}
        with suppress(NotFound):
            await self.client.patch(WORKFLOWS, run.name, patch, namespace=self.namespace)

    async def _end(self, run):
        """All WorkflowTaskResults of a Workflow are deleted as soon as it has ended."""
        for name, result in list(self._view["results"].items()):
            if result["metadata"]["labels"].get(names.ARGO_WORKFLOW) == run.name:
                with suppress(NotFound):
                    await self.client.delete(TASK_RESULTS, name, namespace=self.namespace)
        strategy = (run.spec.get("podGC") or {}).get("strategy")
        if strategy == "OnWorkflowCompletion" or (
            strategy == "OnWorkflowSuccess" and run.phase == "Succeeded"
        ):
            for pod in run.pods.values():
                self._do(self._delete(pod), f"podGC:{run.name}")

    async def _clean(self, run, name):
        """What happens to a Pod whose node has ended: a label, or deletion without ever that label."""
        pod, node = run.pods.get(name), run.nodes[name]
        if pod is None:
            return
        strategy = (run.spec.get("podGC") or {}).get("strategy")
        if strategy == "OnPodCompletion" or (strategy == "OnPodSuccess" and node.phase == "Succeeded"):
            await asyncio.sleep(DELETE_DELAY)
            await self._delete(pod)
            return
        patch = {"metadata": {"labels": {names.ARGO_COMPLETED: "true"}}}
        if self.finalizer:
            patch["metadata"]["finalizers"] = None
        with suppress(NotFound):
            await self.client.patch(PODS, pod["metadata"]["name"], patch, namespace=self.namespace)

    async def _delete(self, pod):
        metadata = pod["metadata"]
        with suppress(NotFound, Conflict):
            if self.finalizer:
                patch = {"metadata": {"finalizers": None}}
                await self.client.patch(PODS, metadata["name"], patch, namespace=self.namespace)
            await self.client.delete(PODS, metadata["name"], namespace=self.namespace, uid=metadata["uid"])

    def _do(self, work, name):
        self._group.create_task(self._in_turn(work), name=name)

    async def _in_turn(self, work):
        async with self._slots:
            await work
