import asyncio
import sqlite3
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote

import asyncmy
import asyncpg
import pytest

from cache_server.entries import Entry, open_entries
from cache_server.entries.shared import RedisLayer
from memopod.steps import Location, OutputArtifact, Outputs
from tests.cache_server.entries.replicas import PATIENT


def _make_entry(**changes):
    pod = changes.get("pod_name", "run-1-train-123")
    fields = {
        "id": uuid.uuid4().hex,
        "namespace": "pipelines",
        "key": "ab" * 32,
        "key_version": 1,
        "components": {"image": "12ab", "command": "34cd"},
        "template_name": "train",
        "workflow": "run-1",
        "workflow_uid": "7f1c",
        "node_id": "run-1-123",
        "pod_name": pod,
        "pod_uid": uuid.uuid4().hex,
        "image_id": "docker.io/library/python@sha256:12",
        "outputs": Outputs(
            parameters={"loss": 'naïve "0.1"\\\n'},
            artifacts=(
                OutputArtifact(
                    name="model",
                    location=Location("s3", "minio:9000", "pipelines", f"run-1/{pod}/model.tgz"),
                    reported={"name": "model", "s3": {"key": f"run-1/{pod}/model.tgz"}},
                    size=10,
                    etag="0" * 32,
                    digest="md5:" + "0" * 32,
                ),
            ),
            result="done",
        ),
        "execution_id": 2**40,
        "started_at": datetime(2026, 1, 2, 3, 4, 5, 123456, tzinfo=UTC),
        "finished_at": datetime(2026, 1, 2, 3, 5, 5, 654321, tzinfo=UTC),
        "recorded_at": datetime(2026, 1, 2, 3, 5, 6, tzinfo=UTC),
        "max_staleness_seconds": 3600,
    }
    return Entry(**{**fields, **changes})


@pytest.fixture
def make_entry():
    return _make_entry


@dataclass
class Database:
    """A database of its own for one test, and a way to it beside the program's."""

    kind: str
    url: str
    server: object = None
    name: str = ""

    def query(self, statement):
        """Run a statement; returns its rows as tuples."""
        if self.kind == "sqlite":
            with closing(sqlite3.connect(self.name)) as connection, connection:
                return connection.execute(statement).fetchall()
        # In a thread: tests are in an event loop, or not.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, self._query(statement)).result()

    async def connect(self):
        """A connection of the driver to the server."""
        server = self.server
        place = {"host": "127.0.0.1", "port": server.port, "user": server.user, "password": server.password}
        if self.kind == "mysql":
            return await asyncmy.connect(**place, db=self.name, charset="utf8mb4", autocommit=True)
        return await asyncpg.connect(**place, database=self.name)

    async def _query(self, statement):
        connection = await self.connect()
        if self.kind == "mysql":
            async with connection.cursor() as cursor:
                await cursor.execute(statement)
                rows = [] if cursor.description is None else await cursor.fetchall()
            await connection.ensure_closed()
            return list(rows)
        rows = await connection.fetch(statement)
        await connection.close()
        return [tuple(row) for row in rows]


def _database_on(server, kind, admin, options=""):
    name = f"t{uuid.uuid4().hex[:12]}"
    Database(kind, "", server, admin).query(f"CREATE DATABASE {name}{options}")
    scheme = {"mysql": "mysql", "postgresql": "postgresql"}[kind]
    url = f"{scheme}://{server.user}:{quote(server.password, safe='')}@127.0.0.1:{server.port}/{name}"
    return Database(kind, url, server, name)


@pytest.fixture
def sqlite_database(tmp_path):
    path = tmp_path / "cache.db"
    return Database("sqlite", f"sqlite:///{path}", None, str(path))


@pytest.fixture
def mysql_database(mariadb):
    return _database_on(mariadb, "mysql", "mysql")


@pytest.fixture
def postgresql_database(postgresql):
    return _database_on(postgresql, "postgresql", "postgres")


@pytest.fixture(params=["sqlite", "mysql", "postgresql"])
def database(request):
    return request.getfixturevalue(f"{request.param}_database")


@pytest.fixture(params=["mysql", "postgresql"])
def served(request):
    """A database of a server."""
    return request.getfixturevalue(f"{request.param}_database")


@pytest.fixture
def sqlite_url(sqlite_database):
    return sqlite_database.url


@pytest.fixture
def url(database):
    return database.url


@pytest.fixture
async def entries(url):
    async with open_entries(url) as opened:
        yield opened


@pytest.fixture
async def cleared(redis_server):
    """An empty Redis; its port."""
    redis = RedisLayer(f"redis://127.0.0.1:{redis_server.port}/0", timeout=PATIENT)
    await redis._client.flushall()
    await redis.close()
    return redis_server.port
