import asyncio
import time

import pytest
import structlog

from memopod.kube import LEASES, Informer, LeaderElector, LeaseWatcher

NS = "memopod"
STEADY = {"lease_seconds": 4, "give_up": 3.0}
PATIENT = {"lease_seconds": 60, "give_up": 50.0, "renew_seconds": 0.1, "retry_seconds": 0.05}
"""So that a slow machine costs no leader its Lease."""
QUICK = {"lease_seconds": 1, "give_up": 0.7, "renew_seconds": 0.2, "retry_seconds": 0.1}


@pytest.fixture
def elector():
    def make(client, identity, **rest):
        return LeaderElector(client, namespace=NS, name="lead", identity=identity, **{**QUICK, **rest})

    return make


async def holder(client):
    return (await client.get(LEASES, "lead", namespace=NS))["spec"]["holderIdentity"]


async def stop(task):
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_one_of_two_leads_and_stays(client, start, elector, eventually):
    one, two = elector(client, "one", **STEADY), elector(client, "two", **STEADY)
    start(one.run())
    await eventually(one.is_leader)
    start(two.run())
    until = time.monotonic() + 1.5
    while time.monotonic() < until:
        assert one.is_leader()
        assert not two.is_leader()
        await asyncio.sleep(0.01)


async def test_two_who_start_at_once_do_not_both_lead(client, start, elector, eventually):
    electors = [elector(client, str(number)) for number in range(5)]
    for each in electors:
        start(each.run())
    await eventually(lambda: any(each.is_leader() for each in electors))
    for _ in range(30):
        assert sum(each.is_leader() for each in electors) <= 1
        await asyncio.sleep(0.01)


async def test_a_leader_that_ends_hands_over_at_once(client, start, elector, eventually):
    one, two = elector(client, "one"), elector(client, "two", lease_seconds=30)
    first = start(one.run())
    await eventually(one.is_leader)
    start(two.run())
    await stop(first)
    assert not one.is_leader()
    await eventually(two.is_leader)
    lease = await client.get(LEASES, "lead", namespace=NS)
    assert lease["spec"]["leaseTransitions"] == 1


async def test_a_leader_whose_writes_may_be_under_way_lets_its_lease_run_out(
    client, start, elector, eventually
):
    one, two = elector(client, "one", **PATIENT), elector(client, "two", **PATIENT)
    first = start(one.run(hand_over=lambda: False))
    await eventually(one.is_leader)
    start(two.run())
    await stop(first)
    assert not one.is_leader()
    assert await holder(client) == "one"
    assert not two.is_leader()


async def test_a_leader_that_is_cut_off_stops_before_another_starts(
    client, wired, wire, start, elector, eventually
):
    told = []
    one, two = elector(wired, "one", on_change=told.append), elector(client, "two")
    start(one.run())
    await eventually(one.is_leader)
    start(two.run())
    await asyncio.sleep(0.3)
    wire.hang()
    cut_at = time.monotonic()
    async with asyncio.timeout(5):
        while not two.is_leader():
            await asyncio.sleep(0.005)
            assert not (one.is_leader() and two.is_leader())
    assert time.monotonic() - cut_at < 4.0
    assert told == [True, False]
    wire.flow()
    await asyncio.sleep(0.5)
    assert not one.is_leader()
    assert await holder(client) == "two"


async def test_a_failed_renewal_is_tried_again_while_there_is_time(
    client, wired, wire, start, elector, eventually
):
    told = []
    with structlog.testing.capture_logs() as logs:
        one = elector(wired, "one", on_change=told.append, **PATIENT)
        start(one.run())
        await eventually(one.is_leader, 30)
        for _ in range(3):
            failed, until = len(logs), one._leader_until
            await wire.close()
            await eventually(lambda: "cannot use the lease" in [line["event"] for line in logs[failed:]], 30)  # noqa: B023 (awaited here)
            assert one.is_leader()
            await wire.open()
            await eventually(lambda: one._leader_until > until, 30)  # noqa: B023 (awaited here)
    assert told == [True]


async def test_a_lease_of_a_dead_leader_is_waited_for_and_taken(client, start, elector, eventually):
    spec = {"holderIdentity": "dead", "leaseDurationSeconds": 1, "renewTime": "2001-01-01T00:00:00.000000Z"}
    await client.create(LEASES, {"metadata": {"name": "lead"}, "spec": spec}, namespace=NS)
    one = elector(client, "one")
    begun = time.monotonic()
    start(one.run())
    await eventually(one.is_leader)
    # The time that the dead one wrote counts for nothing.
    assert time.monotonic() - begun >= 1.0


async def test_a_lease_that_was_taken_by_force_is_given_up(client, start, elector, eventually):
    one = elector(client, "one")
    start(one.run())
    await eventually(one.is_leader)
    taken = {"spec": {"holderIdentity": "thief", "renewTime": "2001-01-01T00:00:00.000000Z"}}
    await client.patch(LEASES, "lead", taken, namespace=NS)
    await eventually(lambda: not one.is_leader())


async def test_a_leader_whose_lease_is_deleted_makes_it_again(client, start, elector, eventually):
    one = elector(client, "one")
    start(one.run())
    await eventually(one.is_leader)
    uid = (await client.get(LEASES, "lead", namespace=NS))["metadata"]["uid"]
    await client.delete(LEASES, "lead", namespace=NS)

    uids = []
    informer = Informer(client, LEASES, on_event=lambda kind, lease: uids.append(lease["metadata"]["uid"]))
    start(informer.run())
    await eventually(lambda: bool(uids) and uids[-1] != uid)
    await eventually(one.is_leader)


async def test_times_that_allow_two_leaders_are_refused(client, elector):
    with pytest.raises(ValueError, match="renew_seconds < give_up < lease_seconds"):
        elector(client, "one", give_up=9.0)


async def test_a_heartbeat_is_fresh_while_the_lease_is_renewed(client, start, elector, eventually):
    watcher = LeaseWatcher(client, NS, "lead")
    start(watcher.run())
    assert not watcher.fresh()
    first = start(elector(client, "one", lease_seconds=2).run())
    await eventually(watcher.fresh)
    await asyncio.sleep(2.2)
    assert watcher.fresh()
    await stop(first)
    await eventually(lambda: not watcher.fresh())


async def test_a_heartbeat_that_stops_is_soon_not_fresh(client, wired, wire, start, elector, eventually):
    watcher = LeaseWatcher(client, NS, "lead")
    start(watcher.run())
    start(elector(wired, "one").run())
    await eventually(watcher.fresh)
    wire.hang()
    await eventually(lambda: not watcher.fresh())
    wire.flow()
    await eventually(watcher.fresh)


async def test_a_lease_that_was_there_before_is_not_fresh_until_it_is_renewed(client, start, eventually):
    spec = {"holderIdentity": "one", "leaseDurationSeconds": 60, "renewTime": "2099-01-01T00:00:00.000000Z"}
    await client.create(LEASES, {"metadata": {"name": "lead"}, "spec": spec}, namespace=NS)
    watcher = LeaseWatcher(client, NS, "lead")
    start(watcher.run())
    await eventually(watcher._informer.synced.is_set)
    assert not watcher.fresh()
    await client.patch(LEASES, "lead", {"spec": {"renewTime": "2099-01-01T00:00:01.000000Z"}}, namespace=NS)
    await eventually(watcher.fresh)
    await client.delete(LEASES, "lead", namespace=NS)
    await eventually(lambda: not watcher.fresh())


async def test_a_shorter_age_can_be_asked_for(client, start, eventually):
    spec = {"holderIdentity": "one", "leaseDurationSeconds": 60, "renewTime": "2099-01-01T00:00:00.000000Z"}
    watcher = LeaseWatcher(client, NS, "lead", max_age=0.2)
    start(watcher.run())
    await eventually(watcher._informer.synced.is_set)
    await client.create(LEASES, {"metadata": {"name": "lead"}, "spec": spec}, namespace=NS)
    await eventually(watcher.fresh)
    await eventually(lambda: not watcher.fresh(), 1.0)
