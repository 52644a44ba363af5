"""Each overlay on a real API server: strict validation, and Pods under the restricted profile."""

import asyncio
import copy
import re
import secrets
import subprocess
from pathlib import Path

import pytest
import yaml

from memopod.kube import NAMESPACES, PODS, ApiError, Forbidden
from memopod.sandbox.control_plane import add_namespace
from tests.deploy.render import COMBINATIONS, kubectl, named, of, render, workloads
from tests.real.cluster import installed_as, until

RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
CERT_MANAGER = Path(__file__).with_name("cert_manager.yaml")
every = pytest.mark.parametrize("parts", COMBINATIONS, ids="+".join)


def apply(plane, documents, *flags):
    """`kubectl apply` of objects; what it writes to stdout and stderr."""
    done = subprocess.run(
        [
            kubectl(), "--kubeconfig", plane.folder / "kubeconfig", "apply", "--server-side",
            "--validate=strict", *flags, "-f", "-",
        ],
        input=yaml.safe_dump_all(documents), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


async def home(admin, name):
    await add_namespace(admin, name)
    await admin.patch(NAMESPACES, name, {"metadata": {"labels": RESTRICTED}})


def pod_of(workload):
    """The Pod that a Deployment's controller would create."""
    template = copy.deepcopy(workload["spec"]["template"])
    template["metadata"] |= {"name": workload["metadata"]["name"]}
    for claim in workload["spec"].get("volumeClaimTemplates", ()):
        name = claim["metadata"]["name"]
        template["spec"]["volumes"].append({"name": name, "persistentVolumeClaim": {"claimName": name}})
    return {"apiVersion": "v1", "kind": "Pod", **template}


@every
async def test_the_api_server_takes_every_object_as_it_is_written(parts, plane, admin):
    if any("cert-manager" in part for part in parts):
        apply(plane, yaml.safe_load_all(CERT_MANAGER.read_text()))
    name = f"deploy-{secrets.token_hex(4)}"
    await home(admin, name)
    documents = installed_as(copy.deepcopy(render(*parts)), name, name)
    # What is asked about Pods of all namespaces is not kept: others test here too.
    hooks = of(documents, "MutatingWebhookConfiguration")
    rest = [document for document in documents if document not in hooks]

    async def known():  # a new kind is served a moment later
        try:
            return await asyncio.to_thread(apply, plane, rest)
        except AssertionError as error:
            if "no matches for kind" not in str(error):
                raise
            return None

    said, warned = await until(known, "all kinds are served")
    assert warned == ""
    assert len(said.splitlines()) == len(rest)
    assert apply(plane, hooks, "--dry-run=server")[1] == ""
    for workload in workloads(documents):
        pod = pod_of(workload)
        created = await admin.create(PODS, pod, namespace=name)
        assert created["metadata"]["name"] == pod["metadata"]["name"]
    # Again: nothing changes, and nobody else owns a field.
    said, _ = apply(plane, rest)
    assert {line.rpartition(" ")[2] for line in said.splitlines()} == {"serverside-applied"}


async def test_a_misspelt_field_would_be_refused(plane):
    deployment = copy.deepcopy(named(render("overlays/argo"), "Deployment", "janitor"))
    deployment["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(AssertionError, match=re.escape("readynessProbe")):
        apply(plane, [deployment], "--dry-run=server")


async def test_a_pod_with_more_rights_would_be_refused(admin):
    name = f"deploy-{secrets.token_hex(4)}"
    await home(admin, name)
    pod = pod_of(named(render("overlays/argo"), "Deployment", "janitor"))
    pod["spec"]["serviceAccountName"] = "default"
    del pod["spec"]["containers"][0]["securityContext"]["capabilities"]
    with pytest.raises(Forbidden) as refused:
        await admin.create(PODS, pod, namespace=name)
    assert isinstance(refused.value, ApiError)
    assert "restricted" in str(refused.value)
