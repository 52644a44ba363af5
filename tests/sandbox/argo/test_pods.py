import json
from pathlib import Path

import pytest

from memopod.sandbox.argo import build_pod
from memopod.steps import read_step

SAMPLES = Path(__file__).parents[2] / "samples" / "argo-4.1.2"
DEFAULTED = (
    *("terminationGracePeriodSeconds", "dnsPolicy", "serviceAccountName", "serviceAccount", "tolerations"),
    *("securityContext", "schedulerName", "priority", "enableServiceLinks", "preemptionPolicy"),
)
"""What the recorded API server added to a Pod's spec."""


def recorded(name):
    """A Pod as Argo's controller sent it: the admission request without the API server's additions."""
    review = json.loads((SAMPLES / f"{name}.admission.json").read_text())
    pod = review["request"]["object"]
    spec = pod["spec"]
    for field in DEFAULTED:
        del spec[field]
    spec["volumes"] = [v for v in spec["volumes"] if not v["name"].startswith("kube-api-access")]
    for volume in spec["volumes"]:
        volume.get("secret", {}).pop("defaultMode", None)
    for container in spec["initContainers"] + spec["containers"]:
        for field in ("terminationMessagePath", "terminationMessagePolicy", "imagePullPolicy"):
            del container[field]
        mounts = container["volumeMounts"]
        container["volumeMounts"] = [m for m in mounts if not m["name"].startswith("kube-api-access")]
    del pod["status"]
    return pod


@pytest.mark.parametrize("name", ["parameters.make", "parameters.use", "artifacts.make", "artifacts.use"])
def test_a_pod_is_what_argos_controller_made_of_the_same_template(name):
    pod = recorded(name)
    step = read_step(pod)
    annotations = pod["metadata"]["annotations"]
    workflow = {"metadata": {"name": step.workflow, "namespace": step.namespace, "uid": step.workflow_uid}}
    assert (
        build_pod(
            workflow,
            step.node_name,
            step.template,
            trace_id=annotations["workflows.argoproj.io/trace-id"],
            span_id=annotations["workflows.argoproj.io/span-id"],
        )
        == pod
    )


def test_input_parameters_are_not_carried():
    template = {
        "name": "t",
        "inputs": {"parameters": [{"name": "secret", "value": "hidden"}]},
        "outputs": {},
        "metadata": {},
        "container": {"name": "", "image": "i", "command": ["true"], "resources": {}},
    }
    workflow = {"metadata": {"name": "w", "namespace": "n", "uid": "u"}}
    pod = build_pod(workflow, "w.t", template, trace_id="1", span_id="2")
    assert read_step(pod).template["inputs"] == {}
    assert "hidden" not in json.dumps(pod)
