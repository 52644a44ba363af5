"""The doubles of Argo and the kubelet on the real API server: what they do to objects."""

import pytest

from memopod.kube import PODS, WORKFLOWS
from memopod.steps import names
from tests.real.argo import Step
from tests.real.argo_rules import GUARDED
from tests.real.cluster import until

GATE = {"name": "tests/held"}


def held(pod):
    pod["spec"]["schedulingGates"] = [GATE]


async def gone(cluster, name):
    return name not in [pod["metadata"]["name"] for pod in await cluster.pods()]


@pytest.mark.parametrize("version", GUARDED)
async def test_a_workflow_of_two_steps_runs_in_order_and_loses_its_results(cluster, play, version):
    argo, kubelet = await play(version=version)
    steps = [Step(name="make"), Step(name="use", sample="parameters.use", after=("make",))]
    run = await argo.submit(*steps)
    assert await run.end() == "Succeeded"
    assert kubelet.ran == [run.pod_name("make"), run.pod_name("use")]
    value = run.nodes["make"].outputs["parameters"][0]["value"]
    assert value == "Output of echo hello > /tmp/o"
    workflow = await cluster.admin.get(WORKFLOWS, run.name, namespace=cluster.pipelines)
    assert workflow["status"]["phase"] == "Succeeded"
    node = workflow["status"]["nodes"][run.nodes["make"].id]
    assert node["outputs"]["parameters"][0]["value"] == value
    assert await cluster.result(run.nodes["make"].id) is None

    async def marked():
        pod = await cluster.pod(run.pod_name("make"))
        return pod["metadata"]["labels"][names.ARGO_COMPLETED] == "true"

    await until(marked, "the Pod is marked as completed")


async def test_a_held_pod_that_is_deleted_is_made_again(cluster, play):
    argo, kubelet = await play()
    run = await argo.submit(Step(change=held))
    await run.until(lambda: "make" in run.pods, "there is a Pod")
    first = run.pods["make"]["metadata"]
    await cluster.admin.delete(PODS, first["name"], namespace=cluster.pipelines)
    await run.until(
        lambda: "make" in run.pods and run.pods["make"]["metadata"]["uid"] != first["uid"], "a new one"
    )
    assert run.pod_name() == first["name"]
    assert kubelet.ran == []


async def test_pod_garbage_collection_deletes_without_a_completed_label(cluster, play):
    argo, _ = await play()
    run = await argo.submit(Step(), podGC={"strategy": "OnPodCompletion"})
    assert await run.end() == "Succeeded"
    await until(lambda: gone(cluster, run.pod_name()), "the Pod is deleted")


async def test_stop_deletes_a_held_pod_and_fails_its_node(cluster, play):
    argo, _ = await play()
    run = await argo.submit(Step(change=held))
    await run.until(lambda: "make" in run.pods, "there is a Pod")
    await argo.stop(run)
    assert await run.end() == "Failed"
    await until(lambda: gone(cluster, run.pod_name()), "the Pod is deleted")


async def test_a_timeout_fails_the_node_and_parallelism_counts_held_pods(cluster, play):
    argo, _ = await play()
    steps = [Step(name="make", change=held, timeout=0.3), Step(name="second")]
    run = await argo.submit(*steps, parallelism=1)
    await run.until(lambda: "make" in run.pods, "there is a Pod")
    assert list(run.pods) == ["make"]
    assert await run.end() == "Failed"
    assert run.nodes["make"].message == "Step exceeded its deadline"
    assert run.nodes["second"].phase == "Succeeded"


async def test_a_finalizer_is_taken_away_when_the_node_has_ended(cluster, play):
    argo, _ = await play(finalizer=True)
    run = await argo.submit(Step())
    assert await run.end() == "Succeeded"

    async def released():
        return "finalizers" not in (await cluster.pod(run.pod_name()))["metadata"]

    await until(released, "the finalizer is gone")


async def test_artifacts_of_a_producer_are_named_by_its_own_pod(cluster, play):
    argo, _ = await play()
    run = await argo.submit(
        Step(name="make", sample="artifacts.make"), Step(name="use", sample="artifacts.use", after=("make",))
    )
    assert await run.end() == "Succeeded"
    key = run.nodes["make"].outputs["artifacts"][0]["s3"]["key"]
    assert key == f"artifacts/{run.name}/{run.pod_name('make')}/default.tgz"
    used = str(run.pods["use"]["spec"]["initContainers"][0]["env"])
    assert key in used


async def test_steps_of_one_recording_have_names_of_their_own(cluster, play):
    argo, kubelet = await play()
    steps = [Step(name=f"s{n}", message=f"m{n}", after=(f"s{n - 1}",) if n else ()) for n in range(4)]
    run = await argo.submit(*steps)
    assert await run.end() == "Succeeded"
    assert kubelet.ran == [run.pod_name(step.name) for step in steps]
    assert len(set(kubelet.ran)) == 4
