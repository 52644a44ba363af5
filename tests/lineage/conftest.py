import asyncio
import contextlib

import pytest
from ml_metadata.proto import metadata_store_pb2 as mlmd
from ml_metadata.proto import metadata_store_service_pb2 as service

from memopod.mlmd import StoreClient
from tests.stores import StoreProcess

START = 1_760_000_000_000
"""Milliseconds since the epoch at which the first recorded step starts."""


@contextlib.contextmanager
def serving(folder):
    """The address of a new store."""
    store = StoreProcess(folder, workers=2)
    store.start()
    try:
        yield store.address
    finally:
        store.kill()


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("empty-store")) as address:
        yield address


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """The address of a store with everything that `record_all` writes."""
    with serving(tmp_path_factory.mktemp("store")) as address:
        asyncio.run(record_all(address))
        yield address


@pytest.fixture(scope="session")
def own_store(tmp_path_factory):
    """The address of a store to which tests add what they like."""
    with serving(tmp_path_factory.mktemp("own-store")) as address:
        yield address


@pytest.fixture(scope="session")
def recorder_class():
    return Recorder


@pytest.fixture
async def client(store):
    async with StoreClient(store) as connected:
        yield connected


@pytest.fixture
async def ids(client):
    """Ids in the store: of executions by `run/step`, of artifacts by uri."""
    request = service.GetExecutionsRequest()
    executions = (await client.call("GetExecutions", request)).executions
    artifacts = (await client.call("GetArtifacts", service.GetArtifactsRequest())).artifacts
    found = {
        f"{e.properties['run_id'].string_value}/{e.custom_properties['display_name'].string_value}": e.id
        for e in executions
    }
    found.update({artifact.uri: artifact.id for artifact in artifacts})
    return found


class Recorder:
    """Writes runs as the metadata writer does: one PutLineageSubgraph a step."""

    def __init__(self, client):
        self.client = client
        self.types = {}
        self.clock = START
        self.nodes = 0

    async def type(self, kind, name, properties=()):
        if (kind, name) not in self.types:
            message = getattr(mlmd, f"{kind}Type")(name=name)
            for key in properties:
                message.properties[key] = mlmd.STRING
            request = getattr(service, f"Put{kind}TypeRequest")(can_add_fields=True)
            getattr(request, f"{kind.lower()}_type").CopyFrom(message)
            self.types[kind, name] = (await self.client.call(f"Put{kind}Type", request)).type_id
        return self.types[kind, name]

    async def artifact(self, uri, *, kind="system.Model", name=""):
        message = mlmd.Artifact(type_id=await self.type("Artifact", kind), uri=uri)
        message.custom_properties["name"].string_value = name or uri.rpartition("/")[2]
        message.custom_properties["size"].int_value = 1234
        answer = await self.client.call("PutArtifacts", service.PutArtifactsRequest(artifacts=[message]))
        return answer.artifact_ids[0]

    async def step(
        self,
        run,
        step,
        *,
        state="COMPLETE",
        uses=None,
        makes=None,
        inputs=None,
        outputs=None,
        cached=None,
        seconds=2,
        lost="",
    ):
        """Record a step; `uses` and `makes` are artifact ids by name. Returns the execution's id."""
        self.nodes += 1
        execution = await self.execution(run, step, state, inputs, outputs, cached, seconds)
        if lost:
            execution.custom_properties["unresolved_inputs"].string_value = lost
        request = service.PutLineageSubgraphRequest(executions=[execution])
        request.contexts.append(await self.context(run))
        request.options.reuse_context_if_already_exist = True
        for kind, artifacts in ((mlmd.Event.INPUT, uses), (mlmd.Event.OUTPUT, makes)):
            for number in dict.fromkeys((artifacts or {}).values()):
                edge = request.event_edges.add(execution_index=0)
                edge.event.type = kind
                edge.event.artifact_id = number
                for key in (key for key, other in artifacts.items() if other == number):
                    edge.event.path.steps.add(key=key)
        answer = await self.client.call("PutLineageSubgraph", request)
        return answer.execution_ids[0]

    async def execution(self, run, step, state, inputs, outputs, cached, seconds):
        names = ("pipeline_name", "run_id", "component_id")
        message = mlmd.Execution(
            type_id=await self.type("Execution", "components.template", names),
            external_id=f"{run}-uid/{run}-{self.nodes}",
            last_known_state=mlmd.Execution.State.Value(state),
        )
        for name, value in zip(names, (run, run, "template"), strict=True):
            message.properties[name].string_value = value
        custom = message.custom_properties
        custom["display_name"].string_value = step
        custom["kfp_pod_name"].string_value = f"{run}-{self.nodes}"
        if state != "UNKNOWN":
            custom["started_at"].int_value = self.clock
            self.clock += seconds * 1000
            custom["finished_at"].int_value = self.clock
        if cached is not None:
            custom["cached_execution_id"].int_value = cached
        for side, values in (("input", inputs), ("output", outputs)):
            for name, value in (values or {}).items():
                field = {str: "string_value", int: "int_value", float: "double_value"}[type(value)]
                setattr(custom[f"{side}:{name}"], field, value)
        return message

    async def context(self, run):
        message = mlmd.Context(
            type_id=await self.type("Context", "KfpRun", ("pipeline_name", "run_id")), name=run
        )
        message.properties["pipeline_name"].string_value = run
        message.properties["run_id"].string_value = run
        message.custom_properties["namespace"].string_value = "pipelines"
        return message

    async def reuse_instead(self, execution, origin):
        """Make a recorded execution one that reused `origin`."""
        request = service.GetExecutionsByIDRequest(execution_ids=[execution])
        message = (await self.client.call("GetExecutionsByID", request)).executions[0]
        message.last_known_state = mlmd.Execution.CACHED
        message.custom_properties["cached_execution_id"].int_value = origin
        await self.client.call("PutExecutions", service.PutExecutionsRequest(executions=[message]))


async def record_all(address):
    async with StoreClient(address) as client:
        recorder = Recorder(client)
        await record_message(recorder)
        await record_iris(recorder)
        await record_cycles(recorder)
        await record_oddities(recorder)
        await record_many(recorder)


async def record_message(recorder):
    """One parameter in, the same out; the second run reuses the first, the third reuses it as well."""
    value = {"message": "My ML pipeline running"}
    text = {"Output": "My ML pipeline running"}
    first = await recorder.step("message-1", "comp", inputs=value, outputs=text, seconds=3)
    for run in ("message-2", "message-3"):
        await recorder.step(run, "comp", state="CACHED", inputs=value, outputs=text, cached=first, seconds=0)


async def record_iris(recorder):
    """load -> train -> evaluate, and load -> evaluate; a parameter to report; the second run reuses load."""
    data = await recorder.artifact("minio://pipelines/iris-1/data", kind="system.Dataset")
    origin = None
    for run, rate in (("iris-1", 0.01), ("iris-2", 0.02)):
        model = await recorder.artifact(f"minio://pipelines/{run}/model")
        state = "COMPLETE" if origin is None else "CACHED"
        load = await recorder.step(run, "load", state=state, makes={"data": data}, cached=origin)
        origin = origin or load
        await recorder.step(
            run, "train", uses={"examples": data}, makes={"model": model}, inputs={"rate": rate}
        )
        score = f"0.9{rate}"
        await recorder.step(run, "evaluate", uses={"model": model, "data": data}, outputs={"accuracy": score})
        await recorder.step(run, "report", inputs={"score": score, "digits": 2})


async def record_cycles(recorder):
    """Two executions that each say they reused the other, and one that uses what it makes."""
    first = await recorder.step("cycle-1", "a", outputs={"x": "around and around"})
    second = await recorder.step("cycle-1", "b", state="CACHED", cached=first)
    await recorder.reuse_instead(first, second)
    own = await recorder.artifact("minio://pipelines/cycle-1/own")
    await recorder.step("cycle-1", "self", uses={"in": own}, makes={"out": own})


async def record_oddities(recorder):
    await recorder.step("odd-1", "again")
    await recorder.step("odd-1", "again")
    await recorder.step("odd-1", "train(0:a)", outputs={"loss": 0.5})
    await recorder.step("odd-1", "orphan", state="CACHED", cached=987_654)
    await recorder.step("odd-1", "hostile", outputs={"text": "\x1b[31m[bold]red[/bold]\nnext", "none": ""})
    await recorder.step("odd-1", "old", state="UNKNOWN")
    await recorder.step("odd-1", "wide", outputs={"text": "x" * 5000})
    one = await recorder.artifact("minio://pipelines/odd-1/one")
    await recorder.step("odd-1", "twice", uses={"left": one, "right": one}, lost="third")
    for _ in range(2):
        await recorder.artifact("minio://pipelines/odd-1/overwritten")


async def record_many(recorder):
    """300 executions: one that makes an artifact, and 299 that use it."""
    seed = await recorder.artifact("minio://pipelines/many-1/seed")
    await recorder.step("many-1", "first", makes={"seed": seed})
    for number in range(299):
        await recorder.step("many-1", f"user-{number:03}", uses={"seed": seed})
