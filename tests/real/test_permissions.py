"""Each component under its own account: what it may do is needed, and what it needs is not missing."""

import asyncio
import copy
import uuid
from datetime import UTC, datetime, timedelta

import pytest

from memopod.kube import CONFIG_MAPS, PODS, TASK_RESULTS, Forbidden
from memopod.sandbox.control_plane import permissions
from memopod.steps import names, read_step
from memopod.steps.finish import task_result
from memopod.steps.times import to_text
from tests.real.argo import Step, only_default_artifact
from tests.real.cluster import until
from tests.real.proxy import answer, matching


def granted(documents, role):
    """(verb, resource) of the rules of a ClusterRole or Role."""
    return {
        (verb, resource)
        for document in documents
        if document["kind"] in ("ClusterRole", "Role") and document["metadata"]["name"] == role
        for rule in document["rules"]
        for verb in rule["verbs"]
        for resource in rule["resources"]
    }


def used(proxy):
    return {(request.verb, request.resource) for request in proxy.seen}


def refused(proxy):
    return {(request.verb, request.resource) for request in proxy.seen if request.status in (401, 403)}


def salted(sample):
    """A step that nobody ran before."""
    change = only_default_artifact if sample == "artifacts.make" else None
    return Step(sample=sample, annotations={names.SALT: uuid.uuid4().hex}, change=change)


async def exercise(cluster, proxy, argo):
    """Everything that a cache server does: record, reuse, release, start its watches anew."""
    for sample in ("artifacts.make", "parameters.make", "offloaded"):
        await argo.submit(salted(sample))
    again = salted("parameters.make")
    first = await argo.submit(again)
    await first.until(lambda: first.over, "it ran", limit=60)
    # A conflict makes it read the Pod again; versions that are too old make it list again.
    proxy.rule(matching("patch", resource="pods/status"), answer(409), times=1)
    await argo.submit(again)
    proxy.rule(matching("watch"), answer(410), times=2)
    proxy.cut_watches()


async def test_a_cache_server_uses_all_that_it_may_do_and_nothing_else(cluster, play, proxy):
    may = server_may(permissions())
    server = await cluster.cache_server(server=proxy.url)
    argo, _ = await play()
    await exercise(cluster, proxy, argo)
    await until(lambda: may <= used(proxy), "everything that it may do was done")
    assert used(proxy) <= may
    assert refused(proxy) == set()
    assert server.lines("reused")


async def test_each_permission_that_is_taken_away_is_missed(cluster, play, proxy):
    """Taken from a server that runs, one by one, and given back: no step is lost by it."""
    documents = permissions()
    server = await cluster.cache_server(server=proxy.url)
    argo, _ = await play()
    # The Lease is used by its holder alone; what a Namespace says is remembered for a while.
    remembered = {(verb, "leases") for verb in ("get", "create", "update")} | {("get", "namespaces")}
    for verb, resource in sorted(server_may(documents) - remembered):
        await cluster.permit(lambda d, r=resource, v=verb: without(d, r, v))
        await exercise_until_missed(cluster, proxy, argo, (verb, resource))
        await cluster.permit()
    for run in argo.runs.values():
        assert await run.end(60) == "Succeeded"
    assert server.process.poll() is None


async def exercise_until_missed(cluster, proxy, argo, missing):
    proxy.heal()
    proxy.seen.clear()
    task = asyncio.create_task(exercise(cluster, proxy, argo))
    try:
        await until(lambda: missing in refused(proxy), f"{missing} is missed")
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    proxy.heal()


def server_may(documents):
    return granted(documents, "memopod-cache-server") | granted(documents, "cache-server")


async def test_the_janitor_uses_all_that_it_may_do_and_nothing_else(cluster, play, proxy):
    """One Pod is released, another finished: a WorkflowTaskResult of memopod's stands beside it."""
    may = granted(permissions(), "memopod-janitor")
    argo, kubelet = await play()
    finished = await argo.submit(Step(change=held_until(timedelta(minutes=5))))
    await finished.until(lambda: "make" in finished.pods, "there is a Pod")
    step = read_step(finished.pods["make"])
    result = task_result(step, {}, entry="e", source_pod="earlier", source_execution="w/n")
    await cluster.admin.create(TASK_RESULTS, result, namespace=cluster.pipelines)
    until_then = {"metadata": {"annotations": held_annotations(-timedelta(minutes=1))}}
    await cluster.admin.patch(PODS, finished.pod_name(), until_then, namespace=cluster.pipelines)
    proxy.rule(matching("patch", resource="pods/status"), answer(409), times=1)
    await cluster.janitor("--claim-wait", "0.1", server=proxy.url)
    left = await argo.submit(Step(change=held_until(-timedelta(minutes=1))))
    assert await left.end() == "Succeeded"
    assert await finished.end() == "Succeeded"
    assert kubelet.ran == [left.pod_name()]
    await until(lambda: may <= used(proxy), "everything that it may do was done")
    assert refused(proxy) == set()
    assert used(proxy) <= may


async def test_nobody_reads_secrets_or_writes_what_is_not_its_own(cluster):
    for account in ("cache-server", "janitor", "metadata-writer"):
        client = await cluster.client(account)
        with pytest.raises(Forbidden):
            await client.list(CONFIG_MAPS, namespace=cluster.pipelines)
        with pytest.raises(Forbidden):
            await client.delete(PODS, "any", namespace=cluster.pipelines)
        with pytest.raises(Forbidden):
            await client.delete(TASK_RESULTS, "any", namespace=cluster.pipelines)
    janitor = await cluster.client("janitor")
    with pytest.raises(Forbidden):
        await janitor.create(TASK_RESULTS, {"metadata": {"name": "x"}}, namespace=cluster.pipelines)


def held_annotations(ahead):
    return {names.HOLD_UNTIL: to_text(datetime.now(UTC) + ahead)}


def held_until(ahead):
    """Hold a Pod as the webhook does, until so long from now."""

    def change(pod):
        pod["spec"]["schedulingGates"] = [{"name": names.GATE}]
        pod["metadata"]["labels"][names.STEP_LABEL] = names.HELD
        pod["metadata"]["annotations"] |= held_annotations(ahead)

    return change


def without(documents, resource, verb):
    changed = copy.deepcopy(documents)
    for document in changed:
        for rule in document.get("rules", ()):
            if rule["resources"] == [resource] and verb in rule["verbs"]:
                rule["verbs"].remove(verb)
        if "rules" in document:
            document["rules"] = [rule for rule in document["rules"] if rule["verbs"]]
    return changed
