"""Wires the kubelet and runs it."""

import asyncio

import structlog

from memopod.kube import Client
from memopod.sandbox.kubelet.buckets import Buckets
from memopod.sandbox.kubelet.node import Node
from memopod.sandbox.kubelet.settings import Settings
from memopod.service import Health, start


def main(argv: list[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT; returns the exit status."""
    return start(
        Settings, argv, lambda settings: lambda stop: serve(settings, stop),
        prog="python -m memopod.sandbox.kubelet", component="kubelet", prefix="MEMOPOD_KUBELET",
        description="Runs the Pods of a sandbox as local processes.",
    )  # fmt: skip


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Run the node until `stop` is set; its Pods' processes end with it."""
    settings.pods.mkdir(parents=True, exist_ok=True)
    settings.buckets.mkdir(parents=True, exist_ok=True)
    async with Client.from_kubeconfig(settings.kubeconfig, user_agent="memopod-sandbox-kubelet") as client:
        node = Node(client, settings, await Buckets.open(settings.buckets, settings.object_store))
        health = Health({"pods-synced": node.pods.synced.is_set})
        port = await health.start("127.0.0.1", settings.health_port)
        structlog.get_logger().info("kubelet started", health_port=port)
        working = asyncio.create_task(node.run(), name="node")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        try:
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                await working
        finally:
            working.cancel()
            stopping.cancel()
            await asyncio.gather(working, stopping, return_exceptions=True)
            await health.stop()
