import asyncio
import json
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import grpc
import pytest
from ml_metadata.metadata_store import MetadataStore
from ml_metadata.proto import metadata_store_pb2 as mlmd

SAMPLES = Path(__file__).parent.parent / "samples"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class StoreProcess:
    """A metadata store of its own over SQLite, read back through the official client."""

    def __init__(self, folder):
        self.port, self.health_port = free_port(), free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.database = folder / "metadata.db"
        self.log = folder / "store.log"
        self.process = None

    def start(self):
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "metadata_store", f"--grpc_port={self.port}",
                    "--database", f"sqlite:///{self.database}", "--health-port", str(self.health_port),
                    "--workers=2",
                ],
                stdout=log, stderr=log,
            )  # fmt: skip
        with grpc.insecure_channel(self.address) as channel:
            try:
                grpc.channel_ready_future(channel).result(timeout=30)
            except grpc.FutureTimeoutError:
                self.kill()
                pytest.fail(f"the store did not start:\n{self.log.read_text()}")

    def kill(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process = None

    def wipe(self):
        for file in self.database.parent.glob("metadata.db*"):
            file.unlink()

    @property
    def client(self):
        return MetadataStore(mlmd.MetadataStoreClientConfig(host="127.0.0.1", port=self.port))

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


@pytest.fixture
def store(tmp_path):
    process = StoreProcess(tmp_path)
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
