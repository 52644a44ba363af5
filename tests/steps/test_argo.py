import json

import pytest

from memopod.steps import NotAStep, read_step
from memopod.steps.argo import environment, main_container, template_text

VERSIONS = ["3.4.17", "3.5.15", "3.7.18", "4.0.10", "4.1.2"]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_step_is_read_from_the_pod_of_every_argo_version(sample, version):
    pod = sample(version, "parameters.make.pod")
    step = read_step(pod)
    assert step.template_name == "make"
    assert step.workflow == pod["metadata"]["labels"]["workflows.argoproj.io/workflow"]
    assert step.node_id == sample(version, "parameters.make.taskresult")["metadata"]["name"]
    assert step.execution == f"{step.workflow_uid}/{step.node_id}"
    assert step.node_name == f"{step.workflow}.make"
    assert not step.reused


def test_a_pod_without_init_container_carries_the_template_on_supervisor(sample):
    pod = sample("4.1.2", "initless.make.pod")
    assert "initContainers" not in pod["spec"]
    assert read_step(pod).template_name == "make"


def test_a_resource_template_without_init_container_is_on_main(sample):
    assert read_step(sample("4.1.2", "initless-resource.pod")).template["resource"]


def test_an_offloaded_template_is_not_in_the_pod(sample):
    step = read_step(sample("4.1.2", "offloaded.pod"))
    assert step.template is None
    assert step.template_name == ""


def test_old_versions_keep_the_template_in_an_annotation(make_pod):
    pod = make_pod()
    text = template_text(pod)
    for container in pod["spec"]["initContainers"] + pod["spec"]["containers"]:
        container["env"] = [v for v in container["env"] if v["name"] != "ARGO_TEMPLATE"]
    pod["metadata"]["annotations"]["workflows.argoproj.io/template"] = text
    assert read_step(pod).template == json.loads(text)


@pytest.mark.parametrize("version", ["3.7.18", "4.1.2"])
def test_the_agent_of_http_templates_is_no_step(sample, version):
    with pytest.raises(NotAStep) as error:
        read_step(sample(version, "agent.pod"))
    assert error.value.reason == "no-node"


def test_a_pod_of_nobody_is_no_step(make_pod):
    pod = make_pod()
    del pod["metadata"]["ownerReferences"]
    with pytest.raises(NotAStep) as error:
        read_step(pod)
    assert error.value.reason == "no-workflow"


@pytest.mark.parametrize("text", ["{", "[]", "3", "nul"])
def test_a_template_that_is_no_json_object_is_named_so_without_its_text(make_pod, text):
    pod = make_pod()
    for variable in pod["spec"]["initContainers"][0]["env"]:
        if variable["name"] == "ARGO_TEMPLATE":
            variable["value"] = text
    with pytest.raises(NotAStep) as error:
        read_step(pod)
    assert error.value.reason == "template-unreadable"


@pytest.mark.parametrize("version", VERSIONS)
def test_whether_the_result_is_expected_is_said_by_argo(sample, version):
    assert read_step(sample(version, "script.s.pod")).wants_result
    assert not read_step(sample(version, "parameters.make.pod")).wants_result


def test_the_steps_program_runs_in_the_container_called_main(sample):
    assert main_container(sample("4.1.2", "rich.pod"))["image"] == "python:3.9-slim"


@pytest.mark.parametrize(
    ("variables", "value"),
    [
        (
            [{"name": "A", "value": "first"}, {"name": "A", "value": "last"}, {"name": "B", "value": "b"}],
            "last",
        ),
        ([{"name": "A", "value": "literal"}, {"name": "A", "valueFrom": {"fieldRef": {}}}], None),
        ([], None),
    ],
)
def test_of_a_variable_that_is_there_twice_the_last_one_counts(variables, value):
    assert environment({"env": variables}, "A") == value
