import io
import json

import pytest

from memopod.kube import CONFIG_MAPS, PODS

MAPS = "/api/v1/namespaces/pipelines/configmaps"


@pytest.mark.parametrize("token", [None, "", "unknown"])
async def test_without_a_known_token_nothing_is_told(http, token):
    answer = await http("GET", MAPS, token=token)
    assert (answer.status, answer.body["kind"], answer.body["reason"]) == (401, "Status", "Unauthorized")


async def test_a_token_that_was_added_later_is_known_and_a_removed_one_is_not(http, tmp_path):
    tokens = tmp_path / "tokens.json"
    known = json.loads(tokens.read_text())
    tokens.write_text(json.dumps({**known, "new": {"username": "u", "groups": []}}))
    assert (await http("GET", MAPS, token="new")).status == 200
    tokens.write_text(json.dumps(known))
    assert (await http("GET", MAPS, token="new")).status == 401


async def test_the_version_is_public_and_discovery_is_not(http):
    assert (await http("GET", "/version", token=None)).body["major"] == "1"
    assert (await http("GET", "/api/v1", token=None)).status == 401
    kinds = (await http("GET", "/api/v1")).body["resources"]
    assert {"pods", "pods/status", "configmaps"} <= {kind["name"] for kind in kinds}


@pytest.mark.parametrize(
    ("method", "path", "status", "reason"),
    [
        ("GET", "/api/v1/nodes", 404, "NotFound"),
        ("GET", f"{MAPS}/absent", 404, "NotFound"),
        ("PUT", MAPS, 405, "MethodNotAllowed"),
        ("POST", f"{MAPS}/a", 405, "MethodNotAllowed"),
        ("POST", "/api/v1/configmaps", 405, "MethodNotAllowed"),
        ("GET", f"{MAPS}?labelSelector=a%3Db%3Dc", 400, "BadRequest"),
        ("GET", f"{MAPS}?fieldSelector=data.x%3Db", 400, "BadRequest"),
        ("GET", f"{MAPS}?limit=many", 400, "BadRequest"),
        ("GET", f"{MAPS}?watch=true&sendInitialEvents=true", 422, "Invalid"),
        ("GET", f"{MAPS}?watch=true&resourceVersion=999999", 410, "Expired"),
        ("POST", f"{MAPS}?dryRun=Some", 400, "BadRequest"),
    ],
)
async def test_refusals_are_status_objects(http, method, path, status, reason):
    answer = await http(method, path, body={} if method in ("POST", "PUT") else None)
    assert (answer.status, answer.body["code"]) == (status, status)
    assert (answer.body["kind"], answer.body["status"], answer.body["reason"]) == (
        "Status",
        "Failure",
        reason,
    )
    assert answer.headers["Content-Type"].startswith("application/json")


async def test_a_body_that_is_no_json_is_a_bad_request(http):
    answer = await http("POST", MAPS)
    assert (answer.status, answer.body["reason"]) == (400, "BadRequest")


async def test_a_body_that_is_too_large_is_refused(http):
    large = io.BytesIO(b" " * (3 * 1024 * 1024 + 1))
    answer = await http("POST", MAPS, data=large, headers={"Content-Type": "application/json"})
    assert (answer.status, answer.body["reason"]) == (413, "RequestEntityTooLarge")


async def test_a_dry_run_stores_nothing(http, client):
    assert (await http("POST", f"{MAPS}?dryRun=All", body={"metadata": {"name": "a"}})).status == 201
    assert (await client.list(CONFIG_MAPS))["items"] == []


async def test_strategic_merge_patches_are_refused_as_a_media_type(http, create_pod):
    await create_pod()
    answer = await http(
        "PATCH",
        PODS.path("pipelines", "a"),
        body={},
        headers={"Content-Type": "application/strategic-merge-patch+json"},
    )
    assert (answer.status, answer.body["reason"]) == (415, "UnsupportedMediaType")


async def test_orphans_are_not_supported_and_said_so(http, client):
    await client.create(CONFIG_MAPS, {"metadata": {"name": "a"}}, namespace="pipelines")
    answer = await http("DELETE", f"{MAPS}/a?propagationPolicy=Orphan")
    assert answer.status == 400
    assert "not supported" in answer.body["message"]


async def test_a_deletion_answers_with_what_was_deleted(http, client):
    created = await client.create(CONFIG_MAPS, {"metadata": {"name": "a"}}, namespace="pipelines")
    stale = {"preconditions": {"resourceVersion": "1"}}
    assert (await http("DELETE", f"{MAPS}/a", body=stale)).status == 409
    answer = await http("DELETE", f"{MAPS}/a")
    assert answer.body["status"] == "Success"
    assert answer.body["details"] == {"name": "a", "kind": "configmaps", "uid": created["metadata"]["uid"]}


async def test_an_invalid_object_names_the_kind_and_the_field(http):
    body = {"metadata": {"name": "a", "labels": {"l": "-"}}}
    answer = await http("POST", MAPS, body=body)
    assert answer.status == 422
    assert answer.body["details"]["kind"] == "ConfigMap"
    assert [cause["field"] for cause in answer.body["details"]["causes"]] == ["metadata.labels"]
