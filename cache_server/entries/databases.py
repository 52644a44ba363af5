"""Database URLs as people write them, and the engines that serve them."""

import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy import URL, event, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine


def database_path(url: str) -> Path:
    """The file of a `sqlite:///PATH` URL.

    Raises ValueError for another URL; the message holds its scheme only, since URLs hold passwords.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ValueError("database: expected sqlite:///PATH, got no URL") from error
    if parsed.drivername != "sqlite":
        raise ValueError(f"database: expected sqlite:///PATH, got the scheme {parsed.drivername!r}")
    if not parsed.database or parsed.database == ":memory:":
        raise ValueError("database: expected sqlite:///PATH, got no path")
    return Path(parsed.database)


def create_engine(url: str, *, busy_timeout: float, read_only: bool = False) -> AsyncEngine:
    """An engine for a `sqlite:///PATH` URL; nothing is opened yet.

    `busy_timeout` (seconds) is how long a statement waits for another writer. The engine never puts
    a statement's values into an error or a log.
    """
    path = database_path(url)
    query = {"mode": "ro" if read_only else "rwc", "uri": "true"}
    target = URL.create("sqlite+aiosqlite", database=path.absolute().as_uri(), query=query)
    engine = create_async_engine(target, hide_parameters=True)

    def on_connect(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {int(busy_timeout * 1000)}")
        # In WAL mode a crash of the machine can lose the last commits, but never the database.
        cursor.execute("PRAGMA synchronous = NORMAL")
        cursor.close()

    event.listen(engine.sync_engine, "connect", on_connect)
    return engine


def cause_of(error: BaseException) -> str:
    """What went wrong in the database's own words, in one line, without the statement."""
    original = getattr(error, "orig", None) or error
    text = str(original).partition("\n")[0]
    if isinstance(original, sqlite3.Error | OSError) and text:
        return text
    return type(original).__name__
