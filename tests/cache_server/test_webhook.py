import asyncio
import base64
import io
import json

import jsonpatch
import pytest
from aiohttp.test_utils import TestClient, TestServer

from cache_server.admission import Policy
from cache_server.admissions import ADMISSIONS
from cache_server.webhook import build_webhook, holding
from memopod.steps import names

POLICY = Policy(
    secret=b"s" * 32,
    trusted_creators=frozenset({"system:serviceaccount:argo:argo"}),
    hold_seconds=30.0,
)


@pytest.fixture
async def client():
    async with TestClient(TestServer(build_webhook(holding(POLICY, lambda: True)))) as client:
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


NOT_JSON = 'Unsupported content type "{}", only "application/json" is supported'
UNREADABLE = "Could not deserialize request: "
DEEP = b'{"request":' + b"[" * 100_000
JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("method", "headers", "body", "status", "text"),
    [
        ("GET", {}, b"", 405, 'Invalid method "GET", only POST requests are allowed'),
        ("PUT", JSON, b"{}", 405, 'Invalid method "PUT", only POST requests are allowed'),
        ("POST", {"Content-Type": "text/plain"}, b"{", 400, NOT_JSON.format("text/plain")),
        (
            "POST", {"Content-Type": "application/json; charset=utf-8"}, b"{}", 400,
            NOT_JSON.format("application/json; charset=utf-8"),
        ),
        ("POST", JSON, b"{", 400, UNREADABLE + "Input data was truncated"),
        ("POST", JSON, b"[]", 400, UNREADABLE + "Expected `object`, got `array`"),
        ("POST", JSON, b"\xff", 400, UNREADABLE + "JSON is malformed: invalid character (byte 0)"),
        ("POST", JSON, b'{"request": {"uid": 7}}', 400, UNREADABLE + "Expected `str`, got `int`"),
        ("POST", JSON, DEEP, 400, UNREADABLE + "Expected `object | null`, got `array`"),
        ("POST", JSON, b"{}", 400, "Malformed admission review request: request body is nil"),
        ("POST", JSON, b'{"request": null}', 400, "Malformed admission review request: request body is nil"),
    ],
)  # fmt: skip
async def test_bad_requests_are_told_in_the_words_of_kubeflows_server(
    client, method, headers, body, status, text
):
    answer = await client.request(method, "/mutate", headers=headers, data=io.BytesIO(body))
    assert answer.status == status
    assert answer.content_type == "text/plain"
    assert await answer.text() == text


async def test_a_body_over_the_limit_is_refused_whatever_it_says_it_is(client):
    answer = await client.post(
        "/mutate", headers={"Content-Type": "text/plain"}, data=io.BytesIO(b"x" * (9 << 20))
    )
    assert answer.status == 413


async def test_a_body_that_cannot_be_read_is_a_bad_request(client):
    reader, writer = await asyncio.open_connection(client.host, client.port)
    head = "POST /mutate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    writer.write((head + "Transfer-Encoding: chunked\r\n\r\nzz\r\n").encode())
    answer = await asyncio.wait_for(reader.readline(), 20)
    writer.close()
    await writer.wait_closed()
    assert b" 400 " in answer


async def test_there_is_no_other_path(client):
    assert (await client.post("/", json={})).status == 404


async def test_a_dry_run_gets_the_same_answer_and_is_neither_counted_nor_timed(client, sample):
    def counted():
        tally = ADMISSIONS.tally
        return tally.decisions.total(), sum(tally.buckets), tally.seconds

    review = sample("4.1.2", "parameters.make.admission")
    before = counted()
    real = (await ask(client, review))["response"]
    after = counted()
    assert after[:2] == (before[0] + 1, before[1] + 1)
    assert after[2] > before[2]
    review["request"]["dryRun"] = True
    dry = (await ask(client, review))["response"]
    assert counted() == after
    assert {op["path"] for op in patch_of(dry)} == {op["path"] for op in patch_of(real)}


def patch_of(response):
    return json.loads(base64.b64decode(response["patch"]))


@pytest.mark.parametrize(
    "pod",
    [
        None,
        3,
        [],
        {},
        "\u0005\u0005",
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
