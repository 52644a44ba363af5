"""A cluster without memopod, with it, upgraded, broken in each way that the doctor must name, without it."""

import asyncio
import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.request
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiohttp import web
from moto.server import ThreadedMotoServer

from cache_server.finish import is_held
from memopod.cli.install_checks import FAILED, examine
from memopod.cli.installed import (
    BUDGETS,
    CLUSTER_ROLE_BINDINGS,
    CLUSTER_ROLES,
    DEPLOYMENTS,
    IN_ORDER,
    PART_OF,
    SERVICES,
)
from memopod.kube import (
    CONFIG_MAPS,
    LEASES,
    MUTATING_WEBHOOKS,
    PODS,
    SECRETS,
    SERVICE_ACCOUNTS,
    Client,
)
from memopod.sandbox.control_plane import add_namespace
from memopod.sandbox.ports import free_ports
from memopod.steps import names
from memopod.steps.times import to_text
from tests.conftest import HINT, unavailable
from tests.deploy import environment, kubeflow
from tests.deploy.node import Node
from tests.deploy.render import kubectl, text
from tests.real.argo import Argo, Step
from tests.real.cluster import kubeconfig, until
from tests.real.kubelet import Kubelet
from tests.real.plane import start, wait_ready
from tests.real.proxy import before_api_server

FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
PIPELINES = "pipelines"
SETTINGS = """
configMapGenerator:
  - name: memopod-cache-server
    namespace: {namespace}
    behavior: merge
    literals:
      - MEMOPOD_CACHE_SETTLE_TIME=0.1
      - MEMOPOD_CACHE_OBJECT_STORE={store}
      - MEMOPOD_CACHE_COALESCE={coalesce}
"""
OTHER_AUTHORITY = "system:serviceaccount:elsewhere:argo"


@pytest.fixture(scope="module")
def own_plane(tmp_path_factory):
    """A control plane for these tests alone: they install under the names that everybody has."""
    kubectl()
    log = tmp_path_factory.mktemp("life") / "control-plane.log"
    return wait_ready(start(os.getpid(), log), log)


@pytest.fixture
async def root(own_plane):
    async with Client.from_kubeconfig(str(own_plane.folder / "kubeconfig"), timeout=30.0) as client:
        yield client


@pytest.fixture
def buckets():
    if not FAKETIME.exists():
        unavailable(f"faketime is not installed here; {HINT}")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=free_ports(1)[0], verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/results", method="PUT")).close()
    yield server
    server.stop()


@dataclass
class Life:
    """One cluster, and what an administrator does with it."""

    plane: object
    root: object
    folder: Path
    store: str
    overlay: str = "overlays/argo"
    namespace: str = "memopod"
    pipelines: str = PIPELINES
    argo: str = "argo"
    webhook: str = "memopod-cache"
    node: object = None

    @property
    def config(self):
        return str(self.plane.folder / "kubeconfig")

    def kubectl(self, *arguments, given=None):
        done = subprocess.run(
            [kubectl(), "--kubeconfig", self.config, *arguments], input=given, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def apply(self, coalesce="off"):
        rendered = text(
            self.overlay, extra=SETTINGS.format(namespace=self.namespace, store=self.store, coalesce=coalesce)
        )
        self.kubectl(
            "apply", "--server-side", "--force-conflicts", "--validate=strict", "-f", "-", given=rendered
        )

    async def memopod(self, *arguments):
        """Exit status and stdout of the command line."""
        arguments = (*arguments, "--namespace", self.namespace)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "memopod.cli", *arguments, "--kubeconfig", self.config,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
        assert b"Traceback" not in err, err.decode()
        return process.returncode, out.decode()

    async def checks(self, path=None):
        path = path or self.config
        async with Client.from_kubeconfig(path, timeout=10.0) as client:
            return {
                check.name: check for check in await examine(client, path, self.namespace, self.pipelines)
            }

    async def failures(self, path=None):
        return {name: check for name, check in (await self.checks(path)).items() if check.status == FAILED}

    async def names_exactly(self, fault, *, path=None, again=None):
        """The doctor's advice on this fault, which must be the only one."""
        seen = {}

        async def alone():
            if again:
                await again()
            seen.clear()
            seen.update(await self.failures(path))
            return set(seen) == {fault}

        try:
            await until(alone, f"only {fault} fails", limit=40)
        except AssertionError:
            raise AssertionError(f"expected {fault} to fail alone, got {seen}") from None
        assert seen[fault].advice
        return seen[fault]

    async def healthy(self):
        seen = {}

        async def well():
            await self.node.publish()
            seen.clear()
            seen.update(await self.failures())
            return not seen

        try:
            await until(well, "nothing fails", limit=60)
        except AssertionError:
            raise AssertionError(f"expected a healthy installation, got {seen}") from None

    async def restart(self, *components, env=None):
        await self.node.stop(*components)
        await self.node.start(*components, env=env)
        await self.node.all_ready(*components)


@contextlib.asynccontextmanager
async def pipelines(life):
    """Argo and a kubelet in the namespace of the workflows."""
    body = {
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {"audiences": None, "expirationSeconds": 3600},
    }  # fmt: skip
    answer = await life.root.create(
        SERVICE_ACCOUNTS, body, namespace=life.argo, name="argo", subresource="token"
    )
    path = life.folder / "argo.kubeconfig"
    path.write_text(
        kubeconfig(life.plane.folder, f"https://127.0.0.1:{life.plane.port}", answer["status"]["token"])
    )
    async with (
        Client.from_kubeconfig(str(path), timeout=30.0) as client,
        Argo.playing(client, life.pipelines, version="4.1.2") as argo,
        Kubelet.playing(life.root, life.pipelines, version="4.1.2") as kubelet,
    ):
        yield argo, kubelet


async def prepare(life):
    """Argo is there, and its workflow controller's Deployment."""
    for name in {life.pipelines, life.argo}:
        await add_namespace(life.root, name)
    account = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": "argo", "namespace": life.argo},
    }
    await life.root.create(SERVICE_ACCOUNTS, account, namespace=life.argo)
    rbac = "rbac.authorization.k8s.io"
    binding = {
        "apiVersion": f"{rbac}/v1", "kind": "ClusterRoleBinding", "metadata": {"name": f"argo-{life.argo}"},
        "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": "argo"},
        "subjects": [{"kind": "ServiceAccount", "name": "argo", "namespace": life.argo}],
    }  # fmt: skip
    await life.root.create(CLUSTER_ROLE_BINDINGS, binding)
    labels = {"app": "workflow-controller"}
    container = {"name": "workflow-controller", "image": "quay.io/argoproj/workflow-controller:v4.1.2"}
    controller = {
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "workflow-controller", "namespace": life.argo},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"serviceAccountName": "argo", "containers": [container]},
            },
        },
    }  # fmt: skip
    await life.root.create(DEPLOYMENTS, controller, namespace=life.argo)


@pytest.mark.timeout(600)
async def test_the_whole_life_of_an_installation(own_plane, root, tmp_path, buckets, monkeypatch):
    _, port = buckets.get_host_and_port()
    life = Life(
        own_plane, root, tmp_path, f"minio:9000/results=s3://results?endpoint=http://127.0.0.1:{port}"
    )
    monkeypatch.setitem(environment.SECRETS, ("memopod-databases", "cache"), f"sqlite:///{tmp_path}/cache.db")
    monkeypatch.setitem(
        environment.SECRETS, ("memopod-databases", "metadata"), f"sqlite:///{tmp_path}/metadata.db"
    )
    async with running(life):
        await without(life)
        async with pipelines(life) as (argo, kubelet):
            await with_it(life, argo, kubelet)
            await upgraded(life, argo, kubelet)
            await broken(life, buckets)
            await taken_off(life, argo)


@pytest.mark.timeout(600)
async def test_faults_are_named_alone_in_the_place_of_kubeflows_services_too(
    own_plane, root, tmp_path, buckets, mariadb, monkeypatch
):
    """Those that hang on names, namespaces and accounts; its databases are Kubeflow's, in MySQL."""
    _, port = buckets.get_host_and_port()
    store = f"minio:9000/results=s3://results?endpoint=http://127.0.0.1:{port}"
    life = Life(
        own_plane, root, tmp_path, store, overlay="overlays/kubeflow-multi-user", namespace="kubeflow",
        argo="kubeflow", webhook=kubeflow.WEBHOOK,
    )  # fmt: skip
    for key, value in (("username", mariadb.user), ("password", mariadb.password)):
        monkeypatch.setitem(environment.SECRETS, ("mysql-secret", key), value)
    async with running(life):
        await kubeflows_settings(life, mysqlHost="127.0.0.1", mysqlPort=str(mariadb.port))
        async with pipelines(life) as (argo, kubelet):
            await with_it(life, argo, kubelet)
            for fault in (database_elsewhere, permission, bundle, unreachable, stranger, store_down):
                await fault(life)


async def kubeflows_settings(life, **changed):
    """Kubeflow's ConfigMap, of the version that has both names for the host."""
    data = kubeflow.install_config(kubeflow.SINGLE, (2, 16)) | changed
    data |= {"dbHost": data["mysqlHost"], "dbPort": data["mysqlPort"]}
    name = "pipeline-install-config"
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}
    await life.root.create(CONFIG_MAPS, body, namespace=life.namespace)


async def database_elsewhere(life):
    async def looked_for_at(host):
        name, patch = "pipeline-install-config", {"data": {"dbHost": host}}
        await life.root.patch(CONFIG_MAPS, name, patch, namespace=life.namespace)

    await looked_for_at("rds.example.org")
    found = await life.names_exactly("database address")
    assert "dbHost, rds.example.org" in found.found
    assert "components/kubeflow-db-host" in found.advice
    await looked_for_at("127.0.0.1")


@contextlib.asynccontextmanager
async def running(life):
    """Argo and the installation's processes; of Argo nothing is left for the next test."""
    await prepare(life)
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}
    life.node = Node(life.plane, life.root, life.folder, namespace=life.namespace, extra=keys)
    try:
        yield
    finally:
        life.node.kill()
        await life.root.delete(DEPLOYMENTS, "workflow-controller", namespace=life.argo)


async def without(life):
    status, said = await life.memopod("install", "check", "--pipelines", life.pipelines)
    assert status == 1
    assert "no cache-server, janitor" in said
    status, said = await life.memopod("uninstall")
    assert (status, said.strip()) == (0, "nothing of memopod is there, and no Pod is held")


async def with_it(life, argo, kubelet):
    life.apply()
    await life.node.start()
    await life.node.all_ready()
    await life.healthy()
    status, said = await life.memopod("install", "check", "--pipelines", life.pipelines, "--json")
    assert status == 0, said
    answer = json.loads(said)
    assert answer["ok"]
    assert [check for check in answer["checks"] if check["status"] != "ok"] == []
    step = Step(annotations={names.SALT: "life"})
    assert not await reused_once(argo, kubelet, step)
    await until(lambda: reused_once(argo, kubelet, step), "a repeated step is reused", limit=60)


async def reused_once(argo, kubelet, step):
    before = len(kubelet.ran)
    run = await argo.submit(step)
    assert await run.end(60) == "Succeeded"
    return len(kubelet.ran) == before


async def upgraded(life, argo, kubelet):
    """A setting changes: new Pods of the one component, the same entries."""
    before = await life.node.deployments()
    life.apply(coalesce="across-workflows")
    after = await life.node.deployments()
    changed = [n for n in before if before[n]["spec"]["template"] != after[n]["spec"]["template"]]
    assert changed == ["cache-server"]
    await life.restart("cache-server")
    await life.healthy()
    assert await reused_once(argo, kubelet, Step(annotations={names.SALT: "life"}))


async def broken(life, buckets):
    for fault in (
        permission, bundle, unreachable, no_leader, clock_skew, no_gates, old_version, stranger, store_down,
        schema_behind,
    ):  # fmt: skip
        # Each is the only one: what was broken before is whole again.
        await fault(life)
    # Last: moto does not start twice on a port.
    buckets.stop()
    await life.restart("cache-server")
    # The writer, too, is well again when its store is; what the kubelet says of it comes later.
    found = await life.names_exactly("object stores", again=life.node.publish)
    assert "minio:9000/results" in found.found


async def permission(life):
    patch = [{"op": "remove", "path": "/rules/1"}]
    role = await life.root.get(CLUSTER_ROLES, "memopod-cache-server")
    assert role["rules"][1]["resources"] == ["pods/status"]
    await life.root.patch(CLUSTER_ROLES, "memopod-cache-server", patch)
    found = await life.names_exactly("permissions")
    assert found.found == "cache-server may not patch pods/status"
    life.apply(coalesce="across-workflows")


async def bundle(life):
    """Again and again: the leader mends it within seconds."""
    other = base64.b64encode((life.plane.folder / "tls" / "ca.crt").read_bytes()).decode()

    async def spoil():
        patch = [
            {"op": "add", "path": f"/webhooks/{n}/clientConfig/caBundle", "value": other} for n in (0, 1)
        ]
        await life.root.patch(MUTATING_WEBHOOKS, life.webhook, patch)

    found = await life.names_exactly("webhook certificate", again=spoil)
    assert "caBundle is not the authority" in found.found


async def unreachable(life):
    await life.restart("cache-server")  # the API server keeps connections that it has
    service = await life.root.get(SERVICES, "cache-server", namespace=life.namespace)
    ports = {**life.node.ports["cache-server"], "webhook-api": free_ports(1)[0]}
    await life.node.endpoints(service, ports)
    found = await life.names_exactly("webhook answers")
    assert "does not reach it" in found.found
    await life.node.publish()


async def no_leader(life):
    life.node.signal("cache-server", signal.SIGSTOP)
    found = await life.names_exactly("leader")
    assert "does not renew it" in found.found
    life.node.signal("cache-server", signal.SIGCONT)


async def clock_skew(life):
    ahead = {"LD_PRELOAD": str(FAKETIME), "FAKETIME": "+90s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    await life.restart("cache-server", env={**ahead, "DONT_FAKE_MONOTONIC": "1"})
    found = await life.names_exactly("clock")
    assert "+90 s" in found.found or "+89 s" in found.found or "+91 s" in found.found
    await life.restart("cache-server")


async def through_a_proxy(life, change):
    """A kubeconfig for a proxy that changes what the API server answers."""

    async def act(proxy, incoming):
        async with proxy.forward(incoming, await incoming.read()) as response:
            body = await response.json(content_type=None)
        change(incoming, body)
        return web.json_response(body)

    return act


def config_for(life, proxy):
    given = Path(life.config).read_text()
    path = life.folder / f"proxy-{uuid.uuid4().hex[:8]}.kubeconfig"
    path.write_text(given.replace(f":{life.plane.port}", f":{proxy.port}"))
    return str(path)


async def no_gates(life):
    def drop(_incoming, body):
        body.get("spec", {}).pop("schedulingGates", None)

    async with before_api_server(life.plane) as proxy:
        proxy.rule(
            lambda request: request.verb == "create" and request.resource == "pods",
            await through_a_proxy(life, drop),
        )
        await life.names_exactly("scheduling gates", path=config_for(life, proxy))


async def old_version(life):
    def older(_incoming, body):
        body |= {"minor": "26", "gitVersion": "v1.26.15"}

    async with before_api_server(life.plane) as proxy:
        proxy.rule(lambda request: request.resource == "/version", await through_a_proxy(life, older))
        found = await life.names_exactly("kubernetes", path=config_for(life, proxy))
        assert "v1.26.15" in found.found


async def stranger(life):
    """A second controller, of another account."""
    controller = await life.root.get(DEPLOYMENTS, "workflow-controller", namespace=life.argo)
    spec = controller["spec"]
    spec["template"]["spec"]["serviceAccountName"] = "team-argo"
    body = {
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "team-workflow-controller", "namespace": life.argo}, "spec": spec,
    }  # fmt: skip
    await life.root.create(DEPLOYMENTS, body, namespace=life.argo)
    found = await life.names_exactly("trusted creators")
    accounts = f"system:serviceaccount:{life.argo}:argo,system:serviceaccount:{life.argo}:team-argo"
    assert f"MEMOPOD_CACHE_TRUSTED_CREATORS={accounts}" in found.advice
    await life.root.delete(DEPLOYMENTS, "team-workflow-controller", namespace=life.argo)


async def store_down(life):
    await life.node.stop("metadata-store")
    await until(lambda: not_ready(life, "metadata-writer"), "the writer notices")
    await life.node.publish()
    await life.names_exactly("metadata-store")
    await life.node.start("metadata-store")
    await life.node.all_ready("metadata-store")


async def not_ready(life, name):
    return not await life.node.ready(name)


async def schema_behind(life):
    await life.node.stop("metadata-store")
    database = environment.SECRETS["memopod-databases", "metadata"]
    down = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "memopod.cli", "metadata-store", "--database", database,
        "--downgrade_db_schema_version=9", stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, err = await down.communicate()
    assert down.returncode == 0, err.decode()
    await life.node.start("metadata-store")
    process, _ = life.node.processes["metadata-store"]
    await until(lambda: process.poll() is not None, "the store refuses the database")
    await life.node.publish()
    found = await life.names_exactly("database schema")
    assert "ENABLE_DATABASE_UPGRADE=true" in found.advice
    upgrade = {"MEMOPOD_METADATA_STORE_ENABLE_DATABASE_UPGRADE": "true"}
    await life.node.start("metadata-store", env=upgrade)
    await life.node.all_ready("metadata-store")


def held_as_by_the_webhook(pod):
    pod["spec"]["schedulingGates"] = [{"name": names.GATE}]
    pod["metadata"]["labels"][names.STEP_LABEL] = names.HELD
    later = datetime.now(UTC) + timedelta(minutes=5)
    pod["metadata"]["annotations"][names.HOLD_UNTIL] = to_text(later)


async def taken_off(life, argo):
    """A Pod is held, and nobody is left to decide; afterwards nothing of memopod is left, and it runs."""
    await life.node.stop("cache-server", "janitor")
    run = await argo.submit(Step(change=held_as_by_the_webhook))

    async def held():
        listed = await life.root.list(PODS, namespace=life.pipelines)
        return [pod for pod in listed["items"] if is_held(pod)]

    await until(held, "a Pod is held")
    status, said = await life.memopod("uninstall")
    assert status == 0
    assert "nothing was changed" in said
    assert await held()
    status, said = await life.memopod("uninstall", "--yes", "--json")
    assert status == 0, said
    answer = json.loads(said)
    assert answer["held"] == []
    assert answer["objects"][0]["kind"] == "MutatingWebhookConfiguration"
    assert await run.end(60) == "Succeeded"
    for resource in (*IN_ORDER, BUDGETS, CLUSTER_ROLE_BINDINGS, MUTATING_WEBHOOKS, CONFIG_MAPS):
        left = await life.root.list(resource, label_selector=PART_OF)
        assert left["items"] == [], resource.plural
    assert not [le for le in (await life.root.list(LEASES))["items"] if "memopod" in le["metadata"]["name"]]
    kept = (await life.root.list(SECRETS, namespace=life.namespace))["items"]
    secrets = [secret["metadata"]["name"] for secret in kept]
    assert secrets == ["memopod-cache-certificates"]
    life.node.kill()
    status, said = await life.memopod("uninstall", "--yes")
    assert (status, said.strip()) == (0, "nothing of memopod is there, and no Pod is held")
    status, said = await life.memopod("uninstall", "--yes", "--data")
    lines = said.splitlines()
    assert [line.split()[0] for line in lines] == ["REMOVED", "Secret", "Namespace", "no"]
    assert lines[-1] == "no Pod is held; databases elsewhere are as they were"
    run = await argo.submit(Step(annotations={names.SALT: uuid.uuid4().hex}))
    assert await run.end(60) == "Succeeded"
