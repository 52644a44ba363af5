"""One Pod's life on the node: bound, started, watched over, reported."""

import asyncio
import base64
import contextlib
import shutil
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import structlog

from memopod.kube import (
    CONFIG_MAPS,
    PODS,
    SECRETS,
    ApiError,
    Client,
    Conflict,
    Invalid,
    NotFound,
    Unavailable,
)
from memopod.kube.backoff import Backoff
from memopod.sandbox.kubelet import statuses
from memopod.sandbox.kubelet.buckets import ArtifactError, Buckets
from memopod.sandbox.kubelet.container import (
    ContainerError,
    Folder,
    Program,
    declared_paths,
    environment,
    program,
    references,
)
from memopod.sandbox.kubelet.executor import Executor, OutputError
from memopod.sandbox.processes import Process
from memopod.steps import NotAStep, Step, read_step
from memopod.steps.argo import main_container

_OUTPUT_FAILED = 64
"""Exit status of `wait` when a declared output is missing; Argo's executor uses the same."""
_KILLED = 137
_KILL_GRACE = 2.0
"""Seconds between SIGTERM and SIGKILL for a step that is stopped; Kubernetes gives 30."""


class Vanished(Exception):
    """The Pod is gone from the API server, or is another one of the same name."""


class Worker:
    """Runs one Pod. `run` returns when the Pod is finished and reported, or gone."""

    def __init__(self, client: Client, pod: dict[str, Any], *, pods: Path, buckets: Buckets) -> None:
        self.pod = pod
        self._client = client
        self._name: str = pod["metadata"]["name"]
        self._namespace: str = pod["metadata"]["namespace"]
        self._uid: str = pod["metadata"]["uid"]
        self._folder = Folder(pods / self._uid)
        self._buckets = buckets
        self._deleted = asyncio.Event()
        self._log = structlog.get_logger().bind(pod=self._name)

    def delete(self) -> None:
        """The Pod was deleted: its process ends, its folder goes."""
        self._deleted.set()

    async def run(self, slots: asyncio.Semaphore) -> None:
        """Run the Pod, once there is a free slot. The API server may be away in between."""
        try:
            async with slots:
                if not self._deleted.is_set():
                    await self._live()
        except Vanished:
            self._log.info("pod is gone")
        if self._deleted.is_set():
            await self.remove()

    async def lose(self) -> None:
        """Report a Pod failed that ran when an earlier kubelet ended: its process ended with that."""
        now = statuses.moment()
        ended = {
            c["name"]: statuses.Ended(exit_code=_KILLED, finished_at=now, reason="ContainerStatusUnknown")
            for c in self.pod["spec"]["containers"]
        }
        message = "the kubelet was started anew; the step's process ended with the earlier one"
        started = (self.pod.get("status") or {}).get("startTime") or now
        with contextlib.suppress(Vanished):
            await self._report(
                statuses.finished(self.pod, started, ended, reason="NodeLost", message=message)
            )
            self._log.warning("pod lost")

    async def _live(self) -> None:
        if not self.pod["spec"].get("nodeName"):
            await self._bind()
        await self._report(statuses.starting(self.pod))
        started = statuses.moment()
        try:
            step, container = _readable(self.pod)
            executor = Executor(self._client, self._buckets, step, self._folder)
            await self._retried(executor.begin)
            local = await self._prepare(step, container, executor)
            with self._folder.log.open("ab") as log:
                process = await Process.start(local.command, env=local.env, cwd=local.workdir, log=log)
        except (NotAStep, ContainerError, ArtifactError, OSError, ValueError, KeyError) as error:
            # Whatever is wrong with this Pod (an argument too long, a NUL in one), the others go on.
            await self._cannot_start(started, str(error))
            return
        self._log.info("started", image=container.get("image"), note="the image is not pulled")
        try:
            await self._watch_over(process, step, executor)
        finally:
            await process.stop(0)

    async def _prepare(self, step: Step, container: Mapping[str, Any], executor: Executor) -> Program:
        declared = declared_paths(step.template or {})
        await asyncio.to_thread(self._folder.create, declared)
        await executor.fetch_inputs()
        variables = environment(self.pod, container, await self._values(container))
        return program(container, variables, self._folder, declared)

    async def _watch_over(self, process: Process, step: Step, executor: Executor) -> None:
        started = statuses.moment()
        ending = asyncio.create_task(process.wait(), name=f"process of {self._name}")
        deleted = asyncio.create_task(self._deleted.wait(), name=f"deletion of {self._name}")
        reporting = asyncio.create_task(
            self._report(statuses.running(self.pod, started)), name=f"running {self._name}"
        )
        deadline = step.pod["spec"].get("activeDeadlineSeconds")
        try:
            done, _ = await asyncio.wait(
                {ending, deleted}, timeout=deadline, return_when=asyncio.FIRST_COMPLETED
            )
            overdue = not done
            if not ending.done():
                await process.stop(_KILL_GRACE)
            code = await ending
            if self._deleted.is_set():
                raise Vanished
            await reporting
        finally:
            for task in (ending, deleted, reporting):
                task.cancel()
            await asyncio.gather(ending, deleted, reporting, return_exceptions=True)
        await self._finish(executor, started, code, overdue=overdue)

    async def _finish(self, executor: Executor, started: str, code: int, *, overdue: bool) -> None:
        main = statuses.Ended(exit_code=code if code >= 0 else 128 - code, finished_at=statuses.moment())
        outputs: Mapping[str, Any] = {}
        problem = ""
        if main.exit_code == 0 and not overdue:
            try:
                outputs = await executor.collect()
            except OutputError as error:
                problem = str(error)
        await self._retried(lambda: executor.report(outputs))
        wait = statuses.Ended(
            exit_code=_OUTPUT_FAILED if problem else 0, finished_at=statuses.moment(), message=problem
        )
        ended = {c["name"]: main if c["name"] == "main" else wait for c in self.pod["spec"]["containers"]}
        reason = "DeadlineExceeded" if overdue else ""
        message = "the step exceeded its deadline" if overdue else problem
        if main.exit_code and not message:
            message = f"main exited with code {main.exit_code}"
        await self._report(statuses.finished(self.pod, started, ended, reason=reason, message=message))
        self._log.info("finished", exit_code=main.exit_code, problem=problem or None)
        await asyncio.to_thread(self._tidy)

    async def _cannot_start(self, started: str, problem: str) -> None:
        now = statuses.moment()
        ended = {
            c["name"]: statuses.Ended(exit_code=128, finished_at=now, reason="StartError", message=problem)
            for c in self.pod["spec"]["containers"]
        }
        await self._report(statuses.finished(self.pod, started, ended, reason="StartError", message=problem))
        self._log.warning("cannot start", problem=problem)

    async def _bind(self) -> None:
        """What a scheduler does: there is one node, and every Pod fits."""
        # The UID is a precondition: a Pod made anew under the same name is another Pod.
        patch = {"metadata": {"uid": self._uid}, "spec": {"nodeName": statuses.NODE}}
        try:
            await self._retried(
                lambda: self._client.patch(PODS, self._name, patch, namespace=self._namespace)
            )
        except Vanished as vanished:
            if not isinstance(vanished.__cause__, Invalid):
                raise
            # Kubernetes' own API server takes it from a binding only.
            binding = {
                "apiVersion": "v1",
                "kind": "Binding",
                "metadata": {"name": self._name, "uid": self._uid},
                "target": {"apiVersion": "v1", "kind": "Node", "name": statuses.NODE},
            }
            await self._retried(
                lambda: self._client.create(
                    PODS, binding, namespace=self._namespace, name=self._name, subresource="binding"
                )
            )

    async def _report(self, status: Mapping[str, Any]) -> None:
        patch: list[dict[str, Any]] = [
            # A Pod made anew under the same name is another Pod.
            {"op": "test", "path": "/metadata/uid", "value": self._uid},
            {"op": "add", "path": "/status", "value": status},
        ]
        await self._retried(
            lambda: self._client.patch(
                PODS, self._name, patch, namespace=self._namespace, subresource="status"
            )
        )

    async def _values(self, container: Mapping[str, Any]) -> Callable[[str, str, str], str | None]:
        """A function that reads keys of the ConfigMaps and Secrets that the container names."""
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for kind, name in references(container):
            resource = CONFIG_MAPS if kind == "ConfigMap" else SECRETS
            try:
                found[kind, name] = await self._client.get(resource, name, namespace=self._namespace)
            except NotFound:
                found[kind, name] = {}
            except ApiError as error:
                raise ContainerError(f"{kind} {name!r} cannot be read: {error}") from error

        def read(kind: str, name: str, key: str) -> str | None:
            item = found.get((kind, name), {})
            value = (item.get("data") or {}).get(key)
            if value is None:
                return None
            return base64.b64decode(value).decode() if kind == "Secret" else str(value)

        return read

    async def _retried(self, request: Callable[[], Awaitable[Any]]) -> None:
        """Send a request until the API server has answered it; it may be away for a while.

        Raises Vanished when the Pod, or what it needs, is no longer there or not the same.
        """
        backoff = Backoff(longest=2.0)
        while True:
            try:
                await request()
                return
            except Unavailable as error:
                self._log.debug("tried again", error=str(error))
            except (NotFound, Invalid, Conflict) as error:
                raise Vanished from error
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._deleted.wait(), backoff.next())
                raise Vanished

    def _tidy(self) -> None:
        """Keep the log alone: outputs are in the buckets and in the WorkflowTaskResult."""
        for folder in (self._folder.files, self._folder.home, self._folder.scratch):
            shutil.rmtree(folder, ignore_errors=True)

    async def remove(self) -> None:
        """Delete what is left of a deleted Pod: its folder here, and itself in the API server.

        The API server waits for this, since it gave the Pod time to end.
        """
        await asyncio.to_thread(shutil.rmtree, self._folder.root, ignore_errors=True)
        backoff = Backoff(longest=2.0)
        while True:
            try:
                await self._client.delete(
                    PODS, self._name, namespace=self._namespace, uid=self._uid, grace_seconds=0
                )
                return
            except (NotFound, Conflict):
                return
            except Unavailable as error:
                self._log.debug("tried again", error=str(error))
            await asyncio.sleep(backoff.next())


def _readable(pod: Mapping[str, Any]) -> tuple[Step, Mapping[str, Any]]:
    """The step of a Pod and its container. Raises NotAStep or ContainerError if the sandbox cannot run it."""
    step, container = read_step(pod), main_container(pod)
    if step.template is None or container is None:
        raise ContainerError("the sandbox runs only Pods with a container `main` and their template inside")
    return step, container
