"""The janitor: a small process that lets go of Pods which no cache server is left to look after.

It needs neither a database nor a certificate, and shares no fate with the cache server.
"""

import asyncio
import os
import socket
import sys

import structlog

from cache_server.settings import JanitorSettings
from cache_server.sweeper import Sweeper
from memopod.kube import PODS, Client, Informer
from memopod.service import Health, start
from memopod.steps import names

_log = structlog.get_logger()
JANITOR_GRACE = 10.0
"""Seconds: how long after `hold-until` the cache server's own sweepers are left to it."""
_LOOK_SECONDS = 1.0
_DRAIN_SECONDS = 8.0


def main(argv: list[str] | None = None) -> int:
    """Run the janitor. Returns the exit status."""
    return start(
        JanitorSettings, argv, lambda settings: lambda stop: _serve(settings, stop),
        prog="memopod cache-janitor", component="cache-janitor", prefix="MEMOPOD_JANITOR",
        description="Let go of Pods that are held longer than they may be.",
    )  # fmt: skip


async def _serve(settings: JanitorSettings, stop: asyncio.Event) -> None:
    identity = f"janitor-{socket.gethostname()}-{os.getpid()}"
    selector = f"{names.STEP_LABEL}={names.HELD}"
    async with Client.from_kubeconfig(settings.kubeconfig or None, user_agent="memopod-janitor") as client:
        informer = Informer(client, PODS, namespace=settings.watch_namespace or None, label_selector=selector)
        sweeper = Sweeper(client, identity=identity, claim_wait=settings.claim_wait, grace=JANITOR_GRACE)
        health = Health({"pods": informer.synced.is_set})
        async with asyncio.TaskGroup() as group:
            watching = [
                group.create_task(informer.run(), name="informer:pods"),
                group.create_task(_look_regularly(informer, sweeper), name="look"),
            ]
            port = await health.start(settings.health_host, settings.health_port)
            _log.info("serving", health_port=port)
            await stop.wait()
            for task in watching:
                task.cancel()
            await sweeper.drain(_DRAIN_SECONDS)
        await health.stop()
    _log.info("stopped")


async def _look_regularly(informer: Informer, sweeper: Sweeper) -> None:
    await informer.synced.wait()
    while True:
        sweeper.sweep(informer.objects.values())
        await asyncio.sleep(_LOOK_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
