import json

import pytest

from metadata_writer.graph import Ids
from metadata_writer.pod_marks import Marking, marks
from metadata_writer.records import Input, Output, Run, State, StepRecord

RECORD = StepRecord(
    external_id="uid-1/n",
    run=Run("run-1", "pipelines", "uid-1"),
    type_name="components.a",
    component_id="a",
    state=State.COMPLETE,
    custom={},
    inputs=(Input("in", "minio://b/in"), Input("lost", "minio://b/lost")),
    outputs=(Output("model", "Model", "minio://b/model", {}),),
)
IDS = Ids(7, {"in": 3}, {"model": 4})
PREFIX = "pipelines.kubeflow.org/"


@pytest.fixture
def pod():
    return {"metadata": {"labels": {PREFIX + "pipeline-sdk-type": "kfp"}}}


def test_a_pod_gets_the_labels_and_annotations_of_kubeflows_writer(pod):
    patch = marks(pod, RECORD, IDS, 9, Marking.AUTO)["metadata"]
    assert patch["labels"] == {
        PREFIX + "metadata_execution_id": "7",
        PREFIX + "metadata_context_id": "9",
        PREFIX + "metadata_written": "true",
    }
    assert {name: json.loads(text) for name, text in patch["annotations"].items()} == {
        PREFIX + "metadata_input_artifact_ids": [{"id": 3, "name": "in", "uri": "minio://b/in"}],
        PREFIX + "metadata_output_artifact_ids": [
            {"id": 4, "name": "model", "uri": "minio://b/model", "type": "Model"}
        ],
    }


def test_a_pod_is_patched_once(pod):
    patch = marks(pod, RECORD, IDS, 9, Marking.ON)["metadata"]
    pod["metadata"]["labels"] |= patch["labels"]
    pod["metadata"]["annotations"] = patch["annotations"]
    assert marks(pod, RECORD, IDS, 9, Marking.ON) is None


def test_pods_that_kubeflow_has_not_touched_are_marked_only_where_that_is_wanted(pod):
    pod["metadata"]["labels"] = {"workflows.argoproj.io/workflow": "run-1"}
    assert marks(pod, RECORD, IDS, 9, Marking.AUTO) is None
    assert marks(pod, RECORD, IDS, 9, Marking.ON) is not None
    assert marks(pod, RECORD, IDS, 9, Marking.OFF) is None


def test_the_ids_that_kubeflows_cache_server_left_stay(pod):
    pod["metadata"]["labels"][PREFIX + "reused_from_cache"] = "true"
    assert marks(pod, RECORD, IDS, 9, Marking.ON) is None
