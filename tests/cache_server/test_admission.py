import json
from datetime import UTC, datetime
from pathlib import Path

import jsonpatch
import pytest

from cache_server.admission import Policy, admit
from memopod.steps import names, read_step
from memopod.steps.key import base_key
from memopod.steps.seal import is_sealed

SAMPLES = Path(__file__).parents[1] / "samples"
REVIEWS = sorted(str(p.relative_to(SAMPLES)) for p in SAMPLES.glob("*/*.admission.json"))
NOW = datetime(2026, 1, 1, tzinfo=UTC)
CREATOR = "system:serviceaccount:argo:argo"
POLICY = Policy(secret=b"s" * 32, trusted_creators=frozenset({CREATOR}), hold_seconds=30.0)
NOT_HELD = {
    # What the recording is of -> why its Pods are not held.
    "agent": "not-opted-in",
    "kfp-v2": "not-opted-in",
    "kfp-v2-again": "not-opted-in",
    "resource": "template-resource",
    "initless-resource": "template-resource",
    "memoize": "template-memoized",
    "rich": "volume",
}


def judge(pod, *, alive=True, username=CREATOR, namespace="kubeflow"):
    return admit(pod, namespace=namespace, username=username, now=NOW, controller_alive=alive, policy=POLICY)


def patched(pod, verdict):
    return jsonpatch.apply_patch(pod, verdict.patch)


@pytest.mark.parametrize("path", REVIEWS)
def test_every_recorded_pod_is_held_or_its_reason_is_the_expected_one(path):
    request = json.loads((SAMPLES / path).read_text())["request"]
    name = Path(path).name.split(".")[0]
    expected = NOT_HELD.get(name, "held")
    if name in ("artifacts", "initless-artifacts") and ".make." in path:
        expected = "output-key-names-run"
    verdict = judge(
        request["object"], username=request["userInfo"]["username"], namespace=request["namespace"]
    )
    assert verdict.reason == expected
    assert verdict.held == (expected == "held")
    pod = patched(request["object"], verdict)
    gates = pod["spec"].get("schedulingGates") or []
    assert gates == ([{"name": names.GATE}] if verdict.held else [])


def test_a_held_pod_carries_its_key_sealed_and_its_time(make_pod):
    pod = make_pod()
    held = patched(pod, judge(pod))
    step = read_step(held, namespace="kubeflow")
    annotations = held["metadata"]["annotations"]
    assert held["metadata"]["labels"][names.STEP_LABEL] == names.HELD
    assert annotations[names.KEY] == base_key(step).digest
    assert annotations[names.HOLD_UNTIL] == "2026-01-01T00:00:30Z"
    assert is_sealed(b"s" * 32, step, annotations[names.KEY], annotations[names.SEAL], NOW.timestamp() + 1)
    assert names.DECISION not in annotations


def test_nothing_else_of_the_pod_is_touched(make_pod):
    pod = make_pod()
    held = patched(pod, judge(pod))
    del held["spec"]["schedulingGates"]
    for kind in ("labels", "annotations"):
        held["metadata"][kind] = {
            k: v for k, v in held["metadata"][kind].items() if not k.startswith("memopod.io/")
        }
    assert held == make_pod()


def test_called_again_the_marks_are_renewed_and_the_gate_is_not_doubled(make_pod):
    once = patched(make_pod(), judge(make_pod()))
    twice = patched(once, judge(once))
    assert twice == once


@pytest.mark.parametrize("path", REVIEWS)
def test_patches_touch_single_keys_and_never_whole_maps(path):
    pod = json.loads((SAMPLES / path).read_text())["request"]["object"]
    paths = {op["path"] for op in judge(pod).patch}
    assert not paths & {"/metadata", "/metadata/labels", "/metadata/annotations", "/spec"}
    for path_ in paths - {"/spec/schedulingGates"}:
        assert path_.startswith(("/metadata/labels/memopod.io~1", "/metadata/annotations/memopod.io~1"))


def test_other_gates_stay(make_pod):
    pod = make_pod()
    pod["spec"]["schedulingGates"] = [{"name": "quota"}]
    gates = patched(pod, judge(pod))["spec"]["schedulingGates"]
    assert gates == [{"name": "quota"}, {"name": names.GATE}]


def test_absent_maps_are_created(make_pod):
    pod = make_pod()
    for container in pod["spec"]["containers"]:
        container["env"].append({"name": "ARGO_NODE_ID", "value": "n"})
    del pod["metadata"]["annotations"]
    held = patched(pod, judge(pod))
    assert held["metadata"]["annotations"][names.KEY]


def test_marks_that_the_creator_put_on_the_pod_do_not_stay(make_pod):
    pod = make_pod()
    pod["metadata"]["labels"][names.STEP_LABEL] = names.REUSED
    pod["metadata"]["annotations"] |= {
        names.ENTRY: "x", names.SOURCE_EXECUTION: "y", names.CLAIMED_BY: "z", names.DECISION: "reuse",
    }  # fmt: skip
    held = patched(pod, judge(pod))
    assert held["metadata"]["labels"][names.STEP_LABEL] == names.HELD
    for name in (names.ENTRY, names.SOURCE_EXECUTION, names.CLAIMED_BY, names.DECISION):
        assert name not in held["metadata"]["annotations"]


def marked_only(pod, reason, **arguments):
    verdict = judge(pod, **arguments)
    assert (verdict.held, verdict.reason) == (False, reason)
    result = patched(pod, verdict)
    assert "schedulingGates" not in result["spec"]
    return result["metadata"]


def test_without_a_live_controller_a_pod_is_marked_and_not_held(make_pod):
    metadata = marked_only(make_pod(), "no-controller", alive=False)
    assert metadata["labels"][names.STEP_LABEL] == names.RELEASED
    assert metadata["annotations"][names.KEY]
    assert metadata["annotations"][names.REASON] == "no-controller"


def test_a_step_that_asks_to_run_is_not_held(make_pod):
    pod = make_pod()
    pod["metadata"]["annotations"][names.BYPASS] = "true"
    assert marked_only(pod, "bypass")["annotations"][names.SEAL]


@pytest.mark.parametrize(("seconds", "held"), [(59, False), (61, True)])
def test_a_step_with_a_near_deadline_is_not_held(make_pod, seconds, held):
    pod = make_pod()
    for container in pod["spec"]["containers"]:
        for variable in container["env"]:
            if variable["name"] == "ARGO_DEADLINE":
                variable["value"] = f"2026-01-01T00:{seconds // 60:02}:{seconds % 60:02}Z"
    assert judge(pod).held == held


def test_a_bound_pod_is_not_held(make_pod):
    pod = make_pod()
    pod["spec"]["nodeName"] = "node-1"
    marked_only(pod, "node-assigned")


def test_a_step_without_key_is_told_why_and_gets_no_label(make_pod):
    pod = make_pod()
    pod["spec"]["volumes"].append({"name": "v", "hostPath": {"path": "/"}})
    pod["spec"]["containers"][1]["volumeMounts"].append({"name": "v", "mountPath": "/v"})
    metadata = marked_only(pod, "volume")
    assert metadata["annotations"][names.REASON] == "volume"
    assert metadata["annotations"][names.DECISION] == "run"
    assert names.STEP_LABEL not in metadata["labels"]
    assert names.SEAL not in metadata["annotations"]


@pytest.mark.parametrize(
    ("change", "arguments", "reason"),
    [
        ({}, {"namespace": "kube-system"}, "namespace-exempt"),
        ({}, {"username": "system:serviceaccount:kubeflow:default"}, "untrusted-creator"),
        ({"labels": {}}, {}, "not-opted-in"),
        ({"labels": {names.KFP_OPT_IN_LABEL: "false"}}, {}, "not-opted-in"),
        ({"labels": {names.KFP_OPT_IN_LABEL: "true", names.OPT_IN_LABEL: "false"}}, {}, "not-opted-in"),
        ({"labels": {names.OPT_IN_LABEL: "true", names.KFP_SDK_TYPE: "tfx-template"}}, {}, "tfx"),
        ({"annotations": {names.KFP_V2_COMPONENT: "true"}}, {}, "kfp-v2"),
        ({"annotations": {"big": "x" * 250_000}}, {}, "annotations-full"),
    ],
)
def test_what_is_none_of_ours_is_left_alone(make_pod, change, arguments, reason):
    pod = make_pod()
    pod["metadata"] |= change
    verdict = judge(pod, **arguments)
    assert (verdict.held, verdict.reason, verdict.patch) == (False, reason, [])


def test_either_label_opts_in(make_pod):
    pod = make_pod()
    pod["metadata"]["labels"] = {names.OPT_IN_LABEL: "true"}
    assert judge(pod).held


def test_a_tfx_step_is_told_by_its_entry_point(make_pod):
    pod = make_pod()
    main = pod["spec"]["containers"][1]
    main["command"] = ["python", "/tfx-src/tfx/orchestration/kubeflow/container_entrypoint.py"]
    pod["spec"]["containers"] = [main]
    assert judge(pod).reason == "tfx"


def add_host_path(pod):
    pod["spec"]["volumes"].append({"name": "v", "hostPath": {"path": "/"}})
    pod["spec"]["containers"][1]["volumeMounts"].append({"name": "v", "mountPath": "/v"})


def opt_out(pod):
    pod["metadata"]["labels"][names.OPT_IN_LABEL] = "false"


def fill_up(pod):
    pod["metadata"]["annotations"]["big"] = "x" * 250_000


@pytest.mark.parametrize("gates", [[], [{"name": "quota"}]], ids=["alone", "with another gate"])
@pytest.mark.parametrize(
    ("change", "arguments", "label"),
    [
        (lambda pod: None, {}, names.HELD),
        (lambda pod: None, {"alive": False}, names.RELEASED),
        (add_host_path, {}, None),
        (opt_out, {}, None),
        (fill_up, {}, None),
        (lambda pod: pod["metadata"].update(ownerReferences=[]), {}, None),
    ],
    ids=["unchanged", "no-controller", "volume", "opted-out", "full", "no-workflow"],
)
def test_whatever_another_webhook_changes_the_gate_is_there_if_and_only_if_the_pod_is_held(
    make_pod, change, arguments, label, gates
):
    pod = make_pod()
    pod["spec"]["schedulingGates"] = list(gates)
    once = patched(pod, judge(pod))
    change(once)
    twice = patched(once, judge(once, **arguments))
    gated = {"name": names.GATE} in twice["spec"]["schedulingGates"]
    assert twice["metadata"]["labels"].get(names.STEP_LABEL) == label
    assert gated == (label == names.HELD)
    assert [g for g in twice["spec"]["schedulingGates"] if g["name"] != names.GATE] == gates
