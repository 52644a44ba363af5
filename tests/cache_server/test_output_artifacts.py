"""Steps whose outputs are in an object store, and those that read them: `archive-logs` of the recordings."""

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from cache_server.finish import is_held
from memopod.steps import names
from tests.cache_server.marks import marks

# Artifacts: the step `archive-logs` of the recordings, with one key-only output artifact.


def with_artifact(pod):
    for variable in pod["spec"]["initContainers"][0]["env"]:
        if variable["name"] == "ARGO_TEMPLATE":
            template = json.loads(variable["value"])
            template["outputs"] = {"artifacts": [{"name": "data", "path": "/tmp/d"}]}
            template["archiveLocation"] = {
                "s3": {"endpoint": "minio-service.kubeflow:9000", "bucket": "mlpipeline", "key": "k"}
            }
            variable["value"] = json.dumps(template)


class Stored:
    """The artifact that the first run of the step leaves in the bucket, under that run's name."""

    def __init__(self, bucket):
        self.bucket = bucket
        self.path = None

    def of(self, pod, text="the artifact"):
        key = f"artifacts/{pod['metadata']['name']}/data"
        self.path = self.bucket / key
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(text)
        return {"artifacts": [{"name": "data", "path": "/tmp/d", "s3": {"key": key}}]}


@pytest.fixture
def stored(bucket):
    return Stored(bucket)


async def artifact_entry(cluster, parts, stored):
    pod = await parts.decide(await cluster.held_pod(change=with_artifact))
    entry = await parts.record(await cluster.run(pod, stored.of(pod)))
    assert entry is not None
    return entry


async def test_an_artifact_that_is_there_unchanged_is_reused_where_it_is(cluster, parts, stored):
    entry = await artifact_entry(cluster, parts, stored)
    assert entry.outputs.artifacts[0].size == len("the artifact")
    pod = await parts.decide(await cluster.held_pod(change=with_artifact))
    assert marks(pod) == ("reuse", "hit")
    reused = (await cluster.result(pod))["outputs"]["artifacts"][0]
    assert reused["s3"] == {"key": f"artifacts/{entry.pod_name}/data"}
    assert reused["artifactGC"] == {"strategy": "Never"}


async def test_a_reused_step_names_the_log_of_the_run_that_produced_its_outputs(cluster, parts, stored):
    pod = await parts.decide(await cluster.held_pod(change=with_artifact))
    outputs = stored.of(pod)
    log = {"name": "main-logs", "s3": {"key": f"artifacts/{pod['metadata']['name']}/main.log"}}
    (stored.path.parent / "main.log").write_text("what it said")
    outputs["artifacts"].append(log)
    entry = await parts.record(await cluster.run(pod, outputs))
    assert [a.name for a in entry.outputs.artifacts] == ["data"]
    pod = await parts.decide(await cluster.held_pod(change=with_artifact))
    annotations = pod["metadata"]["annotations"]
    assert annotations[names.SOURCE_POD] == entry.pod_name
    assert annotations[names.SOURCE_LOGS] == f"minio://mlpipeline/{log['s3']['key']}"


@pytest.mark.parametrize("damage", ["deleted", "changed"])
async def test_an_artifact_that_is_gone_or_changed_is_a_miss_and_the_run_repairs_it(
    cluster, parts, stored, damage
):
    entry = await artifact_entry(cluster, parts, stored)
    stored.path.unlink()
    if damage == "changed":
        stored.path.write_text("another one!")
    pod = await parts.decide(await cluster.held_pod(change=with_artifact))
    assert marks(pod) == ("run", "outputs-gone")
    assert await parts.entries.get(entry.id) is None
    assert await parts.record(await cluster.run(pod, stored.of(pod))) is not None
    assert marks(await parts.decide(await cluster.held_pod(change=with_artifact))) == ("reuse", "hit")


async def test_a_store_that_cannot_be_asked_means_that_the_step_runs(cluster, parts, stored, bucket):
    entry = await artifact_entry(cluster, parts, stored)
    bucket.rename(bucket.with_name("away"))
    pod = await parts.decide(await cluster.held_pod(change=with_artifact))
    assert marks(pod) == ("run", "outputs-unchecked")
    assert await parts.entries.get(entry.id) is not None


async def test_an_artifact_that_its_workflow_takes_with_it_makes_no_entry(cluster, parts, stored):
    workflow = await cluster.workflow(artifactGC={"strategy": "OnWorkflowDeletion"})
    held = await cluster.hold(cluster.pod_of(workflow, change=with_artifact))
    pod = await parts.decide(held)
    assert await parts.record(await cluster.run(pod, stored.of(pod))) is None


async def test_what_was_written_after_the_step_had_ended_makes_no_entry(cluster, parts, stored):
    pod = await parts.decide(await cluster.held_pod(change=with_artifact))
    long_ago = datetime.now(UTC) - timedelta(minutes=1)
    outputs = stored.of(pod, "overwritten before anybody recorded it")
    assert await parts.record(await cluster.run(pod, outputs, finished=long_ago)) is None


async def test_an_output_that_nobody_could_describe_is_not_reused_and_not_retired(
    cluster, parts, stored, bucket
):
    unknown = await undescribed_entry(cluster, parts, stored)
    pod = await parts.decide(await cluster.held_pod(change=with_artifact))
    assert marks(pod) == ("run", "outputs-unchecked")
    assert await parts.entries.get(unknown.id) is not None


async def undescribed_entry(cluster, parts, stored):
    """An entry that was recorded while no store could be asked."""
    entry = await artifact_entry(cluster, parts, stored)
    blind = replace(entry.outputs.artifacts[0], etag=None, digest=None, size=None)
    unknown = replace(
        entry, id="f" * 32, pod_uid="other", outputs=replace(entry.outputs, artifacts=(blind,)),
        finished_at=entry.finished_at + timedelta(seconds=1),
    )  # fmt: skip
    assert await parts.entries.put(unknown)
    return unknown


async def test_at_best_effort_an_output_that_nobody_could_describe_must_still_be_there(
    cluster, parts, stored, bucket
):
    unknown = await undescribed_entry(cluster, parts, stored)
    lenient = type(parts)(cluster, parts.entries, bucket, check="best-effort")
    assert marks(await lenient.decide(await cluster.held_pod(change=with_artifact))) == ("reuse", "hit")
    stored.path.unlink()
    pod = await lenient.decide(await cluster.held_pod(change=with_artifact))
    assert marks(pod) == ("run", "outputs-gone")
    assert await parts.entries.get(unknown.id) is None


@pytest.mark.parametrize("place", ["latest", "of-{workflow}", "{workflow}"])
async def test_an_artifact_at_a_place_that_others_may_write_to_makes_no_entry(cluster, parts, bucket, place):
    pod = await parts.decide(await cluster.held_pod(change=with_artifact))
    place = place.format(workflow=pod["metadata"]["ownerReferences"][0]["name"])
    (bucket / place).mkdir()
    (bucket / place / "data").write_text("of whoever came last")
    outputs = {"artifacts": [{"name": "data", "path": "/tmp/d", "s3": {"key": f"{place}/data"}}]}
    assert await parts.record(await cluster.run(pod, outputs)) is None


# A step that follows another one within a moment: its input's producer is still being recorded.


def consuming(key):
    def change(pod):
        for variable in pod["spec"]["initContainers"][0]["env"]:
            if variable["name"] == names.ENV_TEMPLATE:
                template = json.loads(variable["value"])
                place = {"endpoint": "minio-service.kubeflow:9000", "bucket": "unknown", "key": key}
                artifact = {"name": "in", "path": "/tmp/in", "s3": place}
                template["inputs"] = {"artifacts": [artifact]}
                variable["value"] = json.dumps(template)

    return change


def producing_elsewhere(pod):
    with_artifact(pod)
    for variable in pod["spec"]["initContainers"][0]["env"]:
        if variable["name"] == names.ENV_TEMPLATE:
            variable["value"] = variable["value"].replace("mlpipeline", "unknown")


async def test_a_step_waits_until_the_producer_of_its_input_is_recorded(cluster, parts, monkeypatch):
    pod = await parts.decide(await cluster.held_pod(change=producing_elsewhere))
    key = f"artifacts/{pod['metadata']['name']}/data"
    reported = {"artifacts": [{"name": "data", "path": "/tmp/d", "s3": {"key": key}}]}
    ended = await cluster.run(pod, reported)
    go_on, put = asyncio.Event(), parts.entries.put

    async def late(entry):
        await go_on.wait()
        return await put(entry)

    monkeypatch.setattr(parts.entries, "put", late)
    parts.recorder.see(ended)
    held = await cluster.held_pod(change=consuming(key))
    parts.controller.see(held)
    await asyncio.sleep(0.2)
    assert is_held(await cluster.get(held)), "not decided while its producer is being recorded"
    go_on.set()
    await parts.controller.drain(30.0)
    await parts.recorder.drain(30.0)
    assert marks(await cluster.get(held)) == ("run", "miss")
    parts.again()


async def test_a_producer_that_is_not_being_recorded_is_not_waited_for(cluster, parts):
    held = await cluster.held_pod(change=consuming("artifacts/nobody/data"))
    assert marks(await parts.decide(held)) == ("run", "input-unknown")


async def test_a_producer_whose_recording_takes_long_is_not_waited_for_beyond_the_deadline(
    cluster, parts, monkeypatch
):
    monkeypatch.setattr("cache_server.identity._PRODUCER_SECONDS", 0.1)
    pod = await parts.decide(await cluster.held_pod(change=producing_elsewhere))
    key = f"artifacts/{pod['metadata']['name']}/data"
    ended = await cluster.run(pod, {"artifacts": [{"name": "data", "path": "/tmp/d", "s3": {"key": key}}]})

    async def never(_entry):
        await asyncio.Event().wait()

    monkeypatch.setattr(parts.entries, "put", never)
    parts.recorder.see(ended)
    held = await cluster.held_pod(change=consuming(key))
    parts.controller.see(held)
    await parts.controller.drain(30.0)
    assert marks(await cluster.get(held)) == ("run", "input-unknown")
    await parts.recorder.drain(0.0)
    parts.again()
