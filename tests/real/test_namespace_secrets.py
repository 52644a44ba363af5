"""The cache server's own account reads a Secret only where the namespace says so."""

import base64
import json
from pathlib import Path

import yaml

from cache_server.artifacts import Artifacts
from cache_server.namespace_stores import for_namespaces
from memopod.kube import SECRETS
from memopod.sandbox.control_plane import apply
from memopod.steps import Location, read_step
from tests.real.argo import recorded
from tests.real.cluster import until

ROLE = Path(__file__).parents[2] / "deploy" / "namespace" / "artifact-credentials.yaml"
ENDPOINT = "minio-service.kubeflow:9000"
PLACE = Location("s3", ENDPOINT, "mlpipeline", "run/data")


async def test_only_where_a_role_binding_allows_it(cluster):
    pod = json.loads(recorded("4.1.2", "artifacts.make.pod"))
    pod["metadata"]["namespace"] = cluster.pipelines
    step = read_step(pod)
    encoded = {k: base64.b64encode(b"x").decode() for k in ("accesskey", "secretkey")}
    secret = {
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "mlpipeline-minio-artifact"},
        "data": encoded,
    }  # fmt: skip
    await cluster.admin.create(SECRETS, secret, namespace=cluster.pipelines)
    client = await cluster.client("cache-server")
    line = f"{ENDPOINT}/*=s3://*?endpoint=http://127.0.0.1:1"

    async def may_ask():
        artifacts = for_namespaces(Artifacts.from_settings([line]), client)
        return (await artifacts.within(step)).knows(PLACE)

    assert not await may_ask()
    documents = list(yaml.safe_load_all(ROLE.read_text()))
    for document in documents:
        document["metadata"]["namespace"] = cluster.pipelines
        for subject in document.get("subjects", ()):
            subject["namespace"] = cluster.system
    await apply(cluster.admin, documents)
    await until(may_ask, "the permission counts")
