import base64
import io
import json

import jsonpatch
import pytest
from aiohttp.test_utils import TestClient, TestServer

from cache_server.admission import Policy
from cache_server.webhook import build_webhook
from memopod.steps import names

POLICY = Policy(
    secret=b"s" * 32,
    trusted_creators=frozenset({"system:serviceaccount:argo:argo"}),
    hold_seconds=30.0,
)


@pytest.fixture
async def client():
    async with TestClient(TestServer(build_webhook(POLICY, lambda: True))) as client:
        yield client


async def ask(client, review):
    answer = await client.post("/mutate", json=review)
    assert answer.status == 200
    assert answer.content_type == "application/json"
    return await answer.json()


@pytest.mark.parametrize("version", ["admission.k8s.io/v1", "admission.k8s.io/v1beta1"])
async def test_a_review_is_answered_in_its_own_version(client, sample, version):
    review = sample("4.1.2", "parameters.make.admission") | {"apiVersion": version}
    answer = await ask(client, review)
    assert (answer["apiVersion"], answer["kind"]) == (version, "AdmissionReview")
    response = answer["response"]
    assert response["uid"] == review["request"]["uid"]
    assert response["allowed"] is True
    assert response["patchType"] == "JSONPatch"
    assert response["auditAnnotations"] == {"decision": "hold", "reason": "held"}
    pod = jsonpatch.apply_patch(review["request"]["object"], json.loads(base64.b64decode(response["patch"])))
    assert pod["spec"]["schedulingGates"] == [{"name": names.GATE}]


async def test_a_pod_that_is_left_alone_gets_no_patch(client, sample):
    response = (await ask(client, sample("4.1.2", "agent.admission")))["response"]
    assert response["allowed"] is True
    assert "patch" not in response
    assert "patchType" not in response


@pytest.mark.parametrize(
    ("method", "headers", "body", "status", "text"),
    [
        ("GET", {}, b"", 405, "Invalid method GET"),
        ("PUT", {}, b"", 405, "Invalid method PUT"),
        ("POST", {"Content-Type": "text/plain"}, b"{}", 400, "Unsupported content type"),
        ("POST", {"Content-Type": "application/json"}, b"{", 400, "Could not deserialize request"),
        ("POST", {"Content-Type": "application/json"}, b"[" * 100_000, 400, "Could not deserialize"),
        ("POST", {"Content-Type": "application/json"}, b"{}", 400, "request body is nil"),
        ("POST", {"Content-Type": "application/json"}, b"[]", 400, "request body is nil"),
        ("POST", {"Content-Type": "application/json"}, b"x" * (9 << 20), 413, ""),
    ],
)
async def test_bad_requests_are_named_in_plain_text(client, method, headers, body, status, text):
    answer = await client.request(method, "/mutate", headers=headers, data=io.BytesIO(body))
    assert answer.status == status
    assert text in await answer.text()


@pytest.mark.parametrize(
    "pod",
    [
        None,
        3,
        [],
        {},
        {"metadata": {}},
        {"metadata": {}, "spec": {}},
        {"metadata": {"labels": 3}, "spec": {"containers": []}},
        {"metadata": {"labels": {"memopod.io/cache": "true"}}, "spec": {"containers": [3]}},
    ],
)
async def test_an_unreadable_pod_is_never_refused(client, sample, pod):
    review = sample("4.1.2", "parameters.make.admission")
    review["request"]["object"] = pod
    response = (await ask(client, review))["response"]
    assert response["allowed"] is True
    assert "patch" not in response


async def test_other_resources_and_operations_are_left_alone(client, sample):
    review = sample("4.1.2", "parameters.make.admission")
    review["request"]["resource"] = {"group": "apps", "version": "v1", "resource": "deployments"}
    assert (await ask(client, review))["response"]["auditAnnotations"]["reason"] == "not-a-pod"
    review = sample("4.1.2", "parameters.make.admission")
    review["request"]["operation"] = "UPDATE"
    assert "patch" not in (await ask(client, review))["response"]
