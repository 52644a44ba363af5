"""Watches all Pods and gives each that may run a worker."""

import asyncio
from typing import Any

import structlog

from memopod.kube import PODS, Client, Informer, emit
from memopod.sandbox.kubelet.buckets import Buckets
from memopod.sandbox.kubelet.settings import Settings
from memopod.sandbox.kubelet.statuses import NODE
from memopod.sandbox.kubelet.worker import Worker

_FINISHED = frozenset({"Succeeded", "Failed"})


class Node:
    """The one node of the sandbox. `run` works until it is cancelled; then all its processes end."""

    def __init__(self, client: Client, settings: Settings, buckets: Buckets) -> None:
        self._client = client
        self._settings = settings
        self._buckets = buckets
        self._workers: dict[str, Worker] = {}
        self._slots = asyncio.Semaphore(settings.max_running)
        self._images: set[str] = set()
        self._tasks: asyncio.TaskGroup | None = None
        self._log = structlog.get_logger()
        self.pods = Informer(client, PODS, on_event=self._on_event)

    async def run(self) -> None:
        """Follow the Pods; an error that nobody expected ends the kubelet, and its Pods with it."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            tasks.create_task(self.pods.run(), name="pods")

    def _on_event(self, kind: str, pod: dict[str, Any]) -> None:
        uid = pod["metadata"]["uid"]
        worker = self._workers.get(uid)
        deleted = kind == "DELETED" or pod["metadata"].get("deletionTimestamp")
        if worker is not None and deleted:
            worker.delete()
        elif worker is None and (self._mine(pod) or deleted):
            self._begin(uid, pod, deleted=bool(deleted))

    def _mine(self, pod: dict[str, Any]) -> bool:
        """Whether the Pod is to run here: no gates, unbound or bound here, not finished."""
        spec = pod["spec"]
        phase = (pod.get("status") or {}).get("phase")
        return (
            not spec.get("schedulingGates")
            and spec.get("nodeName") in (None, "", NODE)
            and phase not in _FINISHED
        )

    def _begin(self, uid: str, pod: dict[str, Any], *, deleted: bool) -> None:
        if self._tasks is None:
            raise RuntimeError("the node is not running")
        worker = Worker(self._client, pod, pods=self._settings.pods, buckets=self._buckets)
        self._workers[uid] = worker
        if deleted:
            work = worker.remove()
        elif (pod.get("status") or {}).get("phase") == "Running":
            work = worker.lose()
        else:
            work = worker.run(self._slots)
        task = self._tasks.create_task(work, name=f"pod {pod['metadata']['name']}")
        task.add_done_callback(lambda _: self._workers.pop(uid, None))
        for image in sorted({c.get("image", "") for c in pod["spec"]["containers"]} - self._images):
            self._images.add(image)
            self._tasks.create_task(self._say_not_pulled(pod, image), name=f"event {image}")

    async def _say_not_pulled(self, pod: dict[str, Any], image: str) -> None:
        message = f"image {image} is not pulled: the sandbox runs the command as a local process"
        self._log.info("image not pulled", image=image)
        await emit(self._client, pod, reason="NotPulled", message=message, component="sandbox-kubelet")
