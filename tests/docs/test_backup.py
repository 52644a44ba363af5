"""The commands of the guide, run as they stand there: what is saved is what is restored."""

import asyncio
import os
import re
import subprocess
import sys
import uuid
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
import sqlalchemy
from ml_metadata.proto import metadata_store_pb2 as mlmd
from sqlalchemy.ext.asyncio import create_async_engine

from cache_server.entries import migrate
from tests.metadata_store.conftest import StoreServer

DRIVERS = {"sqlite": "sqlite+aiosqlite", "mysql": "mysql+asyncmy", "postgresql": "postgresql+asyncpg"}
TITLES = {"sqlite": "SQLite", "mysql": "MariaDB, MySQL", "postgresql": "PostgreSQL"}
ROW = "INSERT INTO tokens (namespace, token) VALUES ('naïve', '0123456789abcdef')"


def command(page, kind, nth):
    """The nth code block that stands under the title of a kind of database."""
    return re.findall(rf"^{TITLES[kind]}[^\n]*:\n\n```sh\n(.+?)\n```", page, re.MULTILINE | re.DOTALL)[nth]


async def run(url, statement):
    engine = create_async_engine(url)
    try:
        async with engine.begin() as connection:
            result = await connection.execute(sqlalchemy.text(statement))
            return [tuple(row) for row in result] if result.returns_rows else []
    finally:
        await engine.dispose()


async def make(kind, server, admin, name):
    user = f"{server.user}:{quote(server.password, safe='')}@127.0.0.1:{server.port}"
    engine = create_async_engine(f"{DRIVERS[kind]}://{user}/{admin}", isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        await connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
    await engine.dispose()
    return f"{kind}://{user}/{name}"


KINDS = pytest.mark.parametrize("kind", ["sqlite", "mysql", "postgresql"])


@pytest.fixture
def place(kind, request, tmp_path, find_program):
    """Names of two databases of a kind, their URLs, and the environment of the guide's commands."""
    environment = dict(os.environ)
    if kind == "sqlite":
        old = new = str(tmp_path / "some.db")
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        return (old, new), [f"sqlite:///{old}"] * 2, environment
    old, new = (f"{name}_{uuid.uuid4().hex[:8]}" for name in ("old", "new"))
    server = request.getfixturevalue({"mysql": "mariadb"}.get(kind, kind))
    find_program({"mysql": "mariadb-dump", "postgresql": "pg_dump"}[kind], "the database's client")
    admin = {"mysql": "mysql", "postgresql": "postgres"}[kind]
    environment |= {"HOST": "127.0.0.1", "PORT": str(server.port), "USER": server.user}
    environment |= {"MYSQL_PWD": server.password, "PGPASSWORD": server.password}
    urls = [asyncio.run(make(kind, server, admin, name)) for name in (old, new)]
    return (old, new), urls, environment


@KINDS
def test_entries_are_saved_and_restored_by_the_commands_of_the_guide(kind, place, pages, tmp_path):
    page = pages["docs/operations.md"]
    (old, new), urls, environment = place
    drivers = [url.replace(kind, DRIVERS[kind], 1) for url in urls]
    asyncio.run(migrate(urls[0]))
    asyncio.run(run(drivers[0], ROW))

    shell(command(page, kind, 0), tmp_path, environment | {"DATABASE": old})
    asyncio.run(run(drivers[0], "DELETE FROM tokens"))
    shell(command(page, kind, 1), tmp_path, environment | {"DATABASE": new})

    assert asyncio.run(run(drivers[1], "SELECT namespace, token FROM tokens")) == [
        ("naïve", "0123456789abcdef")
    ]
    asyncio.run(migrate(urls[1]))  # its schema is the newest, with the version that says so


@KINDS
@pytest.mark.timeout(180)
def test_metadata_is_saved_while_the_store_runs_and_restored(kind, place, pages, tmp_path):
    page = pages["docs/operations.md"]
    (old, new), urls, environment = place
    with serving(tmp_path / "before", urls[0]) as client:
        record(client)
        saved = everything(client)
        shell(command(page, kind, 0), tmp_path, environment | {"DATABASE": old})
        record(client)  # after the backup: what is lost
        assert everything(client) != saved
    shell(command(page, kind, 1), tmp_path, environment | {"DATABASE": new})

    with serving(tmp_path / "after", urls[1]) as client:
        assert everything(client) == saved
        record(client)  # it goes on: no identifier is given twice
        artifacts = client.get_artifacts()
        assert len({artifact.id for artifact in artifacts}) == len(artifacts) == 2


@contextmanager
def serving(folder, url):
    """A client of a metadata store over a database."""
    folder.mkdir()
    store = StoreServer(folder, url=url).start()
    try:
        yield store.client()
    finally:
        store.stop()


def record(client):
    """A run with one step and its artifact, each with properties."""
    words = {"words": mlmd.Value(string_value="naïve 雪 \\ '")}
    a_type = client.put_artifact_type(mlmd.ArtifactType(name="Dataset"))
    e_type = client.put_execution_type(mlmd.ExecutionType(name="Step"))
    c_type = client.put_context_type(mlmd.ContextType(name="Run"))
    event = mlmd.Event(type=mlmd.Event.OUTPUT)
    event.path.steps.add(key="out")
    client.put_execution(
        mlmd.Execution(
            type_id=e_type, last_known_state=mlmd.Execution.COMPLETE,
            custom_properties={"took": mlmd.Value(double_value=1.5)},
        ),
        [(mlmd.Artifact(type_id=a_type, uri="s3://b/ö", custom_properties=words), event)],
        [mlmd.Context(type_id=c_type, name=uuid.uuid4().hex)],
    )  # fmt: skip


def everything(client):
    """All that the store holds, as text."""
    found = [
        *client.get_artifact_types(), *client.get_execution_types(), *client.get_context_types(),
        *client.get_artifacts(), *client.get_executions(), *client.get_contexts(),
        *client.get_events_by_execution_ids([execution.id for execution in client.get_executions()]),
    ]  # fmt: skip
    for context in client.get_contexts():
        found += client.get_artifacts_by_context(context.id) + client.get_executions_by_context(context.id)
    return sorted(map(str, found))


def shell(line, folder, environment):
    done = subprocess.run(
        ["bash", "-euc", line], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
