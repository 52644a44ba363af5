"""Whose a node is: what callers of two namespaces get of one real store."""

import pytest
from ml_metadata.proto import metadata_store_pb2 as mlmd
from ml_metadata.proto import metadata_store_service_pb2 as service

from metadata_guard import ownership
from tests.metadata_guard.conftest import namespaces
from tests.metadata_guard.filling import TEAMS, uri


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


async def test_a_reused_artifact_is_read_with_its_steps(ask, ids):
    mine = ids["team-a"]
    events = (await ask("team-a", "GetEventsByArtifactIDs", artifact_ids=[mine["model"]])).events
    assert {event.execution_id for event in events} >= {mine["train"], mine["again"]}
    contexts = (await ask("team-a", "GetContextsByArtifact", artifact_id=mine["model"])).contexts
    assert [context.name for context in contexts] == ["run-team-a"]


async def test_types_are_everybodys(ask, whole):
    assert await ask("team-a", "GetArtifactTypes") == await whole("GetArtifactTypes")


def test_of_two_namespaces_a_node_is_of_the_one_that_its_writer_gave_as_a_custom_property():
    for node in (mlmd.Context(), mlmd.Execution()):
        node.properties["namespace"].string_value = "of-the-type"
        node.custom_properties["namespace"].string_value = "of-the-writer"

        assert ownership.own(node) == {"of-the-writer"}

        del node.custom_properties["namespace"]
        assert ownership.own(node) == {"of-the-type"}
