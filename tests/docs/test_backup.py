"""The commands of the guide, run as they stand there: what is saved is what is restored."""

import asyncio
import os
import re
import subprocess
import sys
import uuid
from pathlib import Path
from urllib.parse import quote

import pytest
import sqlalchemy
from sqlalchemy.ext.asyncio import create_async_engine

from cache_server.entries import migrate

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


@pytest.mark.parametrize("kind", ["sqlite", "mysql", "postgresql"])
def test_a_database_is_saved_and_restored_by_the_commands_of_the_guide(
    kind, pages, request, tmp_path, find_program
):
    page = pages["docs/operations.md"]
    old, new = (f"{name}_{uuid.uuid4().hex[:8]}" for name in ("old", "new"))
    environment = dict(os.environ)
    if kind == "sqlite":
        old = new = str(tmp_path / "cache.db")
        urls = [f"sqlite:///{old}"] * 2
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    else:
        server = request.getfixturevalue({"mysql": "mariadb"}.get(kind, kind))
        find_program({"mysql": "mariadb-dump", "postgresql": "pg_dump"}[kind], "the database's client")
        admin = {"mysql": "mysql", "postgresql": "postgres"}[kind]
        urls = [asyncio.run(make(kind, server, admin, name)) for name in (old, new)]
        environment |= {"HOST": "127.0.0.1", "PORT": str(server.port), "USER": server.user}
        environment |= {"MYSQL_PWD": server.password, "PGPASSWORD": server.password}
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


def shell(line, folder, environment):
    done = subprocess.run(
        ["bash", "-euc", line], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
