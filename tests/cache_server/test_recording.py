import copy

import pytest

from cache_server.recording import (
    NotRecordable,
    check_evidence,
    check_lifetime,
    check_place,
    execution_of,
    is_candidate,
)
from memopod.steps import Location, OutputArtifact, Outputs, names, read_step

KFP_SCHEDULE = "scheduledworkflows.kubeflow.org/scheduledWorkflowName"
VERSIONS = ["3.4.17", "3.5.15", "3.7.18", "4.0.10", "4.1.2"]


def released(pod):
    pod["metadata"]["labels"][names.STEP_LABEL] = names.RELEASED
    return pod


@pytest.mark.parametrize("version", VERSIONS)
def test_a_step_that_ran_on_a_node_and_succeeded_is_an_execution(sample, version):
    pod = released(sample(version, "parameters.make.pod"))
    assert is_candidate(pod)
    execution = execution_of(read_step(pod))
    assert execution.image_id.startswith("docker.io/library/python@sha256:")
    assert execution.started_at <= execution.finished_at


@pytest.mark.parametrize("version", VERSIONS)
def test_a_pod_that_was_finished_through_the_api_alone_never_is(sample, version):
    pod = released(sample(version, "held.make.pod"))
    with pytest.raises(NotRecordable):
        execution_of(read_step(pod))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_failed_attempt_is_no_candidate(sample, version):
    assert not is_candidate(released(sample(version, "retry.0.pod")))
    assert is_candidate(released(sample(version, "retry.1.pod")))


def test_a_pod_that_was_reused_or_not_marked_is_no_candidate(sample):
    pod = sample("4.1.2", "parameters.make.pod")
    assert not is_candidate(pod)
    pod["metadata"]["labels"][names.STEP_LABEL] = names.REUSED
    assert not is_candidate(pod)


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p["spec"].pop("nodeName"),
        lambda p: p["status"].update(phase="Running"),
        lambda p: p["status"]["containerStatuses"][1]["state"]["terminated"].pop("containerID"),
        lambda p: p["status"]["containerStatuses"][0]["state"]["terminated"].update(exitCode=1),
        lambda p: p["status"]["containerStatuses"][1].update(state={"running": {}}),
        lambda p: p["status"].update(containerStatuses=[]),
    ],
)
def test_what_was_not_seen_to_run_and_succeed_is_no_execution(sample, change):
    pod = released(sample("4.1.2", "parameters.make.pod"))
    for status in pod["status"]["containerStatuses"]:
        status.pop("containerID", None)
    change(pod)
    with pytest.raises(NotRecordable):
        execution_of(read_step(pod))


def step_with(sample, **annotations):
    pod = sample("4.1.2", "parameters.make.pod")
    pod["metadata"]["annotations"] |= annotations
    return read_step(pod)


def test_what_changed_between_release_and_end_is_not_recorded(sample):
    step = step_with(sample, **{names.INPUTS: "before"})
    check_evidence(step, base="b", evidence="before", fixed=False)
    with pytest.raises(NotRecordable, match="changed while it ran"):
        check_evidence(step, base="b", evidence="after", fixed=True)


def test_without_a_decision_only_a_step_that_reads_nothing_outside_its_pod_is_recorded(sample):
    step = step_with(sample, **{names.KEY: "b"})
    check_evidence(step, base="b", evidence="any", fixed=True)
    with pytest.raises(NotRecordable, match="nobody saw"):
        check_evidence(step, base="b", evidence="any", fixed=False)
    with pytest.raises(NotRecordable, match="changed after its admission"):
        check_evidence(step, base="other", evidence="any", fixed=True)


def test_outputs_that_argo_deletes_with_their_workflow_never_become_entries(sample):
    step = read_step(sample("4.1.2", "artifacts.make.pod"))
    workflow = sample("4.1.2", "artifacts.workflow-final")
    check_lifetime(step, workflow)
    collected = copy.deepcopy(workflow)
    collected["spec"]["artifactGC"] = {"strategy": "OnWorkflowDeletion"}
    with pytest.raises(NotRecordable):
        check_lifetime(step, collected)
    for artifact in step.template["outputs"]["artifacts"]:
        artifact["artifactGC"] = {"strategy": "Never"}
    check_lifetime(step, collected)
    step.template["outputs"]["artifacts"][0]["artifactGC"] = {"strategy": "OnWorkflowCompletion"}
    with pytest.raises(NotRecordable):
        check_lifetime(step, workflow)
    with pytest.raises(NotRecordable, match="Workflow is gone"):
        check_lifetime(step, None)
    check_lifetime(read_step(sample("4.1.2", "parameters.make.pod")), None)


def test_a_workflow_templates_collection_counts_too(sample):
    step = read_step(sample("4.1.2", "artifacts.make.pod"))
    workflow = sample("4.1.2", "artifacts.workflow-final")
    workflow["spec"] = {"workflowTemplateRef": {"name": "shared"}}
    with pytest.raises(NotRecordable, match="template is not known"):
        check_lifetime(step, workflow)
    workflow["status"]["storedWorkflowTemplateSpec"] = {"templates": []}
    check_lifetime(step, workflow)
    workflow["status"]["storedWorkflowTemplateSpec"]["artifactGC"] = {"strategy": "OnWorkflowDeletion"}
    with pytest.raises(NotRecordable, match="deletes an output"):
        check_lifetime(step, workflow)


@pytest.mark.parametrize(
    ("name", "code", "recordable"),
    [
        ("proxy", 143, True),
        ("proxy", 137, True),
        ("proxy", 1, False),
        ("main", 143, False),
        ("wait", 137, False),
    ],
)
def test_a_sidecar_may_be_killed_once_the_step_has_ended_and_nothing_else_may(sample, name, code, recordable):
    pod = sample("4.1.2", "rich.pod")
    status = next(c for c in pod["status"]["containerStatuses"] if c["name"] == name)
    status["state"]["terminated"]["exitCode"] = code
    if recordable:
        assert execution_of(read_step(pod))
    else:
        with pytest.raises(NotRecordable, match="exit code 0"):
            execution_of(read_step(pod))


def put_out(**told):
    location = Location("s3", "minio:9000", "b", "train/train-1/model")
    return Outputs(
        parameters={}, artifacts=(OutputArtifact(name="m", location=location, reported={}, **told),)
    )


@pytest.mark.parametrize(
    ("metadata", "own"),
    [
        ({"name": "train-x7k2p", "generateName": "train-"}, True),
        ({"name": "train-1764000000", "labels": {"workflows.argoproj.io/cron-workflow": "train"}}, True),
        ({"name": "train-7-1a2b3c", "labels": {KFP_SCHEDULE: "train"}}, True),
        ({"name": "train", "labels": {"workflows.argoproj.io/cron-workflow": "train"}}, False),
        ({"name": "by-hand", "labels": {"workflows.argoproj.io/cron-workflow": "train"}}, False),
        ({"name": "train-2", "labels": {"workflows.argoproj.io/cron-workflow": "train"}}, False),
        ({"name": "train"}, False),
        ({"name": "train", "generateName": "other-"}, False),
        ({"name": "train-", "generateName": "train-"}, False),
        ({"name": "train", "generateName": ""}, False),
    ],
)
def test_where_no_store_tells_the_workflows_name_must_be_its_own(metadata, own):
    workflow = {"metadata": metadata}
    check_place(put_out(etag="1"), workflow)
    check_place(put_out(digest="md5:1"), workflow)
    check_place(Outputs(parameters={"p": "1"}), None)
    if own:
        check_place(put_out(), workflow)
    else:
        with pytest.raises(NotRecordable, match="of the same name"):
            check_place(put_out(), workflow)
