"""What a client is told of a write whose answer was lost."""

import os
import signal
import sqlite3

import grpc
import pytest
from ml_metadata.proto import metadata_store_pb2 as mlmd
from ml_metadata.proto import metadata_store_service_pb2 as service

from metadata_store.failures import ABORTED, UNKNOWN
from metadata_store.repeat import outcome_unknown


def node(kind, **names):
    return getattr(mlmd, kind)(type_id=1, **names)


def edge(**names):
    return service.PutExecutionRequest.ArtifactAndEvent(artifact=mlmd.Artifact(type_id=1, **names))


@pytest.mark.parametrize(
    ("rpc", "request_", "code"),
    [
        ("PutContextType", service.PutContextTypeRequest(), ABORTED),
        ("PutContexts", service.PutContextsRequest(contexts=[node("Context", name="n")]), ABORTED),
        ("PutArtifacts", service.PutArtifactsRequest(artifacts=[node("Artifact", uri="u")]), UNKNOWN),
        ("PutArtifacts", service.PutArtifactsRequest(artifacts=[node("Artifact", name="n")]), ABORTED),
        ("PutArtifacts", service.PutArtifactsRequest(artifacts=[node("Artifact", id=3)]), ABORTED),
        (
            "PutArtifacts",
            service.PutArtifactsRequest(artifacts=[node("Artifact", name="n"), node("Artifact")]),
            UNKNOWN,
        ),
        ("PutExecutions", service.PutExecutionsRequest(executions=[node("Execution")]), UNKNOWN),
        ("PutExecution", service.PutExecutionRequest(execution=node("Execution")), UNKNOWN),
        ("PutExecution", service.PutExecutionRequest(execution=node("Execution", external_id="e")), ABORTED),
        (
            "PutExecution",
            service.PutExecutionRequest(
                execution=node("Execution", name="n"), artifact_event_pairs=[edge(uri="u")]
            ),
            UNKNOWN,
        ),
        ("PutLineageSubgraph", service.PutLineageSubgraphRequest(executions=[node("Execution")]), UNKNOWN),
        ("PutLineageSubgraph", service.PutLineageSubgraphRequest(artifacts=[node("Artifact")]), UNKNOWN),
        (
            "PutLineageSubgraph",
            service.PutLineageSubgraphRequest(executions=[node("Execution", external_id="e")]),
            ABORTED,
        ),
    ],
)
def test_only_what_can_be_repeated_without_harm_is_aborted(rpc, request_, code):
    answer = outcome_unknown(rpc, request_.SerializeToString(), "its worker ended")
    assert answer.code == code
    assert (b"look before you ask again" in answer.error) is (code == UNKNOWN)
    assert (b"can be asked for again" in answer.error) is (code == ABORTED)


@pytest.mark.parametrize(
    ("names", "code"), [({}, grpc.StatusCode.UNKNOWN), ({"name": "n"}, grpc.StatusCode.ABORTED)]
)
def test_a_write_whose_worker_dies_under_it_is_told_so(start_store, until, names, code):
    store = start_store()
    type_id = store.client().put_artifact_type(mlmd.ArtifactType(name="t"))
    before = store.workers()
    # Another program writes: the worker waits for its lock, in the middle of the call.
    with sqlite3.connect(store.database, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        call = store.call(
            "PutArtifacts", service.PutArtifactsRequest(artifacts=[mlmd.Artifact(type_id=type_id, **names)])
        )
        until(lambda: 'lane="writes"} 0.0' in store.http("/metrics")[1])
        reads = store.call("GetArtifactTypes", service.GetArtifactTypesRequest())
        assert reads.code() == grpc.StatusCode.OK
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        assert call.code() == code
        other.execute("ROLLBACK")
    other.close()
    assert "may or may not have been carried out" in call.details()
