"""A share of the hits runs all the same: a step that is not deterministic is caught, and told in an Event."""

from memopod.kube import EVENTS
from memopod.steps import names
from tests.real.argo import Step
from tests.real.cluster import until


async def reasons(cluster, run):
    pod = await cluster.pod(run.pod_name())
    return pod["metadata"]["annotations"][names.REASON]


async def events(cluster, reason):
    found = (await cluster.admin.list(EVENTS, namespace=cluster.pipelines))["items"]
    return [event for event in found if event["reason"] == reason]


async def test_a_step_that_puts_out_something_else_loses_its_entry(cluster, play):
    server = await cluster.cache_server("--audit-rate", "1")

    def other_each_time(pod):
        value = pod["metadata"]["uid"]
        return {"parameters": [{"name": "Output", "value": value, "valueFrom": {"path": "/tmp/o"}}]}

    argo, kubelet = await play(outputs=other_each_time)
    first = await argo.submit(Step())
    assert await first.end() == "Succeeded"
    await until(lambda: server.lines("recorded"), "the first run is recorded")
    second = await argo.submit(Step())
    assert await second.end() == "Succeeded"
    assert await reasons(cluster, second) == "audit"
    assert len(kubelet.ran) == 2
    await until(lambda: events(cluster, "AuditDifference"), "an Event tells of it")
    [event] = await events(cluster, "AuditDifference")
    assert "parameter Output: hmac:" in event["message"]
    assert await server.metric("memopod_audits_total", result="different") == 1
    third = await argo.submit(Step())
    assert await third.end() == "Succeeded"
    assert await reasons(cluster, third) == "miss"
