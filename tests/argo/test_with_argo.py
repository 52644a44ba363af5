"""Steps of real Workflows, created and watched by Argo's own controller, held, reused and released."""

import asyncio
from functools import partial

from memopod.steps import names
from tests.argo.conftest import pods_of
from tests.real.cluster import until

OPTED_IN = {"labels": {"memopod.io/cache": "true"}}
COALESCED = {**OPTED_IN, "annotations": {"memopod.io/coalesce": "across-workflows"}}


def make(message="hello", *, metadata=OPTED_IN, **more):
    return {
        "name": "make", "metadata": metadata,
        "container": {"image": "python:3.9", "command": ["sh", "-c"], "args": [f"echo {message} > /tmp/o"]},
        "outputs": {"parameters": [{"name": "Output", "valueFrom": {"path": "/tmp/o"}}]}, **more,
    }  # fmt: skip


USE = {
    "name": "use", "metadata": OPTED_IN, "inputs": {"parameters": [{"name": "x"}]},
    "container": {"image": "python:3.9", "command": ["echo", "{{inputs.parameters.x}}"]},
}  # fmt: skip
TWO_STEPS = {
    "name": "main",
    "dag": {"tasks": [
        {"name": "make", "template": "make"},
        {
            "name": "use", "template": "use", "depends": "make",
            "arguments": {"parameters": [{"name": "x", "value": "{{tasks.make.outputs.parameters.Output}}"}]},
        },
    ]},
}  # fmt: skip


def recorded(server, count):
    return len(server.lines("recorded")) >= count


async def once(argo, server, *templates, steps, **spec):
    """Run a Workflow whose steps become entries."""
    before = len(server.lines("recorded"))
    workflow = await argo.end(await argo.submit(*templates, **spec))
    assert workflow["status"]["phase"] == "Succeeded", workflow["status"]
    await until(partial(recorded, server, before + steps), "the steps are recorded")
    return workflow


async def states(cluster):
    """How each Pod that is there was let go, by its name."""
    return {
        pod["metadata"]["name"]: pod["metadata"]["labels"].get(names.STEP_LABEL)
        for pod in await cluster.pods()
    }


async def test_a_workflow_that_ran_before_is_reused_step_by_step(cluster, argo, kubelet):
    server = await cluster.cache_server()
    first = await once(argo, server, TWO_STEPS, make(), USE, steps=2)
    ran = list(kubelet.ran)
    assert len(ran) == 2
    second = await argo.end(await argo.submit(TWO_STEPS, make(), USE))
    assert second["status"]["phase"] == "Succeeded", second["status"]
    assert kubelet.ran == ran
    old, new = pods_of(first), pods_of(second)
    assert new["make"]["outputs"]["parameters"] == old["make"]["outputs"]["parameters"]
    assert new["make"]["outputs"].get("exitCode") == "0"
    assert {node["phase"] for node in new.values()} == {"Succeeded"}
    third = await argo.end(await argo.submit(TWO_STEPS, make("bye"), USE))
    assert third["status"]["phase"] == "Succeeded"
    assert len(kubelet.ran) == 4


async def test_results_and_artifacts_of_a_reused_step_reach_the_next(cluster, argo, kubelet):
    server = await cluster.cache_server()
    steps = {
        "name": "main",
        "steps": [
            [{"name": "script", "template": "script"}],
            [{
                "name": "make", "template": "file",
                "arguments": {"parameters": [{"name": "r", "value": "{{steps.script.outputs.result}}"}]},
            }],
            [{
                "name": "read", "template": "read",
                "arguments": {"artifacts": [{"name": "f", "from": "{{steps.make.outputs.artifacts.f}}"}]},
            }],
        ],
    }  # fmt: skip
    script = {
        "name": "script", "metadata": OPTED_IN,
        "script": {"image": "python:3.9", "command": ["python"], "source": "print(42)"},
    }  # fmt: skip
    file = {
        "name": "file", "metadata": OPTED_IN, "inputs": {"parameters": [{"name": "r"}]},
        "container": {
            "image": "python:3.9", "command": ["sh", "-c"], "args": ["echo {{inputs.parameters.r}} > /tmp/f"],
        },
        "outputs": {"artifacts": [{"name": "f", "path": "/tmp/f"}]},
    }  # fmt: skip
    read = {
        "name": "read", "metadata": OPTED_IN, "inputs": {"artifacts": [{"name": "f", "path": "/tmp/f"}]},
        "container": {"image": "python:3.9", "command": ["cat", "/tmp/f"]},
    }  # fmt: skip
    first = await once(argo, server, steps, script, file, read, steps=3)
    assert len(kubelet.ran) == 3
    second = await argo.end(await argo.submit(steps, script, file, read))
    assert second["status"]["phase"] == "Succeeded", second["status"]
    assert len(kubelet.ran) == 3
    old, new = pods_of(first), pods_of(second)
    assert new["script"]["outputs"]["result"] == old["script"]["outputs"]["result"]
    [artifact] = [a for a in new["make"]["outputs"]["artifacts"] if a["name"] == "f"]
    assert old["make"]["id"].rsplit("-", 1)[0] in artifact["s3"]["key"]
    assert new["read"]["inputs"]["artifacts"][0]["s3"]["key"] == artifact["s3"]["key"]


async def test_fifty_steps_of_one_workflow_run_once_and_are_all_reused_whole(cluster, argo, kubelet):
    server = await cluster.cache_server()
    fan = {
        "name": "main",
        "steps": [[{
            "name": "s", "template": "part", "withSequence": {"count": "50"},
            "arguments": {"parameters": [{"name": "n", "value": "{{item}}"}]},
        }]],
    }  # fmt: skip
    part = {**make("{{inputs.parameters.n}}"), "name": "part", "inputs": {"parameters": [{"name": "n"}]}}
    first = await once(argo, server, fan, part, steps=50)
    assert len(kubelet.ran) == 50
    second = await argo.end(await argo.submit(fan, part))
    assert second["status"]["phase"] == "Succeeded"
    assert len(kubelet.ran) == 50

    def values(workflow):
        return {name: node["outputs"]["parameters"] for name, node in pods_of(workflow).items()}

    assert len(values(first)) == 50
    assert values(second) == values(first)


async def test_container_sets_and_patched_pods_are_reused_and_another_patch_is_another_step(
    cluster, argo, kubelet
):
    server = await cluster.cache_server()
    both = {
        "name": "main",
        "steps": [[{"name": "set", "template": "set"}, {"name": "patched", "template": "patched"}]],
    }
    image = {"image": "python:3.9", "command": ["true"]}
    group = {
        "name": "set", "metadata": OPTED_IN,
        "containerSet": {"containers": [{"name": "a", **image}, {"name": "main", **image}]},
    }  # fmt: skip

    def patched(image):
        patch = f'{{"containers": [{{"name": "main", "image": "{image}"}}]}}'
        return {**make(), "name": "patched", "podSpecPatch": patch}

    await once(argo, server, both, group, patched("python:3.10"), steps=2)
    second = await argo.end(await argo.submit(both, group, patched("python:3.10")))
    assert second["status"]["phase"] == "Succeeded"
    assert len(kubelet.ran) == 2
    third = await argo.end(await argo.submit(both, group, patched("python:3.11")))
    assert third["status"]["phase"] == "Succeeded"
    assert len(kubelet.ran) == 3


async def test_identical_steps_of_workflows_at_once_run_once(cluster, argo, kubelet):
    await cluster.cache_server()
    slow = make(metadata=COALESCED)
    kubelet.takes = 2.0
    names_ = [await argo.submit({**slow, "name": "main"}) for _ in range(4)]
    ends = [await argo.end(name) for name in names_]
    assert {end["status"]["phase"] for end in ends} == {"Succeeded"}
    assert len(kubelet.ran) == 1
    values = [next(iter(pods_of(end).values()))["outputs"]["parameters"][0]["value"] for end in ends]
    assert len(set(values)) == 1


async def test_a_retried_step_is_reused_from_the_attempt_that_succeeded(cluster, argo, kubelet):
    server = await cluster.cache_server()
    failed = []

    def fails_once(pod):
        failed.append(pod["metadata"]["name"])
        return len(failed) == 1

    kubelet.fails = fails_once
    retried = make(retryStrategy={"limit": "2"}, name="make")
    await once(argo, server, retried, steps=1)
    assert len(kubelet.ran) == 2
    second = await argo.end(await argo.submit(retried))
    assert second["status"]["phase"] == "Succeeded"
    assert len(kubelet.ran) == 2


async def test_a_workflow_that_is_stopped_while_its_step_waits_leaves_no_pod(cluster, argo, kubelet):
    await cluster.cache_server()
    finish = asyncio.Event()

    async def until_told(pod):
        await finish.wait()

    kubelet.takes = until_told
    slow = make(metadata=COALESCED)
    running = await argo.submit(slow)
    await until(lambda: kubelet.ran, "the first one runs")
    stopped = await argo.submit(slow)

    async def waits():
        return [pod for pod in await cluster.pods() if names.WAITS_FOR in pod["metadata"]["annotations"]]

    [waiter] = await until(waits, "the second one waits")
    await argo.patch(stopped, {"spec": {"shutdown": "Terminate"}})
    assert (await argo.end(stopped))["status"]["phase"] == "Failed"

    async def gone():
        return waiter["metadata"]["name"] not in await states(cluster)

    await until(gone, "the held Pod is gone")
    finish.set()
    assert (await argo.end(running))["status"]["phase"] == "Succeeded"
    assert len(kubelet.ran) == 1


async def test_a_leader_that_is_killed_in_the_middle_of_many_reuses_costs_no_workflow(cluster, argo, kubelet):
    first = await cluster.cache_server()
    second = await cluster.cache_server(register=False)
    await cluster.janitor()
    await once(argo, first, TWO_STEPS, make(), USE, steps=0)

    async def both_recorded():
        return len(first.lines("recorded")) + len(second.lines("recorded")) >= 2

    await until(both_recorded, "the steps are recorded")
    submitted = [await argo.submit(TWO_STEPS, make(), USE) for _ in range(10)]
    await until(lambda: first.lines("reused") or second.lines("reused"), "the first is reused")
    leader, other = (first, second) if first.lines("reused") else (second, first)
    if leader is first:
        await cluster.register_webhook(other.port)
    leader.kill()
    ends = [await argo.end(name) for name in submitted]
    assert {end["status"]["phase"] for end in ends} == {"Succeeded"}
    for end in ends:
        nodes = pods_of(end)
        assert nodes["make"]["outputs"]["parameters"][0]["value"] == "Output of echo hello > /tmp/o"
    assert not [s for s in (await states(cluster)).values() if s == names.HELD]


async def test_pods_are_collected_by_argo_whether_they_ran_or_were_reused(cluster, argo, kubelet):
    server = await cluster.cache_server()
    collected = {"podGC": {"strategy": "OnPodCompletion", "deleteDelayDuration": "0s"}}
    await once(argo, server, make(), steps=1, **collected)
    second = await argo.end(await argo.submit(make(), **collected))
    assert second["status"]["phase"] == "Succeeded"
    assert len(kubelet.ran) == 1

    async def none_left():
        return not await cluster.pods()

    await until(none_left, "no Pod is left")
