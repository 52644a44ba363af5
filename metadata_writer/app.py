"""The metadata writer's process: what is started, in which order, and how it ends."""

import asyncio
import sys

import structlog

from memopod.kube import PODS, WORKFLOWS, Client, Informer
from memopod.mlmd import StoreClient
from memopod.service import Health, configure_logs, parse, run
from memopod.steps import names
from metadata_writer.recorder import Recorder
from metadata_writer.settings import Settings
from metadata_writer.store_probe import StoreProbe
from metadata_writer.writer import Writer

_log = structlog.get_logger()


def main(argv: list[str] | None = None) -> int:
    """Run the metadata writer. Returns the exit status."""
    settings = parse(
        Settings,
        argv,
        prog="memopod metadata-writer",
        prefix="MEMOPOD_WRITER",
        description="Record every step of every workflow, run or reused, in the metadata store.",
    )
    try:
        configure_logs("metadata-writer", level=settings.log_level)
    except ValueError as error:
        print(f"memopod metadata-writer: {error}", file=sys.stderr)
        return 2
    return run(lambda stop: serve(settings, stop))


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Record until `stop` is set. Raises OSError when a port is taken or there is no kubeconfig."""
    async with (
        Client.from_kubeconfig(settings.kubeconfig or None, user_agent="memopod-writer") as client,
        StoreClient(settings.store, timeout=settings.store_timeout) as store,
    ):
        probe = StoreProbe(store)
        writer = Writer(client, Recorder(store), probe, limit=settings.queue_limit)
        namespace = settings.namespace or None
        pods = Informer(
            client,
            PODS,
            namespace=namespace,
            label_selector=names.ARGO_WORKFLOW,
            on_event=writer.sightings.on_pod,
        )
        workflows = Informer(client, WORKFLOWS, namespace=namespace, on_event=writer.sightings.on_workflow)
        writer.sightings.pods_listed = pods.synced
        writer.sightings.workflows_listed = workflows.synced
        health = Health(
            {
                "Pods are listed": pods.synced.is_set,
                "Workflows are listed": workflows.synced.is_set,
                "the store answers": probe.up.is_set,
            }
        )
        port = await health.start(settings.health_host, settings.health_port)
        _log.info("recording", store=settings.store, namespace=namespace, health_port=port)
        try:
            await _run(settings, stop, writer, probe, (workflows, pods))
        finally:
            await health.stop()


async def _run(
    settings: Settings,
    stop: asyncio.Event,
    writer: Writer,
    probe: StoreProbe,
    informers: tuple[Informer, ...],
) -> None:
    async with asyncio.TaskGroup() as tasks:
        # What ends by an error ends the process: a new one starts from the cluster and the store.
        watching = [tasks.create_task(i.run(), name=f"watch {n}") for n, i in enumerate(informers)]
        working = [tasks.create_task(writer.work(), name=f"record {n}") for n in range(settings.concurrency)]
        working.append(tasks.create_task(probe.run(), name="probe the store"))
        await stop.wait()
        await _cancel(watching)
        left = await writer.drain(settings.drain_timeout)
        if left:
            _log.warning("not recorded yet; the next start finds them again", steps=left)
        await _cancel(working)


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
