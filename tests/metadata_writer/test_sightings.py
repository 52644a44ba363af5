import copy
import json
from pathlib import Path

import msgspec
import pytest

from metadata_writer.essentials import essential_pod, essential_workflow, pod_facts, workflow_facts
from metadata_writer.shapes import MetadataShape, PodShape, ResultShape, WorkflowShape
from metadata_writer.sighting import step_key
from metadata_writer.sightings import Sightings
from metadata_writer.skipping import skip_reason

SAMPLES = Path(__file__).parent.parent / "samples" / "argo-4.1.2"


def load(name):
    return json.loads((SAMPLES / name).read_text())


class Watcher(Sightings):
    def __init__(self, live=1 << 20, gone=1 << 20):
        self.changes = []
        super().__init__(self.changes.append, live=live, gone=gone)
        self.first_lists.pods_listed.set()
        self.first_lists.workflows_listed.set()

    def settle(self, key, version=None):
        super().settle(key, self.look(key).version if version is None else version)

    def taken(self):
        changes = list(self.changes)
        self.changes.clear()
        return changes


@pytest.fixture
def seen():
    return Watcher()


@pytest.fixture
def pod():
    return load("parameters.make.pod.json")


@pytest.fixture
def workflow():
    return load("parameters.workflow-final.json")


@pytest.fixture
def key(pod):
    return step_key(pod)


def test_a_step_is_known_by_its_workflow_and_node(pod, key):
    owner = pod["metadata"]["ownerReferences"][0]
    assert key == (owner["uid"], pod["metadata"]["annotations"]["workflows.argoproj.io/node-id"])


@pytest.mark.parametrize("name", ["agent.pod.json", "kfp-v2.executor.pod.json"])
def test_pods_that_are_not_recorded_are_not_looked_at(seen, name):
    seen.on_pod("ADDED", load(name))
    assert seen.taken() == []


@pytest.mark.parametrize("name", ["kfp-v2.workflow-final.json", "kfp-v2-cached.workflow-final.json"])
def test_workflows_of_kubeflow_v2_are_not_looked_at(seen, name):
    seen.on_workflow("ADDED", load(name))
    assert seen.taken() == []


def test_pod_and_node_are_seen_together_whichever_comes_first(pod, workflow, key):
    first, second = Watcher(), Watcher()
    first.on_pod("ADDED", pod)
    first.on_workflow("ADDED", workflow)
    second.on_workflow("ADDED", workflow)
    second.on_pod("ADDED", pod)
    assert first.look(key) == second.look(key)
    assert first.look(key).node["displayName"] == "make"
    assert not first.look(key).workflow_gone


def test_a_workflow_brings_back_only_steps_whose_node_says_something_new(seen, workflow, key):
    before = copy.deepcopy(workflow)
    del before["status"]["nodes"][key[1]]["outputs"]
    seen.on_workflow("ADDED", before)
    assert len(seen.taken()) == 2
    seen.on_workflow("MODIFIED", before)
    assert seen.taken() == []
    seen.on_workflow("MODIFIED", workflow)
    assert seen.taken() == [key]


def test_a_deleted_pod_is_kept_until_its_step_is_settled(seen, pod, key):
    seen.on_pod("ADDED", pod)
    seen.on_pod("DELETED", pod)
    assert seen.look(key).pod == essential_pod(pod)
    assert seen.look(key).pod_gone
    seen.settle(key)
    assert seen.look(key).pod is None


def test_a_pod_that_argo_made_anew_replaces_the_deleted_one(seen, pod, key):
    again = copy.deepcopy(pod)
    again["metadata"]["uid"] = "another"
    seen.on_pod("ADDED", pod)
    seen.on_pod("ADDED", again)
    seen.on_pod("DELETED", pod)
    assert seen.look(key).pod == essential_pod(again)
    assert not seen.look(key).pod_gone


def test_no_more_deleted_pods_are_kept_than_the_limit(pod):
    seen = Watcher(gone=2000)
    other = load("parameters.use.pod.json")
    for gone in (pod, other):
        seen.on_pod("DELETED", gone)
    assert seen.look(step_key(pod)).pod is None
    assert seen.look(step_key(other)).pod == essential_pod(other)


def test_a_missing_workflow_is_gone_only_once_all_are_listed(seen, pod, key):
    seen.on_pod("ADDED", pod)
    seen.first_lists.workflows_listed.clear()
    assert not seen.look(key).workflow_gone
    seen.first_lists.workflows_listed.set()
    assert seen.look(key).workflow_gone


def test_a_deleted_workflow_is_kept_until_its_steps_are_settled(seen, pod, workflow, key):
    seen.on_pod("ADDED", pod)
    seen.on_workflow("ADDED", workflow)
    seen.taken()
    seen.on_workflow("DELETED", workflow)
    steps = seen.taken()
    assert key in steps
    assert len(steps) == 2
    assert seen.look(key).workflow_gone
    for step in steps:
        assert seen.look(step).node is not None
        seen.settle(step)
    assert seen.look(key).node is None


def test_a_deleted_workflow_brings_back_its_deleted_pods(seen, pod, workflow, key):
    workflow["status"] = {}
    seen.on_workflow("ADDED", workflow)
    seen.on_pod("DELETED", pod)
    seen.taken()
    seen.on_workflow("DELETED", workflow)
    assert seen.taken() == [key]


def test_a_workflow_whose_nodes_are_elsewhere_shows_none(seen, workflow):
    workflow["status"] = {"offloadNodeStatusVersion": "fnv:1"}
    seen.on_workflow("ADDED", workflow)
    assert seen.taken() == []
    assert seen.unreadable_workflows == 1
    seen.on_workflow("DELETED", workflow)
    assert seen.unreadable_workflows == 0


@pytest.mark.parametrize(
    "broken",
    [
        {"status": {"compressedNodes": "no base64"}},
        {"status": {"nodes": {"n": "text"}}},
        {"spec": {"templates": ["text"]}, "status": {"nodes": {"n": {"type": "Pod"}}}},
    ],
    ids=["packed", "nodes", "templates"],
)
def test_a_workflow_that_nobody_can_read_shows_no_steps(seen, workflow, broken):
    seen.on_workflow("ADDED", {"metadata": workflow["metadata"], **broken})
    assert seen.taken() == []


@pytest.mark.parametrize("nodes", [{"a": {"type": "Pod", "phase": []}}, {"a": 3}, [1], "x"], ids=str)
def test_an_object_of_an_odd_shape_stands_in_no_others_way(seen, workflow, nodes):
    odd = copy.deepcopy(workflow)
    odd["metadata"]["uid"] = "odd"
    odd["status"]["nodes"] = nodes
    seen.on_workflow("ADDED", odd)
    seen.taken()
    seen.on_workflow("ADDED", workflow)
    assert len(seen.taken()) == 2


def test_a_malformed_node_stands_neither_in_other_nodes_way_nor_in_its_workflows(seen, workflow):
    bad = {"id": "bad", "type": "Pod", "phase": "Succeeded", "templateRef": "no object"}
    workflow["status"]["nodes"] = {"bad": bad, **workflow["status"]["nodes"]}
    seen.on_workflow("ADDED", workflow)
    good = [step for step in seen.taken() if step[1] != "bad"]
    assert len(good) == 2
    seen.on_workflow("DELETED", workflow)
    assert all(seen.look(step).workflow_gone for step in good)


def test_a_pod_of_which_the_same_is_recorded_is_not_looked_at_again(seen, pod, key):
    seen.on_pod("ADDED", pod)
    assert seen.taken() == [key]
    pod["metadata"]["labels"]["workflows.argoproj.io/completed"] = "true"
    pod["metadata"]["resourceVersion"] = "later"
    pod["metadata"]["annotations"]["pipelines.kubeflow.org/metadata_input_artifact_ids"] = "[]"
    seen.on_pod("MODIFIED", pod)
    assert seen.taken() == []
    pod["status"]["phase"] = "Failed"
    seen.on_pod("MODIFIED", pod)
    assert seen.taken() == [key]


def test_nothing_is_kept_of_a_step_that_is_settled(seen, pod, workflow, key):
    seen.on_pod("ADDED", pod)
    seen.on_workflow("ADDED", workflow)
    seen.on_result("ADDED", load("parameters.make.taskresult.json"))
    assert seen.look(key).result is not None
    frame = seen.bytes_kept
    seen.settle(key)
    assert seen.bytes_kept < frame
    sighting = seen.look(key)
    assert (sighting.pod, sighting.node, sighting.result) == (None, None, None)
    assert seen.steps == 2


def test_a_settled_step_comes_back_when_it_changes_and_with_what_was_known_of_it(seen, pod, workflow, key):
    seen.on_pod("ADDED", pod)
    seen.on_workflow("ADDED", workflow)
    for step in seen.taken():
        seen.settle(step)
    seen.on_pod("MODIFIED", pod)
    seen.on_workflow("MODIFIED", workflow)
    seen.on_result("ADDED", load("parameters.make.taskresult.json"))
    assert (seen.taken(), seen.bytes_kept, seen.steps) == ([], 0, 2)
    pod["status"]["phase"] = "Failed"
    seen.on_pod("MODIFIED", pod)
    assert seen.taken() == [key]
    assert seen.lacks_node(key)
    assert seen.look(key).workflow_at.name == workflow["metadata"]["name"]
    assert seen.steps == 2
    seen.settle(key)
    del workflow["status"]["nodes"][key[1]]["outputs"]
    seen.on_workflow("MODIFIED", workflow)
    assert seen.taken() == [key]
    assert seen.look(key).node is not None
    seen.on_pod("MODIFIED", pod)  # its name was not known any more
    assert seen.look(key).pod_at.name == pod["metadata"]["name"]


def test_a_step_that_changes_while_it_is_recorded_is_not_settled(seen, pod, key):
    seen.on_pod("ADDED", pod)
    version = seen.look(key).version
    pod["status"]["phase"] = "Failed"
    seen.on_pod("MODIFIED", pod)
    seen.on_pod("DELETED", pod)
    seen.settle(key, version)
    assert seen.look(key).pod["status"]["phase"] == "Failed"


def test_what_vanished_while_nobody_watched_is_forgotten(seen, pod, workflow, key):
    seen.on_pod("ADDED", pod)
    seen.on_workflow("ADDED", workflow)
    for step in seen.taken():
        seen.settle(step)
    seen.on_workflow_lost(seen.keep_workflow(workflow))
    assert seen.steps == 1
    assert seen.look(key).workflow_gone
    seen.on_pod_lost(seen.keep_pod(pod))
    assert (seen.steps, seen.bytes_kept, seen.taken()) == (0, 0, [])


def test_a_workflow_that_vanished_while_nobody_watched_brings_back_its_steps(seen, pod, workflow, key):
    seen.on_pod("ADDED", pod)
    seen.on_workflow("ADDED", workflow)
    seen.taken()
    seen.on_workflow_lost(seen.keep_workflow(workflow))
    assert key in seen.taken()
    assert seen.look(key).workflow == essential_workflow(workflow)


@pytest.mark.parametrize("kind", ["pod", "workflow-final", "taskresult"])
def test_the_shapes_leave_out_nothing_that_is_looked_at(kind):
    shape = {"pod": PodShape, "workflow-final": WorkflowShape, "taskresult": ResultShape}[kind]
    for path in SAMPLES.parent.glob(f"argo-*/*.{kind}.json"):
        whole, shaped = json.loads(path.read_text()), msgspec.json.decode(path.read_bytes(), type=shape)
        if kind == "pod":
            assert step_key(whole) == step_key(shaped)
            assert skip_reason(whole) == skip_reason(shaped)
            assert pod_facts(whole) == pod_facts(shaped)
            lean = essential_pod(whole)
            lean["metadata"] = {
                k: lean["metadata"][k] for k in MetadataShape.__annotations__ if k in lean["metadata"]
            }
            assert essential_pod(shaped) == lean
        elif kind == "workflow-final":
            assert essential_workflow(shaped) == essential_workflow(whole)
            assert workflow_facts(shaped) == workflow_facts(whole)
            assert shaped["status"].get("nodes") == whole["status"].get("nodes")
        else:
            assert shaped["metadata"].get("labels") == whole["metadata"].get("labels")
            assert shaped.get("outputs") == whole.get("outputs")


def test_what_the_api_server_has_is_let_go_where_there_is_no_room(pod, key):
    seen = Watcher(live=2000)
    seen.on_pod("ADDED", pod)
    seen.on_pod("ADDED", load("parameters.use.pod.json"))
    assert seen.look(key).pod is None
    assert not seen.look(key).pod_gone


def test_a_pod_that_vanished_while_nobody_watched_is_gone(seen, pod, key):
    seen.on_pod("ADDED", pod)
    seen.on_pod_lost(seen.keep_pod(pod))
    assert seen.look(key).pod == essential_pod(pod)
    assert seen.look(key).pod_gone


def test_a_result_that_argo_deleted_stays_known(seen, pod, key):
    result = load("parameters.make.taskresult.json")
    seen.on_pod("ADDED", pod)
    seen.on_result(
        "ADDED",
        {
            **result,
            "metadata": {
                **result["metadata"],
                "labels": {"workflows.argoproj.io/report-outputs-completed": "false"},
            },
        },
    )
    assert seen.look(key).result is None
    seen.taken()
    seen.on_result("MODIFIED", result)
    assert seen.taken() == [key]
    seen.on_result("DELETED", result)
    assert seen.look(key).result["outputs"] == result["outputs"]


def test_a_step_is_forgotten_with_its_pod_and_its_workflow(seen, pod, workflow, key):
    seen.on_pod("ADDED", pod)
    seen.on_workflow("ADDED", workflow)
    for step in seen.taken():
        seen.settle(step)
    seen.on_workflow("DELETED", workflow)
    seen.on_pod("DELETED", pod)
    assert (seen.steps, seen.bytes_kept) == (0, 0)


def test_a_workflow_is_kept_without_its_nodes(seen, workflow, key):
    seen.on_workflow("ADDED", workflow)
    assert seen.look(key).workflow == essential_workflow(workflow)
    assert "nodes" not in seen.look(key).workflow["status"]


def test_the_namespace_of_a_step_is_known_as_long_as_it_has_to_be_recorded(seen, pod, workflow, key):
    seen.on_workflow("ADDED", workflow)
    seen.on_pod("ADDED", pod)
    seen.on_workflow("DELETED", workflow)
    seen.on_pod("DELETED", pod)
    assert seen.namespace(key) == pod["metadata"]["namespace"]
    seen.settle(key)
    assert seen.namespace(key) == ""


def test_a_deletion_of_what_was_forgotten_brings_nothing_back(seen, pod):
    seen.on_pod_lost(seen.keep_pod(pod))
    assert (seen.steps, seen.taken()) == (0, [])


def test_what_an_earlier_pod_of_the_step_put_out_is_not_taken_for_its_next_ones(seen, pod, key):
    result = load("parameters.make.taskresult.json")
    seen.on_pod("ADDED", pod)
    seen.on_result("ADDED", result)
    assert seen.look(key).result is not None
    seen.on_pod("ADDED", again := copy.deepcopy(pod) | {"metadata": pod["metadata"] | {"uid": "another"}})
    assert seen.look(key).result is None
    seen.on_result("MODIFIED", result)
    assert seen.look(key).result is not None
    seen.on_pod("DELETED", again)
    assert seen.look(key).result is not None  # it is this Pod's
    seen.on_pod("ADDED", pod)
    assert seen.look(key).result is None
