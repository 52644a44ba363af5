"""What a leader does whose watch is late, or that cannot write: no decision outlives what it was made for."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client import REGISTRY

from cache_server.finish import is_held, release
from cache_server.telling import Teller
from memopod.kube import PODS, TASK_RESULTS, Forbidden
from memopod.steps import names
from tests.cache_server.marks import OUTPUTS, marks

OTHER_IMAGE = [{"op": "replace", "path": "/spec/containers/1/image", "value": "other:1"}]


def claim(ago=0):
    at = datetime.now(UTC) - timedelta(seconds=ago)
    return {"metadata": {"annotations": {names.CLAIMED_BY: f"s/{at.isoformat()}"}}}


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        (lambda: OTHER_IMAGE, ("run", "miss")),
        (claim, ("run", "too-late")),
        (lambda: claim(ago=3600), ("run", "too-late")),
    ],
    ids=["image", "claim", "claim-by-a-clock-that-is-slow"],
)
async def test_what_a_late_watch_has_not_shown_yet_counts(cluster, parts, change, outcome):
    await parts.entry(OUTPUTS)
    pod = await cluster.held_pod()
    await cluster.client.patch(PODS, pod["metadata"]["name"], change(), namespace="pipelines")
    cluster.client.writes.clear()
    parts.controller.see(pod)
    await let_go(cluster, pod)
    assert marks(await cluster.get(pod)) == outcome
    assert "create workflowtaskresults" not in cluster.client.writes
    parts.again()


async def test_a_pod_that_was_made_again_under_its_name_gets_nothing_of_the_first(cluster, parts):
    await parts.entry(OUTPUTS)
    pod = await cluster.held_pod()
    await cluster.client.delete(PODS, pod["metadata"]["name"], namespace="pipelines", grace_seconds=0)
    again = {key: pod[key] for key in ("apiVersion", "kind", "spec")} | {
        "metadata": {
            key: pod["metadata"][key]
            for key in ("name", "namespace", "labels", "annotations", "ownerReferences")
        }
    }
    await cluster.client.create(PODS, again, namespace="pipelines")
    cluster.client.writes.clear()
    assert is_held(await parts.decide(pod))
    assert cluster.client.writes == []


async def test_a_pod_that_was_finished_is_not_finished_again_when_the_watch_shows_it_late(cluster, parts):
    await parts.entry(OUTPUTS)
    pod = await cluster.held_pod()
    status = {"status": {"message": "as the scheduler says"}}
    newer = await cluster.client.patch(
        PODS, pod["metadata"]["name"], status, namespace="pipelines", subresource="status"
    )
    parts.counted.clear()
    parts.controller.see(pod)
    await let_go(cluster, pod)
    async with asyncio.timeout(30):
        while not parts.counted:  # noqa: ASYNC110 (no event to wait for)
            await asyncio.sleep(0.01)
    cluster.client.writes.clear()
    parts.controller.see(newer)
    await parts.controller.drain(30.0)
    assert len(parts.counted) == 1
    assert cluster.client.writes == []
    parts.again()


async def test_a_pod_that_somebody_released_meanwhile_is_no_hit(cluster, parts):
    await parts.entry(OUTPUTS)
    pod = await cluster.held_pod()

    async def fault(write, call):
        if write == "patch status pods":
            cluster.client.fault = None
            assert await release(cluster.client, pod, reason="by-hand")
        return await call()

    cluster.client.fault = fault
    parts.counted.clear()
    released = await parts.decide(pod)
    assert marks(released) == ("run", "by-hand")
    assert parts.counted == []


async def test_pods_that_cannot_be_finished_keep_no_other_from_being_decided_for_or_finished(cluster, parts):
    await parts.entry(OUTPUTS)
    stuck = [await cluster.held_pod(node=str(n)) for n in range(parts.concurrency)]
    places, met = {pod["metadata"]["name"] for pod in stuck}, set()
    patch = cluster.client.patch

    async def refuse(resource, name, *arguments, **options):
        if name in places and options.get("subresource") == "status":
            met.add(name)
            raise Forbidden("never", status=403, reason="Forbidden")
        return await patch(resource, name, *arguments, **options)

    # As another leader left them: their results are written.
    for pod in stuck:
        await cluster.report(pod, OUTPUTS, **{names.ENTRY: "an-entry"})
    cluster.client.patch = refuse
    for pod in stuck:
        parts.controller.see(pod)
    async with asyncio.timeout(30):
        while met != places:  # noqa: ASYNC110 (no event to wait for)
            await asyncio.sleep(0.01)
    missed, hit = await cluster.held_pod(change=salted), await cluster.held_pod()
    for pod in (missed, hit):
        parts.controller.see(pod)
        await let_go(cluster, pod)
    assert marks(await cluster.get(missed)) == ("run", "miss")
    assert marks(await cluster.get(hit)) == ("reuse", "hit")
    assert all([is_held(await cluster.get(pod)) for pod in stuck])
    await parts.controller.drain(0.0)
    parts.again()


async def test_events_that_nobody_takes_hold_no_decision_up(cluster, parts, monkeypatch):
    await parts.entry(OUTPUTS, finished=datetime.now(UTC) - timedelta(hours=1))
    asked = []

    async def never(client, pod, **told):
        asked.append(told["reason"])
        await asyncio.Event().wait()

    monkeypatch.setattr("cache_server.telling.emit", never)

    def limited(pod):
        pod["metadata"]["annotations"][names.MAX_STALENESS] = "PT1S"

    for n in range(parts.concurrency + 1):
        pod = await cluster.held_pod(node=str(n), change=limited)
        parts.controller.see(pod)
        await let_go(cluster, pod)
    assert set(asked) == {"NotReused"}
    await parts.controller.drain(0.0)
    parts.again()


async def test_events_beyond_a_bound_are_dropped_and_those_within_it_are_told(cluster, monkeypatch):
    told, free = [], asyncio.Event()

    async def slow(client, pod, **event):
        await free.wait()
        told.append(pod["metadata"]["name"])

    monkeypatch.setattr("cache_server.telling.emit", slow)
    teller = Teller(cluster.client, at_once=2, most=5)
    for number in range(8):
        teller.tell({"metadata": {"name": str(number), "uid": str(number)}}, "Reused", "said")
    free.set()
    await teller.drain(30.0)
    assert told == ["0", "1", "2", "3", "4"]


async def test_events_that_the_end_of_the_process_leaves_out_are_counted(cluster, monkeypatch):
    async def never(client, pod, **event):
        await asyncio.Event().wait()

    monkeypatch.setattr("cache_server.telling.emit", never)
    dropped = REGISTRY.get_sample_value("memopod_events_dropped_total")
    teller = Teller(cluster.client)
    for number in range(3):
        teller.tell({"metadata": {"name": str(number), "uid": str(number)}}, "Reused", "said")
    await teller.drain(0.01)
    assert REGISTRY.get_sample_value("memopod_events_dropped_total") == dropped + 3


def salted(pod):
    pod["metadata"]["annotations"][names.SALT] = "new"


async def let_go(cluster, pod):
    async with asyncio.timeout(30):
        while is_held(await cluster.get(pod)):  # noqa: ASYNC110 (polls a server)
            await asyncio.sleep(0.02)


async def test_a_result_is_written_for_the_pod_that_was_looked_at_last(cluster, parts, monkeypatch):
    await parts.entry(OUTPUTS)
    pod = await cluster.held_pod()
    get, order = cluster.client.get, []

    async def noting(resource, *arguments, **options):
        if resource in (PODS, TASK_RESULTS):
            order.append(f"get {resource.plural}")
        return await get(resource, *arguments, **options)

    async def note(write, call):
        order.append(write)
        return await call()

    monkeypatch.setattr(cluster.client, "get", noting)
    cluster.client.fault = note
    await parts.decide(pod)
    assert order[1:4] == ["get pods", "create workflowtaskresults", "patch status pods"]
