"""What callers of two namespaces get of one real store, and do not."""

import asyncio
import socket

import grpc
import pytest
from ml_metadata.proto import metadata_store_pb2 as mlmd
from ml_metadata.proto import metadata_store_service_pb2 as service

from memopod.kube import Unavailable
from memopod.mlmd import StoreClient
from metadata_guard.answers import LIMITED, SERVICE
from metadata_guard.guard import Guard, Refused
from metadata_guard.reviews import Caller, Unauthenticated
from metadata_guard.store import Store
from metadata_writer.recorder import Recorder
from metadata_writer.records import Input, Output, Run, State, StepRecord
from tests.envoy.conftest import StoreProcess
from tests.envoy.fillings import fill_v2

TEAMS = ("team-a", "team-b")


class Known:
    """In place of the API server: a token is the namespace of a service account."""

    async def caller(self, token):
        if token == "away":
            raise Unavailable("no answer")
        if token == "false":
            raise Unauthenticated("the token is not one that the cluster accepts here")
        return Caller(f"system:serviceaccount:{token}:default")

    async def may_read(self, caller, namespace):
        return bool(namespace) and namespace == caller.namespace


def step(run, name, **fields):
    return StepRecord(
        external_id=f"{run.workflow_uid}/{name}",
        run=run,
        type_name=f"components.{name}",
        component_id=name,
        state=State.COMPLETE,
        custom={"namespace": run.namespace, "display_name": name},
        **fields,
    )


def uri(team, name="model"):
    return f"minio://{team}/{name}"


async def record_runs(address):
    """Two steps in each namespace, and one that reads what the other namespace made."""
    async with StoreClient(address) as client:
        recorder = Recorder(client)
        for team in TEAMS:
            run = Run(f"written-{team}", team, f"uid-{team}")
            made = Output("model", "system.Model", uri(team), {"name": "model"})
            await recorder.record(step(run, "make", outputs=(made,)))
            await recorder.record(step(run, "use", inputs=(Input("model", uri(team)),)))
        borrowing = Run("borrows", "team-b", "uid-borrows")
        await recorder.record(step(borrowing, "borrow", inputs=(Input("model", uri("team-a")),)))


async def intrude(address):
    """A step of team-b in the context of team-a's run, as Kubeflow's writer does for runs of one name."""
    async with StoreClient(address) as client:
        asked = service.GetContextByTypeAndNameRequest(type_name="KfpRun", context_name="written-team-a")
        run = (await client.call("GetContextByTypeAndName", asked)).context
        types = {}
        for kind in ("Execution", "Artifact"):
            request = getattr(service, f"Put{kind}TypeRequest")()
            getattr(request, f"{kind.lower()}_type").name = "intruder"
            types[kind] = (await client.call(f"Put{kind}Type", request)).type_id
        execution = mlmd.Execution(type_id=types["Execution"], name="intruder")
        execution.custom_properties["namespace"].string_value = "team-b"
        request = service.PutExecutionRequest(execution=execution, contexts=[run])
        made = mlmd.Artifact(type_id=types["Artifact"], uri=uri("team-b", "intruder"))
        request.artifact_event_pairs.add(artifact=made, event=mlmd.Event(type=mlmd.Event.OUTPUT))
        await client.call("PutExecution", request)


async def add_strays(address):
    """Nodes of which nobody says whose they are."""
    async with StoreClient(address) as client:
        for kind in ("Artifact", "Execution", "Context"):
            request = getattr(service, f"Put{kind}TypeRequest")()
            getattr(request, f"{kind.lower()}_type").name = "stray"
            type_id = (await client.call(f"Put{kind}Type", request)).type_id
            node = getattr(mlmd, kind)(type_id=type_id, name="stray", external_id=f"stray-{kind}")
            put = getattr(service, f"Put{kind}sRequest")(**{f"{kind.lower()}s": [node]})
            await client.call(f"Put{kind}s", put)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """(the store's address, the ids of each namespace's v2 run)."""

    async def fill(address):
        await record_runs(address)
        await intrude(address)
        await add_strays(address)
        return {team: await fill_v2(address, run=f"run-{team}", namespace=team) for team in TEAMS}

    store = StoreProcess(tmp_path_factory.mktemp("guarded")).ready()
    try:
        yield store.address, asyncio.run(fill(store.address))
    finally:
        store.stop()


@pytest.fixture
def ids(filled):
    return filled[1]


@pytest.fixture
async def ask(filled):
    """`await ask(namespace, RPC, field=...)`."""
    async with Store.channel(filled[0]) as channel:
        guard = Guard(Known(), Store(channel))

        async def call(token, rpc, **fields):
            request = getattr(service, f"{rpc}Request")(**fields)
            answer = await guard.call(rpc, request.SerializeToString(), f"Bearer {token}", 20)
            return getattr(service, f"{rpc}Response").FromString(answer)

        yield call


@pytest.fixture
async def whole(filled):
    async with StoreClient(filled[0]) as client:

        async def call(rpc, **fields):
            return await client.call(rpc, getattr(service, f"{rpc}Request")(**fields))

        yield call


async def code(call):
    with pytest.raises(Refused) as caught:
        await call
    return caught.value.code, str(caught.value)


def namespaces(nodes):
    return {node.custom_properties["namespace"].string_value for node in nodes}


@pytest.mark.parametrize("team", TEAMS)
async def test_a_caller_gets_all_of_its_namespace_and_nothing_else(ask, whole, team):
    executions = (await ask(team, "GetExecutions")).executions
    everything = (await whole("GetExecutions")).executions
    own = {e.id for e in everything if e.custom_properties["namespace"].string_value == team}
    roots = {e.id for e in everything if e.name == f"run/run-{team}"}  # whose run alone says whose it is
    assert {execution.id for execution in executions} == own | roots
    artifacts = (await ask(team, "GetArtifacts")).artifacts
    owners = {a.uri.split("/")[4 if "mlpipeline" in a.uri else 2] for a in artifacts}
    assert owners == {team, f"run-{team}"}
    contexts = (await ask(team, "GetContexts")).contexts
    assert namespaces(contexts) == {team}


async def test_a_run_that_two_namespaces_share_gives_each_its_own(ask, whole):
    run = (await whole("GetContextByTypeAndName", type_name="KfpRun", context_name="written-team-a")).context
    assert len((await whole("GetExecutionsByContext", context_id=run.id)).executions) == 3
    assert len((await whole("GetArtifactsByContext", context_id=run.id)).artifacts) == 2
    seen = (await ask("team-a", "GetExecutionsByContext", context_id=run.id)).executions
    assert (len(seen), namespaces(seen)) == (2, {"team-a"})
    (model,) = (await ask("team-a", "GetArtifactsByContext", context_id=run.id)).artifacts
    assert model.uri == uri("team-a")
    # The context is team-a's: the other finds its own by other ways alone.
    assert (await ask("team-b", "GetExecutionsByContext", context_id=run.id)).executions == []
    found = await ask("team-b", "GetExecutionByTypeAndName", type_name="intruder", execution_name="intruder")
    assert found.HasField("execution")


async def test_an_artifact_that_another_namespace_used_is_still_its_makers(ask):
    (model,) = (await ask("team-a", "GetArtifactsByURI", uris=[uri("team-a")])).artifacts
    assert (await ask("team-b", "GetArtifactsByURI", uris=[uri("team-a")])).artifacts == []
    events = (await ask("team-a", "GetEventsByArtifactIDs", artifact_ids=[model.id])).events
    assert len(events) == 2  # made and used by team-a; that team-b used it is team-b's
    borrowed = (await ask("team-b", "GetEventsByArtifactIDs", artifact_ids=[model.id])).events
    assert borrowed == []


async def test_what_is_withheld_looks_as_if_it_were_not_there(ask, whole, ids):
    theirs, nothing = ids["team-b"], 10**6
    for rpc, field, number in (
        ("GetExecutionsByID", "execution_ids", theirs["train"]),
        ("GetArtifactsByID", "artifact_ids", theirs["model"]),
        ("GetEventsByExecutionIDs", "execution_ids", theirs["train"]),
        ("GetEventsByArtifactIDs", "artifact_ids", theirs["model"]),
    ):
        assert await whole(rpc, **{field: [number]}) != await whole(rpc, **{field: [nothing]})
        assert await ask("team-a", rpc, **{field: [number]}) == await ask("team-a", rpc, **{field: [nothing]})
    answer = await ask(
        "team-a", "GetContextByTypeAndName", type_name="system.PipelineRun", context_name="run-team-b"
    )
    assert answer == service.GetContextByTypeAndNameResponse()
    for rpc, field, number in (
        ("GetContextsByExecution", "execution_id", theirs["train"]),
        ("GetContextsByArtifact", "artifact_id", theirs["model"]),
    ):
        withheld = await code(ask("team-a", rpc, **{field: number}))
        missing = await code(ask("team-a", rpc, **{field: nothing}))
        assert withheld[0] == missing[0] == grpc.StatusCode.NOT_FOUND
        assert withheld[1] == missing[1].replace(str(nothing), str(number))
    for kind, known in (("Executions", "uid-team-b/make"), ("Artifacts", "uid-team-b/make/model")):
        rpc = f"Get{kind}ByExternalIds"
        assert await ask("team-b", rpc, external_ids=[known])
        withheld = await code(ask("team-a", rpc, external_ids=[known]))
        assert withheld == await code(ask("team-a", rpc, external_ids=["never"]))
        assert withheld[0] == grpc.StatusCode.NOT_FOUND


async def test_what_says_of_no_namespace_is_nobodys(ask, whole):
    for team in TEAMS:
        for kind in ("Artifact", "Execution", "Context"):
            rpc = f"Get{kind}ByTypeAndName"
            asked = {"type_name": "stray", f"{kind.lower()}_name": "stray"}
            assert getattr(await whole(rpc, **asked), kind.lower()).name == "stray"
            assert await ask(team, rpc, **asked) == getattr(service, f"{rpc}Response")()
        pipeline = {"type_name": "system.Pipeline", "context_name": "demo"}
        assert not (await ask(team, "GetContextByTypeAndName", **pipeline)).HasField("context")


async def test_pages_go_on_past_what_is_withheld(ask, whole):
    for team in TEAMS:
        seen, token, pages = [], "", 0
        while True:
            options = mlmd.ListOperationOptions(max_result_size=1, next_page_token=token)
            answer = await ask(team, "GetExecutions", options=options)
            seen += [execution.id for execution in answer.executions]
            pages += 1
            token = answer.next_page_token
            if not token:
                break
        assert sorted(seen) == sorted(e.id for e in (await ask(team, "GetExecutions")).executions)
        assert pages <= len(seen) + 2  # empty pages are passed over here


async def test_a_reused_artifact_is_read_with_its_steps(ask, ids):
    mine = ids["team-a"]
    events = (await ask("team-a", "GetEventsByArtifactIDs", artifact_ids=[mine["model"]])).events
    assert {event.execution_id for event in events} >= {mine["train"], mine["again"]}
    contexts = (await ask("team-a", "GetContextsByArtifact", artifact_id=mine["model"])).contexts
    assert [context.name for context in contexts] == ["run-team-a"]


async def test_types_are_everybodys(ask, whole):
    assert await ask("team-a", "GetArtifactTypes") == await whole("GetArtifactTypes")


async def test_a_filter_is_refused_since_its_matches_show(ask):
    options = mlmd.ListOperationOptions(max_result_size=1, filter_query="name = 'run/run-team-b'")
    status, message = await code(ask("team-a", "GetExecutions", options=options))
    assert (status, "filter_query" in message) == (grpc.StatusCode.PERMISSION_DENIED, True)


@pytest.mark.parametrize("rpc", [m.name for m in SERVICE.methods if m.name not in LIMITED])
async def test_what_cannot_be_limited_is_refused(ask, rpc):
    status, message = await code(ask("team-a", rpc))
    assert status == grpc.StatusCode.PERMISSION_DENIED
    assert message == f"{rpc} cannot be limited to a caller's namespaces"


def test_that_is_every_write_and_the_reads_of_whole_graphs():
    assert {m.name for m in SERVICE.methods if m.name.startswith("Get")} - set(LIMITED) == {
        "GetLineageGraph", "GetLineageSubgraph",
        "GetParentContextsByContexts", "GetChildrenContextsByContexts",
    }  # fmt: skip
    assert not [name for name in LIMITED if not name.startswith("Get")]


@pytest.mark.parametrize("authorization", [None, "", "Bearer ", "Basic dXNlcg==", "Bearer false"])
async def test_without_a_token_that_is_known_nothing_is_answered(filled, authorization):
    async with Store.channel(filled[0]) as channel:
        guard = Guard(Known(), Store(channel))
        for rpc in ("GetContextTypes", "PutContexts"):
            status, _ = await code(guard.call(rpc, b"", authorization, 20))
            assert status == grpc.StatusCode.UNAUTHENTICATED


async def test_while_the_api_server_is_away_nothing_is_answered(ask):
    status, _ = await code(ask("away", "GetContextTypes"))
    assert status == grpc.StatusCode.UNAVAILABLE


async def test_a_store_that_is_away_is_said_to_be(new_port):
    async with Store.channel(f"127.0.0.1:{new_port}") as channel:
        guard = Guard(Known(), Store(channel))
        status, message = await code(guard.call("GetContexts", b"", "Bearer team-a", 20))
    assert (status, message) == (grpc.StatusCode.UNAVAILABLE, "the store failed at GetContexts")


@pytest.fixture
def new_port():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


async def test_a_request_that_is_none_is_refused(filled):
    async with Store.channel(filled[0]) as channel:
        status, _ = await code(
            Guard(Known(), Store(channel)).call("GetContexts", b"\xff", "Bearer team-a", 20)
        )
    assert status == grpc.StatusCode.INVALID_ARGUMENT
