"""Where each version of Argo keeps a step's template and outputs: every recording, one row a layout."""

import base64
import gzip
import json
from pathlib import Path

import pytest

from memopod.steps import read_step
from memopod.steps.argo import containers, decode_template, environment
from memopod.steps.inputs import input_artifacts, offload_name
from memopod.steps.key import with_template
from memopod.steps.outputs import annotated_outputs, declared, read_outputs, select_declared, workflow_nodes

SAMPLES = Path(__file__).parents[1] / "samples"
OLD, NEW = ("3.4.17", "3.5.15"), ("3.7.18", "4.0.10", "4.1.2")
ALL = OLD + NEW


def rows(versions, sample, carriers, template):
    return [(version, sample, carriers, template) for version in versions]


LAYOUTS = [
    # versions, recording, the containers that carry the template, its name
    *rows(OLD, "parameters.make", ["init", "wait", "main"], "make"),
    *rows(OLD, "containerset", ["init", "wait", "a", "main"], "c"),
    *rows(OLD, "rich", ["init", "prep", "wait", "main", "proxy"], "r"),
    *rows(OLD, "resource", ["init", "main"], "r"),
    *rows(NEW, "parameters.make", ["init"], "make"),
    *rows(NEW, "script.s", ["init"], "s"),
    *rows(NEW, "containerset", ["init"], "c"),
    *rows(NEW, "rich", ["init", "prep"], "r"),
    *rows(NEW, "resource", ["init"], "r"),
    *rows(("3.7.18", "4.1.2"), "kfp-v2.executor", ["init", "kfp-launcher"], "system-container-impl"),
    *rows(("4.1.2",), "initless.make", ["supervisor"], "make"),
    *rows(("4.1.2",), "initless-artifacts.use", ["supervisor"], "use"),
    *rows(("4.1.2",), "initless-resource", ["main"], "r"),
]


@pytest.mark.parametrize(("version", "name", "carriers", "template"), LAYOUTS)
def test_the_template_is_found_where_each_version_puts_it(sample, version, name, carriers, template):
    pod = sample(version, f"{name}.pod")
    assert [c["name"] for c in containers(pod) if environment(c, "ARGO_TEMPLATE")] == carriers
    assert read_step(pod).template_name == template


@pytest.mark.parametrize("version", ALL)
def test_the_annotation_of_versions_before_3_2_is_read_like_the_variable(sample, version):
    pod = sample(version, "parameters.make.pod")
    expected = read_step(pod)
    for container in containers(pod):
        container["env"] = [v for v in container.get("env", ()) if v["name"] != "ARGO_TEMPLATE"]
    pod["metadata"]["annotations"]["workflows.argoproj.io/template"] = json.dumps(expected.template)
    assert read_step(pod).template == expected.template


@pytest.mark.parametrize("version", NEW)
def test_an_offloaded_template_is_in_the_config_map_of_the_pods_name(sample, version):
    step = read_step(sample(version, "offloaded.pod"))
    config_map = sample(version, "offloaded.configmap")
    assert step.template is None
    assert offload_name(step) == config_map["metadata"]["name"]
    whole = with_template(step, decode_template(config_map["data"]["ARGO_TEMPLATE"], json.loads))
    node = workflow_nodes(sample(version, "offloaded.workflow-final"))[step.node_id]
    assert whole.template_name == node["templateName"]


@pytest.mark.parametrize("version", OLD)
def test_old_versions_do_not_offload_however_large_the_template(sample, version):
    step = read_step(sample(version, "offloaded.pod"))
    assert step.template is not None
    assert offload_name(step) is None


def recordings(suffix):
    return sorted(
        (folder.name.removeprefix("argo-"), path.name.removesuffix(suffix))
        for folder in SAMPLES.iterdir()
        for path in folder.glob(f"*{suffix}")
        if not path.name.startswith(("agent.", "kfp-v2-cached."))
    )


@pytest.mark.parametrize(("version", "name"), recordings(".pod.json"))
def test_every_recorded_pod_is_the_step_that_its_workflow_says(sample, version, name):
    step = read_step(sample(version, f"{name}.pod"))
    group = name.partition(".")[0]
    node = workflow_nodes(sample(version, f"{group}.workflow-final"))[step.node_id]
    assert step.node_name == node["name"]
    assert step.template is None or step.template_name == node["templateName"]


@pytest.mark.parametrize(("version", "name"), recordings(".taskresult.json"))
def test_a_result_and_its_node_packed_or_not_tell_the_same_outputs(sample, version, name):
    step = read_step(sample(version, f"{name}.pod"))
    archive = (step.template or {}).get("archiveLocation")
    result = sample(version, f"{name}.taskresult")
    assert result["metadata"]["name"] == step.node_id
    reported = read_outputs(result.get("outputs") or {}, archive)
    workflow = sample(version, f"{name.partition('.')[0]}.workflow-final")
    nodes = workflow_nodes(workflow)
    assert read_outputs(nodes[step.node_id].get("outputs") or {}, archive) == reported
    packed = base64.b64encode(gzip.compress(json.dumps(workflow["status"].pop("nodes")).encode())).decode()
    workflow["status"]["compressedNodes"] = packed
    assert workflow_nodes(workflow)[step.node_id] == nodes[step.node_id]


@pytest.mark.parametrize("version", ALL)
@pytest.mark.parametrize("group", ["artifacts", "initless-artifacts"])
def test_key_only_artifacts_are_where_the_archive_location_says(sample, version, group):
    if group == "initless-artifacts" and version != "4.1.2":
        return
    make = read_step(sample(version, f"{group}.make.pod"))
    archive = make.template["archiveLocation"]["s3"]
    outputs = read_outputs(
        sample(version, f"{group}.make.taskresult")["outputs"], make.template["archiveLocation"]
    )
    outputs = select_declared(make, outputs)
    assert len(outputs.artifacts) == len(declared(make.template, "artifacts"))
    for artifact in outputs.artifacts:
        own = artifact.reported["s3"]
        assert artifact.location.bucket == own.get("bucket", archive["bucket"])
        assert artifact.location.endpoint == own.get("endpoint", archive["endpoint"])
        assert artifact.location.key == own["key"]
    put_out = {artifact.location for artifact in outputs.artifacts}
    use = read_step(sample(version, f"{group}.use.pod"))
    handed_on = [a for a in input_artifacts(use) if a.location.key != "datasets/train.csv"]
    assert handed_on
    assert {artifact.location for artifact in handed_on} <= put_out


@pytest.mark.parametrize("version", OLD)
def test_outputs_of_the_old_annotation_are_those_of_the_result(sample, version):
    pod = sample(version, "artifacts.make.pod")
    reported = sample(version, "artifacts.make.taskresult")["outputs"]
    pod["metadata"]["annotations"]["workflows.argoproj.io/outputs"] = json.dumps(reported)
    assert annotated_outputs(read_step(pod)) == reported


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
def test_an_annotation_that_is_no_object_tells_no_outputs(sample, text):
    pod = sample("3.5.15", "parameters.make.pod")
    pod["metadata"]["annotations"]["workflows.argoproj.io/outputs"] = text
    assert annotated_outputs(read_step(pod)) is None


@pytest.mark.parametrize("version", NEW)
def test_later_versions_do_not_read_the_annotation_and_neither_does_memopod(sample, version):
    pod = sample(version, "parameters.make.pod")
    pod["metadata"]["annotations"]["workflows.argoproj.io/outputs"] = '{"parameters": []}'
    assert annotated_outputs(read_step(pod)) is None
