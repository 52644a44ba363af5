import json

import pytest

from memopod.steps import names, read_step
from memopod.steps.finish import finished_patch, fits, task_result
from memopod.steps.outputs import is_complete, is_ours


def ours(step, outputs):
    return task_result(step, outputs, entry="e" * 32, source_pod="earlier", source_execution="u/n")


@pytest.mark.parametrize("version", ["3.5.15", "3.7.18", "4.0.10", "4.1.2"])
def test_the_result_is_as_the_executor_leaves_it_and_marked(sample, version):
    recorded = sample(version, "held.make.taskresult")
    result = ours(read_step(sample(version, "held.make.pod")), recorded["outputs"])
    assert is_complete(result)
    assert is_ours(result)
    labels = dict(result["metadata"]["labels"])
    assert labels.pop(names.ENTRY) == "e" * 32
    assert labels == recorded["metadata"]["labels"]
    assert result["metadata"]["ownerReferences"] == recorded["metadata"]["ownerReferences"]
    assert result["metadata"]["name"] == recorded["metadata"]["name"]
    assert result["outputs"] == recorded["outputs"]


def test_the_controllers_instance_is_named(make_pod):
    pod = make_pod()
    pod["metadata"]["labels"][names.ARGO_INSTANCE_ID] = "blue"
    result = ours(read_step(pod, namespace="n"), {})
    assert result["metadata"]["labels"][names.ARGO_INSTANCE_ID] == "blue"


@pytest.mark.parametrize("version", ["3.4.17", "3.5.15", "3.7.18", "4.0.10", "4.1.2"])
def test_every_container_of_the_finished_pod_has_ended_well(sample, version):
    pod = sample(version, "held.make.pod")
    patch = finished_patch(pod, ours(read_step(pod), {}), at="2026-01-01T00:00:00Z")
    status = patch["status"]
    assert status["phase"] == "Succeeded"
    for given, reported in (
        (pod["spec"]["containers"], status["containerStatuses"]),
        (pod["spec"]["initContainers"], status["initContainerStatuses"]),
    ):
        assert [c["name"] for c in given] == [c["name"] for c in reported]
        assert all(c["state"]["terminated"]["exitCode"] == 0 for c in reported)
    assert patch["metadata"]["resourceVersion"] == pod["metadata"]["resourceVersion"]
    assert patch["metadata"]["labels"] == {names.STEP_LABEL: names.REUSED}
    assert patch["metadata"]["annotations"][names.SOURCE_POD] == "earlier"
    assert patch["metadata"]["annotations"][names.SOURCE_EXECUTION] == "u/n"


@pytest.mark.parametrize(
    ("version", "expected"),
    [("3.4.17", True), ("3.5.15", True), ("3.7.18", False), ("4.0.10", False), ("4.1.2", False)],
)
def test_old_versions_get_the_outputs_in_an_annotation_too(sample, version, expected):
    pod = sample(version, "held.make.pod")
    outputs = {"parameters": [{"name": "Output", "value": "hello"}]}
    patch = finished_patch(pod, ours(read_step(pod), outputs), at="2026-01-01T00:00:00Z")
    text = patch["metadata"]["annotations"].get(names.ARGO_OUTPUTS)
    assert (text is not None) == expected
    if text:
        assert json.loads(text) == outputs


def test_a_pod_without_init_container_is_no_old_version(sample):
    pod = sample("4.1.2", "initless-resource.pod")
    patch = finished_patch(pod, ours(read_step(pod), {}), at="2026-01-01T00:00:00Z")
    assert names.ARGO_OUTPUTS not in patch["metadata"]["annotations"]


def test_outputs_fit_where_no_version_reads_them_from_an_annotation_or_there_is_room(sample):
    large = {"parameters": [{"name": "Output", "value": "x" * 190_000}]}
    old, new = sample("3.5.15", "held.make.pod"), sample("4.1.2", "held.make.pod")
    assert fits(old, large)
    old["metadata"]["annotations"]["component_spec"] = "y" * 120_000
    assert not fits(old, large)
    new["metadata"]["annotations"]["component_spec"] = "y" * 120_000
    assert fits(new, large)
