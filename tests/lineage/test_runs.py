import pytest

from memopod.lineage import BadReference, NotRecorded, State, as_graph, runs, show


async def test_runs_are_listed_newest_first_and_more_is_said(client):
    listed = await runs(client, 3)
    assert [run.run for run in listed.runs] == ["many-1", "odd-1", "cycle-1"]
    assert listed.more


async def test_all_runs_are_listed_where_they_fit(client):
    listed = await runs(client, 100)
    assert len(listed.runs) == 8
    assert not listed.more


async def test_the_steps_of_a_run_are_counted_beyond_a_page(client):
    run = (await runs(client, 1, "many")).runs[0]
    assert run.states == {State.COMPLETE: 300}
    assert run.seconds == 600
    assert run.namespace == "pipelines"


async def test_runs_of_one_pipeline_only(client):
    assert [run.run for run in (await runs(client, 10, "iris")).runs] == ["iris-2", "iris-1"]


async def test_an_underscore_in_a_pipelines_name_is_no_wildcard(client):
    assert (await runs(client, 10, "iri_")).runs == ()


@pytest.mark.parametrize("pipeline", ["iris%", "x' OR name LIKE '", "a b", "\\"])
async def test_a_pipeline_that_can_name_no_run_is_refused(client, pipeline):
    with pytest.raises(BadReference):
        await runs(client, 10, pipeline)


async def test_a_run_with_a_step_of_unknown_state_is_not_said_to_have_ended(client):
    run = (await runs(client, 1, "odd")).runs[0]
    assert run.started_at is not None
    assert run.finished_at is None


async def test_a_run_shows_its_steps_in_order_with_inputs_outputs_and_what_was_reused(client):
    report = await show(client, "iris-2")
    load, train, evaluate, last = report.steps
    assert [step.execution.step for step in report.steps] == ["load", "train", "evaluate", "report"]
    assert load.execution.state is State.CACHED
    assert load.reused_from.title == "iris-1/load"
    assert [port.artifact.uri for port in load.outputs] == ["minio://pipelines/iris-1/data"]
    assert train.execution.inputs == {"rate": 0.02}
    assert train.execution.seconds == 2
    assert [(port.name, port.artifact.name) for port in train.inputs] == [("examples", "data")]
    assert evaluate.execution.outputs == {"accuracy": "0.90.02"}
    assert last.reused_from is None


async def test_a_run_of_hundreds_of_steps_is_shown_whole(client):
    report = await show(client, "many-1")
    assert len(report.steps) == 300
    assert all(step.inputs for step in report.steps[1:])


async def test_an_artifact_that_a_step_reads_twice_is_shown_under_both_names(client):
    report = await show(client, "odd-1")
    twice = next(step for step in report.steps if step.execution.step == "twice")
    assert [port.name for port in twice.inputs] == ["left", "right"]


async def test_a_run_can_be_drawn_as_a_graph(client):
    graph = as_graph(await show(client, "iris-2"))
    assert [graph.nodes[root].title for root in graph.roots] == ["iris-1/load", "iris-2/report"]
    ends = {key for edge in graph.edges for key in (edge.source, edge.target)}
    assert ends <= graph.nodes.keys()


async def test_an_unknown_run_names_the_nearest(client):
    with pytest.raises(NotRecorded, match="did you mean iris-") as caught:
        await show(client, "iris-3")
    assert set(caught.value.nearest) == {"iris-1", "iris-2"}
