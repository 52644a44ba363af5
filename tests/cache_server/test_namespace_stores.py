"""Buckets that are asked with credentials in a namespace's own Secret, where it lets this server read it."""

import base64
import json
from dataclasses import replace

import pytest

from cache_server.artifacts import Artifacts, ArtifactStoreUnavailable
from cache_server.namespace_stores import NamespaceArtifacts, for_namespaces
from memopod.kube import SECRETS, Forbidden, Unavailable
from memopod.steps import Location, read_step

ENDPOINT = "minio-service.kubeflow:9000"
LINE = f"{ENDPOINT}/*=s3://*?endpoint=http://127.0.0.1:1&region=us-east-1"
PLACE = Location("s3", ENDPOINT, "mlpipeline", "run/data")
SECRET = "mlpipeline-minio-artifact"


@pytest.fixture
def step(sample):
    pod = sample("4.1.2", "artifacts.make.pod")
    pod["metadata"]["namespace"] = "pipelines"
    return read_step(pod)


async def put_secret(cluster, **data):
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "data": encoded}
    await cluster.client.create(SECRETS, body, namespace="pipelines")


def opened(cluster):
    return for_namespaces(Artifacts.from_settings([LINE], call_timeout=0.5), cluster.client)


async def test_a_bucket_is_opened_with_the_secret_that_the_step_names(cluster, step):
    await put_secret(cluster, accesskey="reader", secretkey="s3cr3t")
    artifacts = await opened(cluster).within(step)
    assert artifacts.knows(PLACE)
    assert artifacts.stores[ENDPOINT, "mlpipeline"].config["access_key_id"] == "reader"
    with pytest.raises(ArtifactStoreUnavailable) as error:
        await artifacts.describe(PLACE)
    assert "s3cr3t" not in str(error.value)


@pytest.mark.parametrize("data", [None, {"accesskey": "reader"}], ids=["no-secret", "no-key"])
async def test_without_the_secret_its_artifacts_cannot_be_asked_for(cluster, step, data):
    if data:
        await put_secret(cluster, **data)
    artifacts = await opened(cluster).within(step)
    assert not artifacts.knows(PLACE)


async def test_where_the_namespace_does_not_allow_it_its_artifacts_cannot_be_asked_for(cluster, step):
    class Refused:
        async def get(self, *_, **__):
            raise Forbidden("no", status=403, reason="Forbidden")

    artifacts = await NamespaceArtifacts(Artifacts.from_settings([LINE]), Refused()).within(step)
    assert not artifacts.knows(PLACE)


async def test_an_api_server_that_does_not_answer_is_not_taken_for_a_refusal(step):
    class Silent:
        async def get(self, *_, **__):
            raise Unavailable("no answer", reason="Timeout")

    with pytest.raises(ArtifactStoreUnavailable):
        await NamespaceArtifacts(Artifacts.from_settings([LINE]), Silent()).within(step)


async def test_a_step_cannot_make_this_server_connect_to_an_endpoint_of_its_own(cluster, step):
    await put_secret(cluster, accesskey="reader", secretkey="s3cr3t")
    elsewhere = json.loads(json.dumps(step.template).replace(ENDPOINT, "evil.example:80"))
    artifacts = await opened(cluster).within(replace(step, template=elsewhere))
    assert not artifacts.knows(Location("s3", "evil.example:80", "mlpipeline", "run/data"))


async def test_what_is_configured_for_a_bucket_wins(cluster, step, bucket):
    line = f"{ENDPOINT}/mlpipeline=file://{bucket}"
    artifacts = for_namespaces(Artifacts.from_settings([LINE, line]), cluster.client)
    assert await artifacts.within(step) is artifacts
    assert artifacts.knows(PLACE)


def test_without_such_a_setting_no_secret_is_ever_read(cluster, bucket):
    artifacts = Artifacts.from_settings([f"{ENDPOINT}/mlpipeline=file://{bucket}"])
    assert for_namespaces(artifacts, cluster.client) is artifacts


@pytest.mark.parametrize("url", ["s3://bucket?endpoint=http://h", "s3://*", "gs://*?endpoint=http://h"])
def test_any_bucket_needs_an_endpoint_of_the_operators(url):
    with pytest.raises(ValueError, match="expected s3://\\*\\?endpoint=URL"):
        Artifacts.from_settings([f"{ENDPOINT}/*={url}"])
