import asyncio
import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memopod.lineage import Relation, down, up
from memopod.mlmd import StoreClient


def titles(graph):
    return {node.title for node in graph.nodes.values()}


def edges(graph):
    def name(key):
        return graph.nodes[key].title

    return {(name(edge.source), edge.relation, name(edge.target), edge.name) for edge in graph.edges}


async def test_a_reused_parameter_leads_to_the_execution_that_really_ran(client):
    graph = await up(client, "message-2/comp:Output")
    assert edges(graph) == {
        ("message-2/comp", Relation.HANDED_ON, "message-2/comp:Output", "Output"),
        ("message-1/comp", Relation.REUSED, "message-2/comp", ""),
    }
    assert graph.notes == ()


async def test_down_from_a_parameter_finds_the_runs_that_reused_it(client):
    graph = await down(client, "message-1/comp:Output")
    assert titles(graph) == {"message-1/comp:Output", "message-2/comp:Output", "message-3/comp:Output"}
    assert {edge.relation for edge in graph.edges} == {Relation.REUSED}


async def test_up_passes_through_the_reused_step_of_the_same_run_to_what_really_ran(client):
    graph = await up(client, "iris-2/train")
    assert edges(graph) == {
        ("data", Relation.USED, "iris-2/train", "examples"),
        ("iris-2/load", Relation.HANDED_ON, "data", "data"),
        ("iris-1/load", Relation.REUSED, "iris-2/load", ""),
    }


async def test_up_does_not_pass_through_other_runs_that_reused_the_same_artifact(client):
    assert titles(await up(client, "iris-1/train")) == {"iris-1/train", "data", "iris-1/load"}


async def test_both_arms_of_a_diamond_are_edges_and_their_origin_is_one_node(client):
    graph = await up(client, "iris-1/evaluate")
    assert list(graph.nodes).count(graph.roots[0]) == 1
    assert edges(graph) == {
        ("model", Relation.USED, "iris-1/evaluate", "model"),
        ("data", Relation.USED, "iris-1/evaluate", "data"),
        ("iris-1/train", Relation.PRODUCED, "model", "model"),
        ("data", Relation.USED, "iris-1/train", "examples"),
        ("iris-1/load", Relation.PRODUCED, "data", "data"),
    }


async def test_an_equal_parameter_is_marked_as_such_and_left_out_on_request(client):
    found = await up(client, "iris-1/report")
    marked = ("iris-1/evaluate", Relation.SAME_VALUE, "iris-1/report", "accuracy = score")
    assert marked in edges(found)
    recorded = await up(client, "iris-1/report", same_values=False)
    assert titles(recorded) == {"iris-1/report"}


async def test_down_from_what_really_ran_finds_users_in_all_runs(client):
    found = titles(await down(client, "iris-1/load"))
    assert {"iris-1/train", "iris-1/evaluate", "iris-2/load", "iris-2/train", "iris-2/evaluate"} <= found


async def test_down_from_a_reused_step_stays_in_its_own_run(client):
    found = titles(await down(client, "iris-2/load"))
    assert {"iris-2/train", "iris-2/evaluate", "iris-2/report"} <= found
    assert not any(title.startswith("iris-1/") for title in found)


async def test_an_artifact_can_be_named_by_output_id_or_uri(client, ids):
    uri = "minio://pipelines/iris-1/model"
    by_output, by_id, by_uri = [
        await up(client, name) for name in ("iris-1/train:model", f"artifact:{ids[uri]}", uri)
    ]
    assert by_output == by_id == by_uri


async def test_an_execution_and_its_parameter_can_be_named_by_id(client, ids):
    number = ids["message-2/comp"]
    assert await up(client, f"execution:{number}") == await up(client, "message-2/comp")
    assert await up(client, f"execution:{number}:Output") == await up(client, "message-2/comp:Output")


@pytest.mark.parametrize("node", ["cycle-1/a", "cycle-1/b", "cycle-1/self", "cycle-1/self:out"])
@pytest.mark.parametrize("question", [up, down])
async def test_a_cycle_ends(client, question, node):
    graph = await question(client, node, 1000)
    assert len(graph.nodes) <= 3
    assert not graph.unfollowed


async def test_a_reused_execution_that_is_not_recorded_is_said(client):
    graph = await up(client, "odd-1/orphan")
    assert list(graph.nodes) == list(graph.roots)
    assert graph.notes == ("execution 987654 is named by another record but not recorded itself",)


async def test_an_artifact_that_a_step_reads_twice_is_one_edge_with_both_names(client):
    graph = await up(client, "odd-1/twice")
    assert edges(graph) == {("one", Relation.USED, "odd-1/twice", "left, right")}


async def test_an_input_that_the_store_does_not_know_is_said(client):
    graph = await up(client, "odd-1/twice")
    assert len(graph.notes) == 1
    assert graph.notes[0].startswith("input third of odd-1/twice (execution:")


async def test_depth_counts_steps_and_what_was_not_followed_is_said(client):
    graph = await up(client, "iris-1/evaluate", 1)
    assert titles(graph) == {"iris-1/evaluate", "model", "data", "iris-1/train", "iris-1/load"}
    assert {graph.nodes[key].title for key in graph.unfollowed} == {"iris-1/train", "iris-1/load"}
    assert graph.notes == ("stopped at depth 1: 2 nodes not followed further",)


async def test_more_nodes_than_the_limit_are_said(client):
    graph = await down(client, "many-1/first", limit=100)
    assert sum(key.startswith("execution:") for key in graph.nodes) == 100
    assert graph.notes[0].startswith("stopped at the limit of 100: at least 200 nodes left out")


async def test_hundreds_of_users_are_all_found(client):
    graph = await down(client, "many-1/first")
    assert sum(key.startswith("execution:") for key in graph.nodes) == 300
    assert graph.notes == ()


async def test_the_order_of_nodes_is_the_same_each_time(client):
    first, second = [await down(client, "iris-1/load") for _ in range(2)]
    assert list(first.nodes) == list(second.nodes)
    assert first == second


names = (f"random-{number}" for number in itertools.count(1))
pipelines = st.lists(st.tuples(st.sets(st.integers(0, 5), max_size=3), st.booleans()), min_size=1, max_size=6)


@given(pipelines)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_up_and_down_agree_with_each_other_on_any_pipeline(own_store, recorder_class, pipeline):
    """Each step uses the artifacts of some earlier steps; it makes one of its own, or none."""
    run = next(names)

    async def check():
        async with StoreClient(own_store) as client:
            await record(recorder_class(client), run, pipeline)
            above = {step: await up(client, f"{run}/{step}") for step in range(len(pipeline))}
            below = {step: await down(client, f"{run}/{step}") for step in range(len(pipeline))}
        expected = ancestors(pipeline)
        for step in range(len(pipeline)):
            assert steps_of(above[step]) == expected[step] | {step}
            assert steps_of(below[step]) == {other for other in expected if step in expected[other]} | {step}

    asyncio.run(check())


async def record(recorder, run, pipeline):
    made = {}
    for step, (sources, makes) in enumerate(pipeline):
        uses = {f"from-{source}": made[source] for source in sources if source in made}
        if makes:
            made[step] = await recorder.artifact(f"minio://pipelines/{run}/{step}")
        await recorder.step(run, str(step), uses=uses, makes={"out": made[step]} if makes else {})


def ancestors(pipeline):
    found = {}
    for step, (sources, _) in enumerate(pipeline):
        direct = {source for source in sources if source < step and pipeline[source][1]}
        found[step] = direct.union(*(found[source] for source in direct))
    return found


def steps_of(graph):
    return {int(node.step) for key, node in graph.nodes.items() if key.startswith("execution:")}
