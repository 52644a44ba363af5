import asyncio
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


async def test_a_reused_step_without_artifacts_learns_which_run_it_reuses_once_that_is_recorded(
    store, client
):
    made = dataclasses.replace(MAKE, outputs=())
    again = dataclasses.replace(AGAIN, outputs=(), source_execution=made.external_id)
    await Recorder(client).record(again)
    unresolved = Unresolved(client, Recorder(client), Shards(1))
    assert await unresolved.round() == 0
    await Recorder(client).record(made)
    assert await unresolved.round() == 1
    ids = {e.external_id: e for e in store.client.get_executions()}
    custom = ids["uid-2/make"].custom_properties
    assert custom["cached_execution_id"].int_value == ids["uid-1/make"].id
    assert "unresolved_source" not in custom
    assert await unresolved.round() == 0


class Meanwhile:
    """A store in which something else happens between a look and the first put."""

    def __init__(self, client, happens):
        self._client, self._happens = client, [happens]

    async def call(self, rpc, request, **options):
        if rpc in ("PutLineageSubgraph", "PutExecutions") and self._happens:
            await self._happens.pop()()
        return await self._client.call(rpc, request, **options)


@pytest.mark.parametrize("who", ["round", "backfill"])
async def test_a_round_beside_a_step_that_is_tried_again_does_not_take_its_success_back(store, client, who):
    await Recorder(client).record(dataclasses.replace(USE, state=State.FAILED))
    late, seen = asyncio.Event(), asyncio.Event()

    async def overtaken():
        seen.set()
        await late.wait()

    # `argo retry` made the Pod anew under the same identity; its record was planned before the artifact came.
    retried = dataclasses.replace(USE, custom=USE.custom | {"finished_at": 1_764_000_009_000})
    retry = asyncio.create_task(Recorder(Meanwhile(client, overtaken)).record(retried), name="retry")
    await seen.wait()
    await Recorder(client).record(MAKE)

    async def succeed():
        late.set()
        await retry

    behind = Meanwhile(client, succeed)
    if who == "backfill":  # what the Workflow's status said before, as `memopod writer backfill` may bring it
        await Recorder(behind).record(dataclasses.replace(USE, state=State.FAILED, from_pod=False))
    else:
        assert await Unresolved(client, Recorder(behind), Shards(1)).round() == 1
    (use,) = (e for e in store.client.get_executions() if e.external_id == USE.external_id)
    assert use.last_known_state == mlmd.Execution.COMPLETE
    assert use.custom_properties["finished_at"].double_value == 1_764_000_009_000
    assert use.custom_properties["unresolved_inputs"].string_value == "x"
    (event,) = store.client.get_events_by_execution_ids([use.id])
    assert [step.key for step in event.path.steps] == ["model"]
