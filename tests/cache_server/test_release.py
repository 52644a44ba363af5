"""`memopod cache release`, on Pods that a cache server left behind."""

import asyncio
import json
from datetime import UTC, datetime, timedelta

from typer.testing import CliRunner

from cache_server.decision import Reuse
from cache_server.finish import is_held
from cache_server.sweeper import is_claimed
from memopod.cli.cache import app
from memopod.cli.release import _release
from memopod.kube import PODS, TASK_RESULTS
from memopod.steps import names
from memopod.steps.finish import task_result

OUTPUTS = {"parameters": [{"name": "Output", "value": "hello", "valueFrom": {"path": "/tmp/o"}}]}


async def release(cluster, *flags):
    """The command, its exit status asserted; what it did with each Pod, by name."""
    kubeconfig = str(cluster.state / "cluster" / "kubeconfig")
    arguments = ["release", "--kubeconfig", kubeconfig, "--json", *flags]
    result = await asyncio.to_thread(CliRunner().invoke, app, arguments)
    assert result.exit_code == 0, result.output
    return {line["pod"]: line["action"] for line in json.loads(result.stdout)}


async def past_the_point_of_no_return(cluster, parts):
    """A held Pod whose WorkflowTaskResult is memopod's, and whose leader is gone."""
    entry = await parts.entry(OUTPUTS)
    pod = await cluster.held_pod()
    decision = await parts.decider.decide(pod)
    assert isinstance(decision, Reuse)
    result = task_result(
        decision.step, decision.outputs, entry=entry.id, source_pod=entry.pod_name, source_execution="w/n"
    )
    await cluster.client.create(TASK_RESULTS, result, namespace="pipelines")
    return pod


def others_gate(pod):
    pod["spec"]["schedulingGates"] = [{"name": "quota"}]


async def test_what_must_be_finished_is_finished_and_every_other_gate_is_lifted(cluster, parts):
    finished = await past_the_point_of_no_return(cluster, parts)
    held = await cluster.held_pod()
    twice = await cluster.held_pod(change=others_gate)
    done = await release(cluster)
    name = lambda pod: pod["metadata"]["name"]  # noqa: E731
    assert done == {name(finished): "finished", name(held): "released", name(twice): "released"}
    pod = await cluster.get(finished)
    assert pod["status"]["phase"] == "Succeeded"
    assert pod["metadata"]["labels"][names.STEP_LABEL] == names.REUSED
    pod = await cluster.get(held)
    assert not is_held(pod)
    assert pod["metadata"]["annotations"][names.REASON] == "by-hand"
    assert await cluster.result(held) is None
    assert (await cluster.get(twice))["spec"]["schedulingGates"] == [{"name": "quota"}]
    assert await release(cluster) == {}, "a second time there is nothing to do"


async def test_orphaned_are_those_that_are_held_beyond_their_time(cluster):
    fresh = await cluster.held_pod()
    late = await cluster.held_pod(now=datetime.now(UTC) - timedelta(seconds=45))
    assert await release(cluster, "--orphaned") == {late["metadata"]["name"]: "released"}
    assert is_held(await cluster.get(fresh))


async def test_another_namespace_is_left_alone(cluster):
    held = await cluster.held_pod()
    assert await release(cluster, "--namespace", "elsewhere") == {}
    assert is_held(await cluster.get(held))


async def test_a_pod_that_loses_its_label_is_found_by_its_gate(cluster):
    held = await cluster.held_pod()
    patch = {"metadata": {"labels": {names.STEP_LABEL: None}}}
    await cluster.client.patch(PODS, held["metadata"]["name"], patch, namespace="pipelines")
    assert await release(cluster) == {held["metadata"]["name"]: "released"}


async def test_pods_do_not_wait_for_each_others_claims(cluster, monkeypatch):
    monkeypatch.setattr("memopod.cli.release._AT_ONCE", 1)
    monkeypatch.setattr("memopod.cli.release._CLAIM_WAIT", 3600.0)
    pods = [await cluster.held_pod() for _ in range(3)]
    kubeconfig = cluster.state / "cluster" / "kubeconfig"
    letting_go = asyncio.create_task(_release(kubeconfig, None, orphaned=False, quiet=True))

    async def claimed(pod):
        return is_claimed(await cluster.get(pod), datetime.now(UTC))

    async with asyncio.timeout(30):
        while not all([await claimed(pod) for pod in pods]):  # noqa: ASYNC110 (polls a server)
            await asyncio.sleep(0.02)
    letting_go.cancel()
    await asyncio.gather(letting_go, return_exceptions=True)


def test_a_cluster_that_is_not_there_is_an_error_in_one_line(tmp_path):
    missing = str(tmp_path / "none")
    result = CliRunner().invoke(app, ["release", "--kubeconfig", missing])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.output
