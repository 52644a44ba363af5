"""The writer's finalizer: a Pod that runs does not go before it is recorded, and never stays for long."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
from ml_metadata.proto import metadata_store_pb2 as mlmd

from memopod.kube import PODS, NotFound
from metadata_writer.finalizer import FINALIZER, Finalizers, change, hold
from tests.metadata_writer.conftest import StoreProcess
from tests.real.cluster import until

SAMPLE = Path(__file__).parent.parent / "samples" / "argo-4.1.2" / "parameters.make.pod.json"
OTHERS = "example.com/other"


class OnePod:
    """A step's Pod, as it was recorded, on a real API server."""

    def __init__(self, cluster):
        self.cluster, self.client, self.namespace = cluster, cluster.admin, cluster.pipelines
        recorded = json.loads(SAMPLE.read_text())
        metadata = recorded["metadata"]
        self.name, self.ended = metadata["name"], recorded["status"]
        kept = ("name", "labels", "annotations", "ownerReferences")
        spec = {k: v for k, v in recorded["spec"].items() if k not in ("nodeName", "serviceAccount")}
        for kind in ("containers", "initContainers"):
            spec[kind] = [{k: c[k] for k in ("name", "image", "env") if k in c} for c in spec.get(kind, ())]
        spec = {k: spec[k] for k in ("containers", "initContainers")}
        self.body = {
            "apiVersion": "v1", "kind": "Pod", "spec": spec,
            "metadata": {k: metadata[k] for k in kept} | {"finalizers": [OTHERS]},
        }  # fmt: skip

    async def create(self):
        await self.client.create(PODS, self.body, namespace=self.namespace)

    async def status(self, status):
        await self.client.patch(
            PODS, self.name, {"status": status}, namespace=self.namespace, subresource="status"
        )

    async def get(self):
        return await self.client.get(PODS, self.name, namespace=self.namespace)

    async def finalizers(self):
        return (await self.get())["metadata"].get("finalizers") or []

    async def delete(self):
        await self.client.delete(PODS, self.name, namespace=self.namespace, grace_seconds=0)

    async def is_gone(self):
        try:
            await self.get()
        except NotFound:
            return True
        return False

    async def hold(self):
        assert await change(self.client, await self.get(), hold)
        assert await self.finalizers() == [OTHERS, FINALIZER]


@pytest.fixture
async def pod(cluster):
    made = OnePod(cluster)
    await made.create()
    yield made
    if not await made.is_gone():
        body = {"metadata": {"finalizers": None}}
        await made.client.patch(PODS, made.name, body, namespace=made.namespace)
        if not await made.is_gone():
            await made.delete()


@pytest.fixture
def store(tmp_path):
    process = StoreProcess(tmp_path)
    process.start()
    yield process
    process.kill()


async def test_a_pod_that_is_deleted_while_nobody_watches_stays_until_its_end_is_recorded(
    cluster, store, pod
):
    flags = (
        "--store", store.address, "--namespace", cluster.pipelines, "--leader-elect=off", "--finalizer=on"
    )  # fmt: skip
    writer = await cluster.start("metadata_writer", *flags, account="metadata-writer")
    await pod.status({"phase": "Running", "startTime": "2026-11-23T22:00:46Z"})

    async def held():
        return FINALIZER in await pod.finalizers()

    await until(held, "the finalizer is on")
    writer.process.kill()
    writer.process.wait(10)
    await pod.status(pod.ended)
    await pod.client.patch(PODS, pod.name, {"metadata": {"finalizers": [FINALIZER]}}, namespace=pod.namespace)
    await pod.delete()
    assert not await pod.is_gone()
    await cluster.start("metadata_writer", *flags, account="metadata-writer")
    await until(pod.is_gone, "it was let go")
    (execution,) = store.client.get_executions()
    assert execution.last_known_state == mlmd.Execution.COMPLETE
    assert "image_id" in execution.custom_properties  # which only the Pod says


async def test_a_pod_that_is_deleted_is_let_go_in_time_whatever_became_of_its_record(pod):
    await pod.hold()
    finalizers = Finalizers(pod.client, on=True, longest=0.5)
    running = asyncio.create_task(finalizers.run(), name="finalizers")
    try:
        finalizers.on_pod("ADDED", await pod.get())
        await pod.delete()
        finalizers.on_pod("MODIFIED", await pod.get())

        async def released():
            return await pod.finalizers() == [OTHERS]

        await until(released, "it was let go, by us alone")
    finally:
        running.cancel()


async def test_a_writer_without_the_setting_takes_it_off(pod):
    await pod.hold()
    finalizers = Finalizers(pod.client, on=False)
    running = asyncio.create_task(finalizers.run(), name="finalizers")
    try:
        finalizers.on_pod("ADDED", await pod.get())

        async def released():
            return await pod.finalizers() == [OTHERS]

        await until(released, "it was taken off")
    finally:
        running.cancel()


async def test_a_writer_that_is_gone_leaves_nothing_that_a_command_does_not_take_off(cluster, pod):
    await pod.hold()
    path = await cluster.kubeconfig("metadata-writer")
    command = [sys.executable, "-m", "memopod.cli", "writer", "release", "--kubeconfig", str(path)]
    command += ["-n", cluster.pipelines]
    for said in ("1 Pods let go", "0 Pods let go"):
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, timeout=60, check=True
        )
        assert said in done.stdout
    assert await pod.finalizers() == [OTHERS]
