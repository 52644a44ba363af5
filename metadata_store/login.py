"""Why the core cannot open its MySQL database: it says nothing, but another client can tell."""

import asyncio
import os
import re
import ssl
from pathlib import Path

import asyncmy
from asyncmy.errors import MySQLError
from ml_metadata.proto import metadata_store_pb2

PLUGINS = "/usr/lib/x86_64-linux-gnu/libmariadb3/plugin"
"""Where Debian's libmariadb3 keeps what logs in with caching_sha2_password (MySQL 8.4, 9) and ed25519."""

_SECONDS = 10.0
_NO_PLUGIN = 2059  # CR_AUTH_PLUGIN_CANNOT_LOAD
_WITHOUT_NATIVE = 9  # the major version of MySQL that dropped mysql_native_password

_UNCHECKED = (
    "ml-metadata's client takes no server's certificate where verify_server_cert is set, this one's neither, "
    "though it is in order; without, the connection is encrypted, but no certificate is checked"
)


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
            connection = await asyncmy.connect(
                user=mysql.user, password=mysql.password, ssl=_tls(mysql.ssl_options), **where
            )
    except (MySQLError, OSError, TimeoutError, RuntimeError) as trouble:
        if "plugin" in str(trouble).lower() or (trouble.args and trouble.args[0] == _NO_PLUGIN):
            return _advice(mysql.user, str(trouble.args[-1]), "")
        return " ".join(str(part) for part in trouble.args) or type(trouble).__name__
    version = connection.get_server_info()
    await connection.ensure_closed()
    if mysql.ssl_options.verify_server_cert:
        return _UNCHECKED
    return _advice(mysql.user, "another client could log in", version)


def _tls(
    options: "metadata_store_pb2.MySQLDatabaseConfig.SSLOptions",
) -> ssl.SSLContext | None:
    """TLS as the core's client has it with these options."""
    if not options.ListFields():
        return None
    context = ssl.create_default_context(cafile=options.ca or None, capath=options.capath or None)
    if not options.verify_server_cert:  # then it checks nothing, whatever authority it was given
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if options.cert:
        context.load_cert_chain(options.cert, options.key or None)
    return context


def _advice(user: str, why: str, version: str) -> str:
    name = user.replace("'", "")
    said = f"ml-metadata's client cannot log in as {name!r} ({why})"
    folder = Path(os.environ.get("MARIADB_PLUGIN_DIR", PLUGINS))
    if (folder / "caching_sha2_password.so").is_file():
        plugin = f"its plug-in for caching_sha2_password is in {folder}, so the server's log may say more"
    else:
        plugin = f"install libmariadb3, which has caching_sha2_password for it ({folder} has not)"
    major = re.match(r"\d+", version)
    if major is not None and int(major[0]) >= _WITHOUT_NATIVE:
        return f"{said}: {plugin}; MySQL {major[0]} has no mysql_native_password any more"
    return (
        f"{said}: {plugin}, or have a user that needs no plug-in: "
        f"CREATE USER '{name}'@'%' IDENTIFIED WITH mysql_native_password BY '...' "
        "(MySQL 8.4 wants mysql_native_password=ON in its configuration for that; MySQL 9 has it no more)"
    )
