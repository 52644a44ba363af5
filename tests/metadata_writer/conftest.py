import asyncio
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections import Counter
from pathlib import Path

import pytest
from ml_metadata.proto import metadata_store_pb2 as mlmd

from memopod.kube import NAMESPACES, PODS, TASK_RESULTS, WORKFLOWS, Client
from tests.stores import StoreProcess, free_port

SAMPLES = Path(__file__).parent.parent / "samples"


class GraphStore(StoreProcess):
    """A store that is compared by what is in it."""

    def graph(self):
        """All that is in the store without its ids and times: equal for equal graphs, and counted."""
        client = self.client
        executions = {e.id: e for e in client.get_executions()}
        artifacts = {a.id: a for a in client.get_artifacts()}
        events = client.get_events_by_execution_ids(list(executions)) if executions else []
        nodes = Counter(node_of(e, executions) for e in executions.values())
        nodes.update(node_of(a, executions) for a in artifacts.values())
        edges = Counter(
            (
                executions[e.execution_id].external_id,
                mlmd.Event.Type.Name(e.type),
                tuple(step.key for step in e.path.steps),
                artifacts[e.artifact_id].external_id,
            )
            for e in events
        )
        for context in client.get_contexts():
            nodes[node_of(context, executions)] += 1
            for kind, members in (
                ("artifact", client.get_artifacts_by_context(context.id)),
                ("execution", client.get_executions_by_context(context.id)),
            ):
                edges.update((context.name, kind, member.external_id) for member in members)
        return {"nodes": nodes, "edges": edges}


def node_of(message, executions):
    values = {}
    for properties in (message.properties, message.custom_properties):
        for name, value in properties.items():
            values[name] = getattr(value, value.WhichOneof("value"))
    if values.get("cached_execution_id"):
        values["cached_execution_id"] = executions[values["cached_execution_id"]].external_id
    state = getattr(message, "last_known_state", getattr(message, "state", 0))
    return (
        type(message).__name__,
        message.type,
        message.name,
        message.external_id,
        getattr(message, "uri", ""),
        state,
        json.dumps(values, sort_keys=True),
    )


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory):
    process = GraphStore(tmp_path_factory.mktemp("store"))
    process.start()
    yield process
    process.kill()


@pytest.fixture
def store(request, tmp_path):
    """An empty store with one worker process, or as many as an indirect parameter says."""
    if not hasattr(request, "param"):
        shared = request.getfixturevalue("shared_store")
        shared.empty()
        yield shared
        return
    process = GraphStore(tmp_path, request.param)
    process.start()
    yield process
    process.kill()


@pytest.fixture
def load():
    """Read a recording: version and file name."""

    def read(version, name):
        return json.loads((SAMPLES / version / name).read_text())

    return read


@pytest.fixture
def eventually():
    """Wait until a condition holds; fails with its last value after a deadline."""

    async def wait(condition, *, seconds=20):
        deadline = time.monotonic() + seconds
        while not (last := condition()):
            if time.monotonic() > deadline:
                pytest.fail(f"still {last!r} after {seconds} s")
            await asyncio.sleep(0.05)
        return last

    return wait


class Process:
    """A service as a child process, its log kept for the failure report."""

    def __init__(self, module, arguments, log):
        self.log = log
        with log.open("a") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *map(str, arguments)], stdout=file, stderr=file
            )

    def terminate(self, seconds=15):
        """SIGTERM; the exit status."""
        self.process.terminate()
        return self.process.wait(seconds)

    def kill(self):
        self.process.kill()
        self.process.wait(10)


class WriterProcess(Process):
    def __init__(self, kubeconfig, namespace, store, folder, *more):
        self.health_port = free_port()
        super().__init__(
            "metadata_writer",
            [
                "--kubeconfig", kubeconfig, "--namespace", namespace, "--store", store.address,
                "--health-host", "127.0.0.1", "--health-port", self.health_port, *more,
            ],
            folder / "writer.log",
        )  # fmt: skip

    def ask(self, path):
        """Status and text of its health endpoint, None while it does not listen."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.health_port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return None

    def ready(self):
        return self.ask("/readyz") == (200, "ok\n")


@pytest.fixture(scope="session")
def kubeconfig(tmp_path_factory):
    """The kubeconfig of an API server that all tests share; each has a namespace of its own."""
    state = tmp_path_factory.mktemp("cluster")
    server = Process("memopod.sandbox.apiserver", ["--state", state, "--listen-port", 0], state / "log")
    deadline = time.monotonic() + 30
    while "serving" not in server.log.read_text():
        if server.process.poll() is not None or time.monotonic() > deadline:
            server.kill()
            pytest.fail(f"the API server did not start:\n{server.log.read_text()}")
        time.sleep(0.05)
    yield state / "kubeconfig"
    server.kill()


class Cluster:
    """Plays recordings of Argo's controller into a namespace of an API server."""

    def __init__(self, client, namespace):
        self.client, self.namespace = client, namespace

    async def submit(self, version, sample):
        """A Workflow as it was submitted, under a name of its own."""
        recorded = json.loads((SAMPLES / version / f"{sample}.workflow-final.json").read_text())
        body = {k: recorded[k] for k in ("apiVersion", "kind", "spec")}
        body["metadata"] = {"name": recorded["metadata"]["name"], "namespace": self.namespace}
        made = await self.client.create(WORKFLOWS, body, namespace=self.namespace)
        return Played(self, version, sample, recorded, made)


class Played:
    """One Workflow; a step is named as in the recordings' file names."""

    def __init__(self, cluster, version, sample, recorded, made):
        self.cluster, self.client, self.namespace = cluster, cluster.client, cluster.namespace
        self.version, self.sample, self.recorded = version, sample, recorded
        self.name, self.uid = made["metadata"]["name"], made["metadata"]["uid"]
        self._created = set()

    def _load(self, step, kind):
        name = ".".join(filter(None, (self.sample, step, kind, "json")))
        path = SAMPLES / self.version / name
        return json.loads(path.read_text()) if path.exists() else None

    def execution(self, step):
        node = self._load(step, "pod")["metadata"]["annotations"]["workflows.argoproj.io/node-id"]
        return f"{self.uid}/{node}"

    async def create(self, step, *, labels=None, annotations=None):
        """The step's Pod, not begun."""
        pod = self._load(step, "pod")
        metadata = pod["metadata"]
        self._created.add(metadata["annotations"]["workflows.argoproj.io/node-id"])
        owner = {**metadata["ownerReferences"][0], "uid": self.uid}
        body = {
            **pod,
            "metadata": {
                "name": metadata["name"],
                "namespace": self.namespace,
                "labels": metadata["labels"] | (labels or {}),
                "annotations": metadata["annotations"] | (annotations or {}),
                "ownerReferences": [owner],
            },
        }
        del body["status"]
        await self.client.create(PODS, body, namespace=self.namespace)

    async def begin(self, step):
        """The Pod runs."""
        await self._status(step, {"phase": "Running", "startTime": "2026-11-23T22:00:46Z"})

    async def report(self, step):
        """Argo's executor reports the outputs."""
        result = self._load(step, "taskresult")
        if result is None:
            return
        metadata = result["metadata"]
        body = {
            **result,
            "metadata": {
                "name": metadata["name"], "namespace": self.namespace, "labels": metadata.get("labels") or {}
            },
        }  # fmt: skip
        await self.client.create(TASK_RESULTS, body, namespace=self.namespace)

    async def finish(self, step):
        """The Pod has ended as it was recorded."""
        await self._status(step, self._load(step, "pod")["status"])

    async def _status(self, step, status):
        name = self._load(step, "pod")["metadata"]["name"]
        await self.client.patch(
            PODS, name, {"status": status}, namespace=self.namespace, subresource="status"
        )

    async def run(self, *steps):
        """Steps one after another, from their creation to their end."""
        for step in steps:
            await self.create(step)
            await self.begin(step)
            await self.report(step)
            await self.finish(step)

    async def end(self):
        """Argo fills the Workflow's status, and deletes all results."""
        status = self.recorded["status"]
        nodes = {k: v for k, v in status["nodes"].items() if v["type"] != "Pod" or k in self._created}
        patch = {"status": {**status, "nodes": nodes}}
        await self.client.patch(WORKFLOWS, self.name, patch, namespace=self.namespace)
        for result in (await self.client.list(TASK_RESULTS, namespace=self.namespace))["items"]:
            if result["metadata"]["labels"].get("workflows.argoproj.io/workflow") == self.name:
                await self.client.delete(TASK_RESULTS, result["metadata"]["name"], namespace=self.namespace)

    async def delete_pods(self, *steps):
        for step in steps:
            name = self._load(step, "pod")["metadata"]["name"]
            await self.client.delete(PODS, name, namespace=self.namespace, grace_seconds=0)

    async def delete(self):
        await self.client.delete(WORKFLOWS, self.name, namespace=self.namespace)


@pytest.fixture
async def cluster(kubeconfig):
    namespace = f"test-{uuid.uuid4().hex[:8]}"
    async with Client.from_kubeconfig(str(kubeconfig)) as client:
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
        await client.create(NAMESPACES, body)
        yield Cluster(client, namespace)


@pytest.fixture
def start_writer(kubeconfig, cluster, store, tmp_path):
    """Start a writer of the test's namespace; all are ended with the test."""
    started = []

    def start(*more, store=store):
        writer = WriterProcess(kubeconfig, cluster.namespace, store, tmp_path, *more)
        started.append(writer)
        return writer

    yield start
    for writer in started:
        writer.kill()


@pytest.fixture
async def running():
    """Run a coroutine beside the test; it is cancelled with it."""
    tasks = []

    async def start(coroutine):
        tasks.append(asyncio.create_task(coroutine, name="beside the test"))

    yield start
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
