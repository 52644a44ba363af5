import dataclasses

import pytest
from ml_metadata.proto import metadata_store_pb2 as mlmd

from memopod.mlmd import StoreClient
from metadata_writer.recorder import Recorder
from metadata_writer.records import Input, Output, Run, State, StepRecord
from metadata_writer.shards import Shards
from metadata_writer.unresolved import Unresolved

RUN = Run("run-1", "pipelines", "uid-1")
MAKE = StepRecord(
    external_id="uid-1/make",
    run=RUN,
    type_name="components.make",
    component_id="make",
    state=State.COMPLETE,
    custom={"started_at": 1_000, "finished_at": 2_000, "namespace": "pipelines"},
    outputs=(Output("model", "Model", "minio://b/model", {}),),
)
USE = dataclasses.replace(
    MAKE,
    external_id="uid-1/use",
    type_name="components.use",
    component_id="use",
    custom={"started_at": 1_764_000_000_000, "finished_at": 1_764_000_001_000, "namespace": "pipelines"},
    inputs=(Input("model", "minio://b/model"), Input("x", "minio://b/nowhere")),
    outputs=(),
)
AGAIN = dataclasses.replace(
    MAKE, external_id="uid-2/make", run=Run("run-2", "pipelines", "uid-2"), state=State.CACHED,
    custom=USE.custom,
)  # fmt: skip


@pytest.fixture
async def client(store):
    async with StoreClient(store.address) as client:
        yield client


async def test_steps_are_joined_to_what_is_recorded_long_after_them(store, client):
    recorder = Recorder(client)
    for record in (USE, AGAIN):
        assert (await recorder.record(record)).unresolved
    unresolved = Unresolved(client, Recorder(client), Shards(1))
    assert await unresolved.round() == 0
    await recorder.record(MAKE)
    assert await unresolved.round() == 2
    assert await unresolved.round() == 0
    (artifact,) = store.client.get_artifacts()
    ids = {e.external_id: e for e in store.client.get_executions()}
    assert ids["uid-1/use"].custom_properties["unresolved_inputs"].string_value == "x"
    assert ids["uid-1/use"].last_known_state == mlmd.Execution.COMPLETE
    assert "unresolved_outputs" not in ids["uid-2/make"].custom_properties
    cached = ids["uid-2/make"].custom_properties["cached_execution_id"].int_value
    assert cached == ids["uid-1/make"].id
    events = store.client.get_events_by_artifact_ids([artifact.id])
    assert sorted((e.execution_id, e.type) for e in events) == sorted(
        [
            (ids["uid-1/use"].id, mlmd.Event.INPUT),
            (ids["uid-1/make"].id, mlmd.Event.OUTPUT),
            (ids["uid-2/make"].id, mlmd.Event.OUTPUT),
        ]
    )
    assert not (await recorder.record(dataclasses.replace(USE))).written
