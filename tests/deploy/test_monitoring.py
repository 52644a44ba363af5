"""deploy/observability on a real API server, under the schemas of Prometheus' own operator."""

import asyncio
import copy
import json
import secrets
import subprocess
from pathlib import Path
from shutil import which

import pytest
import yaml
from typer.testing import CliRunner

from memopod.cli import app
from memopod.cli.installed import CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES
from memopod.sandbox.control_plane import add_namespace
from tests.conftest import CONTROL_PLANE_HINT, unavailable
from tests.deploy.render import ROOT, named, of, render, workloads
from tests.deploy.test_applied import apply
from tests.real.cluster import installed_as, until

MODULE = "github.com/prometheus-operator/prometheus-operator"
KINDS = ("podmonitors", "prometheusrules")


def definitions():
    """The CustomResourceDefinitions that the operator's module holds."""
    go = which("go") or which("go", path="/usr/local/go/bin")
    if go is None:
        unavailable(f"Go is not installed here, with which {CONTROL_PLANE_HINT}")
    done = subprocess.run(
        [go, "mod", "download", "-json", MODULE], cwd=ROOT / "tools" / "prometheus-operator",
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    folder = Path(json.loads(done.stdout)["Dir"]) / "example" / "prometheus-operator-crd"
    for kind in KINDS:
        yield yaml.safe_load((folder / f"monitoring.coreos.com_{kind}.yaml").read_text())


async def uninstalled(plane, namespace):
    """What `memopod uninstall` would remove."""
    done = await asyncio.to_thread(
        CliRunner().invoke,
        app,
        ["uninstall", "--namespace", namespace, "--json", "--kubeconfig", str(plane.folder / "kubeconfig")],
    )
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)["objects"]


async def test_roles_stay_while_memopod_is_in_another_namespace_too(plane, admin):
    """They have one name in a cluster; without them the other one could let no Pod go."""
    name = f"deploy-{secrets.token_hex(4)}"
    labels = {"app.kubernetes.io/part-of": "memopod"}
    rbac = {"apiVersion": "rbac.authorization.k8s.io/v1"}
    role = {**rbac, "kind": "ClusterRole", "metadata": {"name": name, "labels": labels}, "rules": []}
    binding = {
        **rbac, "kind": "ClusterRoleBinding", "metadata": {"name": name, "labels": labels},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": "janitor", "namespace": name}],
    }  # fmt: skip
    await admin.create(CLUSTER_ROLES, role)
    await admin.create(CLUSTER_ROLE_BINDINGS, binding)
    try:
        goes = {(line["kind"], line["name"]) for line in await uninstalled(plane, f"{name}-other")}
    finally:
        await admin.delete(CLUSTER_ROLE_BINDINGS, name)
        await admin.delete(CLUSTER_ROLES, name)
    assert not {kind for kind, which in goes if which == name}


@pytest.mark.timeout(400)
async def test_the_operators_kinds_take_monitor_and_alerts_as_they_are_written(plane, admin):
    apply(plane, list(definitions()))
    name = f"deploy-{secrets.token_hex(4)}"
    await add_namespace(admin, name)
    documents = installed_as(copy.deepcopy(render("observability")), name, name)

    async def known():  # a new kind is served a moment later
        try:
            return await asyncio.to_thread(apply, plane, documents)
        except AssertionError as error:
            if "no matches for kind" not in str(error):
                raise
            return None

    said, warned = await until(known, "both kinds are served")
    assert warned == ""
    assert len(said.splitlines()) == len(documents) == len(KINDS)

    goes = await uninstalled(plane, name)
    assert {("PodMonitor", "memopod"), ("PrometheusRule", "memopod")} <= {
        (line["kind"], line["name"].removesuffix(f"-{name}")) for line in goes
    }

    misspelt = copy.deepcopy(of(documents, "PodMonitor"))
    misspelt[0]["spec"]["podMetricsEndpoint"] = misspelt[0]["spec"].pop("podMetricsEndpoints")
    with pytest.raises(AssertionError, match="podMetricsEndpoint"):
        apply(plane, misspelt, "--dry-run=server")


@pytest.mark.parametrize("overlay", ["overlays/argo", "overlays/kubeflow", "overlays/kubeflow-multi-user"])
def test_the_monitor_finds_a_port_with_metrics_on_each_components_pod(overlay):
    monitor = named(render("observability"), "PodMonitor", "memopod")["spec"]
    asked = {endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]}
    jobs = set()
    for workload in workloads(render(overlay)):
        template = workload["spec"]["template"]
        labels = template["metadata"]["labels"]
        assert monitor["selector"]["matchLabels"].items() <= labels.items(), workload["metadata"]["name"]
        ports = {port["name"] for c in template["spec"]["containers"] for port in c.get("ports", ())}
        assert ports & asked, workload["metadata"]["name"]
        jobs.add(labels[monitor["jobLabel"]])
    assert {"cache-server", "janitor", "metadata-writer", "metadata-store", "metadata-envoy"} <= jobs
