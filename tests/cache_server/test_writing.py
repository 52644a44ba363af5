"""What was decided is written, whatever the API server answers: reused whole, or run as written."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from cache_server.finish import go_forward, is_held
from cache_server.sweeper import Sweeper
from memopod.kube import (
    PODS,
    TASK_RESULTS,
    ApiError,
    Conflict,
    Invalid,
    NotFound,
    Unavailable,
)
from memopod.steps import names
from tests.cache_server.marks import OUTPUTS, marks, state


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


@pytest.mark.parametrize("status", [400, 403, 413, 422, 404])
async def test_a_result_that_the_server_refuses_means_that_the_step_runs(cluster, parts, status):
    await parts.entry(OUTPUTS)
    pod = await cluster.held_pod()

    cluster.client.refuse("create workflowtaskresults", ApiError("refused", status=status, reason="Refused"))
    assert marks(await parts.decide(pod)) == ("run", "result-refused")


@pytest.mark.parametrize("late", [0, 22], ids=["early", "late"])
async def test_a_server_that_fails_to_write_a_result_means_that_the_step_runs(cluster, parts, late):
    await parts.entry(OUTPUTS)
    pod = await cluster.held_pod(now=datetime.now(UTC) - timedelta(seconds=late))
    cluster.client.writes.clear()

    error = Unavailable("internal error", status=500, reason="InternalError")
    cluster.client.refuse("create workflowtaskresults", error)
    released = await parts.decide(pod)
    assert marks(released) == ("run", "result-refused")
    assert cluster.client.writes.count("create workflowtaskresults") < 8, "not without a pause"


@pytest.mark.parametrize("status", [0, 408, 409, 429, 499, 504])
async def test_a_result_that_is_there_after_all_is_never_run_over(cluster, parts, status):
    """What looks like a refusal may come from a proxy that gave up waiting for who creates it."""
    await parts.entry(OUTPUTS)
    pod = await cluster.held_pod()

    async def late(write, call):
        if write == "create workflowtaskresults":
            cluster.client.fault = None
            await call()
            raise ApiError("no answer", status=status, reason="Late")
        return await call()

    cluster.client.fault = late
    assert state(await parts.decide(pod)) == names.REUSED


async def test_a_pod_whose_gate_may_be_lifted_any_moment_is_not_reused(cluster, parts):
    pod = await cluster.held_pod()

    async def lose(write, call):
        if write == "patch pods":
            raise Unavailable("no answer", reason="Timeout")
        return await call()

    cluster.client.fault = lose
    parts.controller.see(pod)
    async with asyncio.timeout(30):
        while not parts.controller._leaving:  # noqa: ASYNC110 (no event to wait for)
            await asyncio.sleep(0.01)
    cluster.client.fault = None
    mine, parts.controller = parts.controller, None
    parts.again()
    await parts.entry(OUTPUTS)
    cluster.client.writes.clear()
    mine.see(pod)
    await mine.drain(30.0)
    assert marks(await cluster.get(pod)) == ("run", "too-late")
    assert cluster.client.writes == ["patch pods"]


@pytest.mark.parametrize("cut", [False, True], ids=["ended", "cut"])
async def test_another_may_lead_at_once_only_if_no_write_is_under_way(cluster, parts, cut):
    pod = await cluster.held_pod()
    sent, answered = asyncio.Event(), asyncio.Event()

    async def slow(write, call):
        sent.set()
        await answered.wait()
        return await call()

    cluster.client.fault = slow
    assert not parts.controller.ended_cleanly(), "it was not drained"
    parts.controller.see(pod)
    await asyncio.wait_for(sent.wait(), 30)
    if not cut:
        answered.set()
    await parts.controller.drain(0.05 if cut else 30.0)
    assert parts.controller.ended_cleanly() is not cut


async def test_a_result_that_etcd_finds_too_large_is_not_tried_again(cluster, parts):
    await parts.entry(OUTPUTS)
    pod = await cluster.held_pod()
    cluster.client.writes.clear()

    error = Unavailable("500: etcdserver: request is too large", status=500, reason="InternalError")
    cluster.client.refuse("create workflowtaskresults", error)
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


async def test_pods_that_are_finished_again_ask_the_server_no_more_at_once_than_they_write(
    cluster, parts, monkeypatch
):
    entry = await parts.entry(OUTPUTS)
    pods = [await cluster.held_pod(node=str(n)) for n in range(6)]
    get, asking, most = cluster.client.get, [], []
    refused = set()

    async def refuse_once(write, call):
        if write == "patch status pods" and len(refused) < len(pods):
            refused.add(len(refused))
            raise Conflict("the object has been modified", status=409, reason="Conflict")
        return await call()

    async def count(resource, *arguments, **options):
        asking.append(resource)
        most.append(len(asking))
        try:
            await asyncio.sleep(0.3)  # a slow server
            return await get(resource, *arguments, **options)
        finally:
            asking.pop()

    cluster.client.fault = refuse_once
    monkeypatch.setattr(cluster.client, "get", count)
    result = {"metadata": {"labels": {names.ENTRY: entry.id}}, "outputs": OUTPUTS}
    slots = asyncio.Semaphore(2)
    finishing = (go_forward(cluster.client, pod, result, slots=slots) for pod in pods)
    async with asyncio.timeout(30):
        assert all(await asyncio.gather(*finishing))
    assert len(most) == len(pods)
    assert max(most) <= 2


async def test_a_decision_that_is_of_no_use_has_ended_when_its_pod_is_done_with(cluster, parts, monkeypatch):
    pod = await cluster.held_pod()
    began, ended = asyncio.Event(), asyncio.Event()

    async def decide(_pod):
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)
            ended.set()

    async def unanswered(*_arguments, **_options):
        await began.wait()
        raise Unavailable("no answer", reason="Timeout")

    monkeypatch.setattr(parts.decider, "decide", decide)
    monkeypatch.setattr(cluster.client, "get", unanswered)
    parts.controller.see(pod)
    await parts.controller.drain(30.0)
    assert ended.is_set()
