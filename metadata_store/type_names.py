"""One type of a name on PostgreSQL, where the core lets two callers make two at once.

The core looks for a type and inserts it where there is none. On SQLite and MySQL its locks see to it that the
second caller finds the first one's type; on PostgreSQL both insert, and from then on nodes of one type are
spread over two, of which look-ups by name see one. An index refuses the second insert: the call is then tried
again and finds the type.
"""

import asyncio
from urllib.parse import quote

import asyncpg
import structlog
from ml_metadata.proto import metadata_store_pb2

INDEX = "memopod_one_type_of_a_name"
_SECONDS = 60.0
_LOCK_MILLISECONDS = 10_000  # others write types meanwhile
_MAKE = f"CREATE UNIQUE INDEX IF NOT EXISTS {INDEX} ON type (name, type_kind, coalesce(version, ''))"


async def keep_names_unique(config: metadata_store_pb2.ConnectionConfig) -> None:
    """Make the index, if the database is PostgreSQL and has none; a warning where that cannot be."""
    if config.WhichOneof("config") != "postgresql":
        return
    try:
        async with asyncio.timeout(_SECONDS):
            await _make(config.postgresql)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError, ValueError) as error:
        why = str(error) or type(error).__name__
        structlog.get_logger().warning(
            "callers that put one type at the same time may make two of it: no index", error=why, index=INDEX
        )


async def _make(config: "metadata_store_pb2.PostgreSQLDatabaseConfig") -> None:
    connection = await asyncpg.connect(_address(config), **_secrets(config), timeout=_SECONDS)
    try:
        there = await connection.fetchval("SELECT to_regclass($1)", INDEX)
        if there is None:
            await connection.execute(f"SET lock_timeout = {_LOCK_MILLISECONDS}")
            await connection.execute(_MAKE)
    finally:
        await connection.close(timeout=_SECONDS)


def _address(config: "metadata_store_pb2.PostgreSQLDatabaseConfig") -> str:
    options = [f"{field.name}={quote(value)}" for field, value in config.ssloption.ListFields() if value]
    return "postgresql://" + ("?" + "&".join(options) if options else "")


def _secrets(config: "metadata_store_pb2.PostgreSQLDatabaseConfig") -> dict[str, str | int]:
    values: dict[str, str | int] = {
        "host": config.host or config.hostaddr, "port": int(config.port or 5432), "user": config.user,
        "password": config.password, "passfile": config.passfile, "database": config.dbname,
    }  # fmt: skip
    return {name: value for name, value in values.items() if value}
