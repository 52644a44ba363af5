"""Why the core cannot open its MySQL database: it says nothing, but another client can tell."""

import asyncio

import asyncmy
from asyncmy.errors import MySQLError
from ml_metadata.proto import metadata_store_pb2

_SECONDS = 10.0
_NO_PLUGIN = 2059  # CR_AUTH_PLUGIN_CANNOT_LOAD


async def reason(config: metadata_store_pb2.ConnectionConfig, error: Exception) -> str:
    """A line about why the database cannot be opened; the core's own where that says something."""
    text = str(error)
    if config.WhichOneof("config") != "mysql" or "mysql_real_connect failed" not in text:
        return text
    mysql = config.mysql
    where = (
        {"unix_socket": mysql.socket} if mysql.socket else {"host": mysql.host, "port": mysql.port or 3306}
    )
    try:
        async with asyncio.timeout(_SECONDS):
            connection = await asyncmy.connect(user=mysql.user, password=mysql.password, **where)
    except (MySQLError, OSError, TimeoutError, RuntimeError) as trouble:
        if "plugin" in str(trouble).lower() or (trouble.args and trouble.args[0] == _NO_PLUGIN):
            return _advice(mysql.user, str(trouble.args[-1]))
        return " ".join(str(part) for part in trouble.args) or type(trouble).__name__
    await connection.ensure_closed()
    return _advice(mysql.user, "another client could log in")


def _advice(user: str, why: str) -> str:
    name = user.replace("'", "")
    return (
        f"ml-metadata's client cannot log in as {name!r} ({why}): install libmariadb3, which has "
        "caching_sha2_password for it, or have a user that needs no plugin: "
        f"CREATE USER '{name}'@'%' IDENTIFIED WITH mysql_native_password BY '...' "
        "(MySQL 8.4 wants mysql_native_password=ON in its configuration for that; MySQL 9 has it no more)"
    )
