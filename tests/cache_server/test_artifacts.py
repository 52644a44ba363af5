import asyncio
import shutil
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from aiohttp import web
from obstore.store import MemoryStore

from cache_server.artifacts import Artifacts, ArtifactState, ArtifactStoreUnavailable, unchanged
from memopod.steps import Location, OutputArtifact

MD5 = "9e107d9d372bb6826bd81d3542a419d6"


def at(key, bucket="pipelines"):
    return Location("s3", "minio:9000", bucket, key)


@pytest.fixture
def bucket(tmp_path):
    folder = tmp_path / "pipelines"
    folder.mkdir()
    return folder


@pytest.fixture
def artifacts(bucket):
    return Artifacts.from_settings([f"minio:9000/pipelines=file://{bucket}"])


async def test_an_object_is_described_by_size_and_etag(artifacts, bucket):
    (bucket / "run").mkdir()
    (bucket / "run" / "model.tgz").write_bytes(b"12345")
    state = await artifacts.describe(at("run/model.tgz"))
    assert state.size == 5
    assert state.etag
    assert not state.etag.startswith('"')


async def test_a_local_etag_is_no_identity_of_content(artifacts, bucket):
    (bucket / "model").write_bytes(b"12345")
    assert (await artifacts.describe(at("model"))).content is None


async def test_an_object_written_over_is_another_one(artifacts, bucket):
    (bucket / "model").write_bytes(b"12345")
    before = await artifacts.describe(at("model"))
    (bucket / "model").unlink()
    (bucket / "model").write_bytes(b"54321")
    assert (await artifacts.describe(at("model"))).etag != before.etag


async def test_what_is_not_there_is_none(artifacts, bucket):
    (bucket / "model-1").mkdir()
    (bucket / "model-1" / "part").write_bytes(b"1")
    assert await artifacts.describe(at("model")) is None
    assert await artifacts.describe(at("model/")) is None
    assert await artifacts.describe(at("a/b/c")) is None


async def test_a_folder_is_described_by_all_that_is_in_it(artifacts, bucket):
    (bucket / "data" / "deep").mkdir(parents=True)
    (bucket / "data" / "a").write_bytes(b"12")
    (bucket / "data" / "deep" / "b").write_bytes(b"345")
    state = await artifacts.describe(at("data"))
    assert state.size == 5
    assert state.etag.startswith("sha256:")
    assert state.content is None
    assert await artifacts.describe(at("data/")) == state
    (bucket / "data" / "deep" / "c").write_bytes(b"")
    added = await artifacts.describe(at("data"))
    assert added.etag != state.etag
    (bucket / "data" / "deep" / "c").rename(bucket / "data" / "c")
    assert (await artifacts.describe(at("data"))).etag != added.etag


async def test_a_bucket_that_vanished_is_unavailable_and_not_empty(artifacts, bucket):
    shutil.rmtree(bucket)
    with pytest.raises(ArtifactStoreUnavailable, match="minio:9000/pipelines"):
        await artifacts.describe(at("model"))


async def test_a_location_of_no_configured_store_is_unavailable(artifacts):
    assert artifacts.configured
    assert artifacts.knows(at("x"))
    assert not artifacts.knows(at("x", "other"))
    with pytest.raises(ArtifactStoreUnavailable, match="no object store is configured"):
        await artifacts.describe(at("x", "other"))
    assert not Artifacts({}).configured


@pytest.mark.parametrize("key", ["/model", "run//model", "run/../model", ""])
async def test_a_key_that_cannot_be_asked_for_exactly_is_unavailable(artifacts, bucket, key):
    (bucket / "model").write_bytes(b"1")
    with pytest.raises(ArtifactStoreUnavailable):
        await artifacts.describe(at(key))


async def test_stores_can_be_handed_in():
    store = MemoryStore()
    await store.put_async("run/a", b"123")
    artifacts = Artifacts({("minio:9000", "pipelines"): store})
    assert (await artifacts.describe(at("run/a"))).size == 3
    assert (await artifacts.describe(at("run"))).size == 3
    assert await artifacts.describe(at("ru")) is None


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("pipelines", "expected ENDPOINT/BUCKET=URL"),
        ("minio:9000/=file:///tmp", "expected ENDPOINT/BUCKET=URL"),
        ("minio:9000/b=", "expected ENDPOINT/BUCKET=URL"),
        ("minio:9000/b=ftp://host/b", "got the scheme 'ftp'"),
        ("minio:9000/b=s3://b?secret_access_key=hunter2", "got secret_access_key"),
    ],
)
def test_a_setting_that_is_none_is_refused_without_its_secrets(line, told):
    with pytest.raises(ValueError, match=told) as raised:
        Artifacts.from_settings([line])
    assert "hunter2" not in str(raised.value)


def test_a_bucket_given_twice_is_refused(bucket):
    with pytest.raises(ValueError, match="given twice"):
        Artifacts.from_settings([f"e/b=file://{bucket}"] * 2)


def test_a_folder_that_is_not_there_is_an_error_at_start(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"'e/b': there is no folder .*absent"):
        Artifacts.from_settings([f"e/b=file://{tmp_path}/absent"])


class TestOverHttp:
    """What an S3 server's answers mean; the server here gives just those answers."""

    @pytest.fixture(autouse=True)
    def credentials(self, monkeypatch):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "reader")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")

    @staticmethod
    @asynccontextmanager
    async def serving(handler, **options):
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handler)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        url = f"s3://pipelines?endpoint=http://127.0.0.1:{port}&region=us-east-1"
        try:
            yield Artifacts.from_settings([f"minio:9000/pipelines={url}"], **options)
        finally:
            await runner.cleanup()

    @staticmethod
    def answer(etag, size=3):
        headers = {
            "ETag": etag,
            "Content-Length": str(size),
            "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT",
        }
        return web.Response(headers=headers)

    @pytest.mark.parametrize(
        ("etag", "content"),
        [
            (f'"{MD5}"', f"md5:{MD5}"),
            (f'"{MD5}-2"', None),
            (f'"{MD5[:-1]}"', None),
            (f'"{MD5[:-1]}g"', None),
            (f'W/"{MD5}"', None),
        ],
    )
    async def test_only_an_md5_is_an_identity_of_content(self, etag, content):
        async def handle(request):
            assert request.method == "HEAD"
            assert "reader" in request.headers["Authorization"]
            return self.answer(etag)

        async with self.serving(handle) as artifacts:
            state = await artifacts.describe(at("run/model"))
        assert (state.size, state.content) == (3, content)

    @pytest.mark.parametrize(("last", "told"), [(MD5, True), (f"{MD5}-2", False)])
    async def test_a_folder_has_an_identity_of_content_if_all_in_it_has(self, last, told):
        async def handle(request):
            if request.method == "HEAD":
                return web.Response(status=404)
            assert request.query["prefix"] == "run/data/"
            members = "".join(
                f"<Contents><Key>run/data/{name}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
                f"<ETag>&quot;{etag}&quot;</ETag><Size>4</Size></Contents>"
                for name, etag in (("a", MD5), ("b", last))
            )
            return web.Response(
                text=f"<ListBucketResult><IsTruncated>false</IsTruncated>{members}</ListBucketResult>",
                content_type="application/xml",
            )

        async with self.serving(handle) as artifacts:
            state = await artifacts.describe(at("run/data"))
        assert state.size == 8
        assert state.content == (state.etag if told else None)

    @pytest.mark.parametrize("status", [401, 403, 500, 503])
    async def test_a_refusal_is_not_an_absence(self, status):
        async def handle(_request):
            return web.Response(status=status)

        async with self.serving(handle) as artifacts:
            with pytest.raises(ArtifactStoreUnavailable):
                await artifacts.describe(at("model"))

    async def test_a_bucket_that_does_not_exist_is_not_an_absence(self):
        async def handle(_request):
            return web.Response(status=404, text="<Error><Code>NoSuchBucket</Code></Error>")

        async with self.serving(handle) as artifacts:
            with pytest.raises(ArtifactStoreUnavailable):
                await artifacts.describe(at("model"))

    async def test_a_store_that_does_not_answer_is_given_up_at_the_deadline(self):
        async def handle(_request):
            await asyncio.Event().wait()

        async with self.serving(handle, call_timeout=0.3) as artifacts:
            async with asyncio.timeout(3):
                with pytest.raises(ArtifactStoreUnavailable):
                    await artifacts.describe(at("model"))

    async def test_only_so_many_questions_are_asked_at_once(self):
        under_way, most = 0, 0

        async def handle(_request):
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0.02)
            under_way -= 1
            return self.answer(f'"{MD5}"')

        async with self.serving(handle, concurrency=2, call_timeout=10) as artifacts:
            await asyncio.gather(*(artifacts.describe(at(f"run/{n}")) for n in range(10)))
        assert most == 2


STORED = OutputArtifact(name="model", location=at("m"), reported={}, size=3, etag=MD5 + "-2", digest=None)
WRITTEN = datetime(2026, 1, 1, tzinfo=UTC)
STATE = ArtifactState(3, MD5 + "-2", None, WRITTEN)


def test_the_same_size_and_etag_are_unchanged():
    assert unchanged(STORED, STATE)


def test_the_same_content_is_unchanged():
    stored = replace(STORED, etag="one", digest="md5:" + MD5)
    assert unchanged(stored, ArtifactState(3, "other", "md5:" + MD5, WRITTEN))
    assert not unchanged(stored, ArtifactState(3, "one", "md5:" + MD5[::-1], WRITTEN))


@pytest.mark.parametrize(
    ("stored", "state"),
    [
        (STORED, None),
        (STORED, replace(STATE, size=4)),
        (STORED, replace(STATE, etag=MD5)),
        (STORED, replace(STATE, etag=None)),
        (replace(STORED, size=None), STATE),
        (replace(STORED, etag=None), STATE),
        (replace(STORED, etag=None), replace(STATE, etag=None)),
    ],
)
def test_anything_else_is_changed(stored, state):
    assert not unchanged(stored, state)


def test_a_key_in_a_file_is_the_stores_unless_the_environment_has_one(tmp_path, monkeypatch):
    file = tmp_path / "credentials"
    file.write_text("[default]\naws_access_key_id = id-of-file\naws_secret_access_key = secret-of-file\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    line = "minio:9000/pipelines=s3://pipelines?endpoint=http://127.0.0.1:1&region=us-east-1"

    def key():
        return Artifacts.from_settings([line]).stores["minio:9000", "pipelines"].config["access_key_id"]

    assert key() == "id-of-file"
    monkeypatch.setenv("AWS_PROFILE", "other")
    with pytest.raises(ValueError, match=r"\[other\]") as refused:
        key()
    assert "secret-of-file" not in str(refused.value)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id-of-environment")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-environment")
    assert Artifacts.from_settings([line])
