"""Pods that are held beyond their time."""

import asyncio
from datetime import UTC, datetime, timedelta

from cache_server.sweeper import Sweeper, is_claimed
from memopod.steps import names
from tests.cache_server.marks import marks


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
