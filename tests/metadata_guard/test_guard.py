"""What callers of two namespaces get of one real store, and do not."""

import asyncio
import contextlib
import socket

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from ml_metadata.proto import metadata_store_pb2 as mlmd
from ml_metadata.proto import metadata_store_service_pb2 as service
from prometheus_client import REGISTRY

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
        return Caller(f"system:serviceaccount:{token}:default", groups=(f"system:serviceaccounts:{token}",))

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


async def make_together(address):
    """An artifact that executions of both namespaces put out."""
    async with StoreClient(address) as client:
        request = service.PutArtifactTypeRequest(artifact_type=mlmd.ArtifactType(name="shared"))
        artifact = mlmd.Artifact(
            type_id=(await client.call("PutArtifactType", request)).type_id, name="shared"
        )
        request = service.PutExecutionTypeRequest(execution_type=mlmd.ExecutionType(name="maker"))
        type_id = (await client.call("PutExecutionType", request)).type_id
        for team in TEAMS:
            execution = mlmd.Execution(type_id=type_id, name=f"maker-{team}")
            execution.custom_properties["namespace"].string_value = team
            request = service.PutExecutionRequest(execution=execution)
            request.artifact_event_pairs.add(artifact=artifact, event=mlmd.Event(type=mlmd.Event.OUTPUT))
            artifact.id = (await client.call("PutExecution", request)).artifact_ids[0]


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
        await make_together(address)
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
        guard = Guard(Known(), Store(channel), inherit=["system.PipelineRun"])
        strict = Guard(Known(), Store(channel))

        async def call(token, rpc, *, inherit=True, **fields):
            request = getattr(service, f"{rpc}Request")(**fields)
            chosen = guard if inherit else strict
            answer = await chosen.call(rpc, request.SerializeToString(), f"Bearer {token}", 20)
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
async def test_a_caller_gets_all_of_its_namespace_and_nothing_else(ask, whole, ids, team):
    executions = (await ask(team, "GetExecutions")).executions
    everything = (await whole("GetExecutions")).executions
    own = {e.id for e in everything if e.custom_properties["namespace"].string_value == team}
    graphs = {ids[team]["root"], *ids[team]["loop"]}  # whose run alone says whose they are
    assert not own & graphs
    assert {execution.id for execution in executions} == own | graphs
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


async def test_an_artifact_of_two_namespaces_is_for_those_who_may_read_both(ask, whole):
    named = {"type_name": "shared", "artifact_name": "shared"}
    assert (await whole("GetArtifactByTypeAndName", **named)).HasField("artifact")
    for team in TEAMS:
        assert not (await ask(team, "GetArtifactByTypeAndName", **named)).HasField("artifact")


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


async def test_the_types_of_what_is_withheld_do_not_come_along(ask, whole, ids):
    asked = {
        "artifact_ids": [ids["team-b"]["metrics"], ids["team-a"]["model"]],
        "populate_artifact_types": True,
    }
    types = {known.name for known in (await whole("GetArtifactsByID", **asked)).artifact_types}
    assert types == {"system.Metrics", "system.Model"}
    answer = await ask("team-a", "GetArtifactsByID", **asked)
    assert [known.name for known in answer.artifact_types] == ["system.Model"]
    asked["artifact_ids"] = [ids["team-b"]["metrics"]]
    assert await ask("team-a", "GetArtifactsByID", **asked) == service.GetArtifactsByIDResponse()


async def test_the_contexts_of_what_is_withheld_are_too_even_if_they_may_be_read(ask, whole):
    """A node of team-b in the context of team-a."""
    named = {"type_name": "intruder", "execution_name": "intruder"}
    execution = (await whole("GetExecutionByTypeAndName", **named)).execution.id
    (artifact,) = (await whole("GetArtifactsByURI", uris=[uri("team-b", "intruder")])).artifacts
    for rpc, field, number in (
        ("GetContextsByExecution", "execution_id", execution),
        ("GetContextsByArtifact", "artifact_id", artifact.id),
    ):
        (run,) = (await whole(rpc, **{field: number})).contexts
        assert run.name == "written-team-a"
        withheld = await code(ask("team-a", rpc, **{field: number}))
        missing = await code(ask("team-a", rpc, **{field: 10**6}))
        assert withheld == (missing[0], missing[1].replace(str(10**6), str(number)))
        assert withheld[0] == grpc.StatusCode.NOT_FOUND


async def test_what_is_withheld_is_counted_as_what_is_not_there(ask, ids):
    async def counted(number):
        before = samples()
        assert not (await ask("team-a", "GetArtifactsByID", artifact_ids=[number])).artifacts
        return {name: value - before.get(name, 0) for name, value in samples().items()}

    assert await counted(ids["team-b"]["model"]) == await counted(10**6)


def samples():
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in REGISTRY.collect()
        for sample in family.samples
        if "guard" in sample.name and not sample.name.endswith("_created")
    }


async def test_an_execution_without_a_namespace_is_nobodys_unless_its_run_is_asked(ask, ids):
    root = ids["team-a"]["root"]
    asked = {"execution_ids": [root]}
    assert not (await ask("team-a", "GetExecutionsByID", inherit=False, **asked)).executions
    assert (await ask("team-a", "GetExecutionsByID", **asked)).executions[0].id == root
    assert not (await ask("team-b", "GetExecutionsByID", **asked)).executions
    listed = (await ask("team-a", "GetExecutions", inherit=False)).executions
    assert listed
    assert namespaces(listed) == {"team-a"}


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


@contextlib.asynccontextmanager
async def stores(*handlers):
    """Bare gRPC servers in place of replicas of a store, and a channel to all of them: (channel, healths)."""
    servers, addresses, healths = [], [], []
    for each in handlers:
        server, status = grpc.aio.server(), health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(status, server)
        made = {name: grpc.unary_unary_rpc_method_handler(handle) for name, handle in each.items()}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE.full_name, made),))
        addresses.append(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        await server.start()
        servers.append(server)
        healths.append(status)
    try:
        async with Store.channel(f"ipv4:{','.join(addresses)}") as channel:
            yield channel, healths
    finally:
        for server in servers:
            await server.stop(None)


def answering(seen, seconds=0):
    """Handlers of a store that holds one context of team-a, and notes the time that each call is given.

    `seconds`: what the call takes.
    """

    async def contexts(request, context):
        seen.append(context.time_remaining())
        await asyncio.sleep(seconds)
        found = mlmd.Context(id=1, type="run")
        found.custom_properties["namespace"].string_value = "team-a"
        return service.GetContextsByIDResponse(contexts=[found]).SerializeToString()

    return {"GetContexts": contexts, "GetContextsByID": contexts}


async def test_each_call_to_the_store_is_given_the_time_that_is_left():
    seen = []
    async with stores(answering(seen, seconds=0.3)) as (channel, _):
        async with asyncio.timeout(30):
            while len(seen) < 2:  # the list, and whose they are; a busy machine may not get so far
                seen.clear()
                # Below a second gRPC passes milliseconds on; above, it rounds up by as much as a second.
                with contextlib.suppress(Refused):
                    await Guard(Known(), Store(channel)).call("GetContexts", b"", "Bearer team-a", 0.95)
        assert seen[0] <= 0.95
        assert seen[1] <= 0.65
        status, message = await code(
            Guard(Known(), Store(channel)).call("GetContexts", b"", "Bearer team-a", 0.3)
        )
    assert (status, message) == (grpc.StatusCode.DEADLINE_EXCEEDED, "GetContexts did not end in time")


async def test_so_many_calls_read_the_store_at_once_and_so_many_wait():
    under_way, most, go = 0, 0, asyncio.Event()

    async def contexts(request, context):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await go.wait()
        under_way -= 1
        return b""

    async with stores({"GetContexts": contexts}) as (channel, _):
        guard = Guard(Known(), Store(channel), concurrency=2)
        calls = [
            asyncio.create_task(guard.call("GetContexts", b"", "Bearer team-a", 30)) for _ in range(2 + 16)
        ]
        async with asyncio.timeout(30):
            while under_way < 2:  # noqa: ASYNC110 (any condition)
                await asyncio.sleep(0)
        refused = await code(guard.call("GetContexts", b"", "Bearer team-a", 30))
        assert refused[0] == grpc.StatusCode.RESOURCE_EXHAUSTED
        go.set()
        assert await asyncio.gather(*calls) == [b""] * 18
        assert most == 2
        assert await guard.call("GetContexts", b"", "Bearer team-a", 30) == b""


async def test_every_replica_of_the_store_that_serves_is_asked():
    first, second = [], []
    async with stores(answering(first), answering(second)) as (channel, healths):
        guard = Guard(Known(), Store(channel))
        for status in healths:
            await status.set("", health_pb2.HealthCheckResponse.SERVING)

        async def ask_until(condition):
            async with asyncio.timeout(30):
                while not condition():
                    await guard.call("GetContexts", b"", "Bearer team-a", 20)

        await ask_until(lambda: first and second)
        await healths[0].set("", health_pb2.HealthCheckResponse.NOT_SERVING)

        async def spared():
            first.clear()
            second.clear()
            for _ in range(2):
                await guard.call("GetContexts", b"", "Bearer team-a", 20)
            return not first

        async with asyncio.timeout(30):
            while not await spared():
                pass
        assert len(second) == 4


@pytest.mark.parametrize("trouble", [ValueError("secret"), KeyError("secret"), AssertionError("secret")])
async def test_whatever_fails_ends_as_a_status_that_tells_nothing(filled, trouble):
    class Broken(Known):
        async def may_read(self, caller, namespace):
            raise trouble

    async with Store.channel(filled[0]) as channel:
        status, message = await code(
            Guard(Broken(), Store(channel)).call("GetContexts", b"", "Bearer team-a", 20)
        )
    assert (status, message) == (grpc.StatusCode.INTERNAL, "the guard failed at GetContexts")


async def test_an_answer_of_the_store_that_is_none_is_not_passed_on():
    async def garbage(request, context):
        return b"\xff\xffsecret"

    async with stores({"GetContexts": garbage}) as (channel, _):
        status, message = await code(
            Guard(Known(), Store(channel)).call("GetContexts", b"", "Bearer team-a", 20)
        )
    assert (status, "secret" in message) == (grpc.StatusCode.INTERNAL, False)
