import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from cache_server.entries.candidates import InDatabase
from cache_server.why import Unknown, Why
from memopod.kube import PODS
from memopod.steps import names
from memopod.steps.key import KEY_VERSION

OUTPUTS = {"parameters": [{"name": "Output", "value": "hello", "valueFrom": {"path": "/tmp/o"}}]}
SECRET = "hunter2"


@pytest.fixture
def explainer(cluster, parts):
    return Why(InDatabase(parts.entries.database), cluster.client)


def edit(old, new):
    """An edit of the manifest: Argo writes it into the template and the Pod."""

    def change(pod):
        edited = json.loads(json.dumps(pod).replace(old, new))
        pod.clear()
        pod.update(edited)

    return change


async def explained(explainer, pod):
    return await explainer.pod("pipelines", pod["metadata"]["name"])


async def test_a_miss_is_explained_by_the_nearest_earlier_run_with_both_values(cluster, parts, explainer):
    entry = await parts.entry(OUTPUTS)
    pod = await parts.decide(await cluster.held_pod(change=edit("python:3.9", "python:3.12")))
    found = await explained(explainer, pod)
    assert (found.decision, found.reason, found.sentence) == ("run", "miss", "no entry has this key")
    assert found.nearest.id == entry.id
    [difference] = found.differences
    assert difference.cause.sentence == "image of main changed"
    assert (difference.old, difference.new) == ("python:3.9", "python:3.12")
    assert found.whole


async def test_of_several_earlier_runs_the_nearest_one_is_compared(cluster, parts, explainer):
    def far(pod):
        edit("python:3.9", "python:3.12")(pod)
        pod["spec"]["serviceAccountName"] = "other"

    def salted(pod):
        pod["metadata"]["annotations"][names.SALT] = "1"

    near = await parts.entry(OUTPUTS, finished=datetime.now(UTC) - timedelta(hours=1))
    await parts.entry(OUTPUTS, change=far)
    found = await explained(explainer, await parts.decide(await cluster.held_pod(change=salted)))
    assert found.nearest.id == near.id
    assert [d.cause.subject for d in found.differences] == ["salt (annotation memopod.io/salt)"]


async def test_without_the_earlier_pod_the_digest_that_ran_is_still_known(cluster, parts, explainer):
    entry = await parts.entry(OUTPUTS)
    await cluster.client.delete(PODS, entry.pod_name, namespace="pipelines")
    pod = await parts.decide(await cluster.held_pod(change=edit("python:3.9", "python:3.12")))
    [difference] = (await explained(explainer, pod)).differences
    assert (difference.old, difference.new) == (entry.image_id, "python:3.12")


async def test_a_pod_of_the_same_name_as_the_earlier_one_is_not_taken_for_it(cluster, parts, explainer):
    entry = await parts.entry(OUTPUTS)
    theirs = await cluster.client.get(PODS, entry.pod_name, namespace="pipelines")
    await cluster.client.delete(PODS, entry.pod_name, namespace="pipelines")
    edit("python:3.9", "not-the-one-that-ran")(theirs)
    metadata = {k: theirs["metadata"][k] for k in ("name", "namespace", "ownerReferences", "annotations")}
    theirs = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": theirs["spec"]}
    await cluster.client.create(PODS, theirs, namespace="pipelines")
    pod = await parts.decide(await cluster.held_pod(change=edit("python:3.9", "python:3.12")))
    [difference] = (await explained(explainer, pod)).differences
    assert difference.old == entry.image_id


@pytest.mark.parametrize("kind", ["argument", "variable", "script", "Secret"])
async def test_what_may_be_secret_is_told_by_its_place_alone(cluster, parts, explainer, kind):
    def change(value):
        def change(pod):
            main = next(c for c in pod["spec"]["containers"] if c["name"] == "main")
            if kind == "argument":
                main["args"] = ["--password", value]
            elif kind == "script":
                edit('\\"container\\":', f'\\"script\\":{{\\"source\\":\\"{value}\\"}},\\"container\\":')(pod)
            elif kind == "variable":
                main["env"].append({"name": "PASSWORD", "value": value})
            else:
                reference = {"secretKeyRef": {"name": "credentials", "key": f"key-{len(value)}"}}
                main["env"].append({"name": "PASSWORD", "valueFrom": reference})

        return change

    await parts.entry(OUTPUTS, change=change("other"))
    found = await explained(explainer, await parts.decide(await cluster.held_pod(change=change(SECRET))))
    difference = found.differences[0]
    told = f"{difference.cause} {difference.old} {difference.new}"
    assert SECRET not in told
    assert "other" not in told
    expected = {
        "argument": "word 2 of 2 (not shown)",
        "variable": "PASSWORD (value not shown)",
        "script": "1 lines (not shown)",
        "Secret": "PASSWORD (from Secret credentials, key key-7)",
    }
    assert difference.new == expected[kind]


async def test_a_reused_pod_says_whose_outputs_it_has(cluster, parts, explainer):
    entry = await parts.entry(OUTPUTS)
    found = await explained(explainer, await parts.decide(await cluster.held_pod()))
    assert (found.decision, found.entry, found.source_pod) == ("reuse", entry.id, entry.pod_name)
    assert found.nearest is None


async def test_a_step_without_a_key_says_why(cluster, explainer):
    def mount(pod):
        pod["spec"]["volumes"].append({"name": "c", "persistentVolumeClaim": {"claimName": "c"}})
        main = next(c for c in pod["spec"]["containers"] if c["name"] == "main")
        main["volumeMounts"].append({"name": "c", "mountPath": "/c"})

    found = await explained(explainer, await cluster.held_pod(change=mount))
    assert (found.decision, found.reason, found.nearest) == ("run", "volume", None)


async def test_a_step_that_nobody_decided_for_is_compared_as_far_as_its_pod_tells(cluster, parts, explainer):
    await parts.entry(OUTPUTS)
    pod = await cluster.hold(
        cluster.pod_of(await cluster.workflow(), change=edit("python:3.9", "python:3.12")), alive=False
    )
    found = await explained(explainer, pod)
    assert (found.reason, found.whole) == ("no-controller", False)
    assert [d.cause.sentence for d in found.differences] == ["image of main changed"]


async def test_an_entrys_key_is_compared_with_the_run_before_it(cluster, parts, explainer):
    first = await parts.entry(OUTPUTS, finished=datetime.now(UTC) - timedelta(hours=1))
    second = await parts.entry(OUTPUTS, change=edit("python:3.9", "python:3.12"))
    found = await explainer.key(second.key)
    assert (found.entry, found.nearest.id) == (second.id, first.id)
    assert [d.cause.sentence for d in found.differences] == ["image of main changed"]
    assert (await explainer.key(first.key)).nearest is None


async def test_a_pod_that_is_gone_is_explained_by_the_entry_that_it_left(cluster, parts, explainer):
    entry = await parts.entry(OUTPUTS)
    await cluster.client.delete(PODS, entry.pod_name, namespace="pipelines")
    found = await explainer.pod("pipelines", entry.pod_name)
    assert (found.entry, found.key) == (entry.id, entry.key)
    with pytest.raises(Unknown, match="no Pod nobody in namespace pipelines"):
        await explainer.pod("pipelines", "nobody")
    with pytest.raises(Unknown, match="no entry has this key"):
        await explainer.key("0" * 64)


async def test_an_entry_of_other_rules_is_told_by_their_version(cluster, parts, explainer):
    entry = await parts.entry(OUTPUTS)
    await parts.entries.retire(entry.id, "test")
    await parts.entries.put(replace(entry, key="0" * 64, key_version=1, pod_uid="other"))
    found = await explained(explainer, await parts.decide(await cluster.held_pod()))
    [difference] = found.differences
    assert (difference.cause.subject, difference.old, difference.new) == (
        "version of the key's rules",
        "1",
        str(KEY_VERSION),
    )


async def test_what_ran_later_with_the_same_key_is_no_earlier_run(cluster, parts, explainer):
    pod = await parts.decide(await cluster.held_pod())
    started = {"status": {"startTime": "2026-01-02T03:04:05Z"}}
    name = pod["metadata"]["name"]
    pod = await cluster.client.patch(PODS, name, started, namespace="pipelines", subresource="status")
    hour = timedelta(hours=1)
    before = await parts.entry(
        OUTPUTS, finished=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC) - hour, change=edit("3.9", "3.8")
    )
    await parts.entry(OUTPUTS)
    found = await explained(explainer, pod)
    assert found.nearest.id == before.id
    assert [d.cause.sentence for d in found.differences] == ["image of main changed"]


async def test_a_refused_reuse_is_not_explained_by_what_differs_from_other_runs(cluster, parts, explainer):
    await parts.entry(OUTPUTS, change=edit("3.9", "3.8"))
    await parts.entry(OUTPUTS, finished=datetime.now(UTC) - timedelta(hours=1))

    def limited(pod):
        pod["metadata"]["annotations"][names.MAX_STALENESS] = "PT1S"

    pod = await parts.decide(await cluster.held_pod(change=limited))
    found = await explained(explainer, pod)
    assert (found.reason, found.differences) == ("stale", ())
    assert found.nearest is not None, "the entry that was too old"
    assert await parts.record(await cluster.run(pod, OUTPUTS))
    found = await explained(explainer, pod)
    assert (found.reason, found.nearest, found.differences) == ("stale", None, ())
