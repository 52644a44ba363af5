"""Starts the sandbox's services, keeps them alive, and ends them in order."""

import asyncio
import os
import ssl
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import structlog

from memopod.kube import MUTATING_WEBHOOKS, ApiError, Client, Conflict
from memopod.kube.backoff import Backoff
from memopod.sandbox.apiserver.app import NAMESPACES
from memopod.sandbox.argo import BUCKET
from memopod.sandbox.certificates import StateFiles, prepare_state
from memopod.sandbox.control_plane import apply, furnish, permissions
from memopod.sandbox.errors import SandboxError
from memopod.sandbox.processes import Process
from memopod.sandbox.services import (
    Layout,
    Service,
    control_plane,
    ensure_seal_key,
    stages,
    webhook_configuration,
)
from memopod.sandbox.state import State

_READY_TIMEOUT = 60.0
"""Seconds for one service to become ready: ten times what a busy laptop needs."""
_PROBE_TIMEOUT = 2.0
_PROBE_PAUSE = 0.1
_STEADY = 10.0
"""Seconds a service must live for its death not to count as one more failure in a row."""
_MAX_DEATHS = 5
_TAIL = 15


class _Keeper:
    """Keeps one service alive: starts it again when it dies, until it is stopped."""

    def __init__(self, service: Service, log: Path, on_start: Callable[[], None]) -> None:
        self.service = service
        self.log = log
        self.pid: int | None = None
        self.deaths = 0
        self._on_start = on_start
        self._stopping = asyncio.Event()
        self._grace = service.grace
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the service, and again whenever it dies."""
        self._task = asyncio.create_task(self._run(), name=self.service.name)

    async def stop(self, *, grace: float | None = None) -> None:
        """End the service: SIGTERM, and after `grace` seconds (by default its own) SIGKILL."""
        self._grace = self.service.grace if grace is None else grace
        self._stopping.set()
        if self._task is not None:
            await self._task

    def check(self) -> None:
        """Raises SandboxError if the service cannot be started, or does not stay alive."""
        if self._task is not None and self._task.done():
            self._task.result()
        if self.deaths >= _MAX_DEATHS:
            raise SandboxError(
                f"{self.service.name} ended {self.deaths} times before it was ready; "
                f"the end of its log ({self.log}):\n{self.tail()}"
            )

    def tail(self) -> str:
        """The last lines of the service's log."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-_TAIL:])

    async def _run(self) -> None:
        backoff = Backoff(first=0.2, longest=10.0)
        loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            begun = loop.time()
            with self.log.open("ab") as log:
                process = await Process.start(self.service.command, log=log)
            self.pid = process.pid
            self._on_start()
            if await self._until_stopped(process.wait()):
                await process.stop(self._grace)
                return
            self.deaths += 1
            if loop.time() - begun >= _STEADY:
                backoff.reset()
            pause = backoff.next()
            structlog.get_logger().warning(
                "service ended, started again", service=self.service.name, seconds=round(pause, 2)
            )
            if await self._until_stopped(asyncio.sleep(pause)):
                return

    async def _until_stopped(self, work: Coroutine[Any, Any, Any]) -> bool:
        """Wait for `work`, or for the end; says whether it is the end."""
        working = asyncio.create_task(work, name=f"{self.service.name} at work")
        stopping = asyncio.create_task(self._stopping.wait(), name=f"{self.service.name} stops")
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        for task in (working, stopping):
            task.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)
        return self._stopping.is_set()


class Supervisor:
    """One sandbox, from `start` to `stop`. `state` is locked by the caller."""

    def __init__(
        self,
        state: State,
        *,
        layout: Layout | None = None,
        control_plane: bool = False,
        on_progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._layout = layout or Layout.of_machine(state.root)
        self._control_plane = control_plane
        self._state = state
        self._on_progress = on_progress
        self._keepers: list[list[_Keeper]] = []
        self._ready = False

    async def start(self) -> dict[str, Any]:
        """Start everything; returns the description that is written to sandbox.json.

        Raises SandboxError for a service that does not become ready, OSError for a folder that cannot
        be written.
        """
        root, layout = self._state.root, self._layout
        hosts = (layout.cache_server,)
        files = await asyncio.to_thread(
            prepare_state, root, layout.ports.api, host=layout.api_server, hosts=hosts
        )
        ensure_seal_key(root)
        logs = self._state.folder("logs")
        if layout.bucket.startswith("file:"):
            (self._state.folder("buckets") / BUCKET).mkdir(exist_ok=True)
        context = ssl.create_default_context(cafile=str(files.ca))
        connector = aiohttp.TCPConnector(ssl=context)
        async with aiohttp.ClientSession(connector=connector, trust_env=False) as session:
            own, *others = stages(layout)
            first = control_plane(root, files, layout.ports) if self._control_plane else (own,)
            await self._start(session, logs, first)
            if self._control_plane:
                async with Client.from_kubeconfig(str(files.kubeconfig)) as client:
                    await furnish(client, NAMESPACES)
                    await apply(client, permissions())
            await self._start(session, logs, others)
        await self._register(files)
        self._ready = True
        self._describe()
        return self._description()

    async def _start(
        self, session: aiohttp.ClientSession, logs: Path, stages: Sequence[Sequence[Service]]
    ) -> None:
        for stage in stages:
            keepers = [_Keeper(s, logs / f"{s.name}.log", self._describe) for s in stage]
            self._keepers.append(keepers)
            for keeper in keepers:
                keeper.start()
            await asyncio.gather(*(self._wait_ready(session, keeper) for keeper in keepers))

    async def stop(self) -> None:
        """End all services, the last started first."""
        for stage in reversed(self._keepers):
            await asyncio.gather(*(keeper.stop() for keeper in stage))
        self._keepers.clear()

    async def kill(self) -> None:
        """End all services at once, in no order."""
        await asyncio.gather(*(keeper.stop(grace=0) for stage in self._keepers for keeper in stage))
        self._keepers.clear()

    async def _wait_ready(self, session: aiohttp.ClientSession, keeper: _Keeper) -> None:
        name = keeper.service.name
        try:
            async with asyncio.timeout(_READY_TIMEOUT):
                while not await _answers(session, keeper.service.ready):
                    keeper.check()
                    # Readiness can only be asked for.
                    await asyncio.sleep(_PROBE_PAUSE)
        except TimeoutError:
            raise SandboxError(
                f"{name} did not become ready in {_READY_TIMEOUT:g} s; the end of its log ({keeper.log}):\n"
                f"{keeper.tail()}"
            ) from None
        self._on_progress(name)

    async def _register(self, files: StateFiles) -> None:
        layout = self._layout
        configuration = webhook_configuration(layout.ports.webhook, files.ca_bundle, host=layout.cache_server)
        async with Client.from_kubeconfig(str(files.kubeconfig), user_agent="memopod-sandbox") as client:
            try:
                await client.create(MUTATING_WEBHOOKS, configuration)
            except Conflict:
                # From an earlier start in the same folder: ports are others now.
                patch = {"webhooks": configuration["webhooks"]}
                await client.patch(MUTATING_WEBHOOKS, configuration["metadata"]["name"], patch)

    def _describe(self) -> None:
        if self._ready:
            self._state.describe(self._description())

    def _description(self) -> dict[str, Any]:
        layout, root = self._layout, self._state.root
        ports = layout.ports
        envoy = f"{layout.envoy}:{ports.envoy}"
        return {
            "pid": os.getpid(),
            "state": str(root),
            "kubeconfig": str(root / "kubeconfig"),
            "api_server": {"url": f"https://{layout.api_server}:{ports.api}"},
            "envoy": {
                "address": envoy,
                "url": f"http://{envoy}",
                "status": f"http://{layout.envoy}:{ports.envoy_status}",
            },
            "store": {"address": f"{layout.store}:{ports.store}"},
            "webhook": {"url": f"https://{layout.cache_server}:{ports.webhook}/mutate"},
            "services": {
                k.service.name: {"pid": k.pid, "ready": k.service.ready, "log": str(k.log)}
                for stage in self._keepers
                for k in stage
            },
        }


async def _answers(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with asyncio.timeout(_PROBE_TIMEOUT), session.get(url) as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError, OSError):
        return False


async def run_sandbox(
    folder: Path,
    stop: asyncio.Event,
    *,
    layout: Layout | None = None,
    control_plane: bool = False,
    on_progress: Callable[[str], None],
    on_ready: Callable[[dict[str, Any]], None],
) -> None:
    """Run a sandbox in `folder` until `stop` is set; with `control_plane` on Kubernetes' own API server.

    `layout` says where its services are: by default all on this machine, at free ports.

    Raises SandboxError if it cannot start; nothing is left running then either.
    """
    state = State.acquire(folder)
    try:
        supervisor = Supervisor(state, layout=layout, control_plane=control_plane, on_progress=on_progress)
        try:
            description = await _unless(stop, supervisor.start())
            if description is None:
                return
            on_ready(description)
            await stop.wait()
            await supervisor.stop()
        except (OSError, ApiError) as error:
            raise SandboxError(f"the sandbox in {folder} cannot start: {error}") from error
        finally:
            await supervisor.kill()
    finally:
        state.release()


async def _unless(stop: asyncio.Event, work: Any) -> Any:
    """The result of `work`, or None when `stop` is set first."""
    working = asyncio.ensure_future(work)
    stopping = asyncio.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, stopping):
            task.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)
