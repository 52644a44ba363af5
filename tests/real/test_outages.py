"""Nobody decides: the leader is stuck, or all of memopod is gone. Held Pods are let go all the same."""

import asyncio

from memopod.kube import LEASES, MUTATING_WEBHOOKS
from memopod.steps import names
from tests.real.argo import Step
from tests.real.cluster import LEASE, until
from tests.real.proxy import hang, matching
from tests.real.stage import LATE_SECONDS, overdue

SHORT_HOLD = ("--hold-timeout", 3, "--late-margin", 1)
JANITOR_SECONDS = 60
"""How long after `hold-until` the janitor may take."""


async def test_pods_of_a_server_that_was_killed_and_uninstalled_are_let_go(cluster, play, proxy):
    """Held Pods, then nothing is left: no process, no registration, no permission. Only the janitor."""
    server = await cluster.cache_server(*SHORT_HOLD, server=proxy.url)
    await cluster.janitor()
    argo, kubelet = await play()
    proxy.rule(matching("patch", "create"), hang)
    runs = [await argo.submit(Step(message=f"m{n}")) for n in range(5)]
    for run in runs:
        await run.until(lambda run=run: "make" in run.pods, "there is a Pod")
        assert run.pods["make"]["metadata"]["labels"][names.STEP_LABEL] == names.HELD
    server.kill()
    await cluster.admin.delete(MUTATING_WEBHOOKS, f"memopod-{cluster.name}")
    await cluster.permit(
        lambda documents: [d for d in documents if "cache-server" not in d["metadata"]["name"]]
    )
    later = await argo.submit(Step(message="later"))
    assert await later.end() == "Succeeded"
    for run in runs:
        assert await run.end(90) == "Succeeded"
        assert overdue(await cluster.pod(run.pod_name())).total_seconds() < JANITOR_SECONDS
    assert len(kubelet.ran) == 6


async def test_a_leader_that_lives_and_does_nothing_makes_room_for_another(cluster, play, proxy):
    """Its Lease is renewed, and none of its writes arrives: a follower lets Pods go, then leads."""
    stuck = await cluster.cache_server(*SHORT_HOLD, server=proxy.url)
    other = await cluster.cache_server(*SHORT_HOLD, register=False)
    argo, _ = await play()
    first = await argo.submit(Step())
    assert await first.end() == "Succeeded"
    assert stuck.lines("released")
    proxy.rule(lambda request: request.verb in ("patch", "create"), hang)
    runs = []

    async def another_leads():
        runs.append(await argo.submit(Step(message=f"m{len(runs)}")))
        await asyncio.sleep(0.5)
        return other.lines("leading")

    await until(another_leads, "the other replica leads", limit=60)
    for run in runs:
        assert await run.end() == "Succeeded"
        assert overdue(await cluster.pod(run.pod_name())).total_seconds() <= LATE_SECONDS
    lease = (await cluster.admin.get(LEASES, LEASE, namespace=cluster.system))["spec"]
    assert lease["holderIdentity"] == other.lines("leading")[-1]["identity"]
    assert other.lines("let an overdue Pod go")
