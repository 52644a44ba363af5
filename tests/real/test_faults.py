"""Whatever fails, memopod is never the reason that a Pod waits: none refused, none held too long, none lost.

Here each fault meets a few Pods; `make chaos-controller` has it meet fifty each second, for some seconds.
"""

import asyncio
import os
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio

from memopod.kube import PODS
from memopod.steps import names
from tests.real.argo import Step
from tests.real.cluster import until
from tests.real.proxy import answer, cut, hang, late, lose_answer, matching
from tests.real.stage import expired, kinds, overdue, staged

pytestmark = pytest.mark.asyncio(loop_scope="module")
CHAOS = os.environ.get("MEMOPOD_CHAOS") == "1"
COUNT, RATE = (400, 50) if CHAOS else (6, None)

UNANSWERED = ("entries-unavailable", "decision-timeout")
"""Reasons of decisions that the database gave no answer for."""
WRITES = matching("create", "patch", "update")
DECIDING = matching("patch", resource="pods")
FINISHING = matching("patch", resource="pods/status")
RESULTS = matching("create", resource="workflowtaskresults")
WATCHES = matching("watch")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(plane, postgresql, redis_server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stage")
    async with staged(plane, folder, postgresql, redis_server) as stage:
        yield stage


def api(matches, act, *, times=None, least=1):
    """The API server misbehaves, until so many requests have met it."""

    @asynccontextmanager
    async def fault(stage):
        before = sum(stage.api.served.values())
        stage.api.rule(matches, act, times=times)
        yield
        await until(lambda: sum(stage.api.served.values()) >= before + least, "a request met the fault")
        stage.api.heal()

    return fault


def store(act):
    @asynccontextmanager
    async def fault(stage):
        before = sum(stage.store.served.values())
        stage.store.rule(lambda request: True, act)
        yield
        await until(lambda: sum(stage.store.served.values()) > before, "the object store was asked")
        stage.store.heal()

    return fault


@asynccontextmanager
async def watches_cut(stage):
    yield
    assert await until(stage.api.cut_watches, "there is a watch to cut")


@asynccontextmanager
async def versions_gone(stage):
    stage.api.rule(WATCHES, answer(410), times=3)
    assert await until(stage.api.cut_watches, "there is a watch to cut")
    yield


@asynccontextmanager
async def database_down(stage):
    before = len(decided(stage, *UNANSWERED))
    stage.database.crash()
    yield
    await until(lambda: len(decided(stage, *UNANSWERED)) > before, "a decision missed the database")
    await asyncio.to_thread(stage.database.start)


@asynccontextmanager
async def database_slow(stage):
    """No answer at all until decisions have given up."""
    before = len(decided(stage, *UNANSWERED))
    stage.database.hang(True)
    try:
        yield
        await until(lambda: len(decided(stage, *UNANSWERED)) > before, "a decision gave up")
    finally:
        stage.database.hang(False)


@asynccontextmanager
async def database_lost(stage):
    """It answers no more in the midst of decisions, and is gone then."""
    before = len(decided(stage, *UNANSWERED))
    stage.database.hang(True)
    yield
    await until(stage.held, "decisions wait for the database")
    stage.database.hang(False)
    stage.database.crash()
    await until(lambda: len(decided(stage, *UNANSWERED)) > before, "a decision lost the database")
    await asyncio.to_thread(stage.database.start)


@asynccontextmanager
async def redis_down(stage):
    stage.redis.crash()
    yield
    await until(stage.idle, "everything is decided without Redis")
    await asyncio.to_thread(stage.redis.start)


@asynccontextmanager
async def redis_slow(stage):
    stage.redis.hang(True)
    try:
        yield
        await until(stage.idle, "everything is decided without Redis")
    finally:
        stage.redis.hang(False)


@asynccontextmanager
async def certificate_expired(stage):
    with expired(stage.cluster.plane, stage.certificate):
        await until(lambda: len(stage.server.lines("certificate reloaded")) % 2 == 1, "it is loaded")
        yield
    await until(lambda: len(stage.server.lines("certificate reloaded")) % 2 == 0, "the good one is loaded")


FAULTS = {
    "the database is down": database_down,
    "the database does not answer": database_slow,
    "the database is lost during decisions": database_lost,
    "Redis is down": redis_down,
    "Redis does not answer": redis_slow,
    "the object store cuts connections": store(cut),
    "the object store does not answer": store(hang),
    "the object store forbids": store(answer(403)),
    "the API server answers 409": api(WRITES, answer(409), times=6, least=4),
    "the API server answers 429": api(WRITES, answer(429), times=6, least=4),
    "the API server answers 500": api(WRITES, answer(500), times=6, least=4),
    "the API server answers 500 to everything": api(matching(), answer(500), times=20, least=10),
    "the API server answers 410 to lists and watches": versions_gone,
    "no gate can be lifted at first": api(DECIDING, hang, times=3, least=2),
    "no WorkflowTaskResult gets an answer": api(RESULTS, hang, times=2),
    "the answers of writes are lost": api(WRITES, lose_answer, times=5, least=3),
    "the answers of finishing are late": api(FINISHING, late(2.5), times=2),
    "nothing gets an answer for a while": api(matching(), hang, times=8, least=4),
    "the watches are cut": watches_cut,
    "the certificate has expired": certificate_expired,
}


@pytest.mark.parametrize("name", FAULTS)
async def test_no_pod_waits_because(stage, name):
    async with FAULTS[name](stage):
        runs = await stage.load(COUNT, RATE)
    await stage.check(runs)
    await recovered(stage)


async def recovered(stage):
    """A known step is held and reused again."""

    async def reused():
        run = await stage.argo.submit(kinds()[0])
        await stage.check([run])
        pod = await stage.cluster.pod(run.pod_name())
        return pod["metadata"]["labels"].get(names.STEP_LABEL) == names.REUSED

    await until(reused, "a known step is reused again")


def decided(stage, *reasons):
    return [line for line in stage.server.lines("released") if line["reason"] in reasons]


async def test_another_controllers_gate_stays_and_holds_nothing_else_up(stage):
    def gated(pod):
        pod["spec"]["schedulingGates"] = [{"name": "other.example/quota"}]

    run = await stage.argo.submit(Step(message="behind-another-gate", change=gated))

    async def left():
        pod = await stage.cluster.pod(run.pod_name())
        return pod if [g["name"] for g in pod["spec"]["schedulingGates"]] == ["other.example/quota"] else None

    await run.until(lambda: "make" in run.pods, "there is a Pod")
    pod = await until(left, "our gate is lifted, the other stays")
    assert pod["metadata"]["labels"][names.STEP_LABEL] == names.RELEASED
    lift = [{"op": "remove", "path": "/spec/schedulingGates/0"}]
    await stage.cluster.admin.patch(PODS, run.pod_name(), lift, namespace=stage.cluster.pipelines)
    await stage.check([run])


def on_a_node(pod):
    pod["spec"]["nodeName"] = "node-7"


def with_our_gate(pod):
    pod["spec"]["schedulingGates"] = [{"name": names.GATE}]


def without_labels_map(pod):
    pod["metadata"]["annotations"].pop("kubectl.kubernetes.io/default-container")


@pytest.mark.parametrize("change", [on_a_node, with_our_gate, without_labels_map])
async def test_a_pod_that_a_patch_could_have_refused_is_created_all_the_same(stage, change):
    run = await stage.argo.submit(Step(message="odd", change=change))
    await run.until(lambda: "make" in run.pods, "the Pod was accepted")
    if change is with_our_gate:
        assert await run.end(60) == "Succeeded"
        assert overdue(await stage.cluster.pod(run.pod_name())).total_seconds() < 60
