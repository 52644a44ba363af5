import dataclasses

import pytest
from ml_metadata.proto import metadata_store_pb2 as mlmd

from metadata_writer import graph
from metadata_writer.graph import Known, TypeIds, awaits_source, newest, plan, presumed_source
from metadata_writer.records import Input, Output, Run, State, StepRecord

RUN = Run("run-1", "pipelines", "uid-1")
TYPES = TypeIds(run=1, execution=2, artifacts={"NoType": 3})
STEP = StepRecord(
    external_id="uid-1/run-1-a",
    run=RUN,
    type_name="components.a",
    component_id="a",
    state=State.COMPLETE,
    custom={"started_at": 10, "finished_at": 20},
    inputs=(Input("in", "s3://b/in"),),
    outputs=(Output("out", "NoType", "s3://b/out", {"name": "out"}),),
)
REUSED = dataclasses.replace(STEP, state=State.CACHED, inputs=(), source_execution="uid-0/run-0-a")


def artifact(number, external_id="", uri="s3://b/in", state=mlmd.Artifact.LIVE):
    return mlmd.Artifact(id=number, uri=uri, external_id=external_id, state=state, type_id=3)


def test_of_several_artifacts_at_a_place_the_runs_own_come_first_then_live_ones_then_the_newest():
    own, old = artifact(1, "uid-1/n/o"), artifact(2, "uid-0/n/o")
    deleted = artifact(3, "uid-0/m/o", state=mlmd.Artifact.DELETED)
    assert newest([own, old, deleted], RUN) is own
    assert newest([old, deleted], RUN) is old
    assert newest([old, artifact(4)], RUN).id == 4
    assert newest([], RUN) is None


def test_events_have_the_times_of_what_they_tell():
    request = plan(STEP, Known(by_uri={"s3://b/in": [artifact(7)]}), TYPES).request
    times = {edge.event.type: edge.event.milliseconds_since_epoch for edge in request.event_edges}
    assert times == {mlmd.Event.INPUT: 10, mlmd.Event.OUTPUT: 20}


def test_a_known_artifact_is_sent_as_it_is():
    known = artifact(7)
    known.custom_properties["theirs"].string_value = "kept"
    request = plan(STEP, Known(by_uri={"s3://b/in": [known]}), TYPES).request
    assert request.artifacts[request.event_edges[0].artifact_index] == known


def test_what_others_wrote_on_an_execution_stays():
    execution = mlmd.Execution(id=5, type_id=2, external_id=STEP.external_id)
    execution.last_known_state = mlmd.Execution.RUNNING
    execution.custom_properties["theirs"].string_value = "kept"
    (sent,) = plan(STEP, Known(execution=execution), TYPES).request.executions
    assert sent.id == 5
    assert sent.custom_properties["theirs"].string_value == "kept"
    assert sent.last_known_state == mlmd.Execution.COMPLETE


def test_a_state_that_only_others_use_is_overruled():
    execution = mlmd.Execution(id=5, type_id=2, last_known_state=mlmd.Execution.NEW)
    (sent,) = plan(STEP, Known(execution=execution), TYPES).request.executions
    assert sent.last_known_state == mlmd.Execution.COMPLETE


def test_nothing_is_asked_of_a_store_that_knows_all():
    known = Known(by_uri={"s3://b/in": [artifact(7)]})
    request = plan(STEP, known, TYPES).request
    (execution,) = request.executions
    execution.id = 5
    events = [edge.event for edge in request.event_edges]
    for number, event in enumerate(events):
        event.artifact_id = number + 7
    assert plan(STEP, dataclasses.replace(known, execution=execution, events=events), TYPES).request is None


def test_a_reused_output_is_matched_by_name_before_place():
    at = {"uri": "s3://b/out"}
    outputs = [("other", artifact(1, **at)), ("out", artifact(2, **at)), ("out", artifact(3, uri="s3://b/x"))]
    known = Known(source=mlmd.Execution(id=9), source_outputs=outputs)
    assert not awaits_source(REUSED, known)
    request = plan(REUSED, known, TYPES).request
    assert [a.id for a in request.artifacts] == [2]
    assert request.executions[0].custom_properties["cached_execution_id"].int_value == 9


def test_a_source_is_awaited_until_its_outputs_are_there():
    assert awaits_source(REUSED, Known())
    assert awaits_source(REUSED, Known(source=mlmd.Execution(id=9)))
    assert not awaits_source(STEP, Known())


def test_a_reused_steps_source_is_told_by_its_outputs():
    by_uri = {"s3://b/out": [artifact(1, "uid-0/run-0-a/out")]}
    assert presumed_source(REUSED, by_uri) == "uid-0/run-0-a"
    assert presumed_source(REUSED, {"s3://b/out": [artifact(1)]}) is None
    assert presumed_source(STEP, by_uri) is None


def test_a_presumed_source_overrules_none_that_was_named():
    named = mlmd.Execution(id=5, type_id=2, last_known_state=mlmd.Execution.CACHED)
    named.custom_properties["cached_execution_id"].int_value = 9
    known = Known(execution=named, source=mlmd.Execution(id=8), by_uri={"s3://b/out": [artifact(1)]})
    presumed = dataclasses.replace(REUSED, source_execution=None, from_pod=False)
    (sent,) = plan(presumed, known, TYPES).request.executions
    assert sent.custom_properties["cached_execution_id"].int_value == 9


def test_a_step_that_is_stored_as_cached_makes_no_artifacts_whatever_its_workflow_says():
    stored = mlmd.Execution(id=5, type_id=2, last_known_state=mlmd.Execution.CACHED)
    word = dataclasses.replace(STEP, inputs=(), from_pod=False)
    planned = plan(word, Known(execution=stored), TYPES)
    assert not planned.request.artifacts
    assert planned.unresolved == ("out",)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (7, "int_value"),
        (-(2**31), "int_value"),
        (2**31, "double_value"),
        (1_764_000_000_000, "double_value"),
        (2**60, "string_value"),
        (True, "bool_value"),
        ("7", "string_value"),
    ],
)
def test_whole_numbers_are_written_so_that_every_database_holds_them(value, kind):
    properties = mlmd.Execution().custom_properties
    graph._assign(properties, {"x": value})
    assert properties["x"].WhichOneof("value") == kind
    assert type(value)(getattr(properties["x"], kind)) == value
