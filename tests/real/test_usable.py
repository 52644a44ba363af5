"""A hit is always usable, on a real API server and an S3 server: what is handed on is there, unchanged.

MEMOPOD_ARTIFACTS sets how many artifacts are at stake; `make test-artifacts` takes 1,000.
"""

import asyncio
import os
import random
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta

import aiohttp
import pytest
import pytest_asyncio
from moto.server import ThreadedMotoServer
from obstore.store import S3Store

from memopod.kube import WORKFLOWS, Client
from memopod.steps import names
from tests.real.argo import Argo, Step, edit_template, only_default_artifact
from tests.real.cluster import Cluster, Service, until
from tests.real.kubelet import Kubelet, default_outputs

pytestmark = pytest.mark.asyncio(loop_scope="module")
COUNT = int(os.environ.get("MEMOPOD_ARTIFACTS", "20"))
LIMIT = 60 if COUNT <= 100 else 300
ENDPOINT, BUCKET = "minio-service.kubeflow:9000", "mlpipeline"
CONTENT = "test.example/content"
"""An annotation that tells the kubelet's double what a step writes: it enters no key."""
COLLECTING = ["OnWorkflowCompletion", "OnWorkflowDeletion"]


class Bucket:
    """The object store, as the steps see it."""

    def __init__(self, url):
        self.store = S3Store(
            BUCKET, endpoint=url, region="us-east-1", access_key_id="writer", secret_access_key="secret",
            client_options={"allow_http": True, "timeout": timedelta(seconds=30)},
        )  # fmt: skip

    async def put(self, key, text):
        await self.store.put_async(key, text.encode())

    async def delete(self, key):
        await self.store.delete_async(key)

    async def get(self, key):
        """Its text, None if it is not there."""
        try:
            return bytes(await (await self.store.get_async(key)).bytes_async()).decode()
        except FileNotFoundError:
            return None


@dataclass
class Place:
    """A cache server and an object store at work."""

    cluster: Cluster
    server: Service
    bucket: Bucket
    argo: Argo
    kubelet: Kubelet

    async def run(self, *steps, **spec):
        """A workflow of these steps that has succeeded."""
        run = await self.argo.submit(*steps, **spec)
        assert await run.end(LIMIT) == "Succeeded", run.nodes
        return run

    async def reason(self, run, step="make"):
        pod = await self.cluster.pod(run.pod_name(step))
        return pod["metadata"]["annotations"][names.REASON]

    async def recorded(self, *runs, step="make"):
        """Wait until all of them have become entries."""
        wanted = {run.pod_name(step) for run in runs}
        said = "all runs are recorded"
        await until(lambda: wanted <= {line["pod"] for line in self.server.lines("recorded")}, said, LIMIT)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(plane, tmp_path_factory):
    moto = ThreadedMotoServer("127.0.0.1", 0)
    moto.start()
    host, port = moto.get_host_and_port()
    async with AsyncExitStack() as stack:
        stack.callback(moto.stop)
        url = f"http://{host}:{port}"
        async with aiohttp.ClientSession() as session, session.put(f"{url}/{BUCKET}"):
            bucket = Bucket(url)
        admin = await stack.enter_async_context(
            Client.from_kubeconfig(str(plane.folder / "kubeconfig"), timeout=30.0)
        )
        cluster = await Cluster.make(plane.folder, plane.port, admin, tmp_path_factory.mktemp("usable"))
        stack.push_async_callback(cluster.close)
        # However slow the machine is: that is no reason to run a step here.
        server = await cluster.cache_server(
            "--artifact-memory", 0, "--hold-timeout", 120, "--decision-timeout", 30, "--settle-time", 0.1,
            "--object-store",
            f"{ENDPOINT}/{BUCKET}=s3://{BUCKET}?endpoint={url}&region=us-east-1",
            env={"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"},
        )  # fmt: skip
        argo_client = await cluster.client("argo", "argo")
        argo = await stack.enter_async_context(Argo.playing(argo_client, cluster.pipelines))

        async def write(pod):
            text = pod["metadata"]["annotations"].get(CONTENT, "")
            for artifact in default_outputs(pod).get("artifacts", ()):
                await bucket.put(artifact["s3"]["key"], text)

        kubelet = await stack.enter_async_context(Kubelet.playing(admin, cluster.pipelines, takes=write))
        yield Place(cluster, server, bucket, argo, kubelet)


def producer(salt, text):
    """A step of its own (by its salt) that writes `text` as it is (`archive: none`) where Argo places it."""

    def change(pod):
        only_default_artifact(pod)

        def edit(template):
            template["outputs"]["artifacts"][0]["archive"] = {"none": {}}

        edit_template(pod, edit)

    annotations = {names.SALT: salt, CONTENT: text}
    return Step(sample="artifacts.make", annotations=annotations, change=change)


def consumer(key):
    """A step that reads the artifact at a key."""

    def change(pod):
        def edit(template):
            artifact = {"name": "in", "path": "/tmp/in", "s3": {"key": key}, "archive": {"none": {}}}
            template["inputs"] = {"artifacts": [artifact]}

        edit_template(pod, edit)

    return Step(name="use", sample="artifacts.use", change=change)


def handed(run):
    """The key of the artifact that the step's successors get."""
    (artifact,) = run.nodes["make"].outputs["artifacts"]
    return artifact["s3"]["key"]


@pytest.mark.parametrize("same", [True, False], ids=["same-bytes", "other-bytes"])
async def test_a_producer_that_ran_again_re_runs_its_consumers_only_for_other_bytes(place, same):
    first = await place.run(producer(f"code 1 {same}", f"the result {same}"))
    await place.recorded(first)
    used = await place.run(consumer(handed(first)))
    await place.recorded(used, step="use")
    again = await place.run(producer(f"code 2 {same}", f"the result {same}" if same else "another one"))
    assert await place.reason(again) == "miss"
    assert handed(again) != handed(first)
    await place.recorded(again)
    used = await place.run(consumer(handed(again)))
    assert await place.reason(used, "use") == ("hit" if same else "miss")
    assert (used.pod_name("use") in place.kubelet.ran) == (not same)


async def collect(place, run, strategy):
    """Play Argo's garbage collection: of a node's artifacts those that they, or the workflow, say so of."""
    if strategy == "OnWorkflowDeletion":
        await place.cluster.admin.delete(WORKFLOWS, run.name, namespace=place.cluster.pipelines)
    taken = []
    for artifact in run.nodes["make"].outputs.get("artifacts", ()):
        if (artifact.get("artifactGC") or {"strategy": strategy})["strategy"] == strategy:
            await place.bucket.delete(artifact["s3"]["key"])
            taken.append(artifact["name"])
    return taken


@pytest.mark.parametrize("strategy", COLLECTING)
async def test_a_workflow_that_reuses_an_artifact_does_not_take_it_along(place, strategy):
    step = producer(f"kept {strategy}", "kept")
    first = await place.run(step)
    await place.recorded(first)
    reusing = await place.run(step, artifactGC={"strategy": strategy})
    assert await place.reason(reusing) == "hit"
    assert await collect(place, reusing, strategy) == []
    assert await place.bucket.get(handed(first)) == "kept"
    assert await place.reason(await place.run(step)) == "hit"


@pytest.mark.parametrize("strategy", COLLECTING)
async def test_an_artifact_that_its_own_workflow_takes_along_is_handed_to_nobody(place, strategy):
    step = producer(f"taken {strategy}", "taken")
    first = await place.run(step, artifactGC={"strategy": strategy})
    assert await place.reason(await place.run(step)) == "miss"
    assert await collect(place, first, strategy) == ["default"]
    third = await place.run(step)
    assert await place.bucket.get(handed(third)) == "taken"


@pytest.mark.timeout(120 if COUNT <= 100 else 900)
async def test_no_step_is_ever_handed_an_artifact_that_is_gone_or_changed(place):
    steps = [producer(f"{number}", f"artifact {number:06}") for number in range(COUNT)]
    first = await asyncio.gather(*map(place.run, steps))
    await place.recorded(*first)

    chance = random.Random(6)
    damaged = {number: chance.random() < 0.5 for number in chance.sample(range(COUNT), COUNT // 10)}

    async def run_again(number):
        """Its artifact is damaged while others are decided for."""
        if number in damaged:
            key = handed(first[number])
            if damaged[number]:
                await place.bucket.delete(key)
            else:
                # As many bytes, and others.
                await place.bucket.put(key, f"artifact {number:06}"[::-1])
        return await place.run(steps[number])

    again = await asyncio.gather(*map(run_again, range(COUNT)))
    for number, run in enumerate(again):
        assert await place.bucket.get(handed(run)) == f"artifact {number:06}"
        assert await place.reason(run) == ("outputs-gone" if number in damaged else "hit")
    await place.recorded(*(again[number] for number in damaged))
    repaired = await asyncio.gather(*(place.run(steps[number]) for number in damaged))
    assert {await place.reason(run) for run in repaired} == {"hit"}
