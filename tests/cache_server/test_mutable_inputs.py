"""Inputs in an S3 store (moto's server), at keys that anybody may write over."""

import io
import uuid
from datetime import UTC, datetime

import boto3
import pytest
from moto.server import ThreadedMotoServer

from cache_server.artifacts import Artifacts
from cache_server.entries import Entry, open_entries
from cache_server.identity import Identifier
from memopod.steps import Location, OutputArtifact, Outputs, names, read_step
from memopod.steps.key import KeyRules, Unkeyable

KEY, BUCKET = "datasets/train.csv", "mlpipeline"
OTHERS = "default, keyed, full"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
PART = 5 * 1024 * 1024


@pytest.fixture(scope="module")
def endpoint():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def remote(endpoint, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    remote = boto3.resource("s3", endpoint_url=endpoint, region_name="us-east-1").Bucket(BUCKET)
    remote.create()
    yield remote
    remote.objects.all().delete()
    remote.delete()


@pytest.fixture
def artifacts(endpoint, remote):
    return Artifacts.from_settings(
        [f"minio-service.kubeflow:9000/{BUCKET}=s3://{BUCKET}?endpoint={endpoint}&region=us-east-1"]
    )


def put(remote, content, key=KEY):
    remote.put_object(Key=key, Body=content)


def put_in_parts(remote, content, key=KEY):
    upload = remote.Object(key).initiate_multipart_upload()
    parts = [content[i : i + PART] for i in range(0, len(content), PART)]
    done = [
        {"PartNumber": n, "ETag": upload.Part(n).upload(Body=io.BytesIO(part))["ETag"]}
        for n, part in enumerate(parts, start=1)
    ]
    upload.complete(MultipartUpload={"Parts": done})


def only_outside(pod):
    """The recorded step, of whose inputs only the one at a key of the user's choice counts."""
    pod["metadata"]["annotations"][names.IGNORE_INPUTS] = OTHERS


@pytest.fixture
async def entries(tmp_path):
    async with open_entries(f"sqlite:///{tmp_path / 'inputs.db'}") as opened:
        yield opened


@pytest.fixture
def identify(sample, artifacts, entries):
    async def identify(key=KEY):
        pod = sample("4.1.2", "artifacts.use.pod")
        only_outside(pod)
        for variable in pod["spec"]["initContainers"][0]["env"]:
            if variable["name"] == "ARGO_TEMPLATE":
                variable["value"] = variable["value"].replace(KEY, key)
        identifier = Identifier(None, artifacts, entries, KeyRules())
        return await identifier.identify(read_step(pod))

    return identify


async def test_an_input_is_told_by_its_content_wherever_it_is(remote, identify):
    put(remote, b"1")
    put(remote, b"1", "copy/of.csv")
    put(remote, b"2", "other.csv")
    same, copy, other = await identify(), await identify("copy/of.csv"), await identify("other.csv")
    assert same.key.digest == copy.key.digest != other.key.digest
    assert {n for n in same.key.components if same.key.components[n] != other.key.components[n]} == {
        "input.outside"
    }


async def test_content_that_the_store_does_not_tell_is_told_by_its_place_and_version(remote, identify):
    large, other = b"1" * (PART + 1), b"2" * (PART + 1)
    put_in_parts(remote, large)
    first = await identify()
    put_in_parts(remote, large, "copy.csv")
    assert (await identify("copy.csv")).key.digest != first.key.digest
    put_in_parts(remote, other)
    assert (await identify()).key.digest != first.key.digest
    put(remote, large)
    assert (await identify()).key.digest != first.key.digest, "the same bytes, but nobody can tell"


async def test_a_folder_is_told_by_all_that_is_in_it(remote, identify):
    put(remote, b"1", "folder/a")
    put(remote, b"2", "folder/b")
    first = await identify("folder")
    put(remote, b"1", "copy/a")
    put(remote, b"2", "copy/b")
    assert (await identify("copy")).key.digest == first.key.digest
    put(remote, b"3", "folder/b")
    assert (await identify("folder")).key.digest != first.key.digest


async def test_an_input_that_is_not_there_means_no_key(identify):
    with pytest.raises(Unkeyable, match="input-unknown"):
        await identify()


async def test_a_place_that_was_written_over_and_back_has_the_same_key_and_other_evidence(remote, identify):
    put(remote, b"1")
    first = await identify()
    stamp = remote.Object(KEY).last_modified
    put(remote, b"2")
    while remote.Object(KEY).last_modified == stamp:
        # S3 tells the time to the second.
        put(remote, b"1")
    again = await identify()
    assert again.key.digest == first.key.digest
    assert again.evidence != first.evidence


def producer(key, **told):
    location = Location("s3", "minio-service.kubeflow:9000", BUCKET, key)
    artifact = OutputArtifact(name="out", location=location, reported={}, **told)
    return Entry(
        id=uuid.uuid4().hex, namespace="kubeflow", key=uuid.uuid4().hex, key_version=1, components={},
        template_name="t", workflow="run-x7k2p", workflow_uid="u", node_id="n", pod_name="run-x7k2p-1",
        pod_uid=uuid.uuid4().hex, image_id="", outputs=Outputs(parameters={}, artifacts=(artifact,)),
        execution_id=None, started_at=NOW, finished_at=NOW, recorded_at=NOW,
    )  # fmt: skip


async def without_a_store(sample, entries, key):
    pod = sample("4.1.2", "artifacts.use.pod")
    only_outside(pod)
    for variable in pod["spec"]["initContainers"][0]["env"]:
        if variable["name"] == "ARGO_TEMPLATE":
            variable["value"] = variable["value"].replace(KEY, key)
    return (await Identifier(None, Artifacts({}), entries, KeyRules()).identify(read_step(pod))).key.digest


async def test_where_no_store_tells_an_input_is_told_by_the_entry_that_produced_it(sample, entries):
    key = "artifacts/run-x7k2p/run-x7k2p-1/out.tgz"
    with pytest.raises(Unkeyable, match="input-unknown"):
        await without_a_store(sample, entries, key)
    first = producer(key)
    await entries.put(first)
    told = await without_a_store(sample, entries, key)
    assert told == await without_a_store(sample, entries, key)
    await entries.retire(first.id, "test")
    await entries.put(producer(key))
    assert await without_a_store(sample, entries, key) != told


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("artifacts/latest/out.tgz", {}),
        ("artifacts/prefix-run-x7k2p-1/out.tgz", {}),
        ("artifacts/run-x7k2p/out.tgz", {}),
        ("artifacts/run-x7k2p/run-x7k2p-1/out.tgz", {"etag": "1", "size": 1}),
    ],
)
async def test_a_place_that_others_may_write_to_tells_nothing_without_a_store(sample, entries, key, told):
    await entries.put(producer(key, **told))
    with pytest.raises(Unkeyable, match="input-unknown"):
        await without_a_store(sample, entries, key)


def marks(pod):
    annotations = pod["metadata"]["annotations"]
    return annotations.get(names.DECISION), annotations.get(names.REASON)


async def held(cluster):
    return await cluster.held_pod(name="artifacts.use", change=only_outside)


async def test_an_overwritten_input_is_a_miss_and_the_old_content_a_hit_again(
    cluster, parts, artifacts, remote
):
    parts.artifacts = artifacts
    parts.again()
    put(remote, b"1")
    assert await parts.record(await cluster.run(await parts.decide(await held(cluster)), {}))
    put(remote, b"2")
    assert marks(await parts.decide(await held(cluster))) == ("run", "miss")
    put(remote, b"1")
    assert marks(await parts.decide(await held(cluster))) == ("reuse", "hit")


async def test_a_run_during_which_its_input_was_overwritten_leaves_no_entry(
    cluster, parts, artifacts, remote
):
    parts.artifacts = artifacts
    parts.again()
    put(remote, b"1")
    pod = await parts.decide(await held(cluster))
    put(remote, b"2")
    assert await parts.record(await cluster.run(pod, {})) is None
