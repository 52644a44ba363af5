"""What is withheld looks as if it were not there."""

import grpc
import pytest
from ml_metadata.proto import metadata_store_pb2 as mlmd
from ml_metadata.proto import metadata_store_service_pb2 as service
from prometheus_client import REGISTRY

from metadata_guard.answers import LIMITED
from metadata_guard.guard import Refused
from tests.metadata_guard.conftest import code
from tests.metadata_guard.filling import TEAMS, uri


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


ORDERS = mlmd.ListOperationOptions.OrderByField


@pytest.mark.parametrize("field", [ORDERS.CREATE_TIME, ORDERS.LAST_UPDATE_TIME, ORDERS.ID])
@pytest.mark.parametrize("ascending", [True, False])
async def test_a_page_token_of_somebody_else_leads_to_nothing_of_theirs(ask, field, ascending):
    order = ORDERS(field=field, is_asc=ascending)
    for kind in ("Execution", "Artifact", "Context"):
        rpc, nodes = f"Get{kind}s", f"{kind.lower()}s"
        own = {node.id for node in getattr(await ask("team-a", rpc), nodes)}
        token = ""
        for _ in range(50):
            options = mlmd.ListOperationOptions(
                max_result_size=2, order_by_field=order, next_page_token=token
            )
            if token:
                shown = {node.id for node in getattr(await ask("team-a", rpc, options=options), nodes)}
                assert shown <= own
            token = (await ask("team-b", rpc, options=options)).next_page_token
            if not token:
                break


async def test_no_read_whatever_it_asks_for_shows_more_than_the_lists(ask, whole):
    """Every RPC that is answered, asked for everything that the store holds."""
    nodes, own, types = {}, {}, {}
    for kind in ("artifact", "execution", "context"):
        rpc = f"Get{kind.title()}s"
        nodes[kind] = list(getattr(await whole(rpc), f"{kind}s"))
        own[kind] = {node.id for node in getattr(await ask("team-a", rpc), f"{kind}s")}
        types[kind] = getattr(await whole(f"Get{kind.title()}Types"), f"{kind}_types")
        assert 0 < len(own[kind]) < len(nodes[kind])
    silent = set()
    for rpc in LIMITED.values():
        shown = 0
        for fields in everything(rpc, nodes, types):
            try:
                answer = await ask("team-a", rpc.name, **fields)
            except Refused as refused:
                assert refused.code == grpc.StatusCode.NOT_FOUND  # noqa: PT017 (any other is a mistake here)
                continue
            found = rpc.ids(answer)
            shown += sum(map(len, found.values()))
            assert all(numbers <= own[kind] for kind, numbers in found.items()), (rpc.name, fields)
        if rpc.nodes and not shown:
            silent.add(rpc.name)
    assert silent == {
        "GetParentContextsByContext", "GetChildrenContextsByContext",  # of pipelines, which are nobody's
        "GetContextsByExternalIds", "GetArtifactByTypeAndName",  # nothing of theirs has such a name
    }  # fmt: skip


def everything(rpc, nodes, types):
    """Requests of an RPC for all that there is."""
    fields = rpc.request.DESCRIPTOR.fields_by_name
    kind = next((kind for kind in nodes if kind.title() in rpc.name.partition("By")[0]), "artifact")
    start = rpc.start(rpc.request())
    if start is not None:
        yield from ({f"{start[0]}_id": node.id} for node in nodes[start[0]])
    elif f"{kind}_name" in fields:
        yield from ({"type_name": node.type, f"{kind}_name": node.name} for node in nodes[kind])
    elif "type_name" in fields:
        yield from ({"type_name": known.name} for known in types[kind])
    elif "uris" in fields:
        yield {"uris": [node.uri for node in nodes["artifact"]]}
    elif "type_ids" in fields:
        yield {"type_ids": [known.id for known in types[kind]]}
    elif "external_ids" in fields:
        yield {"external_ids": [node.external_id for node in nodes[kind] if node.external_id]}
    else:
        names = [name for name in fields if name.endswith("_ids")]
        yield {name: [node.id for node in nodes[name.removesuffix("_ids")]] for name in names}
