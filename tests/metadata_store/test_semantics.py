"""The store's documented answers, each also compared with the core's own in the same process."""

import itertools
import re

import grpc
import pytest
from ml_metadata.proto import metadata_store_pb2 as mlmd
from ml_metadata.proto import metadata_store_service_pb2 as service

from metadata_store.rpcs import OF_CORE, RPCS, SERVED

OK = grpc.StatusCode.OK
NOT_FOUND = grpc.StatusCode.NOT_FOUND
ALREADY_EXISTS = grpc.StatusCode.ALREADY_EXISTS
INVALID = grpc.StatusCode.INVALID_ARGUMENT

names = (f"name-{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def types(twins):
    request = {
        "artifact_types": [mlmd.ArtifactType(name="data", properties={"size": mlmd.INT})],
        "execution_types": [mlmd.ExecutionType(name="step")],
        "context_types": [mlmd.ContextType(name="run")],
    }
    _, _, answer = twins("PutTypes", **request)
    return {
        "data": answer.artifact_type_ids[0],
        "step": answer.execution_type_ids[0],
        "run": answer.context_type_ids[0],
    }


@pytest.fixture(scope="module")
def many_contexts(twins, types):
    """The ids of 1,210 contexts of the type `many`."""
    many = twins("PutContextType", context_type=mlmd.ContextType(name="many"))[2].type_id
    contexts = [mlmd.Context(type_id=many, name=f"{number}") for number in range(1210)]
    return list(twins("PutContexts", contexts=contexts)[2].context_ids)


def an_artifact(twins, types, **fields):
    artifact = mlmd.Artifact(type_id=types["data"], **fields)
    return twins("PutArtifacts", artifacts=[artifact])[2].artifact_ids[0]


def an_execution(twins, types, **fields):
    execution = mlmd.Execution(type_id=types["step"], **fields)
    return twins("PutExecutions", executions=[execution])[2].execution_ids[0]


def a_context(twins, types, name=None):
    context = mlmd.Context(type_id=types["run"], name=name or next(names))
    return twins("PutContexts", contexts=[context])[2].context_ids[0]


@pytest.mark.parametrize("kind", ["Artifact", "Execution", "Context"])
def test_a_missing_type_is_not_found(twins, kind):
    assert twins(f"Get{kind}Type", type_name="missing")[0] == NOT_FOUND


@pytest.mark.parametrize("kind", ["Artifact", "Execution", "Context"])
def test_a_missing_node_by_type_and_name_is_an_empty_answer(twins, types, kind):
    fields = {"type_name": {"Artifact": "data", "Execution": "step", "Context": "run"}[kind]}
    code, _, answer = twins(f"Get{kind}ByTypeAndName", **fields, **{f"{kind.lower()}_name": "missing"})
    assert (code, answer.ByteSize()) == (OK, 0)


@pytest.mark.parametrize(
    ("rpc", "fields"),
    [
        ("GetArtifactsByID", {}),
        ("GetArtifactsByID", {"artifact_ids": [999_999]}),
        ("GetExecutionsByID", {}),
        ("GetExecutionsByID", {"execution_ids": [999_999]}),
        ("GetContextsByID", {}),
        ("GetContextsByID", {"context_ids": [999_999]}),
        ("GetEventsByArtifactIDs", {"artifact_ids": [999_999]}),
        ("GetEventsByExecutionIDs", {"execution_ids": [999_999]}),
        ("GetArtifactsByURI", {"uris": ["s3://nothing/here"]}),
        ("GetExecutionsByContext", {"context_id": 999_999}),
        ("GetArtifactsByContext", {"context_id": 999_999}),
    ],
)
def test_nothing_found_is_an_empty_answer(twins, types, rpc, fields):
    code, _, answer = twins(rpc, **fields)
    assert (code, list(answer.ListFields())) == (OK, [])


def test_external_ids_are_not_found_only_if_all_are_unknown(twins, types):
    an_execution(twins, types, external_id="known")
    assert twins("GetExecutionsByExternalIds", external_ids=["missing"])[0] == NOT_FOUND
    code, _, answer = twins("GetExecutionsByExternalIds", external_ids=["known", "missing"])
    assert (code, [found.external_id for found in answer.executions]) == (OK, ["known"])


def test_a_node_without_contexts_is_not_found_by_them(twins, types):
    assert twins("GetContextsByArtifact", artifact_id=an_artifact(twins, types))[0] == NOT_FOUND
    assert twins("GetContextsByExecution", execution_id=an_execution(twins, types))[0] == NOT_FOUND


def test_a_second_context_of_a_name_exists_already(twins, types):
    a_context(twins, types, "twice")
    code, text, _ = twins("PutContexts", contexts=[mlmd.Context(type_id=types["run"], name="twice")])
    assert code == ALREADY_EXISTS
    assert text.startswith("Given node already exists")


def test_a_second_execution_of_a_name_exists_already(twins, types):
    execution = mlmd.Execution(type_id=types["step"], name="twice")
    assert twins("PutExecution", execution=execution)[0] == OK
    code, text, _ = twins("PutExecution", execution=execution)
    assert code == ALREADY_EXISTS
    assert text.startswith("Given node already exists")


def test_an_association_may_be_repeated(twins, types):
    context_id, execution_id = a_context(twins, types), an_execution(twins, types)
    association = mlmd.Association(context_id=context_id, execution_id=execution_id)
    for _ in range(2):
        assert twins("PutAttributionsAndAssociations", associations=[association])[0] == OK
    assert len(twins("GetContextsByExecution", execution_id=execution_id)[2].contexts) == 1


def test_a_parent_context_may_not_be_repeated(twins, types):
    pair = mlmd.ParentContext(parent_id=a_context(twins, types), child_id=a_context(twins, types))
    assert twins("PutParentContexts", parent_contexts=[pair])[0] == OK
    assert twins("PutParentContexts", parent_contexts=[pair])[0] == ALREADY_EXISTS
    assert twins("PutParentContexts", parent_contexts=[mlmd.ParentContext()])[0] == INVALID
    children = twins("GetChildrenContextsByContext", context_id=pair.parent_id)[2].contexts
    assert [child.id for child in children] == [pair.child_id]


def test_a_type_grows_only_where_that_is_allowed(twins, types):
    grown = mlmd.ArtifactType(name="data", properties={"size": mlmd.INT, "rows": mlmd.INT})
    assert twins("PutArtifactType", artifact_type=grown)[0] == ALREADY_EXISTS
    assert twins("PutArtifactType", artifact_type=grown, can_add_fields=True)[0] == OK


def test_simple_types_take_the_first_ids_and_stay_hidden(twins, types):
    assert min(types.values()) == 10
    listed = twins("GetArtifactTypes")[2].artifact_types
    assert not [known.name for known in listed if known.name.startswith("mlmd.")]
    assert twins("GetArtifactType", type_name="mlmd.Dataset")[0] == OK


def test_a_list_without_options_holds_all_rows_and_a_page_twenty(twins, types):
    contexts = [mlmd.Context(type_id=types["run"], name=next(names)) for _ in range(30)]
    assert twins("PutContexts", contexts=contexts)[0] == OK
    everything = twins("GetContexts")[2].contexts
    assert len(everything) >= 30
    page = twins("GetContexts", options=mlmd.ListOperationOptions())[2]
    assert (len(page.contexts), bool(page.next_page_token)) == (20, True)
    rest = mlmd.ListOperationOptions(max_result_size=100, next_page_token=page.next_page_token)
    assert len(twins("GetContexts", options=rest)[2].contexts) == len(everything) - 20


@pytest.mark.parametrize(
    "options",
    [
        mlmd.ListOperationOptions(max_result_size=0),
        mlmd.ListOperationOptions(max_result_size=-1),
        mlmd.ListOperationOptions(filter_query="name = = 'x'"),
    ],
)
def test_list_options_that_mean_nothing_are_refused(twins, types, options):
    assert twins("GetContexts", options=options)[0] == INVALID


def test_an_empty_filter_or_token_is_as_none(twins, types):
    options = mlmd.ListOperationOptions(filter_query="", next_page_token="")
    assert twins("GetContexts", options=options)[0] == OK


def test_filters_reach_attributes_properties_and_contexts(twins, types):
    artifact = mlmd.Artifact(type_id=types["data"], uri="s3://b/filtered")
    artifact.properties["size"].int_value = 3
    artifact.custom_properties["note"].string_value = ""
    context = a_context(twins, types, "filtered-run")
    (artifact_id,) = twins("PutArtifacts", artifacts=[artifact])[2].artifact_ids
    edge = mlmd.Attribution(artifact_id=artifact_id, context_id=context)
    twins("PutAttributionsAndAssociations", attributions=[edge])
    for query in (
        "uri = 's3://b/filtered'",
        "properties.size.int_value = 3",
        "custom_properties.note.string_value = '' AND uri LIKE '%filtered'",
        "contexts_a.name = 'filtered-run'",
    ):
        found = twins("GetArtifacts", options=mlmd.ListOperationOptions(filter_query=query))[2].artifacts
        assert [(node.id, node.type) for node in found] == [(artifact_id, "data")], query


@pytest.mark.parametrize(
    "literal",
    [
        r"""'x\'")); DELETE FROM Context; -- '""",
        r"""'x\'")) OR 1=1 OR (("x' """,
        """'''x'")); DELETE FROM Context; -- '''""",
        '''"""x'")); DELETE FROM Context; -- """''',
        r"""r'x\'")); DELETE FROM Context; -- '""",
        r"""`x\`` """,
    ],
)
def test_a_filters_literal_cannot_become_sql(twins, store, types, literal):
    a_context(twins, types, name := next(names))
    asked = mlmd.ListOperationOptions(filter_query=f"name = {literal}")
    call = store.call("GetContexts", service.GetContextsRequest(options=asked))
    assert (call.code(), "would take what follows for SQL" in call.details()) == (INVALID, True)
    lineage = service.GetLineageSubgraphRequest()
    lineage.lineage_subgraph_query_options.starting_executions.filter_query = f"name = {literal}"
    assert store.call("GetLineageSubgraph", lineage).code() == INVALID
    there = service.GetContextByTypeAndNameRequest(type_name="run", context_name=name)
    assert store.call("GetContextByTypeAndName", there).result().context.name == name


@pytest.mark.parametrize("name", ["it's", 'say "x"', "50%_", "a -- b", "naïve ☃ # no comment"])
def test_a_filters_literal_may_hold_one_kind_of_quotes(twins, types, name):
    found = a_context(twins, types, name)
    quoted = f'"{name}"' if "'" in name else f"'{name}'"
    options = mlmd.ListOperationOptions(filter_query=f"name = {quoted}")
    assert [context.id for context in twins("GetContexts", options=options)[2].contexts] == [found]


def test_a_lineage_subgraph_is_put_as_a_whole_or_not_at_all(twins, types):
    def request(external_id):
        return {
            "executions": [mlmd.Execution(type_id=types["step"], external_id=external_id)],
            "artifacts": [mlmd.Artifact(type_id=types["data"], uri=external_id)],
            "contexts": [mlmd.Context(type_id=types["run"], name="graph")],
            "event_edges": [
                service.PutLineageSubgraphRequest.EventEdge(
                    execution_index=0, artifact_index=0, event=mlmd.Event(type=mlmd.Event.OUTPUT)
                )
            ],
            "options": service.PutLineageSubgraphRequest.Options(reuse_context_if_already_exist=True),
        }

    code, _, answer = twins("PutLineageSubgraph", **request("step-1"))
    assert code == OK
    assert twins("PutLineageSubgraph", **request("step-1"))[0] == ALREADY_EXISTS
    assert len(twins("GetArtifactsByURI", uris=["step-1"])[2].artifacts) == 1
    events = twins("GetEventsByExecutionIDs", execution_ids=list(answer.execution_ids))[2].events
    assert [event.artifact_id for event in events] == list(answer.artifact_ids)
    assert len(twins("GetExecutionsByContext", context_id=answer.context_ids[0])[2].executions) == 1
    options = mlmd.LineageSubgraphQueryOptions(max_num_hops=2)
    options.starting_artifacts.filter_query = "uri = 'step-1'"
    graph = twins("GetLineageSubgraph", lineage_subgraph_query_options=options)[2].lineage_subgraph
    assert len(graph.executions) == 1


def test_what_ml_metadata_never_implemented_is_unimplemented_with_a_sentence(store):
    assert set(RPCS) - SERVED == {"GetLineageGraph"}
    call = store.call("GetLineageGraph", service.GetLineageGraphRequest())
    assert call.code() == grpc.StatusCode.UNIMPLEMENTED
    assert "ask GetLineageSubgraph" in call.details()


def test_relatives_of_several_contexts_are_those_of_each(twins, types, store):
    parent, child, other, lonely = (a_context(twins, types) for _ in range(4))
    pairs = [mlmd.ParentContext(parent_id=parent, child_id=each) for each in (child, other)]
    assert twins("PutParentContexts", parent_contexts=pairs)[0] == OK
    ids = [parent, child, other, lonely, child]
    request = service.GetParentContextsByContextsRequest(context_ids=ids)
    parents = store.call("GetParentContextsByContexts", request).result().contexts
    assert {key: [c.id for c in value.parent_contexts] for key, value in parents.items()} == {
        child: [parent], other: [parent],
    }  # fmt: skip
    request = service.GetChildrenContextsByContextsRequest(context_ids=ids)
    children = store.call("GetChildrenContextsByContexts", request).result().contexts
    assert {key: [c.id for c in value.children_contexts] for key, value in children.items()} == {
        parent: [child, other],
    }  # fmt: skip


@pytest.mark.parametrize("size", [101, 250, 999, 1000, 5000])
def test_a_list_above_a_hundred_is_given_whole_or_with_a_token(store, many_contexts, size):
    found, token = [], ""
    while True:
        options = mlmd.ListOperationOptions(max_result_size=size, next_page_token=token)
        request = service.GetContextsByTypeRequest(type_name="many", options=options)
        page = store.call("GetContextsByType", request).result()
        found += [context.id for context in page.contexts]
        token = page.next_page_token
        if not token:
            break
        assert len(page.contexts) == min(size, 1000)
    assert found == many_contexts


def test_every_rpc_that_the_core_has_is_served(twins, types):
    for rpc in sorted(OF_CORE):
        twins(rpc)


def test_a_request_that_is_no_protobuf_is_an_invalid_argument(store):
    method = store.channel.unary_unary(
        "/ml_metadata.MetadataStoreService/GetContexts", request_serializer=None, response_deserializer=None
    )
    with pytest.raises(grpc.RpcError) as caught:
        method(b"\xff\xff\xff", timeout=10)
    assert caught.value.code() == INVALID


def test_unknown_fields_are_tolerated(store):
    method = store.channel.unary_unary(
        "/ml_metadata.MetadataStoreService/GetContextTypes",
        request_serializer=None,
        response_deserializer=None,
    )
    assert method(b"\xf2\x3f\x03abc", timeout=10) is not None


def test_an_error_that_quotes_a_large_node_fits_into_a_clients_headers(store, types):
    execution = mlmd.Execution(type_id=types["step"], name="large")
    execution.custom_properties["text"].string_value = "ü" * 100_000
    request = service.PutExecutionsRequest(executions=[execution])
    store.call("PutExecutions", request).result()
    with grpc.insecure_channel(f"127.0.0.1:{store.port}") as channel:  # as the official client's: 8 KB
        send = channel.unary_unary(
            "/ml_metadata.MetadataStoreService/PutExecutions",
            request_serializer=None, response_deserializer=None,
        )  # fmt: skip
        with pytest.raises(grpc.RpcError) as caught:
            send(request.SerializeToString(), timeout=10)
    assert caught.value.code() == ALREADY_EXISTS
    assert re.match("Given node already exists", caught.value.details())
