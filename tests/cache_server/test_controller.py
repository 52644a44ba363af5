import asyncio
import json
import sqlite3
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from cache_server.finish import is_held
from cache_server.sweeper import Sweeper, is_claimed
from memopod.kube import (
    CONFIG_MAPS,
    EVENTS,
    NAMESPACES,
    PODS,
    TASK_RESULTS,
    ApiError,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    Unavailable,
    fetch_outputs,
)
from memopod.steps import names, read_step
from memopod.steps.staleness import StalenessRules

OUTPUTS = {"parameters": [{"name": "Output", "value": "hello", "valueFrom": {"path": "/tmp/o"}}]}


def marks(pod):
    annotations = pod["metadata"]["annotations"]
    return annotations.get(names.DECISION), annotations.get(names.REASON)


def state(pod):
    return pod["metadata"]["labels"][names.STEP_LABEL]


async def test_a_step_without_entry_runs_with_one_write(cluster, parts):
    pod = await cluster.held_pod()
    cluster.client.writes.clear()
    pod = await parts.decide(pod)
    assert not is_held(pod)
    assert marks(pod) == ("run", "miss")
    assert state(pod) == names.RELEASED
    assert pod["metadata"]["annotations"][names.INPUTS]
    assert cluster.client.writes == ["patch pods"]


async def test_a_step_that_ran_is_reused_with_two_writes(cluster, parts):
    entry = await parts.entry(OUTPUTS)
    again = await cluster.held_pod()
    cluster.client.writes.clear()
    pod = await parts.decide(again)
    assert cluster.client.writes == ["create workflowtaskresults", "patch status pods"]
    assert pod["status"]["phase"] == "Succeeded"
    assert state(pod) == names.REUSED
    assert marks(pod) == ("reuse", "hit")
    assert pod["metadata"]["annotations"][names.ENTRY] == entry.id
    assert pod["metadata"]["annotations"][names.SOURCE_POD] == entry.pod_name
    assert "nodeName" not in pod["spec"]
    assert (await cluster.result(pod))["outputs"] == OUTPUTS
    assert (await parts.entries.get(entry.id)).uses == 1


async def test_a_reuse_is_told_in_an_event(cluster, parts):
    await parts.entry(OUTPUTS)
    pod = await parts.decide(await cluster.held_pod())
    events = (await cluster.client.list(EVENTS, namespace="pipelines"))["items"]
    about = [e for e in events if e["involvedObject"]["uid"] == pod["metadata"]["uid"]]
    assert [e["reason"] for e in about] == ["Reused"]
    assert "hello" not in about[0]["message"]


async def test_a_finished_pod_is_never_recorded_as_a_run(cluster, parts):
    await parts.entry(OUTPUTS)
    pod = await parts.decide(await cluster.held_pod())
    assert await parts.record(pod) is None


async def test_another_salt_is_another_step(cluster, parts):
    await parts.entry(OUTPUTS)

    def salted(pod):
        pod["metadata"]["annotations"][names.SALT] = "2"

    assert marks(await parts.decide(await cluster.held_pod(change=salted))) == ("run", "miss")


async def test_an_image_that_was_changed_while_the_pod_was_held_is_another_step(cluster, parts):
    await parts.entry(OUTPUTS)
    pod = await cluster.held_pod()
    change = [{"op": "replace", "path": "/spec/containers/1/image", "value": "other:1"}]
    name = pod["metadata"]["name"]
    pod = await cluster.client.patch(PODS, name, change, namespace="pipelines")
    assert marks(await parts.decide(pod)) == ("run", "miss")


@pytest.mark.parametrize(
    ("change", "outcome", "decisions"),
    [
        ([{"op": "replace", "path": "/spec/containers/1/image", "value": "other:1"}], ("run", "miss"), 2),
        ([{"op": "add", "path": "/metadata/annotations/memopod.io~1salt", "value": "1"}], ("run", "miss"), 2),
        ({"status": {"message": "as the scheduler says"}}, ("reuse", "hit"), 1),
    ],
)
async def test_a_pod_that_changes_while_it_is_decided_for_is_decided_for_as_it_is_now(
    cluster, parts, monkeypatch, change, outcome, decisions
):
    await parts.entry(OUTPUTS)
    pod = await cluster.held_pod()
    find, looks = parts.entries.find, []

    async def find_slowly(namespace, key):
        entry = await find(namespace, key)
        looks.append(key)
        if len(looks) == 1:
            where = {"subresource": "status"} if "status" in change else {}
            name = pod["metadata"]["name"]
            newer = await cluster.client.patch(PODS, name, change, namespace="pipelines", **where)
            parts.controller.see(newer)
        return entry

    monkeypatch.setattr(parts.entries, "find", find_slowly)
    parts.controller.see(pod)
    async with asyncio.timeout(30):
        while is_held(await cluster.get(pod)):  # noqa: ASYNC110 (polls a server)
            await asyncio.sleep(0.02)
    assert marks(await cluster.get(pod)) == outcome
    assert (await cluster.result(pod) is None) == (outcome == ("run", "miss"))
    assert len(looks) == decisions
    await parts.controller.drain(30.0)
    assert len(parts.counted) == 2, "that of the first run, and one of this Pod"
    parts.again()


async def test_a_pod_without_a_valid_seal_runs_and_is_not_recorded(cluster, parts):
    await parts.entry(OUTPUTS)
    pod = cluster.pod_of(await cluster.workflow())
    held = await cluster.hold(pod, now=datetime.now(UTC) - timedelta(seconds=120))
    released = await parts.decide(held)
    assert marks(released) == ("run", "seal-invalid")
    assert await parts.record(await cluster.run(released, OUTPUTS)) is None


@pytest.mark.parametrize(("staleness", "reason"), [("PT1S", "stale"), ("P0D", "disabled")])
async def test_an_entry_that_is_too_old_for_the_step_is_not_reused(cluster, parts, staleness, reason):
    pod = await parts.decide(await cluster.held_pod())
    long_ago = datetime.now(UTC) - timedelta(hours=1)
    assert await parts.record(await cluster.run(pod, OUTPUTS, finished=long_ago))

    def limited(pod):
        pod["metadata"]["annotations"][names.MAX_STALENESS] = staleness

    pod = await parts.decide(await cluster.held_pod(change=limited))
    assert marks(pod) == ("run", reason)
    fresh = await parts.record(await cluster.run(pod, OUTPUTS))
    assert fresh is not None, "a step that ran again refreshes its entry"


async def test_a_namespace_limits_how_old_an_entry_may_be(cluster, parts):
    await parts.entry(OUTPUTS, finished=datetime.now(UTC) - timedelta(hours=1))
    await annotate_namespace(cluster, {names.NAMESPACE_MAXIMUM_STALENESS: "PT30M"})
    assert marks(await parts.decide(await cluster.held_pod())) == ("run", "stale")
    await annotate_namespace(cluster, {names.NAMESPACE_MAXIMUM_STALENESS: "PT2H"})
    assert marks(await parts.decide(await cluster.held_pod())) == ("reuse", "hit")


async def annotate_namespace(cluster, annotations):
    patch = {"metadata": {"annotations": annotations}}
    try:
        await cluster.client.patch(NAMESPACES, "pipelines", patch)
    except NotFound:
        body = {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": "pipelines", **patch["metadata"]},
        }
        await cluster.client.create(NAMESPACES, body)


async def test_an_image_named_by_a_tag_limits_how_old_an_entry_may_be(cluster, parts):
    def pinned(pod):
        for container in pod["spec"]["containers"]:
            container["image"] = "python@sha256:" + "0" * 64

    long_ago = datetime.now(UTC) - timedelta(hours=1)
    await parts.entry(OUTPUTS, finished=long_ago)
    await parts.entry(OUTPUTS, finished=long_ago, change=pinned)
    parts.rules["staleness"] = StalenessRules(mutable_tag=60.0)
    parts.again()
    assert marks(await parts.decide(await cluster.held_pod())) == ("run", "tag-stale")
    assert marks(await parts.decide(await cluster.held_pod(change=pinned))) == ("reuse", "hit")


async def test_a_namespace_that_must_not_be_read_means_that_the_step_runs(cluster, parts, monkeypatch):
    await parts.entry(OUTPUTS)
    get = cluster.client.get

    async def forbidding(resource, *arguments, **options):
        if resource is NAMESPACES:
            raise Forbidden("no", status=403, reason="Forbidden")
        return await get(resource, *arguments, **options)

    monkeypatch.setattr(cluster.client, "get", forbidding)
    parts.again()
    assert marks(await parts.decide(await cluster.held_pod())) == ("run", "namespace-unreadable")


async def test_a_refused_reuse_is_told_in_an_event_and_a_miss_is_not(cluster, parts):
    async def told(pod):
        events = (await cluster.client.list(EVENTS, namespace="pipelines"))["items"]
        return [e for e in events if e["involvedObject"]["uid"] == pod["metadata"]["uid"]]

    missed = await parts.decide(await cluster.held_pod())
    assert await told(missed) == []
    await parts.entry(OUTPUTS, finished=datetime.now(UTC) - timedelta(hours=1))

    def limited(pod):
        pod["metadata"]["annotations"][names.MAX_STALENESS] = "PT1S"

    [event] = await told(await parts.decide(await cluster.held_pod(change=limited)))
    assert event["reason"] == "NotReused"
    assert event["message"].endswith("the entry is older than the step or the cluster allows")


async def test_a_released_pod_tells_the_parts_of_its_entry_key(cluster, parts):
    pod = await parts.decide(await cluster.held_pod())
    annotations = pod["metadata"]["annotations"]
    entry = await parts.record(await cluster.run(pod, OUTPUTS))
    assert annotations[names.ENTRY_KEY] == entry.key
    assert json.loads(annotations[names.COMPONENTS]) == entry.components


async def test_parts_that_would_not_fit_into_the_annotations_are_left_out(cluster, parts):
    def large(pod):
        pod["spec"]["containers"] += [
            {"name": f"helper-{i}", "image": "h", "command": ["h"]} for i in range(150)
        ]

    pod = await parts.decide(await cluster.held_pod(change=large))
    assert marks(pod) == ("run", "miss")
    assert names.ENTRY_KEY in pod["metadata"]["annotations"]
    assert names.COMPONENTS not in pod["metadata"]["annotations"]


async def test_a_result_of_somebody_else_means_that_the_step_runs(cluster, parts):
    await parts.entry(OUTPUTS)
    pod = await cluster.held_pod()
    theirs = await cluster.report(pod, {})
    assert marks(await parts.decide(pod)) == ("run", "result-exists")
    assert await cluster.result(pod) == theirs


def of_an_earlier_workflow(pod):
    """The Pod of a Workflow of the same name that was deleted a moment ago: its results are still there."""
    pod = json.loads(json.dumps(pod))
    pod["metadata"]["ownerReferences"][0]["uid"] = "00000000-0000-0000-0000-000000000000"
    return pod


async def test_a_result_for_an_earlier_workflow_of_the_same_name_finishes_nothing(cluster, parts):
    await parts.entry(OUTPUTS)
    other = {"parameters": [{**OUTPUTS["parameters"][0], "value": "other"}]}
    pod = await cluster.held_pod()
    await cluster.report(of_an_earlier_workflow(pod), other, **{names.ENTRY: "an-entry"})
    assert marks(await parts.decide(pod)) == ("run", "result-exists")
    pod = await cluster.held_pod(now=datetime.now(UTC) - timedelta(seconds=40))
    await cluster.report(of_an_earlier_workflow(pod), other, **{names.ENTRY: "an-entry"})
    sweeper = Sweeper(cluster.client, identity="a", claim_wait=0.01)
    sweeper.sweep([pod])
    await sweeper.drain(30.0)
    pod = await cluster.get(pod)
    assert not is_held(pod)
    assert pod["status"]["phase"] == "Pending"
    assert marks(pod) == ("run", "overdue")


async def test_outputs_of_an_earlier_workflow_of_the_same_name_are_not_those_of_a_step(cluster, parts):
    pod = await parts.decide(await cluster.held_pod())
    await cluster.report(of_an_earlier_workflow(pod), OUTPUTS)
    assert await fetch_outputs(cluster.client, read_step(pod)) is None


async def test_close_to_its_time_no_reuse_is_begun(cluster, parts):
    await parts.entry(OUTPUTS)
    pod = await cluster.held_pod(now=datetime.now(UTC) - timedelta(seconds=26))
    assert marks(await parts.decide(pod)) == ("run", "too-late")


async def test_gates_of_others_stay(cluster, parts):
    def gated(pod):
        pod["spec"]["schedulingGates"] = [{"name": "quota"}]

    pod = await parts.decide(await cluster.held_pod(change=gated))
    assert pod["spec"]["schedulingGates"] == [{"name": "quota"}]


async def test_who_does_not_lead_writes_nothing(cluster, parts):
    parts.leading = False
    pod = await cluster.held_pod()
    cluster.client.writes.clear()
    assert is_held(await parts.decide(pod))
    assert cluster.client.writes == []


async def test_a_database_that_does_not_answer_means_that_the_step_runs(cluster, parts):
    await parts.entry(OUTPUTS)
    pod = await cluster.held_pod()
    blocker = sqlite3.connect(cluster.state / "cache.db", isolation_level=None)
    try:
        blocker.execute("ALTER TABLE entries RENAME TO elsewhere")
        released = await parts.decide(pod)
    finally:
        blocker.execute("ALTER TABLE elsewhere RENAME TO entries")
        blocker.close()
    assert marks(released) == ("run", "entries-unavailable")


class Stop(BaseException):
    """The process ends here."""


async def stop_after(write_to_stop_at, *, done):
    async def fault(write, call):
        if write != write_to_stop_at:
            return await call()
        if done:
            await call()
        raise Stop

    return fault


@pytest.mark.parametrize("survivor", ["leader", "sweeper"])
@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    "write", ["create workflowtaskresults", "patch status pods"], ids=["result", "status"]
)
async def test_whoever_meets_what_a_dead_leader_left_reuses_whole_or_runs_as_written(
    cluster, parts, write, done, survivor
):
    await parts.entry(OUTPUTS)
    pod = await cluster.held_pod()
    cluster.client.fault = await stop_after(write, done=done)
    decision = await parts.decider.decide(pod)
    with pytest.raises(Stop):
        await parts.controller._reuse(pod, decision)
    cluster.client.fault = None

    left = await cluster.get(pod)
    written = await cluster.result(pod) is not None
    if survivor == "leader":
        left = await parts.decide(left)
    else:
        sweeper = Sweeper(cluster.client, identity="s", claim_wait=0.01)
        await sweeper._handle(left) if is_held(left) else None
        left = await cluster.get(pod)
    assert not is_held(left)
    if written or survivor == "leader":
        assert left["status"]["phase"] == "Succeeded"
        assert (await cluster.result(pod))["outputs"] == OUTPUTS
    else:
        assert marks(left) == ("run", "overdue")
        assert await cluster.result(pod) is None


@pytest.mark.parametrize("done", [False, True], ids=["lost-request", "lost-answer"])
async def test_a_write_without_answer_is_asked_about_before_anything_else(cluster, parts, done):
    await parts.entry(OUTPUTS)
    pod = await cluster.held_pod()
    failures = iter([True])

    async def fault(write, call):
        if write == "create workflowtaskresults" and next(failures, False):
            if done:
                await call()
            raise Unavailable("no answer", reason="Timeout")
        return await call()

    cluster.client.fault = fault
    finished = await parts.decide(pod)
    assert finished["status"]["phase"] == "Succeeded"
    assert state(finished) == names.REUSED


async def test_a_pod_that_changes_while_it_is_finished_is_finished_all_the_same(cluster, parts):
    await parts.entry(OUTPUTS)
    pod = await cluster.held_pod()

    async def fault(write, call):
        if write == "patch status pods":
            cluster.client.fault = None
            touched = {"metadata": {"labels": {"touched": "yes"}}}
            await cluster.client.patch(PODS, pod["metadata"]["name"], touched, namespace="pipelines")
        return await call()

    cluster.client.fault = fault
    finished = await parts.decide(pod)
    assert finished["status"]["phase"] == "Succeeded"
    assert finished["metadata"]["labels"]["touched"] == "yes"


async def test_a_pod_that_is_deleted_while_it_is_finished_is_let_be(cluster, parts):
    await parts.entry(OUTPUTS)
    pod = await cluster.held_pod()

    async def fault(write, call):
        if write == "patch status pods":
            cluster.client.fault = None
            await cluster.client.delete(PODS, pod["metadata"]["name"], namespace="pipelines", grace_seconds=0)
        return await call()

    cluster.client.fault = fault
    parts.controller.see(pod)
    async with asyncio.timeout(5):
        await parts.controller.drain(10.0)
    with pytest.raises(NotFound):
        await cluster.get(pod)
    assert cluster.client.fault is None


async def test_an_overdue_pod_is_claimed_and_released(cluster, parts):
    pod = await cluster.held_pod(now=datetime.now(UTC) - timedelta(seconds=31))
    sweeper = Sweeper(cluster.client, identity="sweeper-1", claim_wait=0.01)
    sweeper.sweep([pod])
    await sweeper.drain(10.0)
    released = await cluster.get(pod)
    assert marks(released) == ("run", "overdue")
    assert released["metadata"]["annotations"][names.CLAIMED_BY].startswith("sweeper-1/")


async def test_overdue_pods_do_not_wait_for_each_others_claims(cluster, parts):
    late = datetime.now(UTC) - timedelta(seconds=31)
    pods = [await cluster.held_pod(now=late, node=str(n)) for n in range(3)]
    claimed, claims = asyncio.Event(), []

    async def count(write, call):
        claims.append(await call())
        if len(claims) == len(pods):
            claimed.set()
        return claims[-1]

    cluster.client.fault = count
    sweeper = Sweeper(cluster.client, identity="sweeper-1", claim_wait=3600.0, concurrency=1)
    sweeper.sweep(pods)
    await asyncio.wait_for(claimed.wait(), 30)
    await sweeper.drain(0.0)
    assert all([is_claimed(await cluster.get(pod), datetime.now(UTC)) for pod in pods])


async def test_two_sweepers_release_a_pod_once(cluster, parts):
    pod = await cluster.held_pod(now=datetime.now(UTC) - timedelta(seconds=31))
    sweepers = [Sweeper(cluster.client, identity=f"s{i}", claim_wait=0.05) for i in range(2)]
    cluster.client.writes.clear()
    for sweeper in sweepers:
        sweeper.sweep([pod])
    for sweeper in sweepers:
        await sweeper.drain(10.0)
    assert marks(await cluster.get(pod)) == ("run", "overdue")
    assert cluster.client.writes.count("patch pods") == 3, "two claims, of which one is refused"


def with_config_map(pod):
    pod["spec"]["containers"][1].setdefault("env", []).append(
        {"name": "C", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "mode"}}}
    )


async def put_config_map(cluster, mode, *, create=False):
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"mode": mode}}
    if create:
        return await cluster.client.create(CONFIG_MAPS, body, namespace="pipelines")
    return await cluster.client.patch(
        CONFIG_MAPS, "settings", {"data": {"mode": mode}}, namespace="pipelines"
    )


async def test_a_config_map_counts_by_its_content(cluster, parts):
    await put_config_map(cluster, "fast", create=True)
    await parts.entry(OUTPUTS, change=with_config_map)
    await put_config_map(cluster, "slow")
    assert marks(await parts.decide(await cluster.held_pod(change=with_config_map))) == ("run", "miss")
    await put_config_map(cluster, "fast")
    assert marks(await parts.decide(await cluster.held_pod(change=with_config_map))) == ("reuse", "hit")


async def test_a_config_map_that_changed_while_the_step_ran_makes_no_entry(cluster, parts):
    await put_config_map(cluster, "fast", create=True)
    pod = await parts.decide(await cluster.held_pod(change=with_config_map))
    await put_config_map(cluster, "slow")
    await put_config_map(cluster, "fast")
    assert await parts.record(await cluster.run(pod, OUTPUTS)) is None


async def test_a_config_map_that_is_missing_means_no_key(cluster, parts):
    pod = await parts.decide(await cluster.held_pod(change=with_config_map))
    assert marks(pod) == ("run", "configmap-unreadable")


async def test_a_step_that_nobody_decided_for_is_recorded_if_its_pod_says_all(cluster, parts):
    pod = cluster.pod_of(await cluster.workflow())
    marked = await cluster.hold(pod, alive=False)
    assert not is_held(marked)
    assert await parts.record(await cluster.run(marked, OUTPUTS)) is not None
    assert marks(await parts.decide(await cluster.held_pod())) == ("reuse", "hit")


async def test_outputs_that_come_late_are_waited_for(cluster, parts):
    pod = await parts.decide(await cluster.held_pod())
    name = pod["metadata"]["name"]
    await cluster.report(pod, OUTPUTS, complete="false")
    await cluster.client.patch(PODS, name, {"spec": {"nodeName": "n"}}, namespace="pipelines")
    now = datetime.now(UTC).isoformat()
    ended = {"terminated": {"exitCode": 0, "startedAt": now, "finishedAt": now, "containerID": "c://1"}}
    status = {"phase": "Succeeded", "containerStatuses": [{"name": "main", "state": ended}]}
    pod = await cluster.client.patch(
        PODS, name, {"status": status}, namespace="pipelines", subresource="status"
    )
    parts.recorder.see(pod)
    complete = {"metadata": {"labels": {names.ARGO_OUTPUTS_COMPLETED: "true"}}}
    await cluster.client.patch(TASK_RESULTS, name, complete, namespace="pipelines")
    assert await parts.record(pod) is not None


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


async def test_a_held_pod_that_is_being_deleted_is_left_alone(cluster, parts):
    def finalized(pod):
        pod["metadata"]["finalizers"] = ["workflows.argoproj.io/status"]

    pod = await cluster.held_pod(change=finalized)
    await cluster.client.delete(PODS, pod["metadata"]["name"], namespace="pipelines", grace_seconds=0)
    pod = await cluster.get(pod)
    cluster.client.writes.clear()
    assert is_held(await parts.decide(pod))
    assert cluster.client.writes == []


@pytest.mark.parametrize("place", ["latest", "of-{workflow}", "{workflow}"])
async def test_an_artifact_at_a_place_that_others_may_write_to_makes_no_entry(cluster, parts, bucket, place):
    pod = await parts.decide(await cluster.held_pod(change=with_artifact))
    place = place.format(workflow=pod["metadata"]["ownerReferences"][0]["name"])
    (bucket / place).mkdir()
    (bucket / place / "data").write_text("of whoever came last")
    outputs = {"artifacts": [{"name": "data", "path": "/tmp/d", "s3": {"key": f"{place}/data"}}]}
    assert await parts.record(await cluster.run(pod, outputs)) is None


async def test_a_run_in_whose_place_our_result_stands_makes_no_entry(cluster, parts):
    pod = await parts.decide(await cluster.held_pod())
    await cluster.report(pod, OUTPUTS, **{names.ENTRY: "e" * 32})

    async def exists(write, call):
        return None if write == "create workflowtaskresults" else await call()

    cluster.client.fault = exists
    assert await parts.record(await cluster.run(pod, OUTPUTS)) is None


async def test_a_pod_that_somebody_claimed_is_not_reused_any_more(cluster, parts):
    await parts.entry(OUTPUTS)

    pod = await cluster.held_pod()
    claim = {"metadata": {"annotations": {names.CLAIMED_BY: f"s/{datetime.now(UTC).isoformat()}"}}}
    pod = await cluster.client.patch(PODS, pod["metadata"]["name"], claim, namespace="pipelines")
    assert marks(await parts.decide(pod)) == ("run", "too-late")


@pytest.mark.parametrize("status", [400, 403, 413, 422, 404])
async def test_a_result_that_the_server_refuses_means_that_the_step_runs(cluster, parts, status):
    await parts.entry(OUTPUTS)
    pod = await cluster.held_pod()

    async def refuse(write, call):
        if write == "create workflowtaskresults":
            raise ApiError("refused", status=status, reason="Refused")
        return await call()

    cluster.client.fault = refuse
    assert marks(await parts.decide(pod)) == ("run", "result-refused")


@pytest.mark.parametrize("late", [0, 22], ids=["early", "late"])
async def test_a_server_that_fails_to_write_a_result_means_that_the_step_runs(cluster, parts, late):
    await parts.entry(OUTPUTS)
    pod = await cluster.held_pod(now=datetime.now(UTC) - timedelta(seconds=late))
    cluster.client.writes.clear()

    async def fail(write, call):
        if write == "create workflowtaskresults":
            raise Unavailable("internal error", status=500, reason="InternalError")
        return await call()

    cluster.client.fault = fail
    released = await parts.decide(pod)
    assert marks(released) == ("run", "result-refused")
    assert cluster.client.writes.count("create workflowtaskresults") < 8, "not without a pause"


async def test_a_result_that_etcd_finds_too_large_is_not_tried_again(cluster, parts):
    await parts.entry(OUTPUTS)
    pod = await cluster.held_pod()
    cluster.client.writes.clear()

    async def fail(write, call):
        if write == "create workflowtaskresults":
            raise Unavailable("500: etcdserver: request is too large", status=500, reason="InternalError")
        return await call()

    cluster.client.fault = fail
    assert marks(await parts.decide(pod)) == ("run", "result-refused")
    assert cluster.client.writes.count("create workflowtaskresults") == 1


async def test_a_pod_is_left_to_others_while_nobody_says_whether_its_result_was_written(
    cluster, parts, monkeypatch
):
    await parts.entry(OUTPUTS)
    pod = await cluster.held_pod()
    get, lost = cluster.client.get, []

    async def lose(write, call):
        if write == "create workflowtaskresults":
            await call()
            lost.append(write)
            raise Unavailable("no answer", reason="Timeout")
        return await call()

    async def unanswered(resource, *arguments, **options):
        if resource is TASK_RESULTS and lost:
            raise Unavailable("no answer", reason="Timeout")
        return await get(resource, *arguments, **options)

    cluster.client.fault = lose
    monkeypatch.setattr(cluster.client, "get", unanswered)
    async with asyncio.timeout(30):
        assert is_held(await parts.decide(pod))
    monkeypatch.undo()
    cluster.client.fault = None
    assert state(await parts.decide(pod)) == names.REUSED


@pytest.mark.parametrize("touched", [False, True], ids=["for-no-reason", "its-status-changed"])
async def test_a_gate_that_is_not_lifted_at_once_is_lifted_with_the_next_try(cluster, parts, touched):
    pod = await cluster.held_pod()
    status = {"status": {"message": "as the scheduler says"}}
    tries = []

    async def fault(write, call):
        if write != "patch pods":
            return await call()
        tries.append(write)
        if len(tries) > 1:
            return await call()
        if touched:
            name = pod["metadata"]["name"]
            await cluster.client.patch(PODS, name, status, namespace="pipelines", subresource="status")
            return await call()
        raise Conflict("the object has been modified", status=409, reason="Conflict")

    cluster.client.fault = fault
    assert marks(await parts.decide(pod)) == ("run", "miss")
    assert len(tries) == 2


async def test_a_refused_status_is_tried_again_and_never_released(cluster, parts):
    await parts.entry(OUTPUTS)
    pod = await cluster.held_pod()
    refusals = iter([True, True])

    async def refuse(write, call):
        if write == "patch status pods" and next(refusals, False):
            raise Invalid("refused for now", status=422, reason="Invalid")
        return await call()

    cluster.client.fault = refuse
    finished = await parts.decide(pod)
    assert state(finished) == names.REUSED
    assert "patch pods" not in cluster.client.writes[-4:]


@pytest.mark.parametrize(
    "text",
    [
        '{"container": {}, "outputs": "anything"}',
        '{"container": {}, "outputs": {"artifacts": ["x"]}}',
        '{"container": {}, "inputs": {"artifacts": [{"s3": 3}]}}',
        "[" * 100_000,
        "",
        "null",
    ],
    ids=range(6),
)
async def test_an_offloaded_template_of_any_shape_means_no_more_than_a_run(cluster, parts, text):
    workflow = await cluster.workflow()
    pod = cluster.pod_of(workflow)
    for variable in pod["spec"]["initContainers"][0]["env"]:
        if variable["name"] == "ARGO_TEMPLATE":
            variable["value"] = "offloaded"
    body = {
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": pod["metadata"]["name"]}, "data": {"ARGO_TEMPLATE": text},
    }  # fmt: skip
    await cluster.client.create(CONFIG_MAPS, body, namespace="pipelines")
    assert marks(await parts.decide(await cluster.hold(pod))) == ("run", "template-unreadable")


async def test_a_step_is_recorded_although_the_database_was_away_for_long(cluster, parts, monkeypatch):
    monkeypatch.setattr("cache_server.recorder._PATIENCE", 0.0)
    pod = await parts.decide(await cluster.held_pod())
    ended = await cluster.run(pod, OUTPUTS)
    recorder = parts.recorder
    blocker = sqlite3.connect(cluster.state / "cache.db", isolation_level=None)
    blocker.execute("ALTER TABLE entries RENAME TO elsewhere")
    recorder.see(ended)
    async with asyncio.timeout(10):
        while ended["metadata"]["uid"] in recorder._seen:  # noqa: ASYNC110 (no event to wait for)
            await asyncio.sleep(0.01)
    blocker.execute("ALTER TABLE elsewhere RENAME TO entries")
    blocker.close()
    async with asyncio.timeout(10):
        while ended["metadata"]["uid"] in recorder._jobs:  # noqa: ASYNC110 (no event to wait for)
            await asyncio.sleep(0.01)
    assert await parts.record(ended) is not None


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
