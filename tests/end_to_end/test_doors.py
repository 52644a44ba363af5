import struct
import urllib.request

import pytest
from ml_metadata import metadata_store
from ml_metadata.proto import metadata_store_pb2, metadata_store_service_pb2

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
    """Two runs of two steps: executed, then reused."""
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
