"""What a client is told of a write whose answer was lost."""

import os
import signal
from collections import Counter
from pathlib import Path

import grpc
import pytest
from ml_metadata.proto import metadata_store_pb2 as mlmd
from ml_metadata.proto import metadata_store_service_pb2 as service

from metadata_store.failures import ABORTED, UNKNOWN
from metadata_store.repeat import outcome_unknown

WAITING = "metadata_store_calls_waiting"


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


def stopped(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.mark.parametrize(
    ("names", "code", "repeated"),
    [
        ({}, grpc.StatusCode.UNKNOWN, {grpc.StatusCode.OK: 4}),
        ({"name": "n"}, grpc.StatusCode.ABORTED, {grpc.StatusCode.OK: 1, grpc.StatusCode.ALREADY_EXISTS: 3}),
    ],
)
def test_a_write_whose_worker_dies_under_it_is_told_so(start_store, until, names, code, repeated):
    store = start_store()
    type_id = store.client().put_artifact_type(mlmd.ArtifactType(name="t"))
    workers = store.workers()
    for pid in workers:  # handed to one of these, a call stays under way
        os.kill(pid, signal.SIGSTOP)
    until(lambda: all(map(stopped, workers)))
    request = service.PutArtifactsRequest(artifacts=[mlmd.Artifact(type_id=type_id, **names)])
    calls = [store.call("PutArtifacts", request) for _ in range(5)]
    # The only worker for writes has one and three behind it, as many as it is ever given; one waits.
    until(lambda: f'{WAITING}{{lane="writes"}} 1.0' in store.http("/metrics")[1])
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    told = [call for call in calls if "may or may not have been carried out" in call.details()]
    assert [call.code() for call in told] == [code]
    # It had begun none of the others: they are asked of the worker in its place.
    assert Counter(call.code() for call in calls if call not in told) == repeated
    assert len(store.client().get_artifacts()) == repeated[grpc.StatusCode.OK]
