"""What runs in one sandbox: what the doors to its store say of the first runs, and what is reused later."""

import asyncio
import struct
import urllib.request

import pytest
from ml_metadata import metadata_store
from ml_metadata.proto import metadata_store_pb2, metadata_store_service_pb2

from memopod.kube import PODS, Client

SERVICE = "ml_metadata.MetadataStoreService"


def through_grpc_web(address, method, request, response):
    """A unary call as a browser sends it: one POST, frames of a flag, a length and a message."""
    body = request.SerializeToString()
    post = urllib.request.Request(
        f"http://{address}/{SERVICE}/{method}",
        data=struct.pack(">BI", 0, len(body)) + body,
        headers={
            "Content-Type": "application/grpc-web+proto",
            "X-Grpc-Web": "1",
            "Origin": "http://ui.example.com",
        },
    )
    with urllib.request.urlopen(post, timeout=20) as answer:
        assert answer.headers["Content-Type"].startswith("application/grpc-web")
        assert "Access-Control-Allow-Origin" not in answer.headers  # a page of elsewhere may not read it
        content = answer.read()
    messages, trailers = [], b""
    while content:
        flag, length = struct.unpack(">BI", content[:5])
        frame, content = content[5 : 5 + length], content[5 + length :]
        if flag & 0x80:
            trailers += frame
        else:
            messages.append(frame)
    assert b"grpc-status:0" in trailers.replace(b" ", b"")
    (message,) = messages
    return response.FromString(message)


def official_client(address):
    host, _, port = address.rpartition(":")
    config = metadata_store_pb2.MetadataStoreClientConfig(host=host, port=int(port))
    return metadata_store.MetadataStore(config)


@pytest.fixture(scope="module")
def recorded(sandbox, example):
    """Two runs of two steps, executed and then reused: nothing else is recorded before them."""
    results = [sandbox.run(example("two_steps.yaml"), "-p", "message=doors") for _ in range(2)]
    for result in results:
        sandbox.recorded(result["run"], 2)
    return [result["run"] for result in results]


def by_id(items):
    return {item.id: item for item in items}


@pytest.mark.parametrize("door", ["store", "envoy"])
def test_the_official_client_and_a_grpc_web_post_read_the_same_lineage(sandbox, recorded, door):
    client = official_client(sandbox.description[door]["address"])
    envoy = sandbox.description["envoy"]["address"]
    pb = metadata_store_service_pb2

    executions = through_grpc_web(envoy, "GetExecutions", pb.GetExecutionsRequest(), pb.GetExecutionsResponse)
    artifacts = through_grpc_web(envoy, "GetArtifacts", pb.GetArtifactsRequest(), pb.GetArtifactsResponse)
    contexts = through_grpc_web(envoy, "GetContexts", pb.GetContextsRequest(), pb.GetContextsResponse)
    ids = [execution.id for execution in executions.executions]
    asked = pb.GetEventsByExecutionIDsRequest(execution_ids=ids)
    events = through_grpc_web(envoy, "GetEventsByExecutionIDs", asked, pb.GetEventsByExecutionIDsResponse)

    assert len(executions.executions) == 4
    assert by_id(client.get_executions()) == by_id(executions.executions)
    assert by_id(client.get_artifacts()) == by_id(artifacts.artifacts)
    assert by_id(client.get_contexts()) == by_id(contexts.contexts)
    own = sorted(str(event) for event in client.get_events_by_execution_ids(ids))
    assert own == sorted(str(event) for event in events.events)


def test_a_reused_step_put_out_the_very_artifact_of_the_first_run(sandbox, recorded):
    client = official_client(sandbox.description["store"]["address"])
    (artifact,) = client.get_artifacts()
    producers = [
        event.execution_id
        for event in client.get_events_by_artifact_ids([artifact.id])
        if event.type == metadata_store_pb2.Event.OUTPUT
    ]
    states = {e.id: e.last_known_state for e in client.get_executions_by_id(producers)}
    complete, cached = metadata_store_pb2.Execution.COMPLETE, metadata_store_pb2.Execution.CACHED
    assert sorted(states.values()) == sorted([complete, cached])


def test_no_execution_is_recorded_twice(sandbox, recorded):
    client = official_client(sandbox.description["store"]["address"])
    external = [execution.external_id for execution in client.get_executions()]
    assert len(set(external)) == len(external) == 4
    assert all(external)


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


def test_its_folder_is_refused_to_another(sandbox):
    status, _, errors = sandbox.command("sandbox", "up")
    assert status == 1
    assert str(sandbox.state) in errors
    assert sandbox.process.poll() is None
