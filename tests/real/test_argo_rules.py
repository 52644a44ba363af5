"""The double's decisions, against what was seen of the real controllers."""

import json

import pytest

from memopod.steps import names
from tests.real.argo_rules import GUARDED, Node, assess, take_result

NODE = Node("wf-1", "wf.make", "make")
OUTPUTS = {"parameters": [{"name": "Output", "value": "x"}]}
STATUSES = [{"name": "main", "state": {"terminated": {"exitCode": 0}}}]
LATE, EARLY = ["3.7.18", "4.0.10", "4.1.2"], ["3.4.17", "3.5.15"]


def pod(statuses=STATUSES, phase="Succeeded", annotations=None):
    return {
        "metadata": {"annotations": annotations or {}},
        "status": {"phase": phase, "containerStatuses": statuses},
    }


def result(reported="true"):
    labels = {} if reported is None else {names.ARGO_OUTPUTS_COMPLETED: reported}
    return {"metadata": {"labels": labels}, "outputs": OUTPUTS}


@pytest.mark.parametrize("version", GUARDED)
def test_a_complete_result_then_success_hands_outputs_on(version):
    node = assess(take_result(NODE, result()), pod(), version=version, declares=True)
    assert node.phase == "Succeeded"
    assert node.outputs == {**OUTPUTS, "exitCode": "0"}


@pytest.mark.parametrize("version", GUARDED)
def test_without_container_statuses_there_is_no_exit_code(version):
    node = assess(take_result(NODE, result()), pod(None), version=version, declares=True)
    assert (node.phase, node.outputs) == ("Succeeded", OUTPUTS)


@pytest.mark.parametrize("version", LATE)
def test_guarded_versions_wait_for_outputs_that_come_late(version):
    waiting = assess(NODE, pod(), version=version, declares=True)
    assert (waiting.phase, waiting.outputs) == ("Pending", {"exitCode": "0"})
    done = assess(take_result(waiting, result()), pod(), version=version, declares=True)
    assert done.phase == "Succeeded"
    assert done.outputs["parameters"] == OUTPUTS["parameters"]


@pytest.mark.parametrize("version", EARLY)
def test_earlier_versions_succeed_without_outputs_that_come_late(version):
    node = assess(NODE, pod(), version=version, declares=True)
    assert (node.phase, node.outputs) == ("Succeeded", {"exitCode": "0"})


@pytest.mark.parametrize("version", EARLY)
def test_earlier_versions_read_outputs_from_the_annotation_too(version):
    annotated = pod(annotations={names.ARGO_OUTPUTS: json.dumps(OUTPUTS)})
    assert (
        assess(NODE, annotated, version=version, declares=True).outputs["parameters"] == OUTPUTS["parameters"]
    )


@pytest.mark.parametrize("version", GUARDED)
def test_what_declares_nothing_needs_no_result(version):
    assert assess(NODE, pod(), version=version, declares=False).phase == "Succeeded"


@pytest.mark.parametrize("version", ["3.5.15", *LATE])
def test_neither_result_nor_statuses_leaves_the_workflow_stuck(version):
    node = assess(NODE, pod(None), version=version, declares=True)
    assert (node.phase, node.stuck) == ("Succeeded", True)


@pytest.mark.parametrize("version", ["3.5.15", *LATE])
def test_an_incomplete_result_shows_its_outputs_and_keeps_the_node_pending(version):
    node = assess(take_result(NODE, result("false")), pod(), version=version, declares=True)
    assert node.phase == "Pending"
    assert node.outputs["parameters"] == OUTPUTS["parameters"]


@pytest.mark.parametrize("version", LATE)
def test_a_result_without_the_label_is_complete(version):
    assert assess(take_result(NODE, result(None)), pod(), version=version, declares=True).phase == "Succeeded"


def test_a_held_pod_is_pending_and_nothing_else():
    assert assess(NODE, pod(None, "Pending"), version="4.1.2", declares=True) == NODE
