"""The metadata writer's process: what is started, in which order, and how it ends."""

import asyncio
import gc
import os
import socket
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final

import structlog

from memopod.kube import PODS, TASK_RESULTS, WORKFLOWS, Client, Informer
from memopod.mlmd import StoreClient
from memopod.service import Health, start
from memopod.steps import names
from metadata_writer.lookup import Lookup
from metadata_writer.pod_marks import Marking
from metadata_writer.recorder import Recorder
from metadata_writer.settings import Settings
from metadata_writer.shapes import PodShape, ResultShape, WorkflowShape
from metadata_writer.shards import Shards
from metadata_writer.store_probe import StoreProbe
from metadata_writer.unresolved import Unresolved
from metadata_writer.writer import Options, Writer

if TYPE_CHECKING:
    from metadata_writer.lineage_events import LineageEvents

_log = structlog.get_logger()
_GARBAGE: Final = (20_000, 20, 20)
"""Objects, and rounds, between looks for circles: a decoded Pod is hundreds of objects, and in none."""
_PAGE: Final = 200
"""Objects of a page: three lists are read at once, and what they show is kept until its turn."""
Pace = Callable[[], Awaitable[None]]


def main(argv: list[str] | None = None) -> int:
    """Run the metadata writer. Returns the exit status."""
    return start(
        Settings, argv, lambda settings: lambda stop: serve(settings, stop),
        prog="memopod metadata-writer", component="metadata-writer", prefix="MEMOPOD_WRITER",
        description="Record every step of every workflow, run or reused, in the metadata store.",
    )  # fmt: skip


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Record until `stop` is set. Raises OSError when a port is taken or there is no kubeconfig."""
    gc.freeze()
    gc.set_threshold(*_GARBAGE)
    async with (
        Client.from_kubeconfig(settings.kubeconfig or None, user_agent="memopod-writer") as client,
        StoreClient(settings.store, timeout=settings.store_timeout) as store,
    ):
        shards = Shards(settings.shards)
        probe, recorder = StoreProbe(store), Recorder(store, shards.leads)
        helping = [probe.run(), Unresolved(store, recorder, shards).run(probe.up)]
        events = _openlineage(settings.openlineage)
        if events is not None:
            helping.append(events.run())
        options = Options(
            live_bytes=settings.live_mebibytes << 20,
            gone_bytes=settings.gone_mebibytes << 20,
            batch=settings.batch,
            marking=Marking(settings.label_pods),
            finalizer=settings.finalizer == "on",
            recorded=events.send if events is not None else None,
        )
        writer = Writer(client, recorder, Lookup(store), probe, shards, options)
        helping += [
            writer.finalizers.run(),
            writer.sightings.first_lists.run(),
            writer.standby.run(probe.up),
        ]
        pods, workflows, results = informers(client, settings.namespace or None, writer)
        health = Health(
            {
                "Pods are listed": pods.synced.is_set,
                "Workflows are listed": workflows.synced.is_set,
                "the store answers": probe.up.is_set,
            },
            status=writer.status,
        )
        port = await health.start(settings.health_host, settings.health_port)
        _log.info("recording", store=settings.store, namespace=settings.namespace, health_port=port)
        following = [i.run() for i in (workflows, results, pods)]
        try:
            await _run(settings, stop, writer, following, helping, _elect(settings, client, shards, writer))
        finally:
            await health.stop()


def _openlineage(target: str) -> "LineageEvents | None":
    if not target:
        return None
    from metadata_writer.lineage_events import LineageEvents  # the client library takes a while to load

    return LineageEvents(target)


def informers(client: Client, namespace: str | None, writer: Writer) -> tuple[Informer, Informer, Informer]:
    """Those of Pods, Workflows and WorkflowTaskResults: they tell the writer, and keep next to nothing."""
    sightings, finalizers = writer.sightings, writer.finalizers
    lists = sightings.first_lists

    def on_pod(event: str, pod: dict[str, Any]) -> None:
        finalizers.on_pod(event, pod)
        sightings.on_pod(event, pod)

    pods = Informer(
        client,
        PODS,
        namespace=namespace,
        label_selector=names.ARGO_WORKFLOW,
        on_event=on_pod,
        keep=sightings.keep_pod,
        on_lost=sightings.on_pod_lost,
        shape=PodShape,
        page_size=_PAGE,
        pace=_both(writer.pace, lists.pace_pods),
    )
    workflows = Informer(
        client,
        WORKFLOWS,
        namespace=namespace,
        on_event=sightings.on_workflow,
        keep=sightings.keep_workflow,
        on_lost=sightings.on_workflow_lost,
        shape=WorkflowShape,
        page_size=_PAGE,
        pace=_both(writer.pace, lists.pace_workflows),
    )
    results = Informer(
        client,
        TASK_RESULTS,
        namespace=namespace,
        on_event=sightings.on_result,
        keep=lambda _: None,  # what one said stays known, whatever becomes of it
        shape=ResultShape,
        page_size=_PAGE,
        pace=lists.pace_results,
    )
    lists.pods_listed, lists.workflows_listed = pods.synced, workflows.synced
    return pods, workflows, results


def _both(first: Pace, second: Pace) -> Pace:
    async def wait() -> None:
        await first()
        await second()

    return wait


def _elect(
    settings: Settings, client: Client, shards: Shards, writer: Writer
) -> list[Coroutine[Any, Any, None]]:
    home = os.environ.get("POD_NAMESPACE", "")
    if settings.leader_elect == "off" or (settings.leader_elect == "auto" and not home):
        return []
    return shards.elect(
        client,
        namespace=settings.lease_namespace or home or "default",
        identity=f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}",
        won=writer.won,
    )


async def _run(
    settings: Settings,
    stop: asyncio.Event,
    writer: Writer,
    following: Sequence[Coroutine[Any, Any, None]],
    helping: Sequence[Coroutine[Any, Any, None]],
    electing: Sequence[Coroutine[Any, Any, None]],
) -> None:
    async with asyncio.TaskGroup() as tasks:
        # What ends by an error ends the process: a new one starts from the cluster and the store.
        watching = [tasks.create_task(run, name=f"watch {n}") for n, run in enumerate(following)]
        working = [tasks.create_task(writer.work(), name=f"record {n}") for n in range(settings.concurrency)]
        working += [tasks.create_task(run, name=f"help {n}") for n, run in enumerate(helping)]
        leading = [tasks.create_task(run, name=f"lead shard {n}") for n, run in enumerate(electing)]
        await stop.wait()
        await _cancel(watching)
        left = await writer.drain(settings.drain_timeout)
        if left:
            _log.warning("not recorded yet; the next start finds them again", steps=left)
        await _cancel(working)
        await _cancel(leading)  # last: nobody else may write before


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
