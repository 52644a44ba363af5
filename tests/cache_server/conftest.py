import json
import secrets
import sys
from datetime import UTC, datetime
from pathlib import Path

import jsonpatch
import pytest
import structlog

from cache_server.admission import Policy, admit
from cache_server.artifacts import Artifacts
from cache_server.controller import Controller
from cache_server.decision import Decider, DecisionRules
from cache_server.entries import open_entries
from cache_server.executions import Executions
from cache_server.identity import Identifier
from cache_server.namespaces import Namespaces
from cache_server.recorder import Recorder
from cache_server.waiting import WaitRules
from memopod.kube import PODS, TASK_RESULTS, WORKFLOWS, Client, NotFound
from memopod.sandbox.apiserver.app import Server
from memopod.sandbox.apiserver.settings import Settings as ServerSettings
from memopod.steps import names
from memopod.steps.key import KeyRules
from memopod.steps.times import to_seconds_text

# The catalogues of changes that `make fuzz` uses too.
sys.path.append(str(Path(__file__).parents[1] / "fuzz"))

SECRET = b"s" * 32
CREATOR = "system:serviceaccount:argo:argo"
NAMESPACE = "pipelines"

SAMPLES = Path(__file__).parents[1] / "samples"


@pytest.fixture
def sample():
    return lambda version, name: json.loads((SAMPLES / f"argo-{version}" / f"{name}.json").read_text())


@pytest.fixture
def make_pod(sample):
    """A Pod as Argo 4.1 builds it, before admission: the recording `parameters.make`."""
    return lambda: sample("4.1.2", "parameters.make.admission")["request"]["object"]


class CountingClient(Client):
    """The real client, which also remembers its writes and can be made to fail or stop at one of them."""

    writes: list
    fault = None

    @classmethod
    def open(cls, kubeconfig):
        client = cls.from_kubeconfig(str(kubeconfig))
        client.writes = []
        return client

    async def create(self, resource, body, **arguments):
        return await self._write("create", resource, lambda: super(CountingClient, self).create(
            resource, body, **arguments))  # fmt: skip

    async def patch(self, resource, name, patch, **arguments):
        kind = f"patch {arguments.get('subresource') or ''}".strip()
        return await self._write(kind, resource, lambda: super(CountingClient, self).patch(
            resource, name, patch, **arguments))  # fmt: skip

    def refuse(self, refused, error):
        """From now on this write (`create pods`) raises `error`, and is not made."""

        async def fault(write, call):
            if write == refused:
                raise error
            return await call()

        self.fault = fault

    async def _write(self, verb, resource, call):
        if resource.plural == "events":
            return await call()
        write = f"{verb} {resource.plural}"
        self.writes.append(write)
        if self.fault is None:
            return await call()
        return await self.fault(write, call)


class Cluster:
    """The sandbox's real API server, and the parts that Argo, the kubelet and the webhook play."""

    def __init__(self, client, state, sample):
        self.client = client
        self.state = state
        self.sample = sample
        self.policy = Policy(secret=SECRET, trusted_creators=frozenset({CREATOR}), hold_seconds=30.0)

    async def workflow(self, **spec):
        body = {
            "apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow",
            "metadata": {"generateName": f"wf-{secrets.token_hex(3)}-", "namespace": NAMESPACE}, "spec": spec,
        }  # fmt: skip
        return await self.client.create(WORKFLOWS, body, namespace=NAMESPACE)

    def pod_of(self, workflow, name="parameters.make", node="1", change=None):
        """The Pod that Argo 4.1 would create for this workflow, marked and held as at admission."""
        pod = self.sample("4.1.2", f"{name}.admission")["request"]["object"]
        before = pod["metadata"]["ownerReferences"][0]
        text = json.dumps(pod).replace(before["uid"], workflow["metadata"]["uid"])
        pod = json.loads(text.replace(before["name"], workflow["metadata"]["name"]))
        pod["metadata"]["namespace"] = NAMESPACE
        pod["metadata"]["name"] = f"{workflow['metadata']['name']}-{node}"
        pod["metadata"]["annotations"][names.ARGO_NODE_ID] = pod["metadata"]["name"]
        pod.pop("status", None)
        if change:
            change(pod)
        return pod

    async def hold(self, pod, now=None, alive=True):
        verdict = admit(
            pod, namespace=NAMESPACE, username=CREATOR, now=now or datetime.now(UTC),
            controller_alive=alive, policy=self.policy,
        )  # fmt: skip
        held = jsonpatch.apply_patch(pod, verdict.patch)
        return await self.client.create(PODS, held, namespace=NAMESPACE)

    async def held_pod(self, now=None, **arguments):
        return await self.hold(self.pod_of(await self.workflow(), **arguments), now)

    async def get(self, pod):
        return await self.client.get(PODS, pod["metadata"]["name"], namespace=NAMESPACE)

    async def result(self, pod):
        try:
            return await self.client.get(TASK_RESULTS, pod["metadata"]["name"], namespace=NAMESPACE)
        except NotFound:
            return None

    async def run(self, pod, outputs, finished=None):
        """Play kubelet and executor: the released Pod runs and succeeds with these outputs."""
        name = pod["metadata"]["name"]
        at = to_seconds_text(finished or datetime.now(UTC))
        await self.client.patch(PODS, name, {"spec": {"nodeName": "node-1"}}, namespace=NAMESPACE)
        await self.report(pod, outputs)
        statuses = [
            {
                "name": c["name"], "image": c["image"], "imageID": "docker.io/x@sha256:0",
                "containerID": "containerd://1", "ready": False, "restartCount": 0,
                "state": {"terminated": {"exitCode": 0, "startedAt": at, "finishedAt": at}},
            }
            for c in pod["spec"]["containers"]
        ]  # fmt: skip
        status = {"status": {"phase": "Succeeded", "containerStatuses": statuses}}
        return await self.client.patch(PODS, name, status, namespace=NAMESPACE, subresource="status")

    async def report(self, pod, outputs, complete="true", **labels):
        owner = pod["metadata"]["ownerReferences"][0]
        result = {
            "apiVersion": "argoproj.io/v1alpha1", "kind": "WorkflowTaskResult",
            "metadata": {
                "name": pod["metadata"]["name"], "namespace": NAMESPACE,
                "labels": {names.ARGO_OUTPUTS_COMPLETED: complete, **labels},
                "ownerReferences": [{k: owner[k] for k in ("apiVersion", "kind", "name", "uid")}],
            },
            "outputs": outputs,
        }  # fmt: skip
        return await self.client.create(TASK_RESULTS, result, namespace=NAMESPACE)


@pytest.fixture
async def cluster(tmp_path, sample):
    server = await Server.start(ServerSettings(state=str(tmp_path / "cluster")))
    try:
        async with CountingClient.open(tmp_path / "cluster" / "kubeconfig") as client:
            yield Cluster(client, tmp_path, sample)
    finally:
        await server.stop()


@pytest.fixture
def bucket(tmp_path):
    folder = tmp_path / "bucket"
    folder.mkdir()
    return folder


@pytest.fixture
async def parts(cluster, bucket):
    """Controller, recorder and what they are made of, over real entries and a real object store."""
    async with open_entries(f"sqlite:///{cluster.state / 'cache.db'}") as entries:
        with structlog.testing.capture_logs() as logs:
            parts = Parts(cluster, entries, bucket)
            yield parts
            await parts.controller.drain(5.0)
            await parts.recorder.drain(5.0)
    broken = [line for line in logs if line["event"] in ("a task failed", "cannot decide")]
    assert broken == parts.expected_failures


class Parts:
    concurrency = 8

    def __init__(self, cluster, entries, bucket, *, wait_rules=WaitRules(), **rules):  # noqa: B008 (frozen)
        self.leading = True
        self.counted = []
        self.wait_rules = wait_rules
        self.expected_failures = []
        self.rules = rules
        self.bucket = bucket
        self.artifacts = Artifacts.from_settings([f"minio-service.kubeflow:9000/mlpipeline=file://{bucket}"])
        self._build(cluster, entries, bucket, **rules)

    def again(self):
        """New ones, as after a restart: the old ones were drained."""
        self._build(self.cluster, self.entries, self.bucket, **self.rules)

    def _build(self, cluster, entries, bucket, **rules):
        self.entries = entries
        self.cluster = cluster
        rules = {
            "secret": SECRET, "check": "require", "timeout": 5.0,
            **rules,
        }  # fmt: skip
        artifacts = self.artifacts
        identifier = Identifier(cluster.client, artifacts, entries, KeyRules())
        self.decider = Decider(
            identifier, entries, artifacts, Namespaces(cluster.client), DecisionRules(**rules)
        )
        self.controller = Controller(
            cluster.client, self.decider, entries, Executions(self.wait_rules), leads=lambda: self.leading,
            settle_time=0.01, late_margin=5.0, concurrency=self.concurrency,
            count=lambda **told: self.counted.append(told),
        )  # fmt: skip
        self.recorder = Recorder(
            cluster.client, identifier, entries, artifacts, self.decider, KeyRules(),
            leads=lambda: self.leading, concurrency=8,
            on_end=lambda pod, entry: self.controller.recorded(pod, entry=entry),
        )  # fmt: skip

    async def decide(self, pod):
        """Let the controller see the Pod, and wait until it has done what it decided."""
        self.controller.see(pod)
        await self.controller.drain(30.0)
        self.again()
        return await self.cluster.get(pod)

    async def record(self, pod):
        """Let the recorder see the Pod, and return the entry that it made."""
        self.recorder.see(pod)
        await self.recorder.drain(2.0)
        self.again()
        found = await self.entries.list(NAMESPACE, None, limit=100)
        return next((e for e in found if e.pod_uid == pod["metadata"]["uid"]), None)

    async def entry(self, outputs, finished=None, **arguments):
        """Run a step for the first time, and return its entry."""
        pod = await self.decide(await self.cluster.held_pod(**arguments))
        entry = await self.record(await self.cluster.run(pod, outputs, finished=finished))
        assert entry is not None
        return entry


@pytest.fixture
def flags(cluster):
    state = cluster.state / "cluster"
    (cluster.state / "seal.key").write_bytes(b"s" * 32)
    (cluster.state / "buckets").mkdir()
    return [
        "cache_server", "--listen-host", "127.0.0.1", "--listen-port", "0",
        "--health-host", "127.0.0.1", "--health-port", "0",
        "--kubeconfig", str(state / "kube" / "cache-server.kubeconfig"),
        "--tls-cert-file", str(state / "tls" / "cache-server.crt"),
        "--tls-key-file", str(state / "tls" / "cache-server.key"),
        "--database", f"sqlite:///{cluster.state / 'cache.db'}",
        "--seal-key-file", str(cluster.state / "seal.key"), "--settle-time", "0.05",
        "--trusted-creators", "system:serviceaccount:argo:argo",
    ]  # fmt: skip


@pytest.fixture
async def argo(cluster):
    path = cluster.state / "cluster" / "kube" / "workflow-controller.kubeconfig"
    async with Client.from_kubeconfig(str(path)) as client:

        async def create(**arguments):
            pod = cluster.pod_of(await cluster.workflow(), **arguments)
            return await client.create(PODS, pod, namespace=NAMESPACE)

        yield create
