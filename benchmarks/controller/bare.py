"""The floor: watches held Pods and writes what a decision writes, without deciding anything.

    python -m benchmarks.controller.bare KUBECONFIG NAMESPACE lift|hit

A process of its own, as the controller is, with the same client and the same number of writes at once.
"""

import asyncio
import sys
from datetime import UTC, datetime

from cache_server.finish import is_held
from memopod.kube import PODS, TASK_RESULTS, Client, Informer, set_metadata_ops
from memopod.steps import names, read_step
from memopod.steps.finish import finished_patch, task_result
from memopod.steps.times import to_seconds_text

CONCURRENCY = 32
OUTPUTS = {"parameters": [{"name": "Output", "value": "hello", "valueFrom": {"path": "/tmp/o"}}]}


async def lift(client, pod):
    metadata = pod["metadata"]
    patch = [
        {"op": "test", "path": "/metadata/uid", "value": metadata["uid"]},
        {"op": "test", "path": "/metadata/resourceVersion", "value": metadata["resourceVersion"]},
        {"op": "remove", "path": "/spec/schedulingGates/0"},
        *set_metadata_ops(metadata, labels={names.STEP_LABEL: names.RELEASED}, annotations={}),
    ]
    await client.patch(PODS, metadata["name"], patch, namespace=metadata["namespace"])


async def hit(client, pod):
    namespace = pod["metadata"]["namespace"]
    wanted = task_result(read_step(pod), OUTPUTS, entry="e", source_pod="p", source_execution="w/n")
    result = await client.create(TASK_RESULTS, wanted, namespace=namespace)
    patch = finished_patch(pod, result, at=to_seconds_text(datetime.now(UTC)))
    await client.patch(PODS, pod["metadata"]["name"], patch, namespace=namespace, subresource="status")


async def main(kubeconfig, namespace, what):
    write = {"lift": lift, "hit": hit}[what]
    slots = asyncio.Semaphore(CONCURRENCY)
    seen = set()
    async with Client.from_kubeconfig(kubeconfig) as client, asyncio.TaskGroup() as group:

        async def act(pod):
            async with slots:
                await write(client, pod)

        def see(kind, pod):
            uid = pod["metadata"]["uid"]
            if kind != "DELETED" and is_held(pod) and uid not in seen:
                seen.add(uid)
                group.create_task(act(pod), name=uid)

        watch = Informer(
            client, PODS, namespace=namespace, label_selector=f"{names.STEP_LABEL}={names.HELD}", on_event=see
        )
        group.create_task(watch.run(), name="watch")
        await watch.synced.wait()
        print("ready", flush=True)


if __name__ == "__main__":
    import uvloop

    uvloop.run(main(*sys.argv[1:]))
