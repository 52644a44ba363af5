"""The API over TLS, with tokens of a file; its answers are what its description says."""

import json
import ssl
import time
import uuid
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from importlib.resources import files

import aiohttp
import jsonschema
import pytest

from cache_server.api.authorization import CannotTell, TokenFile, UnknownToken
from cache_server.api.server import EntriesApi
from cache_server.api.service import check_api, sharing_certificate
from cache_server.certificates import require_clients, server_context
from cache_server.entries import Entry, open_layered
from cache_server.entries.catalog import Catalog
from cache_server.entries.counts import Counts
from cache_server.settings import Settings
from memopod.sandbox.certificates import prepare_state
from memopod.steps import Location, OutputArtifact, Outputs

TOKEN = "a token of this test"[:16].replace(" ", "-")
DESCRIPTION = json.loads((files("cache_server.api") / "openapi.json").read_text())
AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def entry(**changes):
    fields = {
        "id": uuid.uuid4().hex, "namespace": "pipelines", "key": uuid.uuid4().hex, "key_version": 1,
        "components": {"image": "12ab"}, "template_name": "train", "workflow": "run-1", "workflow_uid": "7f",
        "node_id": "run-1-1", "pod_name": "run-1-train-1", "pod_uid": uuid.uuid4().hex,
        "image_id": "x@sha256:1",
        "outputs": Outputs(
            parameters={"loss": "0.1 🎉"},
            artifacts=(
                OutputArtifact(
                    name="m", location=Location("s3", "minio:9000", "b", "run-1/m"), reported={"a": 1}
                ),
            ),
        ),
        "execution_id": 7, "started_at": AT, "finished_at": AT, "recorded_at": AT,
    }  # fmt: skip
    return Entry(**{**fields, **changes})


class Namespaces:
    """Lets a token's owner do in some namespaces what is in `allowed`: (token, verb, namespace)."""

    def __init__(self, *allowed):
        self.allowed = set(allowed)
        self.away = False

    async def allows(self, token, verb, namespace):
        if self.away:
            raise CannotTell
        if token not in {known for known, _, _ in self.allowed}:
            raise UnknownToken
        return (token, verb, namespace) in self.allowed


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    prepare_state(folder, 1)
    return folder / "tls"


@pytest.fixture
async def entries(tmp_path):
    async with open_layered(f"sqlite:///{tmp_path / 'cache.db'}") as opened:
        yield opened


@pytest.fixture
async def serve(entries, tls):
    @asynccontextmanager
    async def serve(authorizer):
        api = EntriesApi(Catalog(entries.sql.database), authorizer)
        context = server_context(str(tls / "cache-server.crt"), str(tls / "cache-server.key"))
        port = await api.start("127.0.0.1", 0, sharing_certificate(context))
        trusted = ssl.create_default_context(cafile=str(tls / "ca.crt"))
        try:
            async with aiohttp.ClientSession(
                f"https://127.0.0.1:{port}", connector=aiohttp.TCPConnector(ssl=trusted)
            ) as session:
                yield Caller(session)
        finally:
            await api.stop()

    return serve


class Caller:
    def __init__(self, session):
        self.session = session

    async def __call__(self, method, path, *, token=TOKEN, body=None, **options):
        """Status and document of an answer, which must be as described."""
        headers = options.pop("headers", {})
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        if body is not None:
            options["json"] = body
        async with self.session.request(method, path, headers=headers, **options) as answer:
            document = await answer.json()
            assert answer.content_type == "application/json"
        described(method, path, answer.status, document)
        return answer.status, document


def described(method, path, status, document):
    for template, operations in DESCRIPTION["paths"].items():
        parts, given = template.split("/"), path.partition("?")[0].split("/")
        same = len(parts) == len(given) and all(
            a == b or a.startswith("{") for a, b in zip(parts, given, strict=True)
        )
        if same and method.lower() in operations:
            answers = operations[method.lower()]["responses"]
            schema = answers[str(status)]["content"]["application/json"]["schema"]
            jsonschema.validate(document, {**schema, "components": DESCRIPTION["components"]})
            return
    assert status in (404, 405)
    assert set(document) == {"error"}


@pytest.fixture
async def api(serve, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text(TOKEN + "\n")
    async with serve(TokenFile(str(tokens))) as caller:
        yield caller


async def test_entries_are_listed_page_by_page_shown_and_found(api, entries):
    kept = [entry(namespace="a" if n else "b", template_name=f"t{n}") for n in range(3)]
    await entries.sql.put_all(kept)
    status, first = await api("GET", "/v1/entries?limit=2")
    assert status == 200
    _, second = await api("GET", f"/v1/entries?limit=2&after={first['after']}")
    assert {e["id"] for e in first["entries"] + second["entries"]} == {e.id for e in kept}
    status, one = await api("GET", f"/v1/entries/{kept[1].id}")
    assert (status, one["template"], one["outputs"]["parameters"]) == (200, "t1", {"loss": "0.1 🎉"})
    for query in ("namespace=b", "where=template%3Dt0", f"id={kept[0].id[:8]}", "where=namespace%3Db"):
        _, found = await api("GET", f"/v1/entries?{query}")
        assert [e["id"] for e in found["entries"]] == [kept[0].id], query
    _, found = await api("GET", "/v1/entries?where=template%3Dt0&where=namespace%3Da")
    assert found["entries"] == []


async def test_an_entry_is_pinned_and_let_go(api, entries):
    kept = entry()
    await entries.put(kept)
    assert await api("PUT", f"/v1/entries/{kept.id}/pin", body={"pinned": True}) == (
        200, {"id": kept.id, "pinned": True},
    )  # fmt: skip
    assert (await entries.get(kept.id)).pinned
    assert (await api("POST", "/v1/gc", body={"idle": "P1D", "number": 0}))[1]["deleted"] == {
        "age": 0, "idle": 0, "number": 0,
    }  # fmt: skip
    await api("PUT", f"/v1/entries/{kept.id}/pin", body={"pinned": False})
    dry = await api("POST", "/v1/gc", body={"idle": "P1D", "dry_run": True})
    assert dry[1] == {"deleted": {"age": 0, "idle": 1, "number": 0}, "dry_run": True}
    assert (await api("POST", "/v1/gc", body={"idle": "P1D"}))[1]["deleted"]["idle"] == 1
    assert await entries.get(kept.id) is None


async def test_what_is_invalidated_is_found_by_nobody_once_it_is_answered(api, entries, tmp_path):
    kept, other = entry(), entry(namespace="other")
    await entries.sql.put_all([kept, other])
    async with open_layered(f"sqlite:///{tmp_path / 'cache.db'}") as replica:
        # Another replica, which nobody tells, knows it by heart.
        assert await replica.find(kept.namespace, kept.key) == kept
        begun = time.monotonic()
        status, told = await api("POST", "/v1/invalidate", body={"namespace": "pipelines", "reason": "test"})
        assert (status, told["invalidated"]) == (200, 1)
        assert time.monotonic() - begun >= 1
        assert await replica.find(kept.namespace, kept.key) is None
    assert await entries.get(other.id) == other


async def test_statistics_are_those_of_the_days_asked_for(api, entries):
    counts = Counts(entries.sql.database)
    counts.add(namespace="pipelines", template="train", reason="miss")
    counts.add(namespace="pipelines", template="train", reason="miss", at=AT)
    await counts.write()
    status, told = await api("GET", "/v1/stats?days=1")
    assert (status, told["stats"][0]["missed"]) == (200, {"miss": 1})


ORDERS = [
    ("GET", "/v1/entries", None), ("GET", "/v1/entries?namespace=pipelines", None),
    ("GET", "/v1/stats", None), ("GET", "/v1/stats?namespace=pipelines", None),
    ("POST", "/v1/invalidate", {}), ("POST", "/v1/invalidate", {"namespace": "pipelines"}),
    ("POST", "/v1/gc", {"number": 0}), ("POST", "/v1/gc", {"number": 0, "namespace": "pipelines"}),
    ("GET", "/v1/entries/{id}", None), ("PUT", "/v1/entries/{id}/pin", {"pinned": True}),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body"), ORDERS)
async def test_without_a_token_or_with_a_wrong_one_nothing_is_told_or_done(api, entries, method, path, body):
    kept = entry()
    await entries.put(kept)
    path = path.replace("{id}", kept.id)
    for headers in (
        {}, {"Authorization": "Bearer"}, {"Authorization": "Bearer  "}, {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": TOKEN}, {"Authorization": "Bearer \u00e9\u00e9\u00e9\u00e9"},
        {"Authorization": "Bearer *"}, {"Cookie": f"token={TOKEN}"},
    ):  # fmt: skip
        status, told = await api(method, path, token=None, headers=dict(headers), body=body)
        assert (status, set(told)) == (401, {"error"}), headers
        assert kept.id not in json.dumps(told)
    assert await entries.get(kept.id) == kept


async def test_a_token_in_the_url_is_no_token(api):
    status, _ = await api("GET", f"/v1/entries?token={TOKEN}", token=None)
    assert status in (400, 401)


async def test_everybody_may_read_the_description(api):
    status, told = await api("GET", "/openapi.json", token=None)
    assert (status, told) == (200, DESCRIPTION)


async def test_a_user_sees_and_changes_only_the_namespaces_that_are_theirs(serve, entries):
    mine, theirs = entry(namespace="mine"), entry(namespace="theirs")
    await entries.sql.put_all([mine, theirs])
    reader, editor = "reader" * 4, "editor" * 4
    allowed = [(reader, "list", "mine"), *((editor, verb, "mine") for verb in ("list", "update", "delete"))]
    async with serve(Namespaces(*allowed)) as api:
        for token in (reader, editor):
            status, told = await api("GET", "/v1/entries?namespace=mine", token=token)
            assert (status, [e["id"] for e in told["entries"]]) == (200, [mine.id])
            assert (await api("GET", "/v1/entries", token=token))[0] == 403
            assert (await api("GET", "/v1/entries?namespace=theirs", token=token))[0] == 403
            # Not by another way either.
            for where in ("namespace%3Dtheirs", f"key%3D{theirs.key}"):
                _, told = await api("GET", f"/v1/entries?namespace=mine&where={where}", token=token)
                assert told["entries"] == []
            _, told = await api("GET", f"/v1/entries?namespace=mine&id={theirs.id}", token=token)
            assert told["entries"] == []
            assert (await api("GET", "/v1/stats", token=token))[0] == 403
            assert (await api("GET", "/v1/stats?namespace=theirs", token=token))[0] == 403
            assert (await api("GET", "/v1/stats?namespace=mine", token=token))[0] == 200
            absent = await api("GET", f"/v1/entries/{'0' * 32}", token=token)
            assert absent[0] == 404
            # Whether it exists is not told.
            assert await api("GET", f"/v1/entries/{theirs.id}", token=token) == absent
            pin = await api("PUT", f"/v1/entries/{theirs.id}/pin", token=token, body={"pinned": True})
            assert pin == absent
            for path, body in (("/v1/invalidate", {}), ("/v1/gc", {"number": 0})):
                for namespace in ({}, {"namespace": "theirs"}, {"namespace": None}):
                    assert (await api("POST", path, token=token, body={**body, **namespace}))[0] == 403
        body = {"namespace": "mine", "id": theirs.id}
        assert (await api("POST", "/v1/invalidate", token=reader, body={"namespace": "mine"}))[0] == 403
        assert (await api("PUT", f"/v1/entries/{mine.id}/pin", token=reader, body={"pinned": True}))[0] == 404
        assert (await api("POST", "/v1/invalidate", token=editor, body=body))[1]["invalidated"] == 0
        assert (await api("PUT", f"/v1/entries/{mine.id}/pin", token=editor, body={"pinned": True}))[0] == 200
    assert await entries.get(theirs.id) == theirs


async def test_when_nobody_can_be_asked_nobody_is_let_in(serve, entries):
    namespaces = Namespaces((TOKEN, "list", None))
    async with serve(namespaces) as api:
        assert (await api("GET", "/v1/entries"))[0] == 200
        namespaces.away = True
        assert (await api("GET", "/v1/entries"))[0] == 503


@pytest.mark.parametrize(
    "query",
    [
        "limit=0", "limit=501", "limit=-1", "limit=x", "limit=1&limit=2", "limit=%EF%BC%91", "after=x",
        "after=1-%00", "after=99999999999999999999-a", "where=size%3D3", "where=template",
        "where=template%3D%00", "where=parameter.%3D1", "id=XYZ", "id=" + "a" * 33, "namespace=",
        "namespace=A", "namespace=a%2F..%2Fb", "other=1", "where=" + "x" * 3000,
        "&".join(["where=template%3Dx"] * 21),
    ],
)  # fmt: skip
async def test_a_query_that_is_not_as_described_is_refused(api, query):
    assert (await api("GET", f"/v1/entries?{query}"))[0] == 400


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/invalidate", b""), ("/v1/invalidate", b"{"), ("/v1/invalidate", b"[]"),
        ("/v1/invalidate", b"\xff"),
        ("/v1/invalidate", b'{"namespaces": "x"}'), ("/v1/invalidate", b'{"namespace": 1}'),
        ("/v1/invalidate", b'{"where": ["template=\\u0000"]}'), ("/v1/invalidate", b'{"namespace": ""}'),
        ("/v1/gc", b'{"age": "soon"}'), ("/v1/gc", b'{"age": "-P1D"}'), ("/v1/gc", b'{"number": -1}'),
        ("/v1/gc", b'{"number": true}'), ("/v1/gc", b'{"dry_run": "yes"}'), ("/v1/gc", b"[" * 5000),
    ],
)  # fmt: skip
async def test_a_body_that_is_not_as_described_is_refused_and_does_nothing(api, entries, path, body):
    kept = entry()
    await entries.put(kept)
    headers = {"Content-Type": "application/json"}
    assert (await api("POST", path, data=body, headers=headers))[0] == 400
    assert await entries.get(kept.id) == kept


async def test_what_is_no_json_too_large_or_not_there_is_refused(api):
    assert (await api("POST", "/v1/gc", data=b"{}", headers={"Content-Type": "text/plain"}))[0] == 415
    large = b'{"where": ["' + b"x" * 70_000 + b'"]}'
    assert (await api("POST", "/v1/gc", data=large, headers={"Content-Type": "application/json"}))[0] == 413
    assert (await api("GET", "/v2/entries"))[0] == 404
    assert (await api("DELETE", "/v1/entries"))[0] == 405
    assert (await api("GET", "/v1/entries/not-an-id"))[0] == 404


async def test_a_database_that_does_not_answer_is_said_without_more(api, entries):
    await entries.sql.close()
    broken = entries.sql.database.engine
    async with broken.begin() as connection:
        await connection.exec_driver_sql("DROP TABLE entries")
    assert await api("GET", "/v1/entries") == (503, {"error": "the database of entries did not answer"})


async def test_tokens_are_read_again_when_their_file_changes(serve, tmp_path):
    path = tmp_path / "rotating"
    path.write_text("first-token-of-two")
    async with serve(TokenFile(str(path))) as api:
        assert (await api("GET", "/v1/entries", token="first-token-of-two"))[0] == 200
        (tmp_path / "next").write_text("second-token-of-two\nthird-token-of-two\n")
        (tmp_path / "next").rename(path)
        assert (await api("GET", "/v1/entries", token="first-token-of-two"))[0] == 401
        assert (await api("GET", "/v1/entries", token="third-token-of-two"))[0] == 200
        path.unlink()
        assert (await api("GET", "/v1/entries", token="third-token-of-two"))[0] == 503


@pytest.mark.parametrize("content", ["", "short", "a-token-that-is-long-enough short"])
def test_a_file_with_a_short_token_or_none_is_refused(tmp_path, content):
    (tmp_path / "tokens").write_text(content)
    with pytest.raises(ValueError, match="expected tokens of 16 characters or more"):
        check_api(Settings(api_port=0, api_token_file=str(tmp_path / "tokens")))


def test_an_api_that_lets_nobody_in_is_refused():
    with pytest.raises(ValueError, match="somebody must be let in"):
        check_api(Settings(api_port=0, api_kubernetes=False))
    check_api(Settings())


async def test_the_webhooks_client_certificates_are_not_asked_for_here(entries, tls, tmp_path):
    context = server_context(str(tls / "cache-server.crt"), str(tls / "cache-server.key"))
    require_clients(context, str(tls / "ca.crt"))
    (tmp_path / "tokens").write_text(TOKEN)
    api = EntriesApi(Catalog(entries.sql.database), TokenFile(str(tmp_path / "tokens")))
    port = await api.start("127.0.0.1", 0, sharing_certificate(context))
    trusted = ssl.create_default_context(cafile=str(tls / "ca.crt"))
    async with aiohttp.ClientSession() as session:
        for place in ("127.0.0.1", "localhost"):
            url = f"https://{place}:{port}/openapi.json"
            async with session.get(url, ssl=trusted) as answer:
                assert answer.status == 200
        with pytest.raises(aiohttp.ClientError):
            await session.get(f"http://127.0.0.1:{port}/openapi.json")
    await api.stop()


def test_every_route_is_described_and_every_description_is_a_route():
    app = EntriesApi(None, None).app()
    routes = {
        (route.method, route.resource.canonical) for route in app.router.routes() if route.method != "HEAD"
    }
    told = {(m.upper(), path) for path, operations in DESCRIPTION["paths"].items() for m in operations}
    assert routes == told
