"""Outputs of a step that has ended, wherever its version of Argo keeps them at that moment."""

import base64
import gzip
import json
from pathlib import Path

import pytest

from memopod.kube import TASK_RESULTS, WORKFLOWS, fetch_outputs
from memopod.steps import read_step
from memopod.steps.outputs import NodesOffloaded, read_outputs

SAMPLES = Path(__file__).parents[1] / "samples"
VERSIONS = ["3.4.17", "3.5.15", "3.7.18", "4.0.10", "4.1.2"]
COMPLETED = "workflows.argoproj.io/report-outputs-completed"


def recorded(version, name):
    return json.loads((SAMPLES / f"argo-{version}" / f"{name}.json").read_text())


class Ended:
    """The recorded step `artifacts.make`, whose Workflow is on the server under its own UID."""

    def __init__(self, client, version):
        self.client = client
        self.pod = recorded(version, "artifacts.make.pod")
        self.pod["metadata"]["namespace"] = "default"
        self.result = recorded(version, "artifacts.make.taskresult")
        self.workflow = recorded(version, "artifacts.workflow-final")
        self.archive = read_step(self.pod).template["archiveLocation"]
        self.expected = read_outputs(self.result["outputs"], self.archive)

    @property
    def step(self):
        return read_step(self.pod)

    async def put_workflow(self, status):
        metadata = {"name": self.step.workflow, "namespace": self.step.namespace}
        body = {**self.workflow, "metadata": metadata, "status": status}
        created = await self.client.create(WORKFLOWS, body, namespace=self.step.namespace)
        self.pod["metadata"]["ownerReferences"][0]["uid"] = created["metadata"]["uid"]

    async def put_result(self, **labels):
        metadata = {"name": self.step.node_id, "namespace": self.step.namespace}
        metadata["labels"] = {**self.result["metadata"].get("labels", {}), **labels}
        body = {**self.result, "metadata": metadata}
        await self.client.create(TASK_RESULTS, body, namespace=self.step.namespace)


@pytest.fixture(params=VERSIONS)
def ended(client, request):
    return Ended(client, request.param)


async def test_from_the_result_that_the_executor_wrote(client, ended):
    await ended.put_result()
    assert await fetch_outputs(client, ended.step) == ended.expected


async def test_not_from_a_result_that_is_not_complete(client, ended):
    await ended.put_result(**{COMPLETED: "false"})
    assert await fetch_outputs(client, ended.step) is None


@pytest.mark.parametrize("packed", [False, True], ids=["nodes", "compressedNodes"])
async def test_from_the_workflow_when_its_results_are_gone(client, ended, packed):
    nodes = ended.workflow["status"]["nodes"]
    text = base64.b64encode(gzip.compress(json.dumps(nodes).encode())).decode()
    await ended.put_workflow({"compressedNodes": text} if packed else {"nodes": nodes})
    assert await fetch_outputs(client, ended.step) == ended.expected


async def test_not_from_a_node_that_has_not_succeeded_nor_from_a_namesake(client, ended):
    nodes = json.loads(json.dumps(ended.workflow["status"]["nodes"]))
    nodes[ended.step.node_id]["phase"] = "Pending"
    await ended.put_workflow({"nodes": nodes})
    assert await fetch_outputs(client, ended.step) is None
    ended.pod["metadata"]["ownerReferences"][0]["uid"] = "another"
    assert await fetch_outputs(client, ended.step) is None


async def test_not_from_nodes_in_a_database_of_argos_own(client, ended):
    await ended.put_workflow({"offloadNodeStatusVersion": "fnv:1"})
    with pytest.raises(NodesOffloaded):
        await fetch_outputs(client, ended.step)


async def test_from_the_old_annotation_where_that_version_writes_it(client, ended):
    text = json.dumps(ended.result["outputs"])
    ended.pod["metadata"]["annotations"]["workflows.argoproj.io/outputs"] = text
    outputs = await fetch_outputs(client, ended.step)
    old = len([c for c in ended.pod["spec"]["containers"] if "ARGO_TEMPLATE" in json.dumps(c)]) > 1
    assert outputs == (ended.expected if old else None)


async def test_a_step_of_argo_3_4_that_declares_nothing_has_put_out_nothing(client):
    step = read_step(recorded("3.4.17", "parameters.use.pod"))
    outputs = await fetch_outputs(client, step)
    assert (outputs.parameters, outputs.artifacts, outputs.result) == ({}, (), None)
