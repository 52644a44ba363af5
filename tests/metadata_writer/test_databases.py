"""Names and values as users and Argo write them, on each database that the store may have."""

import asyncio
import dataclasses
import random
import string
import uuid
from collections import Counter
from urllib.parse import quote

import pytest
from ml_metadata.metadata_store import MetadataStore
from ml_metadata.proto import metadata_store_pb2 as mlmd

from memopod.mlmd import StoreClient, StoreError, from_properties
from metadata_writer.recorder import Recorder, Wish
from metadata_writer.records import Input, Output, Run, State, StepRecord
from tests.chaos.conduct import Store

CHANCE = random.Random(1)
LONG = "".join(CHANCE.choices(string.ascii_letters, k=20_000))  # no index can pack it


@pytest.fixture(scope="module", params=["sqlite", "mysql", "postgresql"])
def address(request, tmp_path_factory):
    url = None
    if request.param != "sqlite":
        server = request.getfixturevalue({"mysql": "mariadb"}.get(request.param, request.param))
        place = f"{server.user}:{quote(server.password, safe='')}@127.0.0.1:{server.port}"
        url = f"{request.param}://{place}/w{uuid.uuid4().hex[:12]}"
    store = Store(tmp_path_factory.mktemp("store"), url)
    asyncio.run(store.start())
    yield store.address
    store.kill()


def step(**fields):
    uid = uuid.uuid4().hex
    return StepRecord(
        external_id=f"{uid}/n",
        run=Run(f"run-{uid}", "pipelines", uid),
        type_name=fields.pop("type_name", "components.train"),
        component_id="train",
        state=State.COMPLETE,
        custom={"namespace": "pipelines", **fields.pop("custom", {})},
        **fields,
    )


def put_out(*names, uri="s3://b/o"):
    return tuple(Output(name, "NoType", f"{uri}/{number}", {}) for number, name in enumerate(names))


ODD = {
    "a NUL in a value": step(custom={"input:x": "a\0b"}),
    "a NUL in a name": step(custom={"input:x\0y": "1"}, outputs=put_out("a\0b")),
    "half of a pair": step(custom={"input:x": "\ud800"}),
    "other scripts": step(type_name="components.\U0001f600 訓練", custom={"input:é": "\U0001f600"}),
    "a long value": step(custom={"input:x": LONG, "input:y": "1"}),
    "a value of backslashes": step(custom={"input:x": LONG[:1500] + "\\" * 900}),
    "a long name": step(custom={f"input:{'x' * 400}": "1"}, outputs=put_out("o" * 400)),
    "a long type": step(
        type_name=f"components.{'x' * 400}", outputs=(Output("o", "T" * 400, "s3://b/t", {}),)
    ),
    "names that differ in case": step(custom={"input:n": "1", "input:N": "2"}),
    "names that differ in a blank": step(custom={"input:n": "1", "input:n ": "2"}),
    "outputs that differ in case": step(outputs=put_out("model", "Model")),
    "a long place": step(outputs=put_out("o", uri="s3://b/" + "k" * 70_000)),
    "unknown inputs": step(inputs=tuple(Input(f"in{n}", f"s3://b/{LONG[n : n + 100]}") for n in range(300))),
}


@pytest.mark.parametrize("odd", ODD)
async def test_a_step_is_recorded_whatever_its_names_and_values_are(address, odd):
    record = ODD[odd]
    async with StoreClient(address) as client:
        recorder = Recorder(client)
        assert (await recorder.record(record)).written
        assert not (await recorder.record(record)).written
    host, port = address.split(":")
    store = MetadataStore(mlmd.MetadataStoreClientConfig(host=host, port=int(port)))
    (execution,) = store.get_executions_by_external_ids([record.external_id])
    custom = from_properties(execution.custom_properties)
    inputs = {name: value for name, value in record.custom.items() if name.startswith("input:")}
    assert Counter(name.startswith("input:") for name in custom)[True] == len(inputs)
    for name, value in inputs.items():
        whole = value in custom.values()  # under its name, or another where the name does not do
        assert whole or "sha256" in custom[name] or "\0" in value or "\ud800" in value
    context = store.get_context_by_type_and_name("KfpRun", record.run.name)
    assert len(store.get_artifacts_by_context(context.id)) == len(record.outputs)
    assert len(store.get_events_by_execution_ids([execution.id])) == len(record.outputs)


class Counting:
    """A store that counts what it is asked."""

    def __init__(self, client):
        self._client, self.calls = client, Counter()

    async def call(self, rpc, request, **options):
        self.calls[rpc] += 1
        return await self._client.call(rpc, request, **options)


async def test_a_step_that_cannot_be_recorded_at_all_is_given_up_soon_and_spoils_no_other_of_its_run(address):
    good = [dataclasses.replace(step(), run=Run("run", "n", "u"), external_id=f"u/{n}") for n in range(5)]
    poison = dataclasses.replace(good[0], external_id="u/poison", custom={"input:x": float("nan")})
    async with StoreClient(address) as client:
        counting = Counting(client)
        results = await Recorder(counting).record_all([Wish(r) for r in (*good[:2], poison, *good[2:])])
    refused = [isinstance(result, StoreError) for result in results]
    assert refused == [False, False, True, False, False, False]
    assert counting.calls["PutLineageSubgraph"] <= 10
