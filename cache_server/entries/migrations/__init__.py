"""The schema's versions: an Alembic environment (`env.py`, `versions/`) that is run by the program.

`migrate` brings a database to the newest version, `check_schema` only looks. To change the schema,
change `schema.py`, add a file to `versions/`, and the tests compare the two.

One process migrates at a time. SQLite's lock is a file beside the database, the servers' are theirs
(GET_LOCK, pg_advisory_xact_lock), held by the connection that migrates: whatever ends the holder ends
its lock.
"""

import asyncio
import fcntl
import hashlib
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import SQLAlchemyError

from cache_server.entries.databases import cause_of, create_engine, database_path, describe, kind_of

NEWEST = "0003"
"""The schema's version: that of the last file in `versions/`."""

_LOCK_TIMEOUT = 30.0
"""Seconds to wait for another process that migrates; one that takes longer is stuck."""

_READ_TIMEOUT = 1.0
"""Seconds that a reader waits for a lock; in WAL mode there is hardly ever one."""

_CHECK_TIMEOUT = 10.0
"""Seconds for a look at the schema, connecting included."""

_MIGRATION_TIMEOUT = 600.0
"""Seconds for all of a migration: a large table that is rewritten takes minutes."""

_POLL = 0.05
"""Seconds between two tries for the lock, which cannot be waited for with a deadline."""


_ADVISORY_KEY = int.from_bytes(b"memopod")
"""Of PostgreSQL's lock, which is one database's."""


async def migrate(url: str) -> None:
    """Bring the database at `url` to the newest schema; create SQLite's if need be.

    Safe to be called by several processes at once, and again. Raises ValueError for an unsupported
    URL, and OSError for a database that cannot be opened or written, or was written by a newer
    version of memopod.
    """
    if kind_of(url) == "sqlite":
        path = database_path(url)
        async with _file_lock(path.with_name(path.name + ".lock")):
            # Readers don't wait for the writer in WAL mode; it stays with the file.
            await _probe(path, "rwc", "PRAGMA journal_mode = WAL")
            await _migrate(url)
    else:
        await _migrate(url)


async def _migrate(url: str) -> None:
    engine = create_engine(url, busy_timeout=_LOCK_TIMEOUT)
    try:
        async with asyncio.timeout(_MIGRATION_TIMEOUT), engine.connect() as connection:
            await connection.run_sync(_upgrade)
            await connection.commit()
    except TimeoutError as error:
        raise OSError(f"the database {describe(url)} did not answer in time") from error
    except (SQLAlchemyError, OSError) as error:
        raise OSError(f"cannot open the database {describe(url)}: {cause_of(error)}") from error
    except _OtherVersion as error:
        raise OSError(
            f"the database {describe(url)} was written by another version of memopod: {error}; "
            "use that version, or another database"
        ) from error
    finally:
        await engine.dispose()


async def check_schema(url: str) -> None:
    """Raise OSError unless the database at `url` is there and has this program's schema."""
    name = describe(url)
    if kind_of(url) == "sqlite":
        path = database_path(url)
        if not path.is_file():
            raise FileNotFoundError(f"no database at {path}; the cache server creates it when it starts")
        await _probe(path, "ro", "PRAGMA schema_version")
    engine = create_engine(url, busy_timeout=_READ_TIMEOUT, read_only=True)
    try:
        async with asyncio.timeout(_CHECK_TIMEOUT), engine.connect() as connection:
            found = await connection.run_sync(_revision)
    except TimeoutError as error:
        raise OSError(f"the database {name} did not answer in time") from error
    except (SQLAlchemyError, OSError) as error:
        raise OSError(f"cannot open the database {name}: {cause_of(error)}") from error
    finally:
        await engine.dispose()
    if found is None:
        raise OSError(f"{name} holds no entries' schema; the cache server creates it when it starts")
    if found != NEWEST:
        raise OSError(
            f"{name} has schema version {found}, expected {NEWEST}; "
            "the cache server brings an older one up to date when it starts"
        )


async def _probe(path: Path, mode: str, statement: str) -> None:
    """Run one statement on a connection of its own, and raise OSError if the file cannot be opened.

    A connection that aiosqlite fails to open leaves a thread, which can outlive the event loop and
    then prints a traceback: so what is going to fail shall fail here.
    """

    def run() -> None:
        target = f"{path.absolute().as_uri()}?mode={mode}"
        with closing(sqlite3.connect(target, uri=True, timeout=_LOCK_TIMEOUT)) as connection:
            connection.execute(statement)

    try:
        await asyncio.to_thread(run)
    except sqlite3.Error as error:
        raise OSError(f"cannot open the database {path}: {error}") from error


class _OtherVersion(Exception):
    """The schema's version is none that this program knows."""


def _upgrade(connection: Connection) -> None:
    match connection.dialect.name:
        case "sqlite":
            # The driver begins a transaction before it writes rows, but not before it changes the schema.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        case "mysql":
            _lock_mysql(connection)
        case "postgresql":
            _lock_postgresql(connection)
    if _revision(connection) != NEWEST:
        _run_versions(connection)


def _run_versions(connection: Connection) -> None:
    # Alembic takes a third of a second to load, and only the first start of a version needs it.
    import alembic.command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", "cache_server.entries:migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    try:
        alembic.command.upgrade(config, "head")
    except CommandError as error:
        raise _OtherVersion(str(error)) from error


def _lock_mysql(connection: Connection) -> None:
    # The lock is the server's, not the database's; its name may have 64 characters. It ends with the
    # connection, which is closed after the migration.
    database = connection.engine.url.database or ""
    name = f"memopod:{hashlib.sha256(database.encode()).hexdigest()[:32]}"
    statement = text("SELECT GET_LOCK(:name, :seconds)")
    if connection.scalar(statement, {"name": name, "seconds": int(_LOCK_TIMEOUT)}) != 1:
        raise OSError(f"another process has held the lock of the migration for {_LOCK_TIMEOUT:g} s")


def _lock_postgresql(connection: Connection) -> None:
    encoding = connection.scalar(text("SHOW server_encoding"))
    if encoding != "UTF8":
        raise OSError(f"its encoding is {encoding}; create it with ENCODING 'UTF8'")
    # Waits as long as the connection's lock_timeout says, and ends with the transaction.
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_KEY})


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return revision


@asynccontextmanager
async def _file_lock(path: Path) -> AsyncIterator[None]:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise OSError(
            error.errno, f"cannot write beside the database ({error.strerror})", str(path)
        ) from error
    try:
        try:
            async with asyncio.timeout(_LOCK_TIMEOUT):
                while not _try_lock(descriptor):  # noqa: ASYNC110  no event tells of a file lock
                    await asyncio.sleep(_POLL)
        except TimeoutError as error:
            raise OSError(f"another process has held {path} for {_LOCK_TIMEOUT:g} s") from error
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
