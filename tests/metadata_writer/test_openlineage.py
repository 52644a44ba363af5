"""OpenLineage events against the schemas.

The client library ships classes made from the published schemas and not the schemas themselves. So these
tests hold its classes' own checks and a schema of what the specification (2-0-2) requires of a run event.
Where a clone of the specification is at hand, MEMOPOD_OPENLINEAGE_SPEC=<clone>/spec checks every event and
facet against the published files too.
"""

import asyncio
import dataclasses
import json
import os
from pathlib import Path

import pytest
import structlog
from aiohttp import web
from jsonschema import Draft202012Validator
from openlineage.client.event_v2 import RunEvent
from referencing import Registry, Resource

from metadata_writer import metrics
from metadata_writer.lineage_events import LineageEvents
from metadata_writer.openlineage import event, events, run_id
from metadata_writer.records import Input, Output, Run, State, StepRecord
from tests.metadata_writer.test_reader import STEPS, record_of

SPECIFICATION = os.environ.get("MEMOPOD_OPENLINEAGE_SPEC")
FACET = {
    "type": "object",
    "required": ["_producer", "_schemaURL"],
    "properties": {f: {"type": "string", "pattern": "^https://"} for f in ("_producer", "_schemaURL")},
}
FACETS = {"type": "object", "additionalProperties": FACET}
NAMED = {
    "type": "object",
    "required": ["namespace", "name"],
    "properties": {
        "namespace": {"type": "string", "minLength": 1},
        "name": {"type": "string", "minLength": 1},
        **dict.fromkeys(("facets", "inputFacets", "outputFacets"), FACETS),
    },
}
RUN_EVENT = {
    "type": "object",
    "required": ["eventTime", "eventType", "producer", "schemaURL", "run", "job"],
    "properties": {
        "eventType": {"enum": ["START", "RUNNING", "COMPLETE", "ABORT", "FAIL", "OTHER"]},
        "eventTime": {"type": "string", "format": "date-time"},
        "schemaURL": {"const": "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"},
        "run": {
            "type": "object",
            "required": ["runId"],
            "properties": {"runId": {"type": "string", "format": "uuid"}, "facets": FACETS},
        },
        "job": NAMED,
        "inputs": {"type": "array", "items": NAMED},
        "outputs": {"type": "array", "items": NAMED},
    },
}
RECORD = StepRecord(
    external_id="uid-1/n",
    run=Run("run-1", "pipelines", "uid-1"),
    type_name="components.train",
    component_id="train",
    state=State.COMPLETE,
    custom={"started_at": 1_764_000_000_000, "finished_at": 1_764_000_005_000, "display_name": "train"},
    inputs=(Input("data", "minio://bucket/a/b.csv"),),
    outputs=(Output("model", "Model", "s3://bucket/model", {"size": 3}),),
)


def published(folder):
    """Checks a value against the definition that a URL names, in a clone of the specification."""
    schemas = [json.loads(p.read_text()) for p in Path(folder).glob("**/*.json") if "tests" not in p.parts]
    registry = Registry().with_resources((s["$id"], Resource.from_contents(s)) for s in schemas if "$id" in s)
    return lambda url, value: Draft202012Validator({"$ref": url}, registry=registry).validate(value)


def check(value):
    Draft202012Validator(RUN_EVENT, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(value)


@pytest.mark.parametrize("path", STEPS, ids=lambda p: f"{p.parent.name}-{p.name.removesuffix('.pod.json')}")
def test_every_recorded_step_is_an_event_of_the_published_shape(path):
    check(event(record_of(path)))


if SPECIFICATION:  # it is no test of what can be had everywhere

    def test_every_recorded_step_fits_the_published_schemas():
        validate = published(SPECIFICATION)
        for path in STEPS:
            said = event(record_of(path))
            validate(said["schemaURL"], said)
            facets = list(said["run"]["facets"].values()) + list(said["job"]["facets"].values())
            facets += [f for o in said["outputs"] for f in o["outputFacets"].values()]
            for facet in facets:
                validate(facet["_schemaURL"], facet)


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        (State.RUNNING, "START"),
        (State.COMPLETE, "COMPLETE"),
        (State.CACHED, "COMPLETE"),
        (State.FAILED, "FAIL"),
        (State.CANCELED, "ABORT"),
    ],
)
def test_the_states_of_a_step_are_those_of_a_run(state, kind):
    said = event(dataclasses.replace(RECORD, state=state))
    check(said)
    assert said["eventType"] == kind
    assert said["run"]["runId"] == run_id("uid-1/n")
    assert said["run"]["facets"]["memopod_step"]["state"] == state.value
    assert ("errorMessage" in said["run"]["facets"]) == (state is State.FAILED)
    assert said["eventTime"] == (
        "2025-11-24T16:00:00+00:00" if state is State.RUNNING else "2025-11-24T16:00:05+00:00"
    )


@pytest.mark.parametrize(
    ("before", "kinds"),
    [
        (None, ["START", "COMPLETE"]),
        (State.RUNNING, ["COMPLETE"]),
        (State.FAILED, ["COMPLETE"]),
        (State.COMPLETE, ["OTHER"]),
        (State.CACHED, ["OTHER"]),
    ],
)
def test_a_run_starts_and_ends_once_whatever_was_seen_of_it(before, kinds):
    said = events(RECORD, before)
    assert [one["eventType"] for one in said] == kinds
    assert len({one["run"]["runId"] for one in said}) == 1
    for one in said:
        check(one)


@pytest.mark.parametrize("late", [State.RUNNING, State.FAILED])
def test_a_state_that_is_seen_late_takes_no_end_back(late):
    (said,) = events(dataclasses.replace(RECORD, state=late), State.COMPLETE)
    assert said["eventType"] == "OTHER"


def test_artifacts_are_datasets_named_by_their_place():
    said = event(RECORD)
    assert (said["inputs"][0]["namespace"], said["inputs"][0]["name"]) == ("minio://bucket", "a/b.csv")
    assert said["outputs"][0]["outputFacets"]["outputStatistics"]["size"] == 3
    assert said["run"]["facets"]["parent"]["job"]["name"] == "run-1"


@pytest.mark.parametrize(
    ("uri", "dataset"),
    [
        ("minio://[/k", ("minio://[", "k")),
        ("s3://b/a?x#y", ("s3://b", "a?x#y")),
        ("s3://b", ("s3://b", "/")),
        ("/some/file", ("://", "some/file")),
    ],
)
def test_a_dataset_is_named_whatever_its_place_is(uri, dataset):
    record = dataclasses.replace(RECORD, inputs=(Input("data", uri),))
    (said,) = list(events(record, State.RUNNING))[-1]["inputs"]
    assert (said["namespace"], said["name"]) == dataset


def test_the_client_library_takes_an_event_for_its_own():
    said = event(RECORD)
    names = {field.name for field in RunEvent.__attrs_attrs__}
    assert set(said) <= names | {"schemaURL"}


def test_a_step_without_times_is_an_event_all_the_same():
    check(event(dataclasses.replace(RECORD, custom={}, inputs=(), outputs=())))


async def test_events_go_to_a_file_line_by_line(tmp_path, eventually, running):
    sender = LineageEvents(str(tmp_path / "events"))
    await running(sender.run())
    sender.send(dataclasses.replace(RECORD, state=State.RUNNING), None)
    sender.send(RECORD, State.RUNNING)
    await eventually(lambda: (tmp_path / "events").exists() and len(lines(tmp_path / "events")) == 2)
    assert [json.loads(line)["eventType"] for line in lines(tmp_path / "events")] == ["START", "COMPLETE"]


@pytest.fixture
async def server():
    """Takes events, and answers as it is told; without an answer it says 201."""
    taken, answers = [], []

    async def take(request):
        taken.append(await request.json())
        return web.Response(status=answers.pop(0) if answers else 201)

    app = web.Application()
    app.router.add_post("/api/v1/lineage", take)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/api/v1/lineage", taken, answers
    await runner.cleanup()


def kinds(taken):
    return [said["eventType"] for said in taken]


async def test_a_server_that_fails_is_asked_until_it_takes_the_event(server, eventually, running):
    url, taken, answers = server
    answers += [503, 429, 400]
    sender = LineageEvents(url)
    await running(sender.run())
    sender.send(dataclasses.replace(RECORD, state=State.RUNNING), None)
    sender.send(RECORD, State.RUNNING)
    await eventually(lambda: len(taken) == 4)
    assert kinds(taken) == ["START", "START", "START", "COMPLETE"]


async def test_a_writer_that_ends_sends_what_is_queued(server):
    url, taken, _ = server
    sender = LineageEvents(url)
    sending = asyncio.create_task(sender.run(), name="send")
    await asyncio.sleep(0)  # it waits for something to send
    sender.send(RECORD, None)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert kinds(taken) == ["START", "COMPLETE"]


async def test_while_no_server_is_there_the_newest_events_are_kept_and_the_others_counted(
    server, eventually, running
):
    url, taken, _ = server
    dropped = metrics.EVENTS.labels(outcome="dropped")
    before = dropped._value.get()
    size = len(json.dumps(event(RECORD)).encode())
    sender = LineageEvents("http://127.0.0.1:9/", limit=10 * size)
    with structlog.testing.capture_logs() as logs:
        for _ in range(30):
            sender.send(RECORD, State.RUNNING)
    assert dropped._value.get() - before == 20
    assert [log["log_level"] for log in logs] == ["warning"]  # once a minute, not for each
    sender._target = url
    await running(sender.run())
    await eventually(lambda: len(taken) == 10)


def lines(path):
    return path.read_text().splitlines()
