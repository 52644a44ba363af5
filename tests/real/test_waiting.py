"""Identical steps of several workflows: one execution serves them all, and a failover costs one more."""

import asyncio
import signal

import pytest

from memopod.kube import EVENTS
from memopod.steps import names
from tests.real.argo import Step
from tests.real.cluster import until

COALESCE = ("--coalesce", "across-workflows")


class Gate:
    """Steps run until it is opened."""

    def __init__(self):
        self.open = asyncio.Event()

    async def __call__(self, _pod):
        await self.open.wait()


async def marks(cluster):
    """Of every Pod: whether it is held, and for whom it waits."""
    pods = await cluster.pods()
    return [
        (bool(p["spec"].get("schedulingGates")), p["metadata"]["annotations"].get(names.WAITS_FOR))
        for p in pods
    ]


def one_runs_the_others_wait(cluster, count):
    async def settled():
        found = await marks(cluster)
        running = [mark for mark in found if not mark[0]]
        return len(found) == count and running and all(held is False or waits for held, waits in found)

    return settled


async def test_one_execution_serves_all_that_wait_for_it(cluster, play):
    await cluster.cache_server(*COALESCE)
    gate = Gate()
    argo, kubelet = await play(takes=gate)
    runs = await asyncio.gather(*(argo.submit(Step()) for _ in range(8)))
    await until(one_runs_the_others_wait(cluster, 8), "one runs, seven wait")
    [executed] = {waits for held, waits in await marks(cluster) if held}
    gate.open.set()
    assert [await run.end() for run in runs] == ["Succeeded"] * 8
    assert kubelet.ran == [executed]
    outputs = [run.nodes["make"].outputs for run in runs]
    assert all(out == outputs[0] for out in outputs)
    events = (await cluster.admin.list(EVENTS, namespace=cluster.pipelines))["items"]
    waiting = [e for e in events if e["reason"] == "Waiting"]
    assert len(waiting) == 7
    assert all(executed in e["message"] for e in waiting)


async def test_siblings_of_one_workflow_do_not_wait_for_each_other(cluster, play):
    await cluster.cache_server(*COALESCE)
    gate = Gate()
    argo, kubelet = await play(takes=gate)
    # Another name in the workflow, the same step.
    run = await argo.submit(Step(name="make"), Step(name="again", sample="parameters.make"))
    await until(lambda: len(kubelet.ran) == 2, "both run, since each might need the other")
    assert set(kubelet.ran) == {run.pod_name("make"), run.pod_name("again")}
    gate.open.set()
    assert await run.end() == "Succeeded"


async def test_when_the_awaited_step_fails_all_others_run(cluster, play):
    await cluster.cache_server(*COALESCE)
    gate = Gate()
    argo, kubelet = await play(takes=gate, fails=lambda pod: pod["metadata"]["name"] == kubelet.ran[0])
    runs = await asyncio.gather(*(argo.submit(Step()) for _ in range(4)))
    await until(one_runs_the_others_wait(cluster, 4), "one runs, three wait")
    gate.open.set()
    ends = [await run.end() for run in runs]
    assert sorted(ends) == ["Failed", "Succeeded", "Succeeded", "Succeeded"]
    assert len(kubelet.ran) == 4


@pytest.mark.parametrize("comes_back", [False, True], ids=["killed", "paused"])
@pytest.mark.parametrize("moment", ["while-deciding", "while-they-wait"])
async def test_a_failover_costs_one_more_execution_at_most(cluster, play, moment, comes_back):
    database = f"sqlite:///{cluster.folder / 'cache.db'}"
    leader = await cluster.cache_server(*COALESCE, database=database)
    other = await cluster.cache_server(*COALESCE, database=database, register=False)
    gate = Gate()
    argo, kubelet = await play(takes=gate)
    submitted = [asyncio.create_task(argo.submit(Step())) for _ in range(12)]
    runs = await asyncio.gather(*submitted)
    if moment == "while-deciding":
        # A Pod that is created while no webhook answers is not held at all, and runs.
        await until(lambda: all(run.pods for run in runs), "all Pods exist")
    else:
        await until(one_runs_the_others_wait(cluster, 12), "one runs, eleven wait")
    if comes_back:
        leader.signal(signal.SIGSTOP)
    else:
        leader.kill()
    try:
        await until(lambda: other.lines("leading"), "the other replica leads")
    finally:
        if comes_back:
            leader.signal(signal.SIGCONT)
    await until(one_runs_the_others_wait(cluster, 12), "those that were not decided for wait")
    executed = len(kubelet.ran)
    gate.open.set()
    assert [await run.end() for run in runs] == ["Succeeded"] * 12
    assert executed <= 2, "the first one, and one more for the failover"
    assert len(kubelet.ran) == executed, "nobody was let go because the leader changed"
    assert not comes_back or leader.process.poll() is None
