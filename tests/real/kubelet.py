"""Plays scheduler, kubelet and Argo's executor: binds Pods without gates, runs nothing, reports success."""

import asyncio
import time
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime

from memopod.kube import PODS, TASK_RESULTS, Conflict, Informer, NotFound
from memopod.steps import names
from tests.real.argo import template_of, wants_result

NODE = "node-1"


def default_outputs(pod):
    """What the template declares: a parameter's value tells what `main` was to do."""
    template = template_of(pod)
    declared = template.get("outputs") or {}
    main = next(c for c in pod["spec"]["containers"] if c["name"] == "main")
    said = " ".join(main.get("args") or main.get("command") or [])
    archive = (template.get("archiveLocation") or {}).get("s3", {}).get("key", "artifacts")
    outputs = {}
    if declared.get("parameters"):
        outputs["parameters"] = [{**p, "value": f"{p['name']} of {said}"} for p in declared["parameters"]]
    if declared.get("artifacts"):
        outputs["artifacts"] = [
            a if any(k in a for k in ("s3", "gcs")) else {**a, "s3": {"key": f"{archive}/{a['name']}.tgz"}}
            for a in declared["artifacts"]
        ]
    if wants_result(pod):
        outputs["result"] = f"result of {said}"
    return outputs


class Kubelet:
    """The node of one namespace. `ran` names the Pods whose containers were started, in order."""

    def __init__(self, client, namespace, *, version, outputs, fails, takes, brief):
        self.client = client
        self.namespace = namespace
        self.version = version
        self.outputs = outputs
        self.fails = fails
        self.takes = takes
        self.brief = brief
        self.ran = []
        self.finished_at = {}
        self._known = set()
        self._group = None
        self._slots = asyncio.Semaphore(64)

    @classmethod
    @asynccontextmanager
    async def playing(
        cls, client, namespace, *, version="4.1.2", outputs=default_outputs, fails=lambda pod: False,
        takes=0.0, brief=False,
    ):  # fmt: skip
        """`takes`: seconds that each Pod runs, or a function of the Pod that is awaited. `brief`: no status
        but the last, and a WorkflowTaskResult in one write: three calls a Pod instead of five.
        """
        kubelet = cls(
            client, namespace, version=version, outputs=outputs, fails=fails, takes=takes, brief=brief
        )
        watch = Informer(client, PODS, namespace=namespace, on_event=kubelet._see)
        async with asyncio.TaskGroup() as group:
            kubelet._group = group
            watching = group.create_task(watch.run(), name="kubelet")
            await asyncio.wait_for(watch.synced.wait(), 30)
            try:
                yield kubelet
            finally:
                watching.cancel()

    def _see(self, kind, pod):
        metadata, spec = pod["metadata"], pod["spec"]
        if kind == "DELETED":
            return
        if metadata.get("deletionTimestamp") and spec.get("nodeName"):
            self._do(self._remove(pod), f"remove:{metadata['name']}")
            return
        ended = (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
        waits = spec.get("schedulingGates") or spec.get("nodeName") or metadata.get("deletionTimestamp")
        if ended or waits or metadata["uid"] in self._known:
            return
        self._known.add(metadata["uid"])
        self._do(self._run(pod), f"run:{metadata['name']}")

    def _do(self, work, name):
        self._group.create_task(work, name=name)

    async def _run(self, pod):
        async with self._slots:
            with suppress(NotFound, Conflict):
                await self._bind(pod)
                await self._run_bound(pod)

    async def _bind(self, pod):
        binding = {
            "apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod["metadata"]["name"]},
            "target": {"apiVersion": "v1", "kind": "Node", "name": NODE},
        }  # fmt: skip
        name = pod["metadata"]["name"]
        await self.client.create(PODS, binding, namespace=self.namespace, name=name, subresource="binding")

    async def _run_bound(self, pod):
        name = pod["metadata"]["name"]
        self.ran.append(name)
        started = datetime.now(UTC)
        if not self.brief:
            running = {"running": {"startedAt": _time(started)}}
            await self._status(pod, {"phase": "Running", "containerStatuses": _statuses(pod, running)})
        if callable(self.takes):
            await self.takes(pod)
        elif self.takes:
            await asyncio.sleep(self.takes)
        failed = self.fails(pod)
        if not failed:
            await self._report(pod, self.outputs(pod))
        ended = {
            "exitCode": 1 if failed else 0,
            "startedAt": _time(started), "finishedAt": _time(datetime.now(UTC)),
            "reason": "Error" if failed else "Completed",
        }  # fmt: skip
        phase = "Failed" if failed else "Succeeded"
        status = {"phase": phase, "containerStatuses": _statuses(pod, {"terminated": ended})}
        await self._status(pod, status)
        self.finished_at[name] = time.monotonic()

    async def _report(self, pod, outputs):
        """The executor's WorkflowTaskResult, as its version writes it."""
        metadata = pod["metadata"]
        workflow = metadata["ownerReferences"][0]
        owner = {key: workflow[key] for key in ("apiVersion", "kind", "name", "uid")}
        labels = {names.ARGO_WORKFLOW: workflow["name"]}
        if self.version.startswith("3.4"):
            if not outputs:
                return
            owner = {"apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"]}
        else:
            labels[names.ARGO_OUTPUTS_COMPLETED] = "true" if self.brief else "false"
        whole = self.brief or self.version.startswith("3.4")
        node = metadata["annotations"][names.ARGO_NODE_ID]
        body = {
            "apiVersion": "argoproj.io/v1alpha1", "kind": "WorkflowTaskResult",
            "metadata": {
                "name": node, "namespace": self.namespace, "labels": labels, "ownerReferences": [owner],
            },
            "outputs": outputs if whole else {},
        }  # fmt: skip
        try:
            await self.client.create(TASK_RESULTS, body, namespace=self.namespace)
        except Conflict:
            # It exists: patched, its labels left alone.
            await self.client.patch(TASK_RESULTS, node, {"outputs": outputs}, namespace=self.namespace)
            return
        if not whole:
            await self.client.patch(TASK_RESULTS, node, {"outputs": outputs}, namespace=self.namespace)
            done = {"metadata": {"labels": {names.ARGO_OUTPUTS_COMPLETED: "true"}}}
            await self.client.patch(TASK_RESULTS, node, done, namespace=self.namespace)

    async def _status(self, pod, status):
        name = pod["metadata"]["name"]
        await self.client.patch(
            PODS, name, {"status": status}, namespace=self.namespace, subresource="status"
        )

    async def _remove(self, pod):
        metadata = pod["metadata"]
        with suppress(NotFound, Conflict):
            await self.client.delete(
                PODS, metadata["name"], namespace=self.namespace, uid=metadata["uid"], grace_seconds=0
            )


def _statuses(pod, state):
    return [
        {
            "name": c["name"], "image": c["image"], "imageID": "docker.io/library/x@sha256:" + "0" * 64,
            "containerID": f"containerd://{pod['metadata']['uid']}", "ready": "running" in state,
            "started": "running" in state, "restartCount": 0, "state": state,
        }
        for c in pod["spec"]["containers"]
    ]  # fmt: skip


def _time(moment):
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
