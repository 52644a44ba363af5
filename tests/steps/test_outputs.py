import base64
import gzip
import json
from dataclasses import replace

import pytest

from memopod.steps import Location, OutputsMismatch, read_step
from memopod.steps.locations import resolve
from memopod.steps.outputs import (
    NodesOffloaded,
    Outputs,
    fill_declared,
    is_complete,
    is_ours,
    read_outputs,
    select_declared,
    workflow_nodes,
)

VERSIONS = ["3.4.17", "3.5.15", "3.7.18", "4.0.10", "4.1.2"]


def recorded(sample, version, name):
    step = read_step(sample(version, f"{name}.pod"))
    result = sample(version, f"{name}.taskresult")
    return step, read_outputs(result["outputs"], step.template.get("archiveLocation"))


@pytest.mark.parametrize("version", VERSIONS)
def test_parameters_are_read_and_filled_in_again(sample, version):
    step, outputs = recorded(sample, version, "parameters.make")
    assert outputs.parameters == {"Output": "hello"}
    filled = fill_declared(step, outputs)
    assert filled == sample(version, "parameters.make.taskresult")["outputs"]


@pytest.mark.parametrize("version", VERSIONS)
def test_artifacts_keep_the_form_of_their_location_and_are_never_collected(sample, version):
    step, outputs = recorded(sample, version, "artifacts.make")
    assert [a.location.bucket for a in outputs.artifacts] == ["mlpipeline", "mlpipeline", "other"]
    filled = fill_declared(step, outputs)
    for was, now in zip(
        sample(version, "artifacts.make.taskresult")["outputs"]["artifacts"],
        filled["artifacts"],
        strict=True,
    ):
        assert now == {**was, "artifactGC": {"strategy": "Never"}}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_result_is_kept_where_argo_expects_one(sample, version):
    step, outputs = recorded(sample, version, "script.s")
    assert fill_declared(step, outputs)["result"] == "42"
    with pytest.raises(OutputsMismatch):
        fill_declared(step, replace(outputs, result=None))


@pytest.mark.parametrize("version", ["3.7.18", "4.1.2"])
def test_logs_that_argo_adds_are_not_declared_outputs(sample, version):
    step, outputs = recorded(sample, version, "archive-logs")
    assert outputs.artifact("main-logs") is not None
    assert select_declared(step, outputs).artifact("main-logs") is None


@pytest.mark.parametrize(
    "change",
    [
        lambda o: replace(o, parameters={}),
        lambda o: replace(o, parameters={"Output": "1", "more": "2"}),
        lambda o: replace(o, parameters={"other": "1"}),
    ],
)
def test_outputs_that_do_not_match_one_to_one_are_refused(sample, change):
    step, outputs = recorded(sample, "4.1.2", "parameters.make")
    with pytest.raises(OutputsMismatch):
        fill_declared(step, change(outputs))


def test_a_key_only_artifact_is_not_reused_from_another_repository(sample):
    step, outputs = recorded(sample, "4.1.2", "artifacts.make")
    step.template["archiveLocation"]["s3"]["bucket"] = "elsewhere"
    with pytest.raises(OutputsMismatch, match="repository"):
        fill_declared(step, outputs)


def test_a_missing_or_additional_artifact_is_a_mismatch(sample):
    step, outputs = recorded(sample, "4.1.2", "artifacts.make")
    with pytest.raises(OutputsMismatch):
        fill_declared(step, replace(outputs, artifacts=outputs.artifacts[:-1]))
    twice = (*outputs.artifacts, outputs.artifacts[0])
    with pytest.raises(OutputsMismatch):
        fill_declared(step, replace(outputs, artifacts=twice))


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_stored_comes_back(sample, version):
    _, outputs = recorded(sample, version, "artifacts.make")
    assert Outputs.from_json(json.loads(json.dumps(outputs.to_json()))) == outputs


@pytest.mark.parametrize("version", VERSIONS)
def test_a_nodes_outputs_say_the_same_as_the_executors_report(sample, version):
    step, outputs = recorded(sample, version, "artifacts.make")
    workflow = sample(version, "artifacts.workflow-final")
    node = workflow_nodes(workflow)[step.node_id]
    assert read_outputs(node["outputs"], step.template.get("archiveLocation")) == outputs


def test_compressed_nodes_are_unpacked_and_offloaded_ones_named(sample):
    workflow = sample("4.1.2", "artifacts.workflow-final")
    nodes = workflow["status"].pop("nodes")
    packed = base64.b64encode(gzip.compress(json.dumps(nodes).encode())).decode()
    assert workflow_nodes({"status": {"compressedNodes": packed}}) == nodes
    with pytest.raises(NodesOffloaded):
        workflow_nodes({"status": {"offloadNodeStatusVersion": "fnv:1"}})
    assert workflow_nodes({}) == {}


def test_a_bomb_of_compressed_nodes_is_refused_before_it_is_unpacked():
    bomb = base64.b64encode(gzip.compress(b"0" * (65 * 1024 * 1024))).decode()
    assert len(bomb) < 100_000
    for text in (bomb, "AAAA", base64.b64encode(b"no gzip").decode()):
        with pytest.raises(ValueError, match="compressedNodes"):
            workflow_nodes({"status": {"compressedNodes": text}})


def test_a_result_is_complete_when_its_label_says_so_or_has_none(sample):
    result = sample("4.1.2", "parameters.make.taskresult")
    assert is_complete(result)
    assert not is_ours(result)
    result["metadata"]["labels"]["workflows.argoproj.io/report-outputs-completed"] = "false"
    assert not is_complete(result)
    assert is_complete(sample("3.4.17", "parameters.make.taskresult"))


def test_locations_are_resolved_against_the_archive_of_their_own_kind():
    archive = {"s3": {"endpoint": "e:9000", "bucket": "b", "key": "prefix"}}
    assert resolve({"s3": {"key": "k"}}, archive) == Location("s3", "e:9000", "b", "k")
    assert resolve({"gcs": {"key": "k"}}, archive) is None
    assert resolve({"raw": {"data": "x"}}, archive) is None
    assert resolve({"s3": {"key": "k"}}, None) is None
    full = {"azure": {"endpoint": "acc", "container": "c", "blob": "k"}}
    assert resolve(full, archive).uri == "azure://c/k"
    assert resolve({"s3": {"key": "k"}}, archive).uri == "minio://b/k"
    assert Location("s3", "s3.eu-west-1.amazonaws.com", "b", "k").uri == "s3://b/k"
    assert Location("gcs", "", "b", "k").uri == "gs://b/k"
