import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
import structlog

from memopod.kube import PODS, Client
from memopod.sandbox.apiserver.app import Server
from memopod.sandbox.apiserver.settings import Settings
from memopod.sandbox.certificates import prepare_state


@pytest.fixture(autouse=True)
def _own_logs():
    """What a service's `main` set up in another test of this process would write to a closed file."""
    structlog.reset_defaults()


@pytest.fixture
async def server(tmp_path):
    server = await Server.start(Settings(state=str(tmp_path), history=50, bookmark_seconds=0.1))
    yield server
    await server.stop()


@pytest.fixture
async def client(server, tmp_path):
    async with Client.from_kubeconfig(str(tmp_path / "kubeconfig")) as client:
        yield client


@pytest.fixture
async def http(server, tmp_path):
    """Plain HTTP, for what the client hides: `await http("GET", path)` gives status, headers and JSON."""
    files = prepare_state(tmp_path, server.port)
    token = _token(files.kubeconfig)
    context = ssl.create_default_context(cafile=str(files.ca))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:

        async def call(method, path, body=None, headers=None, token=token, data=None):
            sent = {"Authorization": f"Bearer {token}"} if token else {}
            url = f"https://127.0.0.1:{server.port}{path}"
            headers = {**sent, **(headers or {})}
            async with session.request(method, url, json=body, data=data, headers=headers) as answer:
                return Answer(answer.status, answer.headers, await answer.json())

        yield call


@pytest.fixture
def make_pod():
    def make(name="a", *, gates=(), labels=None, **spec):
        pod = {
            "metadata": {"name": name, "labels": labels or {}},
            "spec": {
                "containers": [{"name": "main", "image": "busybox:1"}],
                "restartPolicy": "Never",
                **spec,
            },
        }
        if gates:
            pod["spec"]["schedulingGates"] = [{"name": gate} for gate in gates]
        return pod

    return make


@pytest.fixture
def create_pod(client, make_pod):
    async def create(name="a", *, namespace="pipelines", **rest):
        return await client.create(PODS, make_pod(name, **rest), namespace=namespace)

    return create


@pytest.fixture
def eventually():
    async def wait_for(condition: Callable[[], bool], seconds: float = 5.0):
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110 - any condition, not only events
                await asyncio.sleep(0.01)

    return wait_for


@dataclass
class Answer:
    status: int
    headers: object
    body: dict


def _token(kubeconfig: Path) -> str:
    return kubeconfig.read_text().split("token: ")[1].split()[0]
