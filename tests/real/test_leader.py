"""Replicas: one decides, every one serves admission, and a leader that comes back does no harm."""

import asyncio
import signal
from datetime import datetime

from memopod.kube import LEASES
from memopod.steps import names
from tests.real.argo import Step
from tests.real.cluster import LEASE, until

FAILOVER_SECONDS = 5.0


async def lease(cluster):
    return (await cluster.admin.get(LEASES, LEASE, namespace=cluster.system))["spec"]


async def led_by_another(cluster, before):
    spec = await lease(cluster)
    return spec if spec["holderIdentity"] not in ("", before["holderIdentity"]) else None


async def leader_of(cluster, services):
    """The replica that leads, then the others."""

    async def find():
        holder = (await lease(cluster))["holderIdentity"]
        for service in services:
            if any(line["identity"] == holder for line in service.lines("leading")):
                return service
        return None

    leader = await until(find, "somebody leads")
    return leader, [service for service in services if service is not leader]


async def two_replicas(cluster, *flags):
    """The leader and a follower."""
    started = (cluster.cache_server(*flags, register=False) for _ in range(2))
    leader, (follower,) = await leader_of(cluster, await asyncio.gather(*started))
    return leader, follower


async def admitted_by(cluster, argo, replica):
    """Have the API server call this replica's webhook; it hears of such a change a moment later."""
    await cluster.register_webhook(replica.port)

    async def admits():
        run = await argo.submit(Step(message=f"to-{replica.port}"))
        assert await run.end() == "Succeeded"
        return await replica.metric("memopod_admissions_total", decision="hold")

    await until(admits, "this replica holds Pods")


async def test_every_replica_serves_admission_and_a_dead_leader_is_replaced_within_five_seconds(
    cluster, play
):
    leader, other = await two_replicas(cluster)
    argo, kubelet = await play()
    await admitted_by(cluster, argo, leader)
    await admitted_by(cluster, argo, other)
    assert not other.lines("released")
    first = await argo.submit(Step())
    assert await first.end() == "Succeeded"
    await until(lambda: recorded(leader, first), "it is recorded")
    ran = list(kubelet.ran)
    before = await lease(cluster)
    leader.kill()
    runs = [await argo.submit(Step()) for _ in range(5)]
    after = await until(lambda: led_by_another(cluster, before), "another leads")
    waited = moment(after["acquireTime"]) - moment(before["renewTime"])
    assert waited.total_seconds() < FAILOVER_SECONDS
    for run in runs:
        assert await run.end() == "Succeeded"
    # Those were held while the heartbeat was still fresh, and finished by the new leader.
    assert kubelet.ran == ran


async def test_two_leaders_at_once_finish_nothing_wrongly(cluster, play):
    """The leader is stopped in the midst of its work, replaced, and goes on."""
    leader, other = await two_replicas(cluster, "--settle-time", "0.3")
    argo, kubelet = await play()
    await admitted_by(cluster, argo, other)
    known = await argo.submit(Step())
    assert await known.end() == "Succeeded"
    await until(lambda: recorded(leader, known), "it is recorded")
    # Hits and misses, some decided, some in the midst of it, some not yet seen.
    runs = [await argo.submit(Step(message="hello" if n % 2 else f"new-{n}")) for n in range(20)]
    await until(lambda: leader.lines("reused"), "it is at work")
    before = await lease(cluster)
    leader.signal(signal.SIGSTOP)
    try:
        await until(lambda: led_by_another(cluster, before), "another leads")
        runs += [await argo.submit(Step(message="hello" if n % 2 else f"later-{n}")) for n in range(20)]
    finally:
        leader.signal(signal.SIGCONT)
    runs += [await argo.submit(Step()) for _ in range(5)]
    for run in runs:
        assert await run.end() == "Succeeded", run.nodes
    extra = await executed_though_known(cluster, runs)
    assert len(extra) <= 1, extra
    assert len(kubelet.ran) == len(set(kubelet.ran))
    for run in runs:
        pod = await cluster.pod(run.pod_name())
        reused = pod["metadata"]["labels"].get(names.STEP_LABEL) == names.REUSED
        assert reused == (run.pod_name() not in kubelet.ran)
        said = run.steps["make"].message
        assert run.nodes["make"].outputs["parameters"][0]["value"] == f"Output of echo {said} > /tmp/o"
        if reused:
            assert said == "hello"
    assert leader.process.poll() is None


async def test_the_lease_is_renewed_over_connections_of_its_own(cluster, proxy):
    """However many writes wait for a connection, that one does not wait behind them."""
    await cluster.cache_server(register=False, server=proxy.url)

    def renewals():
        return [r for r in proxy.seen if (r.verb, r.resource) == ("update", "leases")]

    await until(lambda: len(renewals()) >= 2, "the Lease is renewed")
    assert {r.user_agent for r in renewals()} == {"memopod-cache-lease"}
    others = {r.user_agent for r in proxy.seen if r.resource == "pods"}
    assert others == {"memopod-cache"}


async def executed_though_known(cluster, runs):
    """Held steps that ran although their result was known: the extra ones."""
    extra = []
    for run in runs:
        pod = await cluster.pod(run.pod_name())
        held = names.HOLD_UNTIL in pod["metadata"]["annotations"]
        if held and run.steps["make"].message == "hello" and "nodeName" in pod["spec"]:
            extra.append(run.pod_name())
    return extra


def recorded(service, run):
    return run.pod_name() in [line["pod"] for line in service.lines("recorded")]


def moment(text):
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
