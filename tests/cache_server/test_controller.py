"""The decision for a held Pod: whether it is reused, and why not."""

import asyncio
import json
import sqlite3
from datetime import UTC, datetime, timedelta

import pytest

from cache_server.finish import is_held
from cache_server.sweeper import Sweeper
from memopod.kube import (
    CONFIG_MAPS,
    EVENTS,
    NAMESPACES,
    PODS,
    Forbidden,
    NotFound,
    fetch_outputs,
)
from memopod.steps import names, read_step
from memopod.steps.staleness import StalenessRules
from tests.cache_server.marks import OUTPUTS, marks, state


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


async def test_a_held_pod_that_is_being_deleted_is_left_alone(cluster, parts):
    def finalized(pod):
        pod["metadata"]["finalizers"] = ["workflows.argoproj.io/status"]

    pod = await cluster.held_pod(change=finalized)
    await cluster.client.delete(PODS, pod["metadata"]["name"], namespace="pipelines", grace_seconds=0)
    pod = await cluster.get(pod)
    cluster.client.writes.clear()
    assert is_held(await parts.decide(pod))
    assert cluster.client.writes == []


async def test_a_pod_that_somebody_claimed_is_not_reused_any_more(cluster, parts):
    await parts.entry(OUTPUTS)

    pod = await cluster.held_pod()
    claim = {"metadata": {"annotations": {names.CLAIMED_BY: f"s/{datetime.now(UTC).isoformat()}"}}}
    pod = await cluster.client.patch(PODS, pod["metadata"]["name"], claim, namespace="pipelines")
    assert marks(await parts.decide(pod)) == ("run", "too-late")


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
