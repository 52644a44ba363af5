"""The schema's versions: an Alembic environment (`env.py`, `versions/`) that is run by the program.

`migrate` brings a database to the newest version, `check_schema` only looks. To change the schema,
change `schema.py`, add a file to `versions/`, and the tests compare the two.
"""

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import alembic.command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from cache_server.entries.databases import cause_of, create_engine, database_path

_LOCK_TIMEOUT = 30.0
"""Seconds to wait for another process that migrates; one that takes longer is stuck."""

_READ_TIMEOUT = 1.0
"""Seconds that a reader waits for a lock; in WAL mode there is hardly ever one."""

_POLL = 0.05
"""Seconds between two tries for the lock, which cannot be waited for with a deadline."""


async def migrate(url: str) -> None:
    """Bring the database at `url` (`sqlite:///PATH`) to the newest schema; create it if need be.

    Safe to be called by several processes at once, and again. Raises ValueError for an unsupported
    URL, and OSError for a database that cannot be opened or written, or was written by a newer
    version of memopod.
    """
    path = database_path(url)
    async with _file_lock(path.with_name(path.name + ".lock")):
        # Readers don't wait for the writer in WAL mode; it stays with the file.
        await _probe(path, "rwc", "PRAGMA journal_mode = WAL")
        engine = create_engine(url, busy_timeout=_LOCK_TIMEOUT)
        try:
            async with engine.connect() as connection:
                await connection.run_sync(_upgrade)
                await connection.commit()
        except SQLAlchemyError as error:
            raise OSError(f"cannot open the database {path}: {cause_of(error)}") from error
        except CommandError as error:
            raise OSError(
                f"the database {path} was written by another version of memopod: {error}; "
                "use that version, or another database"
            ) from error
        finally:
            await engine.dispose()


async def check_schema(url: str) -> None:
    """Raise OSError unless the database at `url` is there and has this program's schema."""
    path = database_path(url)
    if not path.is_file():
        raise FileNotFoundError(f"no database at {path}; the cache server creates it when it starts")
    await _probe(path, "ro", "PRAGMA schema_version")
    engine = create_engine(url, busy_timeout=_READ_TIMEOUT, read_only=True)
    try:
        async with engine.connect() as connection:
            found = await connection.run_sync(_revision)
    except SQLAlchemyError as error:
        raise OSError(f"cannot open the database {path}: {cause_of(error)}") from error
    finally:
        await engine.dispose()
    wanted = ScriptDirectory.from_config(_config()).get_current_head()
    if found is None:
        raise OSError(f"{path} holds no entries' schema; the cache server creates it when it starts")
    if found != wanted:
        raise OSError(
            f"{path} has schema version {found}, expected {wanted}; "
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


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "cache_server.entries:migrations")
    config.set_main_option("path_separator", "os")
    return config


def _upgrade(connection: Connection) -> None:
    # The driver begins a transaction before it writes rows, but not before it changes the schema.
    connection.exec_driver_sql("BEGIN IMMEDIATE")
    config = _config()
    config.attributes["connection"] = connection
    alembic.command.upgrade(config, "head")


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


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
