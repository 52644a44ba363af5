"""Argo's own workflow controller on the tests' API server: see README.md in this folder."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from memopod.kube import CONFIG_MAPS, WORKFLOWS
from memopod.sandbox.control_plane import apply
from tests.real.cluster import until
from tests.real.conftest import admin, cluster, no_connection_left, plane
from tests.real.kubelet import Kubelet

__all__ = ["admin", "cluster", "no_connection_left", "plane"]

CONTROLLER = os.environ.get("ARGO_CONTROLLER", "")
VERSION = os.environ.get("ARGO_VERSION", "")
REPOSITORY = {
    "s3": {
        "bucket": "artifacts", "endpoint": "minio.example.com:9000", "insecure": True,
        "accessKeySecret": {"name": "minio", "key": "accesskey"},
        "secretKeySecret": {"name": "minio", "key": "secretkey"},
    }
}  # fmt: skip
KINDS = {
    "WorkflowTemplate": True, "ClusterWorkflowTemplate": False, "CronWorkflow": True,
    "WorkflowTaskSet": True, "WorkflowArtifactGCTask": True, "WorkflowEventBinding": True,
}  # fmt: skip


def kind(name, *, namespaced):
    """A CRD that accepts any content."""
    plural = f"{name.lower()}s"
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    version = {"name": "v1alpha1", "served": True, "storage": True, "schema": schema}
    if name == "WorkflowTaskSet":
        version["subresources"] = {"status": {}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.argoproj.io"},
        "spec": {
            "group": "argoproj.io", "scope": "Namespaced" if namespaced else "Cluster",
            "names": {"kind": name, "listKind": f"{name}List", "plural": plural, "singular": name.lower()},
            "versions": [version],
        },
    }  # fmt: skip


@pytest.fixture
async def argo(cluster, admin):
    """Argo's controller for `cluster.pipelines`, under the account that the webhook trusts."""
    assert CONTROLLER, "expected ARGO_CONTROLLER=/path/to/workflow-controller and ARGO_VERSION=x.y.z"
    await apply(admin, [kind(name, namespaced=scope) for name, scope in KINDS.items()])
    await apply(admin, [
        {
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": "argo-may-everything"},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin",
            },
            "subjects": [{"kind": "ServiceAccount", "name": "argo", "namespace": "argo"}],
        },
        {
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "workflow-controller-configmap", "namespace": "argo"},
            "data": {"artifactRepository": yaml.safe_dump(REPOSITORY)},
        },
    ])  # fmt: skip
    assert await admin.get(CONFIG_MAPS, "workflow-controller-configmap", namespace="argo")
    log = cluster.folder / "workflow-controller.log"
    command = [
        CONTROLLER, "--kubeconfig", str(await cluster.kubeconfig("argo", "argo")), "--namespace", "argo",
        "--namespaced", "--managed-namespace", cluster.pipelines,
        "--executor-image", f"quay.io/argoproj/argoexec:v{VERSION}", "--loglevel", "info",
    ]  # fmt: skip
    environment = {**os.environ, "LEADER_ELECTION_DISABLE": "true", "DEFAULT_REQUEUE_TIME": "100ms"}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)  # noqa: ASYNC220
    try:
        yield Argo(cluster, process, log)
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
async def kubelet(cluster, admin):
    """Runs what has no gate, and reports as the executor of ARGO_VERSION does."""
    async with Kubelet.playing(admin, cluster.pipelines, version=VERSION) as node:
        yield node


class Argo:
    def __init__(self, cluster, process, log: Path):
        self.cluster = cluster
        self.process = process
        self.log = log

    async def submit(self, *templates, **spec):
        """Create a Workflow whose entrypoint is the first template; returns its name."""
        body = {
            "apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow",
            "metadata": {"generateName": "w-", "namespace": self.cluster.pipelines},
            "spec": {"entrypoint": templates[0]["name"], "templates": list(templates), **spec},
        }  # fmt: skip
        made = await self.cluster.admin.create(WORKFLOWS, body, namespace=self.cluster.pipelines)
        return made["metadata"]["name"]

    async def workflow(self, name):
        assert self.process.poll() is None, self.log.read_text()[-4000:]
        return await self.cluster.admin.get(WORKFLOWS, name, namespace=self.cluster.pipelines)

    async def end(self, name):
        """The Workflow, once it has ended and its controller is done with it."""

        async def ended():
            workflow = await self.workflow(name)
            done = (workflow.get("status") or {}).get("phase") in ("Succeeded", "Failed", "Error")
            return workflow if done else None

        return await until(ended, f"{name} ends: {self.log}", limit=60)

    async def patch(self, name, patch):
        await self.cluster.admin.patch(WORKFLOWS, name, patch, namespace=self.cluster.pipelines)


def pods_of(workflow):
    """The nodes that are Pods, by display name."""
    nodes = (workflow["status"].get("nodes") or {}).values()
    return {node["displayName"]: node for node in nodes if node["type"] == "Pod"}
