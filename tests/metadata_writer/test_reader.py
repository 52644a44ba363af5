import copy
import dataclasses
import json
from pathlib import Path

import pytest

from memopod.steps import names, read_step
from memopod.steps.outputs import read_outputs
from metadata_writer import reader, states, templates
from metadata_writer.records import Input, State
from metadata_writer.skipping import node_skip_reason, skip_reason
from metadata_writer.states import is_fulfilled, is_step

SAMPLES = Path(__file__).parent.parent / "samples"
PODS = sorted(SAMPLES.glob("argo-*/*.pod.json"))
KFP_V2 = [p for p in PODS if "kfp-v2" in p.name]
STEPS = [p for p in PODS if p not in KFP_V2 and not p.name.startswith("agent.")]
VERSIONS = sorted(p.name for p in SAMPLES.glob("argo-*"))


def name(path):
    return f"{path.parent.name}/{path.name.removesuffix('.pod.json')}"


def load(path):
    return json.loads(path.read_text())


def step_of(path):
    step = read_step(load(path))
    if step.template is None:
        config_map = load(path.with_name(path.name.replace(".pod.json", ".configmap.json")))
        step = dataclasses.replace(step, template=json.loads(config_map["data"]["ARGO_TEMPLATE"]))
    return step


def workflow_of(path):
    return load(path.with_name(path.name.split(".")[0] + ".workflow-final.json"))


def node_of(path, step):
    return workflow_of(path)["status"]["nodes"][step.node_id]


def outputs_of(node, archive):
    return read_outputs(node.get("outputs") or {}, archive)


def record_of(path):
    step = step_of(path)
    node = node_of(path, step)
    outputs = outputs_of(node, (step.template or {}).get("archiveLocation"))
    return reader.read_pod(step, node=node, outputs=outputs)


def node_record_of(path):
    workflow = workflow_of(path)
    node = workflow["status"]["nodes"][read_step(load(path)).node_id]
    return reader.read_node(workflow, node, outputs=outputs_of(node, templates.repository(workflow)))


@pytest.mark.parametrize("path", STEPS, ids=name)
def test_every_recorded_pod_is_a_step_of_its_workflow_and_node(path):
    pod = load(path)
    assert skip_reason(pod) is None
    record = record_of(path)
    owner = pod["metadata"]["ownerReferences"][0]
    assert record.external_id == f"{owner['uid']}/{pod['metadata']['annotations'][names.ARGO_NODE_ID]}"
    assert (record.run.name, record.run.namespace) == (owner["name"], pod["metadata"]["namespace"])
    assert record.type_name == f"components.{record.component_id}"
    assert record.custom["kfp_pod_name"] == pod["metadata"]["name"]
    assert record.custom["started_at"] <= record.custom["finished_at"]
    assert record.state is (State.FAILED if path.name == "retry.0.pod.json" else State.COMPLETE)


@pytest.mark.parametrize("path", [p for p in STEPS if not p.name.startswith("held")], ids=name)
def test_the_workflow_alone_says_the_same_as_the_pod_as_far_as_it_goes(path):
    of_pod, of_node = record_of(path), node_record_of(path)
    for field in ("external_id", "run", "type_name", "component_id", "state", "inputs", "outputs"):
        assert getattr(of_node, field) == getattr(of_pod, field)
    times = {"started_at", "finished_at"}
    shared = of_node.custom.keys() - times
    if path.name.startswith("rich"):
        shared -= {"image"}  # podSpecPatch changes the Pod, not the template
    assert {k: of_node.custom[k] for k in shared} == {k: of_pod.custom[k] for k in shared}
    assert not of_node.from_pod


@pytest.mark.parametrize("path", KFP_V2, ids=name)
def test_kubeflow_v2_pods_are_left_alone(path):
    assert skip_reason(load(path)) == "kfp-v2"


@pytest.mark.parametrize("version", VERSIONS)
def test_input_parameters_are_found_wherever_the_version_keeps_them(version):
    record = record_of(SAMPLES / version / "parameters.use.pod.json")
    assert record.custom["input:x"] == "hello"
    assert record_of(SAMPLES / version / "parameters.make.pod.json").custom["output:Output"] == "hello"


@pytest.mark.parametrize("version", VERSIONS)
def test_artifacts_are_named_by_kubeflows_uris(version):
    made = record_of(SAMPLES / version / "artifacts.make.pod.json")
    used = record_of(SAMPLES / version / "artifacts.use.pod.json")
    uris = {o.name: o.uri for o in made.outputs}
    run = made.run.name
    assert uris["keyed"] == f"minio://mlpipeline/results/{run}/keyed.txt"
    assert uris["full"] == f"minio://other/results/{run}/full.txt"
    assert uris["default"].startswith(f"minio://mlpipeline/artifacts/{run}/")
    assert {o.type_name for o in made.outputs} == {"NoType"}
    assert used.inputs == (
        Input("default", uris["default"]),
        Input("keyed", uris["keyed"]),
        Input("full", uris["full"]),
        Input("outside", "minio://mlpipeline/datasets/train.csv"),
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_the_result_of_a_script_is_an_output(version):
    assert record_of(SAMPLES / version / "script.s.pod.json").custom["output:result"] == "42"


@pytest.mark.parametrize("version", VERSIONS)
def test_attempts_of_a_step_are_executions_of_their_own(version):
    first, second = (record_of(SAMPLES / version / f"retry.{n}.pod.json") for n in (0, 1))
    assert first.external_id != second.external_id
    assert (first.state, second.state) == (State.FAILED, State.COMPLETE)
    assert first.type_name == second.type_name


@pytest.mark.parametrize("version", ["argo-3.7.18", "argo-4.1.2"])
def test_a_step_that_argo_memoized_is_cached(version):
    workflow = load(SAMPLES / version / "memoize-hit.workflow-final.json")
    (node,) = workflow["status"]["nodes"].values()
    record = reader.read_node(workflow, node, outputs=outputs_of(node, None))
    assert record.state is State.CACHED
    assert record.custom["output:Output"] == "hello"


@pytest.mark.parametrize("version", VERSIONS)
def test_a_finished_node_without_a_machine_was_reused(version):
    assert node_record_of(SAMPLES / version / "held.make.pod.json").state is State.CACHED


@pytest.fixture
def pod():
    return load(SAMPLES / "argo-4.1.2" / "parameters.make.pod.json")


def test_a_pod_that_memopod_reused_is_cached_and_names_its_source(pod):
    pod["metadata"]["labels"] |= {
        names.STEP_LABEL: names.REUSED,
        "pipelines.kubeflow.org/metadata_written": "true",
    }
    pod["metadata"]["annotations"] |= {
        names.SOURCE_EXECUTION: "uid/node",
        names.REASON: "hit",
        names.KEY: "v1:abc",
    }
    assert skip_reason(pod) is None
    record = reader.read_pod(read_step(pod))
    assert (record.state, record.source_execution) == (State.CACHED, "uid/node")
    assert record.shares_outputs
    assert (record.custom["reason"], record.custom["fingerprint"]) == ("hit", "v1:abc")


def test_a_held_pod_has_not_begun(pod):
    pod["status"] = {"phase": "Pending"}
    assert not states.has_begun(read_step(pod), None)
    assert states.has_begun(read_step(pod), {"phase": "Error"})


def test_a_running_pod_is_running_until_it_and_its_workflow_are_gone(pod):
    pod["status"]["phase"] = "Running"
    step = read_step(pod)
    assert reader.read_pod(step).state is State.RUNNING
    assert reader.read_pod(step, pod_gone=True).state is State.RUNNING
    assert reader.read_pod(step, workflow_gone=True).state is State.RUNNING
    assert reader.read_pod(step, pod_gone=True, workflow_gone=True).state is State.CANCELED


def test_a_pod_that_is_still_there_says_itself_that_it_succeeded(pod):
    node = {"phase": "Succeeded", "finishedAt": "2026-11-23T22:00:47Z"}
    pod["status"] = {"phase": "Running"}
    assert states.closing_node(node, pod_gone=False) is None
    record = reader.read_pod(read_step(pod), node=node)
    assert record.state is State.RUNNING
    assert "finished_at" not in record.custom
    gone = reader.read_pod(read_step(pod), node=node, pod_gone=True)
    assert gone.state is State.COMPLETE
    assert "finished_at" in gone.custom


def test_a_held_pod_that_is_gone_and_succeeded_was_reused(pod):
    pod["status"] = {"phase": "Pending"}
    node = {"phase": "Succeeded"}
    assert reader.read_pod(read_step(pod), node=node, pod_gone=True).state is State.CACHED


def test_a_step_that_argo_stopped_is_canceled(pod):
    pod["status"]["phase"] = "Running"
    node = {"phase": "Failed", "message": "workflow shutdown with strategy:  Stop"}
    assert reader.read_pod(read_step(pod), node=node).state is State.CANCELED


def test_tfx_pods_are_left_alone(pod):
    labelled = copy.deepcopy(pod)
    labelled["metadata"]["labels"][names.KFP_SDK_TYPE] = "tfx-template"
    assert skip_reason(labelled) == "tfx"
    main = next(c for c in pod["spec"]["containers"] if c["name"] == "main")
    main["command"] = ["python", "/x/tfx/orchestration/kubeflow/container_entrypoint.py"]
    assert skip_reason(pod) == "tfx"


def test_a_pod_without_a_workflow_is_left_alone(pod):
    del pod["metadata"]["labels"][names.ARGO_WORKFLOW]
    assert skip_reason(pod) == "no-workflow"


def test_kubeflow_v1_arguments_keep_their_types(pod):
    arguments = {"n": 3, "big": 2**40, "rate": 0.5, "name": "x", "flag": True, "list": [1], "none": None}
    pod["metadata"]["annotations"][reader.KFP_ARGUMENTS] = json.dumps(arguments)
    custom = reader.read_pod(read_step(pod)).custom
    given = {k.removeprefix("input:"): v for k, v in custom.items() if k.startswith("input:")}
    assert given == {"n": 3, "big": str(2**40), "rate": 0.5, "name": "x", "flag": True, "list": "[1]"}


@pytest.mark.parametrize("text", ["{", "[]", r'{"a": "\ud800"}'], ids=["cut off", "a list", "no text"])
def test_unreadable_arguments_are_no_arguments(pod, text):
    pod["metadata"]["annotations"][reader.KFP_ARGUMENTS] = text
    custom = reader.read_pod(read_step(pod)).custom
    assert not [k for k in custom if k.startswith("input:")]


def test_the_number_of_an_attempt_is_known_by_its_nodes_name():
    numbers = {
        name: reader._identity("w", "n", name)["retries"]
        for name in ("run.make", "run.train(2)", "run.one(3:a)", "run.all(0:x).train(1)")
    }
    assert numbers == {"run.make": 0, "run.train(2)": 2, "run.one(3:a)": 0, "run.all(0:x).train(1)": 1}


def test_kubeflow_v1_input_paths_become_names():
    template = {
        "inputs": {
            "artifacts": [
                {"name": "a", "path": "/tmp/inputs/text/data", "s3": {"bucket": "b", "key": "k"}},
                {"name": "bare", "gcs": {"bucket": "b", "key": "k"}},
                {"name": "literal", "path": "/x", "raw": {"data": "1"}},
            ]
        }
    }
    assert reader._inputs(template, None) == (Input("text", "minio://b/k"), Input("bare", "gs://b/k"))


@pytest.mark.parametrize(
    ("node_name", "part"),
    [
        ("run.make", "make"),
        ("run", "run"),
        ("run(0)", "run(0)"),
        ("run.one(1:a.b)", "one(1:a.b)"),
        ("run.all(0:x).train(1)", "train(1)"),
        ("run[0].build", "build"),
        ("", ""),
    ],
)
def test_the_display_name_is_the_last_part_of_the_node_name(node_name, part):
    assert reader.last_part(node_name) == part


def test_a_step_that_argo_calls_succeeded_is_complete_whatever_became_of_a_sidecar(pod):
    pod["status"]["phase"] = "Failed"
    node = {"phase": "Succeeded", "finishedAt": "2026-11-23T22:00:50Z"}
    assert reader.read_pod(read_step(pod)).state is State.FAILED
    assert reader.read_pod(read_step(pod), node=node).state is State.COMPLETE


def test_a_pod_that_kubeflows_cache_server_replaced_is_cached(pod):
    pod["metadata"]["labels"] |= {
        "pipelines.kubeflow.org/reused_from_cache": "true",
        "pipelines.kubeflow.org/metadata_written": "true",
        "pipelines.kubeflow.org/metadata_execution_id": "17",
    }
    record = reader.read_pod(read_step(pod))
    assert record.state is State.CACHED
    assert record.custom["cached_execution_id"] == 17


@pytest.mark.parametrize(
    ("node_name", "task"),
    [
        ("run-x7.train", "train"),
        ("run-x7.prepare.train(0)", "train"),
        ("run-x7[0].train(3:a.b)(1)", "train"),
        ("run-x7.train(0:f(x).y)", "train"),
        ("run-x7", "run-x7"),
        ("run-x7.(0)", "(0)"),
        ("", ""),
    ],
)
def test_the_task_of_a_node_is_named_without_attempts_and_items(node_name, task):
    assert reader.task_name(node_name) == task


def test_a_node_name_of_a_hundred_thousand_characters_is_read_at_once():
    assert reader.last_part("a" * 100_000 + ")").endswith(")")
    assert reader.last_part(f"run.step(0:{'(' * 50_000}{')' * 50_000})").startswith("step(0:")


def memoized_and_referenced():
    """A Workflow whose step is another WorkflowTemplate's, which has the name of one of its own."""
    node = {
        "id": "run-1-7", "name": "run-1.train", "type": "Pod", "phase": "Succeeded", "hostNodeName": "n",
        "templateRef": {"name": "library", "template": "fit"}, "templateScope": "local/run-1",
    }  # fmt: skip
    return {
        "metadata": {"name": "run-1", "namespace": "ns", "uid": "uid-1"},
        "spec": {"templates": [{"name": "fit", "container": {"image": "wrong"}}]},
        "status": {
            "nodes": {"run-1-7": node},
            "storedTemplates": {
                "namespaced/library/fit": {"name": "fit", "container": {"image": "right"}},
                "namespaced/library/sub": {
                    "name": "sub", "metadata": {"annotations": {names.KFP_V2_COMPONENT: "true"}}
                },
            },
        },
    }, node  # fmt: skip


def test_a_step_of_another_workflow_template_is_of_the_type_that_its_pod_would_say():
    workflow, node = memoized_and_referenced()
    record = reader.read_node(workflow, node, outputs=outputs_of(node, None))
    assert record.type_name == "components.fit"
    assert record.custom["image"] == "right"
    workflow["status"]["storedTemplates"] = {}
    record = reader.read_node(workflow, node, outputs=outputs_of(node, None))
    assert (record.type_name, "image" in record.custom) == ("components.fit", False)


def test_a_template_that_a_workflow_template_calls_by_its_name_alone_is_found_in_its_scope():
    workflow, node = memoized_and_referenced()
    del node["templateRef"]
    node |= {"templateName": "sub", "templateScope": "namespaced/library"}
    assert node_skip_reason(workflow, node) == "kfp-v2"


def test_a_step_that_argo_took_over_from_the_run_before_is_cached():
    workflow, node = memoized_and_referenced()
    node |= {"type": "Skipped", "phase": "Skipped", "message": "original pod: run-0-7"}
    assert is_step(node)
    assert is_fulfilled(node)
    assert reader.read_node(workflow, node, outputs=outputs_of(node, None)).state is State.CACHED
    node["message"] = "when 'false' evaluated false"
    assert not is_step(node)


@pytest.mark.parametrize("kind", ["HTTP", "Plugin"])
def test_a_step_that_argos_agent_ran_is_no_cached_one(kind):
    workflow, node = memoized_and_referenced()
    del node["hostNodeName"]
    node["type"] = kind
    assert is_step(node)
    assert reader.read_node(workflow, node, outputs=outputs_of(node, None)).state is State.COMPLETE
    node["memoizationStatus"] = {"hit": True}
    assert reader.read_node(workflow, node, outputs=outputs_of(node, None)).state is State.CACHED
    assert not is_step({**node, "type": "Suspend"})
