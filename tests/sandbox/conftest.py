import asyncio
import contextlib
import copy
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from memopod.kube import PODS, TASK_RESULTS, WORKFLOWS, Client
from memopod.sandbox.apiserver.app import Server
from memopod.sandbox.apiserver.settings import Settings as ApiSettings
from memopod.sandbox.kubelet.buckets import Buckets
from memopod.sandbox.kubelet.node import Node
from memopod.sandbox.kubelet.settings import Settings as KubeletSettings
from memopod.sandbox.pipelines import parse_parameters, read_pipeline
from memopod.sandbox.runner import Run

LIMIT = 30
"""Seconds for anything that a test waits for."""


@dataclass
class Cluster:
    """An API server (and, once started, a kubelet) in this process; `client` is the runner's."""

    state: Path
    client: Client
    server: Server
    kubelet: asyncio.Task | None = None

    def start_kubelet(self, **settings):
        """Start the kubelet, or start it anew after `kill_kubelet`."""
        self.kubelet = asyncio.create_task(self._kubelet(settings), name="kubelet")

    async def _kubelet(self, settings):
        kubeconfig = str(self.state / "kube" / "kubelet.kubeconfig")
        async with Client.from_kubeconfig(kubeconfig) as client:
            found = KubeletSettings(state=str(self.state), kubeconfig=kubeconfig, **settings)
            await Node(client, found, Buckets(found.buckets)).run()

    async def kill_kubelet(self):
        """End the kubelet; its Pods' processes end with it."""
        self.kubelet.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.kubelet
        self.kubelet = None

    async def restart_server(self):
        """The API server goes away, and comes back on the same port with the same objects."""
        port = self.server.port
        await self.server.stop()
        self.server = await Server.start(ApiSettings(state=str(self.state), listen_port=port))

    async def pods(self):
        return (await self.client.list(PODS, namespace="pipelines"))["items"]

    async def results(self):
        return (await self.client.list(TASK_RESULTS, namespace="pipelines"))["items"]

    async def workflow(self, name):
        return await self.client.get(WORKFLOWS, name, namespace="pipelines")

    async def until(self, condition):
        """The first true answer of an async function."""
        async with asyncio.timeout(LIMIT):
            while True:
                answer = await condition()
                if answer:
                    return answer
                await asyncio.sleep(0.02)

    async def run(self, plan, *words, stop=None, **options):
        """Run a pipeline to its end."""
        run = Run(self.client, plan, parse_parameters(words, plan.parameters), **options)
        return await asyncio.wait_for(run.execute(stop or asyncio.Event()), LIMIT)


@pytest.fixture
async def cluster(tmp_path):
    """An API server without a kubelet; call `start_kubelet` for one."""
    server = await Server.start(ApiSettings(state=str(tmp_path), bookmark_seconds=0.5))
    kubeconfig = str(tmp_path / "kube" / "workflow-controller.kubeconfig")
    async with Client.from_kubeconfig(kubeconfig) as client:
        cluster = Cluster(tmp_path, client, server)
        yield cluster
        if cluster.kubelet is not None:
            await cluster.kill_kubelet()
    await cluster.server.stop()


@pytest.fixture
def shell_plan(tmp_path):
    """A pipeline of shell scripts: `shell_plan({"a": "script", "b": ("script", ["a"])})`.

    Each task gets the parameter `text` of the run, and has an output parameter `out`.
    """

    def build(scripts, **component):
        tasks, executors, components = {}, {}, {}
        for name, given in scripts.items():
            script, after = given if isinstance(given, tuple) else (given, [])
            executors[f"exec-{name}"] = {
                "container": {
                    "image": "busybox:1",
                    "command": ["sh", "-c", script, "sh"],
                    "args": [
                        "{{$.outputs.parameters['out'].output_file}}",
                        "{{$.inputs.parameters['text']}}",
                    ],
                }
            }
            components[f"comp-{name}"] = {
                "executorLabel": f"exec-{name}",
                "inputDefinitions": {"parameters": {"text": {"parameterType": "STRING"}}},
                "outputDefinitions": {"parameters": {"out": {"parameterType": "STRING"}}},
                **copy.deepcopy(component),
            }
            tasks[name] = {
                "componentRef": {"name": f"comp-{name}"},
                "dependentTasks": after,
                "inputs": {"parameters": {"text": {"componentInputParameter": "text"}}},
            }
        text = {"parameterType": "STRING", "defaultValue": "hello"}
        document = {
            "pipelineInfo": {"name": "shell"},
            "schemaVersion": "2.1.0",
            "components": components,
            "deploymentSpec": {"executors": executors},
            "root": {"inputDefinitions": {"parameters": {"text": text}}, "dag": {"tasks": tasks}},
        }
        path = tmp_path / "shell.yaml"
        path.write_text(yaml.safe_dump(document))
        return read_pipeline(path)

    return build


@pytest.fixture
def example():
    """A pipeline that comes with memopod."""
    folder = Path(__file__).parents[2] / "memopod" / "sandbox" / "examples"
    return lambda name: read_pipeline(folder / name)
