"""A hit is always usable: outputs vanish or change in an S3 bucket, and nobody is ever handed one of those.

MEMOPOD_ARTIFACTS sets how many artifacts there are; `make test-artifacts` takes 1,000.
"""

import asyncio
import json
import logging
import os
import random
import urllib.request
from datetime import timedelta

import pytest
from moto.server import ThreadedMotoServer
from obstore.store import S3Store

from cache_server.artifacts import Artifacts
from cache_server.entries import open_entries
from memopod.steps import names

COUNT = int(os.environ.get("MEMOPOD_ARTIFACTS", "50"))
ENDPOINT, BUCKET = "minio-service.kubeflow:9000", "mlpipeline"


@pytest.fixture(scope="module")
def s3_url():
    """An S3 server on this machine with the bucket in it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    host, port = server.get_host_and_port()
    made = urllib.request.Request(f"http://{host}:{port}/{BUCKET}", method="PUT")
    urllib.request.urlopen(made).close()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def store(s3_url):
    """What the steps write with."""
    return S3Store(
        BUCKET, endpoint=s3_url, region="us-east-1", access_key_id="writer", secret_access_key="secret",
        client_options={"allow_http": True, "timeout": timedelta(seconds=30)},
    )  # fmt: skip


@pytest.fixture
async def s3_parts(cluster, parts, s3_url, monkeypatch):
    """Controller and recorder with that store; a slow machine is no reason to run a step here."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "reader")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    line = f"{ENDPOINT}/{BUCKET}=s3://{BUCKET}?endpoint={s3_url}&region=us-east-1"
    parts.artifacts = Artifacts.from_settings([line], call_timeout=20.0)
    parts.rules = {"timeout": 60.0}
    async with open_entries(f"sqlite:///{cluster.state / 's3.db'}", call_timeout=30.0) as entries:
        parts.entries = entries
        parts.again()
        yield parts


def producing(number, *, archive=None):
    """A step of its own (by its salt), with one key-only output artifact."""

    def change(pod):
        pod["metadata"]["annotations"][names.SALT] = str(number)
        for variable in pod["spec"]["initContainers"][0]["env"]:
            if variable["name"] == names.ENV_TEMPLATE:
                template = json.loads(variable["value"])
                artifact = {"name": "data", "path": "/tmp/d"} | ({"archive": archive} if archive else {})
                template["outputs"] = {"artifacts": [artifact]}
                template["archiveLocation"] = {
                    "s3": {"endpoint": ENDPOINT, "bucket": BUCKET, "key": "artifacts"}
                }
                variable["value"] = json.dumps(template)

    return change


def content(number):
    return f"the artifact {number:06}".encode()


def key_of(pod):
    return f"artifacts/{pod['metadata']['name']}/data"


async def run(cluster, store, pod, text):
    """The step runs: it writes its artifact, and reports it."""
    await store.put_async(key_of(pod), text)
    reported = {"artifacts": [{"name": "data", "path": "/tmp/d", "s3": {"key": key_of(pod)}}]}
    return await cluster.run(pod, reported)


class Crowd:
    """Many steps at once: each is held, decided for, and run if it is to run."""

    def __init__(self, cluster, parts, store):
        self.cluster, self.parts, self.store = cluster, parts, store
        self.slots = asyncio.Semaphore(16)

    async def decided(self, before=lambda _number: None):
        """The Pods by number, decided for; `before(number)` happens before each is created."""

        async def one(number):
            async with self.slots:
                happened = before(number)
                if happened is not None:
                    await happened
                pod = await self.cluster.held_pod(change=producing(number))
                self.parts.controller.see(pod)
                return pod

        pods = await asyncio.gather(*map(one, range(COUNT)))
        await self.parts.controller.drain(110.0)
        self.parts.again()
        return await asyncio.gather(*map(self.cluster.get, pods))

    async def run_and_record(self, numbered):
        async def one(number, pod):
            async with self.slots:
                self.parts.recorder.see(await run(self.cluster, self.store, pod, content(number)))

        await asyncio.gather(*(one(number, pod) for number, pod in numbered))
        await self.parts.recorder.drain(110.0)
        self.parts.again()


@pytest.mark.timeout(600 if COUNT > 100 else 120)
async def test_no_step_is_ever_handed_an_artifact_that_is_gone_or_changed(cluster, s3_parts, store):
    crowd = Crowd(cluster, s3_parts, store)
    pods = await crowd.decided()
    await crowd.run_and_record(enumerate(pods))
    assert len(await s3_parts.entries.list(limit=COUNT + 1)) == COUNT

    chance = random.Random(6)
    damaged = {number: chance.random() < 0.5 for number in chance.sample(range(COUNT), COUNT // 10)}

    def damage(number):
        if number not in damaged:
            return None
        key = key_of(pods[number])
        if damaged[number]:
            return store.delete_async(key)
        # As many bytes, and others.
        return store.put_async(key, content(number)[::-1])

    again = await crowd.decided(before=damage)
    for number, pod in enumerate(again):
        decision = (
            pod["metadata"]["annotations"][names.DECISION],
            pod["metadata"]["annotations"][names.REASON],
        )
        if number in damaged:
            assert decision == ("run", "outputs-gone")
            continue
        assert decision == ("reuse", "hit")
        [handed] = (await cluster.result(pod))["outputs"]["artifacts"]
        found = await store.get_async(handed["s3"]["key"])
        assert bytes(await found.bytes_async()) == content(number)
    assert len(await s3_parts.entries.list(limit=COUNT + 1)) == COUNT - len(damaged)

    await crowd.run_and_record((number, again[number]) for number in damaged)
    repaired = await crowd.decided()
    assert {pod["metadata"]["annotations"][names.REASON] for pod in repaired} == {"hit"}


# Early cutoff: who reads the same bytes again need not run again.


def consuming(key):
    """A step that reads the artifact at a key."""

    def change(pod):
        for variable in pod["spec"]["initContainers"][0]["env"]:
            if variable["name"] == names.ENV_TEMPLATE:
                template = json.loads(variable["value"])
                artifact = {"name": "in", "path": "/tmp/in", "s3": {"key": key}, "archive": {"none": {}}}
                template["inputs"] = {"artifacts": [artifact]}
                template["archiveLocation"] = {
                    "s3": {"endpoint": ENDPOINT, "bucket": BUCKET, "key": "artifacts"}
                }
                variable["value"] = json.dumps(template)

    return change


CONSUMED = {"parameters": [{"name": "Output", "value": "1", "valueFrom": {"path": "/tmp/o"}}]}


def reason(pod):
    return pod["metadata"]["annotations"][names.REASON]


@pytest.mark.parametrize("same", [True, False], ids=["same-bytes", "other-bytes"])
async def test_a_producer_that_ran_again_re_runs_its_consumers_only_for_other_bytes(
    cluster, s3_parts, store, same
):
    async def produce(salt, text):
        held = await cluster.held_pod(change=producing(salt, archive={"none": {}}))
        pod = await s3_parts.decide(held)
        assert reason(pod) == "miss"
        assert await s3_parts.record(await run(cluster, store, pod, text)) is not None
        return pod

    producer = await produce("code 1", b"the result")
    consumer = await s3_parts.decide(await cluster.held_pod(change=consuming(key_of(producer))))
    assert await s3_parts.record(await cluster.run(consumer, CONSUMED)) is not None

    again = await produce("code 2", b"the result" if same else b"another one")
    assert key_of(again) != key_of(producer)
    consumer = await s3_parts.decide(await cluster.held_pod(change=consuming(key_of(again))))
    assert reason(consumer) == ("hit" if same else "miss")


# Argo's garbage collection of artifacts acts on the outputs of a workflow's nodes.


async def collect(store, workflow, outputs):
    """Play Argo: delete the artifacts of a node that its workflow, or they themselves, say to delete."""
    default = (workflow["spec"].get("artifactGC") or {}).get("strategy", "Never")
    for artifact in outputs.get("artifacts", ()):
        strategy = (artifact.get("artifactGC") or {}).get("strategy", default)
        if strategy != "Never":
            await store.delete_async(artifact["s3"]["key"])


async def decide_in(cluster, parts, **spec):
    """A step of a workflow of its own, decided for."""
    workflow = await cluster.workflow(**spec)
    pod = await cluster.hold(cluster.pod_of(workflow, change=producing("collected")))
    return workflow, await parts.decide(pod)


@pytest.mark.parametrize("strategy", ["OnWorkflowCompletion", "OnWorkflowDeletion"])
async def test_a_workflow_that_reuses_an_artifact_does_not_take_it_along(cluster, s3_parts, store, strategy):
    _, producer = await decide_in(cluster, s3_parts)
    assert await s3_parts.record(await run(cluster, store, producer, b"kept")) is not None
    workflow, reusing = await decide_in(cluster, s3_parts, artifactGC={"strategy": strategy})
    assert reason(reusing) == "hit"
    await collect(store, workflow, (await cluster.result(reusing))["outputs"])
    found = await store.get_async(key_of(producer))
    assert bytes(await found.bytes_async()) == b"kept"
    _, third = await decide_in(cluster, s3_parts)
    assert reason(third) == "hit"


@pytest.mark.parametrize("strategy", ["OnWorkflowCompletion", "OnWorkflowDeletion"])
async def test_an_artifact_that_its_own_workflow_takes_along_is_handed_to_nobody(
    cluster, s3_parts, store, strategy
):
    workflow, producer = await decide_in(cluster, s3_parts, artifactGC={"strategy": strategy})
    assert await s3_parts.record(await run(cluster, store, producer, b"gone soon")) is None
    _, second = await decide_in(cluster, s3_parts)
    assert reason(second) == "miss"
    await collect(store, workflow, (await cluster.result(producer))["outputs"])
    assert reason((await decide_in(cluster, s3_parts))[1]) == "miss"
