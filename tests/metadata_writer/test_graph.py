import dataclasses

import pytest
from ml_metadata.proto import metadata_store_pb2 as mlmd

from metadata_writer.executions import assign
from metadata_writer.graph import changes, join, plan
from metadata_writer.known import Known, TypeIds
from metadata_writer.provenance import awaits_source, presumed_source, read_by
from metadata_writer.records import Input, Output, Run, State, StepRecord

RUN = Run("run-1", "pipelines", "uid-1")
TYPES = TypeIds(run=1, pipeline=9, executions={"components.a": 2}, artifacts={"NoType": 3})
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


def made_at(number, milliseconds, workflow="uid-0"):
    """An artifact, and the execution that made it by then."""
    maker = mlmd.Execution(external_id=f"{workflow}/n{number}")
    maker.custom_properties["finished_at"].double_value = milliseconds
    return artifact(number, f"{maker.external_id}/o"), {maker.external_id: maker}


def request_for(record, known):
    return join([plan(record, known, TYPES)], [])


def test_of_artifacts_without_times_the_runs_own_come_first_then_live_ones_then_the_newest():
    own, old = artifact(1, "uid-1/n/o"), artifact(2, "uid-0/n/o")
    deleted = artifact(3, "uid-0/m/o", state=mlmd.Artifact.DELETED)
    assert read_by(STEP, [own, old, deleted], {}) is own
    assert read_by(STEP, [old, deleted], {}) is old
    assert read_by(STEP, [old, artifact(4)], {}).id == 4
    assert read_by(STEP, [], {}) is None


def test_an_input_is_the_last_artifact_that_was_made_before_the_step_started():
    step = dataclasses.replace(STEP, custom={"started_at": 50_000})
    early, before, after = made_at(1, 10_000), made_at(2, 50_000), made_at(3, 60_000, "uid-1")
    makers = early[1] | before[1] | after[1]
    assert read_by(step, [early[0], before[0], after[0]], makers) is before[0]
    assert read_by(step, [after[0]], makers) is None
    known = Known(by_uri={"s3://b/in": [after[0]]}, makers=makers)
    assert plan(step, known, TYPES).unresolved == ("in",)


def test_an_artifact_that_another_machines_clock_puts_a_moment_too_late_is_better_than_none():
    step = dataclasses.replace(STEP, custom={"started_at": 50_000})
    later, skewed = made_at(2, 52_000), made_at(1, 51_000)
    assert read_by(step, [later[0], skewed[0]], later[1] | skewed[1]) is skewed[0]


def test_a_step_that_has_not_ended_is_never_put_over_what_is_there():
    stored = mlmd.Execution(id=5, type_id=2, last_known_state=mlmd.Execution.RUNNING)
    running = dataclasses.replace(STEP, state=State.RUNNING, outputs=())
    planned = plan(running, Known(execution=stored, by_uri={"s3://b/in": [artifact(7)]}), TYPES)
    assert planned.execution is None
    request = join([planned], [])
    assert not request.executions
    assert [(e.event.execution_id, e.HasField("execution_index")) for e in request.event_edges] == [
        (5, False)
    ]


def test_steps_of_a_run_share_an_artifact_in_one_request():
    other = dataclasses.replace(STEP, external_id="uid-1/run-1-b", outputs=())
    known = Known(by_uri={"s3://b/in": [artifact(7, "uid-0/n/o")]})
    request = join([plan(STEP, known, TYPES), plan(other, known, TYPES)], [])
    assert len(request.artifacts) == 2
    assert [(e.execution_index, e.artifact_index) for e in request.event_edges] == [(0, 0), (0, 1), (1, 0)]


def test_events_have_the_times_of_what_they_tell():
    request = request_for(STEP, Known(by_uri={"s3://b/in": [artifact(7)]}))
    times = {edge.event.type: edge.event.milliseconds_since_epoch for edge in request.event_edges}
    assert times == {mlmd.Event.INPUT: 10, mlmd.Event.OUTPUT: 20}


@pytest.mark.parametrize("external_id", ["", "uid-0/n/o"])
def test_a_known_artifact_is_left_as_it_is(external_id):
    known = artifact(7, external_id)
    known.custom_properties["theirs"].string_value = "kept"
    request = request_for(STEP, Known(by_uri={"s3://b/in": [known]}))
    sent = request.artifacts[request.event_edges[0].artifact_index]
    assert sent == known


def test_what_others_wrote_on_an_execution_stays():
    execution = mlmd.Execution(id=5, type_id=2, external_id=STEP.external_id)
    execution.last_known_state = mlmd.Execution.RUNNING
    execution.custom_properties["theirs"].string_value = "kept"
    (sent,) = request_for(STEP, Known(execution=execution)).executions
    assert sent.id == 5
    assert sent.custom_properties["theirs"].string_value == "kept"
    assert sent.last_known_state == mlmd.Execution.COMPLETE


def test_a_state_that_only_others_use_is_overruled():
    execution = mlmd.Execution(id=5, type_id=2, last_known_state=mlmd.Execution.NEW)
    (sent,) = request_for(STEP, Known(execution=execution)).executions
    assert sent.last_known_state == mlmd.Execution.COMPLETE


def test_nothing_is_asked_of_a_store_that_knows_all():
    known = Known(by_uri={"s3://b/in": [artifact(7)]})
    request = request_for(STEP, known)
    (execution,) = request.executions
    execution.id = 5
    events = [edge.event for edge in request.event_edges]
    for number, event in enumerate(events):
        event.artifact_id = number + 7
    assert plan(STEP, dataclasses.replace(known, execution=execution, events=events), TYPES).complete


def test_a_reused_output_is_matched_by_name_before_place():
    at = {"uri": "s3://b/out"}
    outputs = [("other", artifact(1, **at)), ("out", artifact(2, **at)), ("out", artifact(3, uri="s3://b/x"))]
    known = Known(source=mlmd.Execution(id=9), source_outputs=outputs)
    assert not awaits_source(REUSED, known)
    request = request_for(REUSED, known)
    assert [a.id for a in request.artifacts] == [2]
    assert request.executions[0].custom_properties["cached_execution_id"].int_value == 9


def test_a_source_is_awaited_until_its_outputs_are_there():
    assert awaits_source(REUSED, Known())
    assert awaits_source(REUSED, Known(source=mlmd.Execution(id=9)))
    assert not awaits_source(STEP, Known())


def test_a_reused_steps_source_is_told_by_its_outputs():
    by_uri = {"s3://b/out": [artifact(1, "uid-0/run-0-a/out")]}
    assert presumed_source(REUSED, by_uri, {}) == "uid-0/run-0-a"
    assert presumed_source(REUSED, {"s3://b/out": [artifact(1)]}, {}) is None
    assert presumed_source(STEP, by_uri, {}) is None


def test_a_presumed_source_overrules_none_that_was_named():
    named = mlmd.Execution(id=5, type_id=2, last_known_state=mlmd.Execution.CACHED)
    named.custom_properties["cached_execution_id"].int_value = 9
    known = Known(execution=named, source=mlmd.Execution(id=8), by_uri={"s3://b/out": [artifact(1)]})
    presumed = dataclasses.replace(REUSED, source_execution=None, from_pod=False)
    sent = plan(presumed, known, TYPES).execution
    assert sent.custom_properties["cached_execution_id"].int_value == 9


def test_of_a_step_that_has_ended_only_what_differs_is_put():
    stored = plan(STEP, Known(), TYPES).execution
    stored.id, stored.last_known_state = 5, mlmd.Execution.FAILED
    custom = {**STEP.custom, "finished_at": 30, "output:o": "1"}
    planned = plan(dataclasses.replace(STEP, custom=custom), Known(execution=stored), TYPES)
    assert planned.fields == (
        "last_known_state", "custom_properties.finished_at", "custom_properties.output:o",
    )  # fmt: skip
    assert not join([planned], []).executions
    (change,) = changes([planned])
    assert tuple(change.update_mask.paths) == planned.fields
    word = dataclasses.replace(STEP, custom=custom, from_pod=False, state=State.FAILED)
    assert plan(word, Known(execution=stored), TYPES).fields == ("custom_properties.output:o",)


def test_a_step_whose_pipeline_becomes_known_is_put_as_a_whole_for_only_that_associates_it():
    stored = plan(STEP, Known(), TYPES).execution
    stored.id = 5
    known = dataclasses.replace(STEP, run=dataclasses.replace(RUN, pipeline="train"))
    assert len(request_for(known, Known(execution=stored)).executions) == 1


def test_a_step_that_is_stored_as_cached_makes_no_artifacts_whatever_its_workflow_says():
    stored = mlmd.Execution(id=5, type_id=2, last_known_state=mlmd.Execution.CACHED)
    word = dataclasses.replace(STEP, inputs=(), from_pod=False)
    planned = plan(word, Known(execution=stored), TYPES)
    assert not planned.artifacts
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
    assign(properties, {"x": value})
    assert properties["x"].WhichOneof("value") == kind
    assert type(value)(getattr(properties["x"], kind)) == value
