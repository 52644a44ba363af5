"""Identical steps of several workflows: one runs, the others wait for it. With whole replicas."""

import asyncio
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta

import pytest

from cache_server.completion import Completer
from cache_server.entries import open_entries
from cache_server.finish import is_held
from cache_server.pods import SELECTOR, Pods
from cache_server.sweeper import Sweeper
from cache_server.waiting import ACROSS_WORKFLOWS, WaitRules
from memopod.kube import EVENTS, PODS, Informer
from memopod.steps import names
from memopod.steps.times import from_text, to_text

OUTPUTS = {"parameters": [{"name": "Output", "value": "hello", "valueFrom": {"path": "/tmp/o"}}]}
NAMESPACE = "pipelines"
RULES = WaitRules(scope=ACROSS_WORKFLOWS)


class Replica:
    """A cache server without its webhook: it follows the cluster, and acts while it leads."""

    def __init__(self, cluster, parts):
        self.parts = parts
        sweeper = Sweeper(cluster.client, identity=f"replica-{id(self)}", claim_wait=0.2)
        completer = Completer(
            cluster.client, parts.entries, secret=b"s" * 32, leads=lambda: parts.leading, concurrency=8
        )
        self.pods = Pods(parts.controller, parts.recorder, completer, sweeper)
        self.informer = Informer(
            cluster.client, PODS, namespace=NAMESPACE, label_selector=SELECTOR, on_event=self.pods.on_event
        )

    async def start(self):
        self.tasks = [
            asyncio.create_task(self.informer.run(), name="informer"),
            asyncio.create_task(self.pods.look_regularly(self.informer), name="look"),
        ]
        await asyncio.wait_for(self.informer.synced.wait(), 20)

    async def stop(self):
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.pods.drain()


class Replicas:
    """Several of them, of which one leads; what the cluster shows is waited for."""

    def __init__(self, cluster, bucket, entries, stack, parts_type):
        self.cluster, self.bucket, self.entries, self.stack = cluster, bucket, entries, stack
        self.parts_type = parts_type

    async def start(self, *, leads=True, rules=RULES):
        parts = self.parts_type(self.cluster, self.entries, self.bucket, wait_rules=rules)
        parts.leading = leads
        replica = Replica(self.cluster, parts)
        await replica.start()
        self.stack.push_async_callback(replica.stop)
        return replica

    async def pods(self):
        return (await self.cluster.client.list(PODS, namespace=NAMESPACE))["items"]

    async def until(self, condition, seconds=25):
        async with asyncio.timeout(seconds):
            while not condition(pods := {p["metadata"]["name"]: p for p in await self.pods()}):  # noqa: ASYNC110 (polls a server)
                await asyncio.sleep(0.02)
        return pods


@pytest.fixture
async def replicas(cluster, bucket, parts):
    async with AsyncExitStack() as stack:
        url = f"sqlite:///{cluster.state / 'shared.db'}"
        entries = await stack.enter_async_context(open_entries(url))
        yield Replicas(cluster, bucket, entries, stack, type(parts))


def waits_for(pod):
    return pod["metadata"]["annotations"].get(names.WAITS_FOR) if is_held(pod) else None


def runs(pod):
    return pod["metadata"]["labels"].get(names.STEP_LABEL) == names.RELEASED


def reused(pod):
    return pod["metadata"]["labels"].get(names.STEP_LABEL) == names.REUSED


def reason(pod):
    return pod["metadata"]["annotations"].get(names.REASON)


def settled(pods):
    """One or more run, all others wait."""
    return sum(map(runs, pods.values())) and all(runs(p) or waits_for(p) for p in pods.values())


async def begin(cluster, pod):
    """Play scheduler and kubelet: the Pod's containers start."""
    name = pod["metadata"]["name"]
    await cluster.client.patch(PODS, name, {"spec": {"nodeName": "node-1"}}, namespace=NAMESPACE)
    status = {"status": {"phase": "Running"}}
    return await cluster.client.patch(PODS, name, status, namespace=NAMESPACE, subresource="status")


async def fail(cluster, pod):
    name = pod["metadata"]["name"]
    status = {"status": {"phase": "Failed"}}
    return await cluster.client.patch(PODS, name, status, namespace=NAMESPACE, subresource="status")


async def several(cluster, count):
    pods = await asyncio.gather(*(cluster.held_pod() for _ in range(count)))
    return [pod["metadata"]["name"] for pod in pods]


async def test_of_identical_steps_held_at_once_one_runs_and_all_others_are_reused(cluster, replicas):
    await several(cluster, 12)
    cluster.client.writes.clear()
    await replicas.start()
    pods = await replicas.until(settled)
    [running] = filter(runs, pods.values())
    assert {waits_for(p) for p in pods.values() if is_held(p)} == {running["metadata"]["name"]}
    assert cluster.client.writes.count("patch pods") == 12, "each is released or waits, with one write"
    await begin(cluster, running)
    cluster.client.writes.clear()
    await cluster.run(running, OUTPUTS)
    pods = await replicas.until(lambda pods: sum(map(reused, pods.values())) == 11)
    assert {p["metadata"]["annotations"][names.SOURCE_POD] for p in pods.values() if reused(p)} == {
        running["metadata"]["name"]
    }
    results = cluster.client.writes.count("create workflowtaskresults")
    assert results == 12, "eleven of ours, and that of the executor"


async def test_the_oldest_of_them_runs(cluster, replicas):
    first = (await several(cluster, 1))[0]
    await asyncio.sleep(1.1)  # creation times are whole seconds
    await several(cluster, 8)
    await replicas.start()
    pods = await replicas.until(settled)
    assert [name for name, pod in pods.items() if runs(pod)] == [first]


async def test_a_waiter_says_for_whom_it_waits(cluster, replicas):
    await several(cluster, 2)
    await replicas.start()
    pods = await replicas.until(settled)
    [running], [waiter] = filter(runs, pods.values()), filter(waits_for, pods.values())
    until = from_text(waiter["metadata"]["annotations"][names.HOLD_UNTIL])
    assert timedelta(seconds=40) < until - datetime.now(UTC) <= timedelta(seconds=60)

    async def told():
        events = (await cluster.client.list(EVENTS, namespace=NAMESPACE))["items"]
        return [e for e in events if e["involvedObject"]["uid"] == waiter["metadata"]["uid"]]

    async with asyncio.timeout(20):
        while not (events := await told()):  # noqa: ASYNC110 (polls a server)
            await asyncio.sleep(0.02)
    assert [e["reason"] for e in events] == ["Waiting"]
    assert running["metadata"]["name"] in events[0]["message"]


@pytest.mark.parametrize("end", ["failed", "gone", "no-entry"])
async def test_when_the_awaited_comes_to_nothing_all_run(cluster, replicas, end):
    await several(cluster, 4)
    await replicas.start()
    pods = await replicas.until(settled)
    [running] = filter(runs, pods.values())
    name = running["metadata"]["name"]
    await begin(cluster, running)
    if end == "failed":
        await fail(cluster, running)
    elif end == "gone":
        await cluster.client.delete(PODS, name, namespace=NAMESPACE, grace_seconds=0)
    else:
        await cluster.run(running, {"parameters": [{"name": "another", "value": "1"}]})
    pods = await replicas.until(lambda pods: all(map(runs, pods.values())))
    pods.pop(name, None)
    assert {reason(p) for p in pods.values()} == {f"awaited-{end}"}
    [late] = await several(cluster, 1)
    pods = await replicas.until(lambda pods: runs(pods[late]))
    assert reason(pods[late]) == "miss", "the key is not waited for again for a while"


async def test_without_the_setting_nobody_waits(cluster, replicas):
    await several(cluster, 3)
    await replicas.start(rules=WaitRules())
    pods = await replicas.until(lambda pods: all(map(runs, pods.values())))
    assert {reason(p) for p in pods.values()} == {"miss"}


async def test_a_step_can_ask_for_it_alone(cluster, replicas):
    def asks(pod):
        pod["metadata"]["annotations"][names.COALESCE] = ACROSS_WORKFLOWS

    await replicas.start(rules=WaitRules())
    first = await cluster.held_pod()
    await replicas.until(lambda pods: all(map(runs, pods.values())))
    second = await cluster.held_pod(change=asks)
    pods = await replicas.until(lambda pods: waits_for(pods[second["metadata"]["name"]]))
    assert waits_for(pods[second["metadata"]["name"]]) == first["metadata"]["name"]


async def test_a_waiter_gets_more_time_before_its_time_is_over(cluster, replicas):
    await several(cluster, 2)
    await replicas.start()
    pods = await replicas.until(settled)
    [running], [waiter] = filter(runs, pods.values()), filter(waits_for, pods.values())
    await begin(cluster, running)
    name = waiter["metadata"]["name"]
    soon = to_text(datetime.now(UTC) + timedelta(seconds=20))
    changed = {"metadata": {"annotations": {names.HOLD_UNTIL: soon}}}
    await cluster.client.patch(PODS, name, changed, namespace=NAMESPACE)

    def renewed(pods):
        until = from_text(pods[name]["metadata"]["annotations"][names.HOLD_UNTIL])
        return until - datetime.now(UTC) > timedelta(seconds=40)

    pods = await replicas.until(renewed)
    assert waits_for(pods[name])


async def test_a_waiter_without_a_leader_is_let_go_when_its_time_is_over(cluster, replicas):
    await several(cluster, 2)
    replica = await replicas.start()
    pods = await replicas.until(settled)
    [waiter] = filter(waits_for, pods.values())
    name = waiter["metadata"]["name"]
    replica.parts.leading = False
    past = {"metadata": {"annotations": {names.HOLD_UNTIL: to_text(datetime.now(UTC))}}}
    await cluster.client.patch(PODS, name, past, namespace=NAMESPACE)
    pods = await replicas.until(lambda pods: runs(pods[name]))
    assert reason(pods[name]) == "overdue"


async def test_a_waiter_whose_image_is_changed_is_decided_for_as_what_it_is_then(cluster, replicas):
    await several(cluster, 2)
    await replicas.start()
    pods = await replicas.until(settled)
    [running], [waiter] = filter(runs, pods.values()), filter(waits_for, pods.values())
    name = waiter["metadata"]["name"]
    change = [{"op": "replace", "path": "/spec/containers/1/image", "value": "other:1"}]
    await cluster.client.patch(PODS, name, change, namespace=NAMESPACE)
    await begin(cluster, running)
    await cluster.run(running, OUTPUTS)
    pods = await replicas.until(lambda pods: not is_held(pods[name]))
    assert runs(pods[name]), "another image is another step, whatever it waited for"


@pytest.mark.parametrize("after", range(1, 9))
async def test_across_a_failover_one_more_execution_at_most_and_nobody_waits_for_ever(
    cluster, replicas, after
):
    """The leader falls silent after each of its writes in turn, with others of it under way."""
    old, new = await replicas.start(), await replicas.start(leads=False)
    left = iter(range(after))

    async def silent_after(write, call):
        if old.parts.leading and next(left, None) is None:
            old.parts.leading = False
        return await call()

    cluster.client.fault = silent_after
    await several(cluster, 8)
    await replicas.until(lambda _: not old.parts.leading or after > 8)
    cluster.client.fault = None
    old.parts.leading = False
    new.parts.leading = True
    pods = await replicas.until(settled)
    running = [p for p in pods.values() if runs(p)]
    assert 1 <= len(running) <= 2, "the first one, and one more for the failover"
    for pod in running:
        await begin(cluster, pod)
        await cluster.run(pod, OUTPUTS)
    pods = await replicas.until(lambda pods: not any(map(is_held, pods.values())))
    assert sum(map(runs, pods.values())) == len(running)
    assert sum(map(reused, pods.values())) == 8 - len(running)
