"""Kubeflow Pipelines is replaced as docs/install/kubeflow.md says, upgraded beside memopod, and put back."""

import asyncio
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
import yaml

from cache_server.finish import is_held
from memopod.cli.installed import DEPLOYMENTS, PART_OF, SERVERS, SERVICES
from memopod.kube import MUTATING_WEBHOOKS, PODS, Client
from memopod.sandbox.control_plane import add_namespace
from memopod.steps import names
from tests.deploy import kubeflow
from tests.deploy.render import kubectl, render_file, text
from tests.real.plane import start, wait_ready
from tests.real.proxy import answer, before_api_server, matching

NAMESPACE = ("--namespace", "kubeflow")


@pytest.fixture(scope="module")
def own_plane(tmp_path_factory):
    kubectl()
    log = tmp_path_factory.mktemp("in-place") / "control-plane.log"
    return wait_ready(start(os.getpid(), log), log)


@dataclass
class Cluster:
    """What an administrator does with Kubeflow Pipelines in one environment."""

    root: Client
    config: str
    environment: str

    def kubectl(self, *arguments, given=None):
        command = [kubectl(), "--kubeconfig", self.config, *arguments]
        done = subprocess.run(command, input=given, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    async def memopod(self, *arguments, config=None):
        command = [sys.executable, "-m", "memopod.cli", *arguments, "--kubeconfig", config or self.config]
        return await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)

    def upstream(self, version=(2, 17)):
        """Kubeflow's own manifests, and what its deployer makes."""
        self.apply(kubeflow.upstream(self.environment, version))
        self.apply([kubeflow.webhook(self.environment)])

    def apply(self, documents):
        return self.kubectl("apply", "-f", "-", given=yaml.safe_dump_all(documents))

    def ours(self):
        rendered = text(*kubeflow.OVERLAYS[self.environment])
        return self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", given=rendered)

    def replace(self):
        """As the guide has it."""
        self.kubectl("delete", "mutatingwebhookconfiguration", kubeflow.WEBHOOK)
        self.kubectl("-n", "kubeflow", "delete", "deployment", "--ignore-not-found", *kubeflow.REPLACED)
        self.ours()

    async def services(self):
        listed = (await self.root.list(SERVICES, namespace="kubeflow"))["items"]
        return {s["metadata"]["name"]: s["spec"] for s in listed}

    async def deployments(self, **chosen):
        return (await self.root.list(DEPLOYMENTS, namespace="kubeflow", **chosen))["items"]

    async def webhooks(self):
        (hook,) = (await self.root.list(MUTATING_WEBHOOKS))["items"]
        assert hook["metadata"]["name"] == kubeflow.WEBHOOK
        return hook

    async def found_by(self, service):
        """The Deployments whose Pods a Service selects."""
        selector = (await self.services())[service]["selector"]
        return [
            d["metadata"]["name"]
            for d in await self.deployments()
            if selector.items() <= d["spec"]["template"]["metadata"]["labels"].items()
        ]


@pytest.fixture(params=[kubeflow.SINGLE, kubeflow.CERT_MANAGER])
async def cluster(own_plane, request):
    """Two environments, whose labels and webhooks differ, in turn in the one namespace."""
    config = str(own_plane.folder / "kubeconfig")
    async with Client.from_kubeconfig(config, timeout=30.0) as root:
        await add_namespace(root, "kubeflow")
        found = Cluster(root, config, request.param)
        yield found
        kinds = "deployment,service,configmap,serviceaccount,role,rolebinding"
        found.kubectl("-n", "kubeflow", "delete", kinds, "--all")
        found.kubectl("delete", "mutatingwebhookconfiguration", "--all")


async def test_services_keep_their_addresses_whatever_is_applied_and_go_back(cluster, tmp_path):
    cluster.upstream(version=(2, 16))
    before = await cluster.services()
    kinds = ("service,deployment,serviceaccount,configmap,role,rolebinding", "-o", "name")
    all_before = set(cluster.kubectl("-n", "kubeflow", "get", *kinds).splitlines())
    cluster.replace()
    services = await cluster.services()
    found = [await cluster.found_by(name) for name in kubeflow.SERVICES]
    assert found == [["cache-server"], ["metadata-grpc-deployment"], ["metadata-envoy-deployment"]]
    for name in kubeflow.SERVICES:
        assert services[name]["clusterIP"] == before[name]["clusterIP"]
    deployments = await cluster.deployments(label_selector=PART_OF)
    assert len(deployments) == len(SERVERS)
    assert "cache-deployer-deployment" not in [d["metadata"]["name"] for d in await cluster.deployments()]
    hook = await cluster.webhooks()
    assert len(hook["webhooks"]) == 2
    assert "annotations" not in hook["metadata"]

    # Kubeflow is upgraded, with what is replaced left out of its manifests; then ours are applied again.
    newer = [*kubeflow.upstream(cluster.environment), kubeflow.webhook(cluster.environment)]
    (tmp_path / "kubeflow.yaml").write_text(yaml.safe_dump_all(newer))
    said = cluster.apply(render_file(tmp_path, "kubeflow-manifests"))
    assert "ml-pipeline-ui" in said
    assert "cache-server" not in said
    cluster.ours()
    assert await cluster.services() == services
    assert await cluster.deployments(label_selector=PART_OF) == deployments
    assert len((await cluster.webhooks())["webhooks"]) == 2

    done = await cluster.memopod("uninstall", *NAMESPACE, "--yes")
    assert done.returncode == 0, done.stderr
    assert not await cluster.deployments(label_selector=PART_OF)
    cluster.upstream()
    back = await cluster.services()
    for name, spec in before.items():
        anew = {key: spec[key] for key in ("clusterIP", "clusterIPs")}
        assert back[name] | anew == spec
    assert set(cluster.kubectl("-n", "kubeflow", "get", *kinds).splitlines()) == all_before
    (webhook,) = (await cluster.webhooks())["webhooks"]
    assert webhook["name"] == "cache-server.kubeflow.svc"


def held_pod():
    return {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "held", "labels": {names.STEP_LABEL: names.HELD}},
        "spec": {
            "schedulingGates": [{"name": names.GATE}], "containers": [{"name": "main", "image": "busybox"}],
        },
    }  # fmt: skip


@pytest.mark.parametrize("cluster", [kubeflow.SINGLE], indirect=True)
async def test_servers_stay_as_long_as_a_pod_is_held_that_nobody_may_let_go(cluster, own_plane, tmp_path):
    cluster.upstream()
    cluster.replace()
    await cluster.root.create(PODS, held_pod(), namespace="kubeflow")
    async with before_api_server(own_plane) as proxy:
        proxy.rule(matching("patch", resource="pods"), answer(403))
        past = tmp_path / "proxy.kubeconfig"
        given = (own_plane.folder / "kubeconfig").read_text()
        past.write_text(given.replace(f":{own_plane.port}", f":{proxy.port}"))
        done = await cluster.memopod("uninstall", *NAMESPACE, "--yes", config=str(past))
    assert done.returncode == 1
    assert "1 Pods are still held, so memopod's servers stay: ['kubeflow/held']" in done.stderr
    assert len(await cluster.deployments(label_selector=PART_OF)) == len(SERVERS)
    assert (await cluster.root.list(MUTATING_WEBHOOKS))["items"] == []
    done = await cluster.memopod("uninstall", *NAMESPACE, "--yes")
    assert done.returncode == 0, done.stderr
    assert not is_held(await cluster.root.get(PODS, "held", namespace="kubeflow"))
    await cluster.root.delete(PODS, "held", namespace="kubeflow", grace_seconds=0)
