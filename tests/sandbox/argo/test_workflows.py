import json
from datetime import UTC, datetime
from pathlib import Path

from memopod.sandbox.argo import Node, build_workflow, workflow_status
from memopod.sandbox.argo.workflows import SUCCEEDED
from memopod.sandbox.pipelines import read_pipeline

FINAL = Path(__file__).parents[2] / "samples" / "argo-4.1.2" / "parameters.workflow-final.json"
NOT_OURS = {"resourcesDuration", "artifactGCStatus"}
"""What the sandbox does not measure or do."""


def status():
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    times = {
        "started_at": moment,
        "finished_at": moment,
        "phase": SUCCEEDED,
        "boundary": "w",
        "host": "sandbox",
    }
    make = Node(
        name="w.make",
        display_name="make",
        template="make",
        children=("w-1",),
        inputs={"parameters": [{"name": "message", "value": "hello"}]},
        outputs={"exitCode": "0", "parameters": [{"name": "Output", "value": "hello"}]},
        **times,
    )
    use = Node(name="w.use", display_name="use", template="use", **times)
    return workflow_status(
        "w", [make, use], phase=SUCCEEDED, message="", started_at=moment, finished_at=moment
    )


def test_a_finished_status_has_the_fields_of_the_recording():
    recorded = json.loads(FINAL.read_text())["status"]
    ours = status()
    assert ours.keys() == recorded.keys() - NOT_OURS
    by_name = {node["displayName"]: node for node in ours["nodes"].values()}
    for node in recorded["nodes"].values():
        name = "w" if node["type"] == "DAG" else node["displayName"]
        optional = {"inputs", "outputs"} if name == "use" else set()
        assert by_name[name].keys() | optional == (node.keys() - NOT_OURS) | optional
        assert by_name[name]["type"] == node["type"]
        assert by_name[name]["progress"] == node["progress"]


def test_times_are_whole_seconds_in_utc():
    assert status()["finishedAt"] == "2026-01-02T03:04:05Z"


def test_a_workflow_shows_the_pipeline_as_it_was_written():
    path = Path(__file__).parents[3] / "memopod" / "sandbox" / "examples" / "two_steps.yaml"
    workflow = build_workflow(
        read_pipeline(path), {"message": "a"}, namespace="pipelines", trace_id="t", cached=True
    )
    assert workflow["metadata"]["generateName"] == "two-steps-"
    root, split, count = workflow["spec"]["templates"]
    assert [task["name"] for task in root["dag"]["tasks"]] == ["split", "count"]
    assert root["dag"]["tasks"][1]["depends"] == "split"
    assert "{{$.inputs.parameters['message']}}" in split["container"]["args"]
    assert count["inputs"]["artifacts"] == [{"name": "words", "path": "/memopod/inputs/artifacts/words"}]
