import asyncio
import sqlite3
from contextlib import closing
from importlib.resources import files

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from cache_server.entries import migrate, open_entries
from cache_server.entries.databases import create_engine
from cache_server.entries.migrations import check_schema
from cache_server.entries.schema import metadata


async def test_a_new_database_has_the_schema_that_the_program_expects(url):
    await migrate(url)
    engine = create_engine(url, busy_timeout=1)
    async with engine.connect() as connection:
        differences = await connection.run_sync(
            lambda sync: compare_metadata(MigrationContext.configure(sync), metadata)
        )
    await engine.dispose()
    assert differences == []
    await check_schema(url)


async def test_migrating_again_keeps_the_entries(url, make_entry):
    entry = make_entry()
    async with open_entries(url) as entries:
        await entries.put(entry)
    await migrate(url)
    async with open_entries(url) as entries:
        assert await entries.get(entry.id) == entry


async def test_several_may_migrate_at_once(url):
    await asyncio.gather(*(migrate(url) for _ in range(5)))
    await check_schema(url)


async def test_readers_do_not_wait_for_the_writer(sqlite_url, tmp_path):
    await migrate(sqlite_url)
    with closing(sqlite3.connect(tmp_path / "cache.db")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


async def test_a_failed_migration_leaves_nothing_half_done(sqlite_url, tmp_path):
    with closing(sqlite3.connect(tmp_path / "cache.db")) as connection:
        connection.execute("CREATE TABLE entries_pod_uid (x)")
        connection.commit()
    with pytest.raises(OSError, match="entries_pod_uid"):
        await migrate(sqlite_url)
    with closing(sqlite3.connect(tmp_path / "cache.db")) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    assert tables == [("entries_pod_uid",)]


async def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(OSError, match=r"cannot write beside the database.*absent/cache\.db"):
        await migrate(f"sqlite:///{tmp_path}/absent/cache.db")


async def test_a_folder_in_place_of_the_database_is_named(tmp_path):
    (tmp_path / "cache.db").mkdir()
    with pytest.raises(OSError, match=r"cannot open the database .*cache\.db: unable to open"):
        await migrate(f"sqlite:///{tmp_path}/cache.db")


async def test_a_file_that_is_no_database_is_named(tmp_path):
    (tmp_path / "cache.db").write_text("not a database, but text that is long enough to be looked at")
    with pytest.raises(OSError, match="file is not a database"):
        await migrate(f"sqlite:///{tmp_path}/cache.db")


async def test_a_database_of_a_newer_version_is_refused(url, database):
    await migrate(url)
    database.query("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(OSError, match="written by another version of memopod"):
        await migrate(url)
    with pytest.raises(OSError, match="has schema version 9999, expected"):
        await check_schema(url)


async def test_reading_creates_no_database(sqlite_url, tmp_path):
    with pytest.raises(FileNotFoundError, match="no database at"):
        async with open_entries(sqlite_url, read_only=True):
            pass
    assert list(tmp_path.iterdir()) == []


async def test_reading_a_database_without_the_schema_says_so(url, database):
    database.query("CREATE TABLE other (x INTEGER)")
    with pytest.raises(OSError, match="holds no entries' schema"):
        await check_schema(url)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("cache.db", "got no URL"),
        ("sqlite://", "got no path"),
        ("sqlite:///:memory:", "got no path"),
        ("oracle://root:hunter2@db/cache", "got the scheme 'oracle'"),
        ("mysql://root:hunter2@db", "got no database"),
        ("postgresql://:hunter2@/cache", "got no username and no host"),
        ("postgresql://root:hunter2@db/cache?passfile=hunter2", "no parameters, got passfile"),
        ("mysql://root:hunter2@db/cache?tls=hunter2", "expected tls=true or tls=skip-verify"),
        ("mysql://root:hunter2@db:port/cache", "got no URL"),
    ],
)
async def test_an_unsupported_url_is_refused_without_repeating_it(given, told):
    with pytest.raises(ValueError, match=told) as raised:
        await migrate(given)
    assert "hunter2" not in str(raised.value)


def test_the_environment_is_packaged_with_the_program():
    packaged = {file.name for file in (files("cache_server.entries") / "migrations").iterdir()}
    assert {"env.py", "script.py.mako", "versions"} <= packaged
