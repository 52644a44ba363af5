import asyncio

import pytest

from memopod.kube import PODS, TASK_RESULTS, Client
from memopod.sandbox.runner import log_tail

WRITE = 'printf "%s" "$2" > "$1"'


async def test_the_example_runs_and_says_so(cluster, example):
    cluster.start_kubelet()
    result = await cluster.run(example("pipeline.yaml"), "message=a b")
    told = result.to_json()
    assert told.keys() == {"run", "state", "seconds", "outputs", "tasks"}
    assert (told["state"], told["outputs"]) == ("Succeeded", {"Output": "a b"})
    (task,) = told["tasks"]
    assert task.keys() == {"name", "decision", "reason", "pod", "seconds", "outputs"}
    assert (task["name"], task["decision"], task["outputs"]) == ("comp", "executed", {"Output": "a b"})
    assert log_tail(cluster.state, result.tasks[0].pod_uid) == ["Received message: a b"]


async def test_an_artifact_goes_from_step_to_step(cluster, example):
    cluster.start_kubelet()
    result = await cluster.run(example("two_steps.yaml"), "message=a b c d")
    assert result.outputs["count"] == 4
    split = next(task for task in result.tasks if task.name == "split")
    key = f"artifacts/{result.run}/{split.pod}/words"
    assert result.outputs["words"] == f"minio://pipelines/{key}"
    assert (cluster.state / "buckets" / "pipelines" / key).read_text() == "a\nb\nc\nd"


async def test_the_end_of_a_run_is_written_as_argo_writes_it(cluster, example):
    cluster.start_kubelet()
    result = await cluster.run(example("pipeline.yaml"), "message=x")
    workflow = await cluster.workflow(result.run)
    assert workflow["metadata"]["labels"]["workflows.argoproj.io/completed"] == "true"
    assert workflow["metadata"]["labels"]["workflows.argoproj.io/phase"] == "Succeeded"
    node = next(n for n in workflow["status"]["nodes"].values() if n["type"] == "Pod")
    assert (node["phase"], node["hostNodeName"], node["progress"]) == ("Succeeded", "sandbox", "1/1")
    assert node["inputs"] == {"parameters": [{"name": "message", "value": "x"}]}
    assert node["outputs"]["exitCode"] == "0"
    assert node["outputs"]["parameters"][0]["value"] == "x"
    (pod,) = await cluster.pods()
    assert pod["metadata"]["labels"]["workflows.argoproj.io/completed"] == "true"
    assert await cluster.results() == []


async def test_independent_tasks_run_at_the_same_time(cluster, shell_plan, tmp_path):
    cluster.start_kubelet()
    meet = 'touch {mine}; until [ -e {other} ]; do sleep 0.02; done; echo met > "$1"'
    one, two = tmp_path / "one", tmp_path / "two"
    plan = shell_plan({"a": meet.format(mine=one, other=two), "b": meet.format(mine=two, other=one)})
    result = await cluster.run(plan)
    assert [task.outputs["out"] for task in result.tasks] == ["met", "met"]


async def test_a_failed_step_fails_the_run_and_what_waits_for_it_is_skipped(cluster, shell_plan):
    cluster.start_kubelet()
    plan = shell_plan({"a": "echo why >&2; exit 3", "b": (WRITE, ["a"])})
    result = await cluster.run(plan)
    assert result.state == "Failed"
    assert "task 'a': main exited with code 3" in result.message
    states = {task.name: (task.state, task.decision) for task in result.tasks}
    assert states == {"a": ("Failed", "executed"), "b": ("Skipped", "")}
    assert log_tail(cluster.state, result.tasks[0].pod_uid) == ["why"]
    workflow = await cluster.workflow(result.run)
    assert workflow["status"]["phase"] == "Failed"
    failed = next(n for n in workflow["status"]["nodes"].values() if n["displayName"] == "a")
    assert (failed["phase"], failed["outputs"]) == ("Failed", {"exitCode": "3"})


async def test_a_step_that_does_not_write_its_output_fails(cluster, shell_plan):
    cluster.start_kubelet()
    result = await cluster.run(shell_plan({"a": "true"}))
    assert result.state == "Failed"
    assert "did not write its output parameter 'out'" in result.message


async def test_an_output_of_another_type_fails_without_being_repeated(cluster, shell_plan):
    cluster.start_kubelet()
    outputs = {"parameters": {"out": {"parameterType": "NUMBER_INTEGER"}}}
    result = await cluster.run(shell_plan({"a": 'echo many > "$1"'}, outputDefinitions=outputs))
    assert result.state == "Failed"
    assert "output parameter 'out': expected a whole number" in result.message
    assert "many" not in result.message


async def test_without_cache_no_pod_asks_for_it(cluster, example):
    cluster.start_kubelet()
    await cluster.run(example("pipeline.yaml"), "message=x", cached=False)
    await cluster.run(example("pipeline.yaml"), "message=x")
    labels = [pod["metadata"]["labels"].get("memopod.io/cache") for pod in await cluster.pods()]
    assert sorted(labels, key=str) == [None, "true"]


async def test_equal_steps_of_two_runs_have_equal_commands(cluster, example):
    cluster.start_kubelet()
    for _ in range(2):
        await cluster.run(example("two_steps.yaml"))
    commands = {}
    for pod in await cluster.pods():
        main = next(c for c in pod["spec"]["containers"] if c["name"] == "main")
        template = pod["metadata"]["annotations"]["workflows.argoproj.io/node-name"].split(".")[1]
        commands.setdefault(template, set()).add(tuple(main["command"] + main["args"]))
    assert {name: len(found) for name, found in commands.items()} == {"split": 1, "count": 1}


async def test_a_pod_deleted_while_it_is_pending_is_made_again(cluster, example):
    plan = example("pipeline.yaml")
    running = asyncio.create_task(cluster.run(plan, "message=x"))
    (pod,) = await cluster.until(cluster.pods)
    await cluster.client.delete(PODS, pod["metadata"]["name"], namespace="pipelines")

    async def made_again():
        return [p for p in await cluster.pods() if p["metadata"]["uid"] != pod["metadata"]["uid"]]

    (second,) = await cluster.until(made_again)
    assert second["metadata"]["name"] == pod["metadata"]["name"]
    cluster.start_kubelet()
    assert (await running).state == "Succeeded"


async def test_a_pod_deleted_while_it_runs_fails_the_run(cluster, shell_plan, tmp_path):
    cluster.start_kubelet()
    running = asyncio.create_task(cluster.run(shell_plan({"a": f"echo $$ > {tmp_path}/up; sleep 1000"})))

    async def is_running():
        return [p for p in await cluster.pods() if p["status"]["phase"] == "Running"]

    (pod,) = await cluster.until(is_running)
    await cluster.client.delete(PODS, pod["metadata"]["name"], namespace="pipelines")
    result = await running
    assert (result.state, result.tasks[0].message) == ("Failed", "the Pod was deleted while it ran")
    assert not (cluster.state / "pods" / pod["metadata"]["uid"]).exists()


async def test_a_stopped_run_is_failed_and_its_pods_are_deleted(cluster, shell_plan):
    cluster.start_kubelet()
    stop = asyncio.Event()
    running = asyncio.create_task(
        cluster.run(shell_plan({"a": "sleep 1000", "b": (WRITE, ["a"])}), stop=stop)
    )
    await cluster.until(cluster.pods)
    stop.set()
    result = await running
    assert (result.state, result.stopped, result.message) == ("Failed", True, "stopped")

    async def gone():
        return not await cluster.pods()

    await cluster.until(gone)
    workflow = await cluster.workflow(result.run)
    assert (workflow["status"]["phase"], workflow["status"]["message"]) == ("Failed", "stopped")


async def test_a_run_that_takes_too_long_is_stopped(cluster, shell_plan):
    cluster.start_kubelet()
    result = await cluster.run(shell_plan({"a": "sleep 1000"}), timeout=1)
    assert result.state == "Failed"
    assert "took longer than 1 s" in result.message


async def test_a_run_survives_a_restart_of_the_api_server(cluster, shell_plan, tmp_path):
    cluster.start_kubelet()
    wait = f'touch {tmp_path}/up; until [ -e {tmp_path}/go ]; do sleep 0.02; done; echo done > "$1"'
    running = asyncio.create_task(cluster.run(shell_plan({"a": wait, "b": (WRITE, ["a"])})))

    async def up():
        return (tmp_path / "up").exists()

    await cluster.until(up)
    await cluster.restart_server()
    (tmp_path / "go").touch()
    result = await running
    assert {task.name: task.outputs["out"] for task in result.tasks} == {"a": "done", "b": "hello"}


async def test_a_held_pod_that_somebody_finishes_counts_as_reused(cluster, example):
    """What the cache server does: the result, then one write of the status. No kubelet is there."""
    plan = example("pipeline.yaml")
    running = asyncio.create_task(cluster.run(plan, "message=x"))
    (pod,) = await cluster.until(cluster.pods)
    name = pod["metadata"]["name"]
    node = pod["metadata"]["annotations"]["workflows.argoproj.io/node-id"]
    workflow = pod["metadata"]["labels"]["workflows.argoproj.io/workflow"]
    async with Client.from_kubeconfig(str(cluster.state / "kubeconfig")) as admin:
        status = {"status": {"phase": "Succeeded"}}
        labels = {
            "metadata": {"labels": {"memopod.io/step": "reused"}, "annotations": {"memopod.io/reason": "hit"}}
        }
        await admin.patch(PODS, name, {**status, **labels}, namespace="pipelines", subresource="status")
        await asyncio.sleep(0)
        assert not running.done()
        body = {
            "metadata": {
                "name": node,
                "labels": {
                    "workflows.argoproj.io/workflow": workflow,
                    "workflows.argoproj.io/report-outputs-completed": "true",
                },
            },
            "outputs": {"parameters": [{"name": "Output", "value": "remembered"}]},
        }
        await admin.create(TASK_RESULTS, body, namespace="pipelines")
    result = await running
    (task,) = result.tasks
    assert (task.decision, task.reason, task.outputs) == ("reused", "hit", {"Output": "remembered"})


@pytest.mark.parametrize("text", ["two\nlines", "ä ö", "quote ' \" $HOME `x`", ""])
async def test_any_text_passes_through_unchanged(cluster, shell_plan, text):
    cluster.start_kubelet()
    result = await cluster.run(shell_plan({"a": WRITE}), f"text={text}")
    assert result.tasks[0].outputs == {"out": text}
