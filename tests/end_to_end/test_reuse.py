import asyncio

from memopod.kube import PODS, Client


def decisions(result):
    return {task["name"]: task["decision"] for task in result["tasks"]}


def pod_of(sandbox, name):
    async def get():
        async with Client.from_kubeconfig(str(sandbox.state / "kubeconfig")) as client:
            return await client.get(PODS, name, namespace="pipelines")

    return asyncio.run(get())


def test_the_second_run_is_reused_and_never_started(sandbox, example):
    first = sandbox.run(example("pipeline.yaml"), "-p", "message=one")
    second = sandbox.run(example("pipeline.yaml"), "-p", "message=one")
    assert (decisions(first), decisions(second)) == ({"comp": "executed"}, {"comp": "reused"})
    assert first["outputs"] == second["outputs"] == {"Output": "one"}
    ran, reused = (pod_of(sandbox, result["tasks"][0]["pod"]) for result in (first, second))
    assert ran["spec"]["nodeName"] == "sandbox"
    assert (sandbox.state / "pods" / ran["metadata"]["uid"] / "main.log").is_file()
    assert "nodeName" not in reused["spec"]
    assert [gate["name"] for gate in reused["spec"]["schedulingGates"]] == ["memopod.io/decide"]
    assert not (sandbox.state / "pods" / reused["metadata"]["uid"]).exists()


def test_another_message_is_executed_and_the_first_one_is_still_known(sandbox, example):
    for message, decision in (("a", "executed"), ("b", "executed"), ("a", "reused"), ("b", "reused")):
        result = sandbox.run(example("pipeline.yaml"), "-p", f"message={message}")
        assert (decisions(result), result["outputs"]) == ({"comp": decision}, {"Output": message})


def test_two_steps_with_an_artifact_between_them_are_reused_one_by_one(sandbox, example):
    expected = [("x y z", "executed"), ("x y z", "reused"), ("x y", "executed"), ("x y z", "reused")]
    locations = []
    for message, decision in expected:
        result = sandbox.run(example("two_steps.yaml"), "-p", f"message={message}")
        assert decisions(result) == {"split": decision, "count": decision}
        assert result["outputs"]["count"] == len(message.split())
        locations.append(result["outputs"]["words"])
    # The artifact stays where the run that made it has put it.
    assert locations[0] == locations[1] == locations[3] != locations[2]


def test_without_cache_a_step_is_run_again(sandbox, example):
    for _ in range(2):
        result = sandbox.run(example("pipeline.yaml"), "-p", "message=always", "--no-cache")
        assert decisions(result) == {"comp": "executed"}


def test_an_output_that_is_gone_is_made_again(sandbox, example):
    first = sandbox.run(example("two_steps.yaml"), "-p", "message=gone soon")
    key = first["outputs"]["words"].removeprefix("minio://pipelines/")
    (sandbox.state / "buckets" / "pipelines" / key).unlink()
    second = sandbox.run(example("two_steps.yaml"), "-p", "message=gone soon")
    assert decisions(second)["split"] == "executed"
    assert second["outputs"]["count"] == 2


def test_the_lineage_of_a_reused_output_leads_to_the_run_that_made_it(sandbox, example):
    first = sandbox.run(example("two_steps.yaml"), "-p", "message=where from")
    second = sandbox.run(example("two_steps.yaml"), "-p", "message=where from")
    made = {step["step"]: step for step in sandbox.recorded(first["run"], 2)}
    reused = {step["step"]: step for step in sandbox.recorded(second["run"], 2)}
    for name in ("split", "count"):
        assert (made[name]["state"], reused[name]["state"]) == ("COMPLETE", "CACHED")
        assert reused[name]["cached_execution_id"] == made[name]["id"]
    graph = sandbox.lineage("up", f"{second['run']}/count:count")
    assert first["run"] in str(graph)


def test_a_failing_step_shows_the_end_of_its_log(sandbox, example, tmp_path):
    path = tmp_path / "failing.yaml"
    text = example("pipeline.yaml").read_text()
    path.write_text(text.replace('print("Received message:", message)', 'raise SystemExit("no way")'))
    status, _, errors = sandbox.command("run", str(path), "-p", "message=x")
    assert status == 1
    assert "task 'comp' failed: main exited with code 1" in errors
    assert "no way" in errors
