"""Database URLs as people write them, and the engines that serve them.

A URL can hold a password: no error and no log repeats one, `describe` says which database is meant.
"""

import logging
import math
import sqlite3
import ssl
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import URL, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

Kind = Literal["sqlite", "mysql", "postgresql"]

_KINDS: dict[str, Kind] = {
    "sqlite": "sqlite",
    "mysql": "mysql",
    "mariadb": "mysql",
    "postgresql": "postgresql",
    "postgres": "postgresql",
}
DRIVERS: dict[Kind, str] = {
    "sqlite": "sqlite+aiosqlite",
    "mysql": "mysql+asyncmy",
    "postgresql": "postgresql+asyncpg",
}
_EXPECTED = (
    "sqlite:///PATH, mysql://USER:PASSWORD@HOST:PORT/NAME or postgresql://USER:PASSWORD@HOST:PORT/NAME"
)

VERIFIED, UNVERIFIED = "true", "skip-verify"
"""Values of the parameter `tls`, in the words of Go's driver for MySQL: the certificate of the server is
checked against the authorities of the system (or those of $SSL_CERT_FILE), or it is not."""

_CONNECTIONS = 16
"""Connections of one process at most: decisions and recordings under way share them, and a server's
100 (PostgreSQL) or 151 (MariaDB) connections suffice for several replicas."""

_POOL: dict[str, Any] = {
    "pool_size": _CONNECTIONS // 4,
    "max_overflow": _CONNECTIONS // 4,
    # A server that was restarted is found again: a connection is asked before it is used.
    "pool_pre_ping": True,
}
_ALONE: dict[str, Any] = {"pool_size": _CONNECTIONS // 2, "max_overflow": 0, "pool_pre_ping": False}
"""Statements that stand alone hold a connection for one answer only."""

_RECYCLE_SECONDS = 1800
"""Age at which a connection is made anew: below the idle limits of servers and load balancers."""

_CONNECT_SECONDS = 10
"""How long the driver tries to connect; a call's own deadline is shorter."""

_SQL_MODE = "STRICT_TRANS_TABLES,NO_ENGINE_SUBSTITUTION"
"""MySQL and MariaDB: refuse what does not fit instead of cutting it off, whatever the server's default."""


def parse_url(url: str) -> URL:
    """The parts of a database URL.

    Raises ValueError for another URL; the message holds its scheme at most, since URLs hold passwords.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # The cause is left out: it can repeat the URL.
        raise ValueError(f"database: expected {_EXPECTED}, got no URL") from None
    if parsed.drivername not in _KINDS:
        raise ValueError(f"database: expected {_EXPECTED}, got the scheme {parsed.drivername!r}")
    if _KINDS[parsed.drivername] == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise ValueError("database: expected sqlite:///PATH, got no path")
        return parsed
    missing = [name for name in ("username", "host", "database") if not getattr(parsed, name)]
    if missing:
        raise ValueError(f"database: expected {_EXPECTED}, got no {' and no '.join(missing)}")
    if unknown := parsed.query.keys() - {"tls"}:
        given = ", ".join(sorted(unknown))
        raise ValueError(f"database: expected {_EXPECTED} and no parameters, got {given}")
    if parsed.query.get("tls", VERIFIED) not in (VERIFIED, UNVERIFIED):
        raise ValueError(f"database: expected tls={VERIFIED} or tls={UNVERIFIED}, or no tls")
    return parsed


def target_of(url: str) -> tuple[URL, dict[str, Any]]:
    """A server's URL as its driver takes it, and the arguments of a connection that belong to it.

    Where TLS is asked for, a server that offers none is an error and no plain connection.
    """
    parsed = parse_url(url)
    target = parsed.set(drivername=DRIVERS[_KINDS[parsed.drivername]], query={})
    if "tls" not in parsed.query:
        return target, {}
    context = ssl.create_default_context()
    if parsed.query["tls"] == UNVERIFIED:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return target, {"ssl": context}


def kind_of(url: str) -> Kind:
    """Which database a URL is of. Raises ValueError as `parse_url` does."""
    return _KINDS[parse_url(url).drivername]


def describe(url: str) -> str:
    """Which database a URL means, for people: a path, or the URL without its password."""
    parsed = parse_url(url)
    if _KINDS[parsed.drivername] == "sqlite":
        return str(database_path(url))
    return URL.create(
        parsed.drivername, parsed.username, None, parsed.host, parsed.port, parsed.database
    ).render_as_string()


def database_path(url: str) -> Path:
    """The file of a `sqlite:///PATH` URL. Raises ValueError for another URL."""
    parsed = parse_url(url)
    if parsed.drivername != "sqlite" or not parsed.database:
        raise ValueError(f"database: expected sqlite:///PATH, got the scheme {parsed.drivername!r}")
    return Path(parsed.database)


def create_reader(url: str, *, busy_timeout: float) -> AsyncEngine:
    """An engine for statements that read and stand alone: each costs one message and its answer.

    A connection is not asked whether it lives before it is used: whoever reads must try again.
    """
    options: dict[str, Any] = {
        "isolation_level": "AUTOCOMMIT", "skip_autocommit_rollback": True, "pool_reset_on_return": None,
    }  # fmt: skip
    match kind_of(url):
        case "sqlite":
            return _sqlite_engine(url, busy_timeout, read_only=True, **options)
        case "mysql":
            return _mysql_engine(url, busy_timeout, read_only=True, **options, **_ALONE)
        case "postgresql":
            return _postgresql_engine(url, busy_timeout, read_only=True, **options, **_ALONE)


def create_engine(url: str, *, busy_timeout: float, read_only: bool = False) -> AsyncEngine:
    """An engine for a database URL; nothing is opened yet.

    `busy_timeout` (seconds) is how long a statement waits for another writer. The engine never puts
    a statement's values into an error or a log.
    """
    match kind_of(url):
        case "sqlite":
            return _sqlite_engine(url, busy_timeout, read_only)
        case "mysql":
            return _mysql_engine(url, busy_timeout, read_only)
        case "postgresql":
            return _postgresql_engine(url, busy_timeout, read_only)


def _sqlite_engine(url: str, busy_timeout: float, read_only: bool, **options: Any) -> AsyncEngine:
    query = {"mode": "ro" if read_only else "rwc", "uri": "true"}
    target = URL.create(DRIVERS["sqlite"], database=database_path(url).absolute().as_uri(), query=query)
    engine = create_async_engine(target, hide_parameters=True, **options)

    def on_connect(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {int(busy_timeout * 1000)}")
        # In WAL mode a crash of the machine can lose the last commits, but never the database.
        cursor.execute("PRAGMA synchronous = NORMAL")
        cursor.close()

    event.listen(engine.sync_engine, "connect", on_connect)
    return engine


def _mysql_engine(url: str, busy_timeout: float, read_only: bool, **options: Any) -> AsyncEngine:
    session = [
        f"SET SESSION sql_mode = '{_SQL_MODE}'",
        # Whole seconds are the server's unit.
        f"SET SESSION innodb_lock_wait_timeout = {math.ceil(busy_timeout)}",
        *(["SET SESSION TRANSACTION READ ONLY"] if read_only else []),
    ]
    engine = _server_engine(
        url,
        # Whatever the default of the database, of the server or of a configuration file.
        {"charset": "utf8mb4", "connect_timeout": _CONNECT_SECONDS},
        # Without locks on the gaps between keys, writers of different keys hardly ever deadlock.
        **{"isolation_level": "READ COMMITTED", **options},
    )

    def on_connect(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        for statement in session:
            cursor.execute(statement)
        cursor.close()

    event.listen(engine.sync_engine, "connect", on_connect)
    return engine


def _postgresql_engine(url: str, busy_timeout: float, read_only: bool, **options: Any) -> AsyncEngine:
    session = {
        "application_name": "memopod",
        "lock_timeout": str(int(busy_timeout * 1000)),
        "default_transaction_read_only": "on" if read_only else "off",
    }
    return _server_engine(url, {"server_settings": session, "timeout": _CONNECT_SECONDS}, **options)


def _server_engine(url: str, connect_args: dict[str, Any], **options: Any) -> AsyncEngine:
    target, arguments = target_of(url)
    return create_async_engine(
        target,
        connect_args={**connect_args, **arguments},
        hide_parameters=True,
        pool_timeout=_CONNECT_SECONDS,
        pool_recycle=_RECYCLE_SECONDS,
        **{**_POOL, **options},
    )


# The driver logs the server's warnings, which can repeat values; what matters is an error in strict mode.
logging.getLogger("asyncmy").setLevel(logging.ERROR)

_TELLING_STATES = ("08", "25", "28", "3D", "40", "42", "53", "55", "57")
"""Classes of PostgreSQL's SQLSTATEs whose messages hold names and limits, but no row's values."""

_TELLING_NUMBERS = frozenset(
    {1005, 1007, 1008, 1040, 1044, 1045, 1049, 1050, 1053, 1061, 1064, 1071, 1118, 1129, 1130, 1142, 1146}
    | {1153, 1158, 1159, 1160, 1161, 1203, 1205, 1213, 1226, 1290, 1698, 1792, 1836, 1927}
    | set(range(2000, 2060))
)
"""MySQL's and MariaDB's errors of which the same is true."""

_TRANSIENT_STATES = frozenset({"40001", "40P01"})
_TRANSIENT_NUMBERS = frozenset({1205, 1213})


def cause_of(error: BaseException) -> str:
    """What went wrong in the database's own words, in one line, without the statement or a value."""
    original = _original(error)
    text = str(original).partition("\n")[0]
    if (state := _state(original)) is not None:
        return text if state.startswith(_TELLING_STATES) and text else f"SQLSTATE {state}"
    if (number := _number(original)) is not None:
        return str(original.args[1]).partition("\n")[0] if number in _TELLING_NUMBERS else f"error {number}"
    if isinstance(original, sqlite3.Error | OSError) and text:
        return text
    return type(original).__name__


def is_transient(error: BaseException) -> bool:
    """Whether a server gave a transaction up in favour of another: it may succeed when tried again."""
    original = _original(error)
    return _state(original) in _TRANSIENT_STATES or _number(original) in _TRANSIENT_NUMBERS


def _original(error: BaseException) -> BaseException:
    """The driver's error; what SQLAlchemy makes of asyncpg's is unwrapped too."""
    original = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    cause = original.__cause__
    return cause if cause is not None and _state(cause) is not None else original


def _state(error: BaseException) -> str | None:
    state = getattr(error, "sqlstate", None)
    return state if isinstance(state, str) else None


def _number(error: BaseException) -> int | None:
    """The error's number where it is one of MySQL's drivers: (number, message)."""
    if isinstance(error, OSError) or len(error.args) != 2:
        return None
    number, message = error.args
    return number if isinstance(number, int) and isinstance(message, str) else None
