"""What each page of Kubeflow's user interface asks for, as it asks: grpc-web, in its order.

One store, filled by the metadata writer from recordings, and as Kubeflow's v2 driver and launcher fill it.
"""

import asyncio

import pytest
from ml_metadata.proto import metadata_store_pb2 as mlmd
from ml_metadata.proto import metadata_store_service_pb2 as service

from memopod import lineage
from memopod.mlmd import StoreClient
from tests.envoy.conftest import EnvoyProcess, StoreProcess
from tests.envoy.fillings import fill_v2, record_samples

ARGO = "argo-3.7.18"


async def fill(address):
    found = [await fill_v2(address, run=f"5f0c6a1e-{number}") for number in range(5)]
    return found[0]


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """(Envoy, the runs that the writer recorded, ids of the v2 run)."""
    store = StoreProcess(tmp_path_factory.mktemp("ui-store")).ready()
    envoy = EnvoyProcess(tmp_path_factory.mktemp("ui-envoy"), store.address)
    try:
        yield (
            envoy,
            asyncio.run(record_samples(envoy.full_address, ARGO)),
            asyncio.run(fill(envoy.full_address)),
        )
    finally:
        envoy.stop()
        store.stop()


@pytest.fixture
async def page(filled, web_of):
    """`await page(RPC, field=...)`: one call, its answer checked to be whole."""
    async with web_of(filled[0]) as web:

        async def ask(rpc, **fields):
            request = getattr(service, f"{rpc}Request")(**fields)
            return await web.read(rpc, request, getattr(service, f"{rpc}Response"))

        yield ask


@pytest.fixture
def runs(filled):
    return filled[1]


@pytest.fixture
def v2(filled):
    return filled[2]


def custom(node):
    return {name: getattr(value, value.WhichOneof("value")) for name, value in node.custom_properties.items()}


async def test_run_details_of_v1_finds_the_run_and_the_pods_of_its_steps(page, runs):
    assert len(runs) > 5
    for name in runs:
        other = await page("GetContextByTypeAndName", type_name="pipeline_run", context_name=name)
        assert not other.HasField("context")
        run = (await page("GetContextByTypeAndName", type_name="KfpRun", context_name=name)).context
        assert run.name == name
        executions = (await page("GetExecutionsByContext", context_id=run.id)).executions
        assert executions
        for execution in executions:
            assert custom(execution)["kfp_pod_name"].startswith(name)
        await page("GetArtifactTypes")
        ids = [execution.id for execution in executions]
        events = (await page("GetEventsByExecutionIDs", execution_ids=ids)).events
        wanted = {event.artifact_id for event in events}
        artifacts = (await page("GetArtifactsByID", artifact_ids=sorted(wanted))).artifacts
        assert {artifact.id for artifact in artifacts} == wanted


async def run_of(page, name):
    answer = await page("GetContextByTypeAndName", type_name="system.PipelineRun", context_name=name)
    return answer.context


async def test_run_details_of_v2_draws_the_whole_graph(page, v2):
    run = await run_of(page, v2["run"])
    executions = (await page("GetExecutionsByContext", context_id=run.id)).executions
    artifacts = (await page("GetArtifactsByContext", context_id=run.id)).artifacts
    ids = [execution.id for execution in executions]
    events = (await page("GetEventsByExecutionIDs", execution_ids=ids)).events
    loop = [execution for execution in executions if execution.id in v2["loop"]]
    assert [custom(e).get("iteration_count") for e in loop] == [2, None, None]
    assert [custom(e).get("iteration_index") for e in loop] == [None, 0, 1]
    assert [custom(e)["parent_dag_id"] for e in loop] == [v2["root"], loop[0].id, loop[0].id]
    by_name = {custom(e)["task_name"]: e for e in executions if e not in loop}
    # The root's own name is empty, and there.
    assert set(by_name) == {"", "train", "evaluate", "validate", "again"}
    assert by_name[""].name == f"run/{v2['run']}"
    for name, execution in by_name.items():
        if name:
            values = custom(execution)
            assert values["parent_dag_id"] == v2["root"]
            assert values["inputs"]["rate"] == 0.5
            assert values["outputs"]["loss"] == 0.25
            assert execution.create_time_since_epoch
    assert by_name["again"].last_known_state == mlmd.Execution.CACHED
    assert custom(by_name["again"])["cached_execution_id"] == str(v2["train"])
    outputs = {
        (event.execution_id, event.path.steps[0].key): event.artifact_id
        for event in events
        if event.type == mlmd.Event.OUTPUT
    }
    assert outputs[v2["train"], "model"] == outputs[v2["again"], "model"] == v2["model"]
    assert outputs[v2["train"], "executor-logs"] == v2["logs"]
    assert all(custom(artifact)["store_session_info"] for artifact in artifacts)
    assert {artifact.id for artifact in artifacts} >= set(outputs.values())


async def test_a_run_that_is_not_there_is_an_empty_answer(page):
    answer = await page("GetContextByTypeAndName", type_name="system.PipelineRun", context_name="none")
    assert answer == service.GetContextByTypeAndNameResponse()


async def test_node_tabs_and_comparison_find_what_they_draw(page, v2):
    run = await run_of(page, v2["run"])
    executions = (await page("GetExecutionsByContext", context_id=run.id)).executions
    ids = [execution.id for execution in executions]
    events = (await page("GetEventsByExecutionIDs", execution_ids=ids)).events
    types = {known.id: known.name for known in (await page("GetArtifactTypes")).artifact_types}
    numbers = sorted({event.artifact_id for event in events})
    artifacts = {a.id: a for a in (await page("GetArtifactsByID", artifact_ids=numbers)).artifacts}
    assert types[artifacts[v2["metrics"]].type_id] == "system.Metrics"
    assert custom(artifacts[v2["metrics"]])["accuracy"] == 0.75
    assert types[artifacts[v2["curve"]].type_id] == "system.ClassificationMetrics"
    (point,) = custom(artifacts[v2["curve"]])["confidenceMetrics"]["list"]
    assert point["confidenceThreshold"] == 0.5
    assert types[artifacts[v2["page"]].type_id] == "system.HTML"
    assert types[artifacts[v2["notes"]].type_id] == "system.Markdown"
    matrix = custom(artifacts[v2["matrix"]])["confusionMatrix"]["struct"]
    assert [list(row["row"]) for row in matrix["rows"]] == [[3, 1]]
    assert matrix["annotationSpecs"][0]["displayName"] == "cat"


async def test_visualisations_of_tfx_are_found_by_the_types_of_artifacts(page, v2):
    run = await run_of(page, v2["run"])
    executions = (await page("GetExecutionsByContext", context_id=run.id)).executions
    types = {known.name: known.id for known in (await page("GetArtifactTypes")).artifact_types}
    events = (await page("GetEventsByExecutionIDs", execution_ids=[e.id for e in executions])).events
    numbers = sorted({event.artifact_id for event in events if event.type == mlmd.Event.OUTPUT})
    artifacts = (await page("GetArtifactsByID", artifact_ids=numbers)).artifacts
    for name, key, splits in (
        ("ExampleStatistics", "statistics", '["train", "eval"]'),
        ("Schema", "schema", None),
        ("ExampleAnomalies", "anomalies", '["eval"]'),
        ("ModelEvaluation", "evaluation", None),
    ):
        (found,) = [artifact for artifact in artifacts if artifact.type_id == types[name]]
        assert (found.id, custom(found).get("split_names")) == (v2[key], splits)
        assert found.uri


@pytest.mark.parametrize("size", [10, 20, 50, 100, None])
async def test_the_list_of_artifacts_turns_its_pages_to_the_end(page, size):
    types = {known.id for known in (await page("GetArtifactTypes")).artifact_types}
    seen, token = [], None
    while True:
        options = mlmd.ListOperationOptions()
        if size is not None:
            options.max_result_size = size
            options.order_by_field.field = mlmd.ListOperationOptions.OrderByField.ID
            if token:
                options.next_page_token = token
        fields = {} if size is None else {"options": options}
        answer = await page("GetArtifacts", **fields)
        seen += answer.artifacts
        token = answer.next_page_token
        if size is None or not token:
            break
        assert len(answer.artifacts) == size
    assert size in {None, 100} or len(seen) > size  # there is a second page
    whole = (await page("GetArtifacts")).artifacts
    assert sorted(artifact.id for artifact in seen) == sorted(artifact.id for artifact in whole)
    assert len(seen) > 20
    assert {artifact.type_id for artifact in seen} <= types
    for artifact in seen[:5]:
        for _ in range(2):  # once for its run, once for its time
            events = (await page("GetEventsByArtifactIDs", artifact_ids=[artifact.id])).events
            made = [event for event in events if event.type == mlmd.Event.OUTPUT]
            assert made[-1].milliseconds_since_epoch
        assert {"name", "display_name"} & set(custom(artifact))


async def test_artifact_details_name_the_artifact_and_its_type(page, v2):
    (artifact,) = (await page("GetArtifactsByID", artifact_ids=[v2["model"]])).artifacts
    (known,) = (await page("GetArtifactTypesByID", type_ids=[artifact.type_id])).artifact_types
    assert (known.name, custom(artifact)["display_name"]) == ("system.Model", "model")


async def test_the_lineage_explorer_goes_one_hop_to_each_side(page, v2):
    events = (await page("GetEventsByArtifactIDs", artifact_ids=[v2["model"]])).events
    await page("GetExecutionTypes")
    await page("GetArtifactTypes")
    sides = {}
    for kind in (mlmd.Event.OUTPUT, mlmd.Event.INPUT):
        ids = [event.execution_id for event in events if event.type == kind]
        executions = (await page("GetExecutionsByID", execution_ids=ids)).executions
        beyond = (await page("GetEventsByExecutionIDs", execution_ids=ids)).events
        numbers = [event.artifact_id for event in beyond if event.type != kind]
        artifacts = (await page("GetArtifactsByID", artifact_ids=numbers)).artifacts
        assert {artifact.id for artifact in artifacts} == set(numbers)
        sides[kind] = {custom(execution)["task_name"] for execution in executions}
    assert sides == {mlmd.Event.OUTPUT: {"train", "again"}, mlmd.Event.INPUT: {"evaluate"}}
    assert not (await page("GetExecutionsByID")).executions  # of an artifact that nobody made or used
    assert not (await page("GetArtifactsByID")).artifacts


async def test_the_list_of_executions_names_them_and_their_runs(page, runs):
    types = {known.id for known in (await page("GetExecutionTypes")).execution_types}
    listed, token, pages = [], "", 0
    while True:
        options = mlmd.ListOperationOptions(max_result_size=20, next_page_token=token)
        answer = await page("GetExecutions", options=options)
        listed, token, pages = [*listed, *answer.executions], answer.next_page_token, pages + 1
        if not token:
            break
        assert len(answer.executions) == 20
    assert pages > 1
    assert len({execution.id for execution in listed}) == len(listed)
    assert {execution.type_id for execution in listed} <= types
    names = set()
    for execution in listed:
        assert execution.last_known_state
        assert {"display_name", "task_name"} & set(custom(execution))
        names.add(execution.properties["run_id"].string_value)
    assert names == {*runs, ""}  # Kubeflow's driver gives its executions none


async def test_execution_details_lead_to_its_run_and_its_artifacts(page, v2):
    (execution,) = (await page("GetExecutionsByID", execution_ids=[v2["train"]])).executions
    events = (await page("GetEventsByExecutionIDs", execution_ids=[execution.id])).events
    (known,) = (await page("GetExecutionTypesByID", type_ids=[execution.type_id])).execution_types
    assert known.name == "system.ContainerExecution"
    await page("GetArtifactTypes")
    contexts = (await page("GetContextsByExecution", execution_id=execution.id)).contexts
    run_type = (await page("GetContextType", type_name="system.PipelineRun")).context_type.id
    assert [context.name for context in contexts if context.type_id == run_type] == [v2["run"]]
    kinds = (mlmd.Event.DECLARED_INPUT, mlmd.Event.INPUT, mlmd.Event.DECLARED_OUTPUT, mlmd.Event.OUTPUT)
    shown = {}
    for kind in kinds:
        numbers = [event.artifact_id for event in events if event.type == kind]
        shown[kind] = [a.id for a in (await page("GetArtifactsByID", artifact_ids=numbers)).artifacts]
    assert sorted(shown[mlmd.Event.OUTPUT]) == sorted([v2["model"], v2["logs"]])


async def test_lineage_reads_through_the_same_port(filled, runs, v2):
    async with StoreClient(filled[0].address) as client:
        listed = await lineage.runs(client, limit=100)
        assert {run.run for run in listed.runs} >= {*runs, v2["run"]}
        graph = await lineage.up(client, f"artifact:{v2['model']}")
    assert {f"execution:{v2['train']}", f"artifact:{v2['model']}"} <= set(graph.nodes)


async def test_the_interfaces_server_learns_whose_an_artifact_is(page, v2):
    (model,) = (await page("GetArtifactsByID", artifact_ids=[v2["model"]])).artifacts
    (found,) = (await page("GetArtifactsByURI", uris=[model.uri])).artifacts
    contexts = (await page("GetContextsByArtifact", artifact_id=found.id)).contexts
    (run,) = [context for context in contexts if context.type == "system.PipelineRun"]
    assert custom(run)["namespace"] == "team-a"
    assert not (await page("GetArtifactsByURI", uris=["minio://nothing/here"])).artifacts
