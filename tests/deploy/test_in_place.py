"""Kubeflow Pipelines is replaced as docs/install/kubeflow.md says, and put back."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cache_server.finish import is_held
from memopod.cli.installed import DEPLOYMENTS, PART_OF, SERVERS, SERVICES
from memopod.kube import MUTATING_WEBHOOKS, PODS, Client
from memopod.sandbox.control_plane import add_namespace
from memopod.steps import names
from tests.deploy.render import DEPLOY, kubectl
from tests.real.plane import start, wait_ready
from tests.real.proxy import answer, before_api_server, matching

UPSTREAM = Path(__file__).with_name("kubeflow.yaml")
NAMES = ("cache-server", "metadata-grpc-service", "metadata-envoy-service")


@pytest.fixture(scope="module")
def own_plane(tmp_path_factory):
    kubectl()
    log = tmp_path_factory.mktemp("in-place") / "control-plane.log"
    return wait_ready(start(os.getpid(), log), log)


def held_pod():
    return {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "held", "labels": {names.STEP_LABEL: names.HELD}},
        "spec": {
            "schedulingGates": [{"name": names.GATE}], "containers": [{"name": "main", "image": "busybox"}],
        },
    }  # fmt: skip


async def test_kubeflows_services_keep_their_addresses_and_find_memopods_pods(own_plane, tmp_path):
    config = own_plane.folder / "kubeconfig"

    def run(*arguments):
        command = [kubectl(), "--kubeconfig", config, *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def memopod(*arguments, config=config):
        command = [sys.executable, "-m", "memopod.cli", *arguments, "--kubeconfig", config]
        return subprocess.run(command, capture_output=True, text=True)

    async with Client.from_kubeconfig(str(config), timeout=30.0) as root:
        await add_namespace(root, "kubeflow")

        async def services():
            listed = (await root.list(SERVICES, namespace="kubeflow"))["items"]
            return {s["metadata"]["name"]: s["spec"] for s in listed}

        run("apply", "-f", UPSTREAM)
        before = await services()
        run("delete", "mutatingwebhookconfiguration", "cache-webhook-kubeflow")
        run(
            "-n", "kubeflow", "delete", "deployment", "cache-deployer-deployment", "cache-server",
            "metadata-writer", "metadata-grpc-deployment", "metadata-envoy-deployment",
        )  # fmt: skip
        run("apply", "--server-side", "--force-conflicts", "-k", DEPLOY / "overlays" / "kubeflow")
        after = await services()
        pods = {
            d["metadata"]["name"]: d["spec"]["template"]["metadata"]["labels"]
            for d in (await root.list(DEPLOYMENTS, namespace="kubeflow"))["items"]
        }
        for name in NAMES:
            assert after[name]["clusterIP"] == before[name]["clusterIP"]
            found = [p for p, labels in pods.items() if after[name]["selector"].items() <= labels.items()]
            assert len(found) == 1, (name, after[name]["selector"])
        hooks = (await root.list(MUTATING_WEBHOOKS))["items"]
        assert [hook["metadata"]["name"] for hook in hooks] == ["cache-webhook-kubeflow"]
        assert len(hooks[0]["webhooks"]) == 2

        # A Pod is held that nobody may let go: the servers stay, and so does the janitor.
        await root.create(PODS, held_pod(), namespace="kubeflow")
        async with before_api_server(own_plane) as proxy:
            proxy.rule(matching("patch", resource="pods"), answer(403))
            past = tmp_path / "proxy.kubeconfig"
            past.write_text(config.read_text().replace(f":{own_plane.port}", f":{proxy.port}"))
            flags = ("uninstall", "--namespace", "kubeflow", "--yes")
            done = await asyncio.to_thread(memopod, *flags, config=past)
        assert done.returncode == 1
        assert "1 Pods are still held, so memopod's servers stay: ['kubeflow/held']" in done.stderr
        left = (await root.list(DEPLOYMENTS, label_selector=PART_OF))["items"]
        assert len(left) == len(SERVERS)
        assert (await root.list(MUTATING_WEBHOOKS))["items"] == []

        done = await asyncio.to_thread(memopod, "uninstall", "--namespace", "kubeflow", "--yes")
        assert done.returncode == 0, done.stderr
        assert not is_held(await root.get(PODS, "held", namespace="kubeflow"))
        assert not (await root.list(DEPLOYMENTS, label_selector=PART_OF))["items"]
        run("apply", "-f", UPSTREAM)
        assert (await services()).keys() == before.keys()
        selectors = {name: spec["selector"] for name, spec in (await services()).items()}
        assert selectors == {name: spec["selector"] for name, spec in before.items()}
        (hook,) = (await root.list(MUTATING_WEBHOOKS))["items"]
        assert [webhook["name"] for webhook in hook["webhooks"]] == ["cache-server.kubeflow.svc"]
