"""From settings to the core's own configuration: which database, and what to do with its schema."""

import re
import sqlite3
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import structlog
from google.protobuf import text_format
from ml_metadata.proto import metadata_store_pb2

from metadata_store.settings import Settings

_NONE_GIVEN = (
    "no database given: expected --database sqlite:///PATH, mysql://USER@HOST/NAME or "
    "postgresql://USER@HOST/NAME, or upstream's --mysql_config_*, --postgres_config_* or "
    "--metadata_store_server_config_file"
)


def server_config(settings: Settings) -> metadata_store_pb2.MetadataStoreServerConfig:
    """The configuration that the settings describe: `--database`, else upstream's flags.

    Raises ValueError if they describe none or a wrong one, and OSError if the configuration file cannot
    be read. No message holds a password.
    """
    config = metadata_store_pb2.MetadataStoreServerConfig()
    kind = settings.metadata_source_config_type
    if kind not in {"default", "config_file", "mysql", "postgresql"}:
        raise ValueError(
            f"--metadata_source_config_type: expected default, config_file, mysql or postgresql, got {kind!r}"
        )
    if settings.metadata_store_server_config_file:
        _read_file(settings.metadata_store_server_config_file, config)
    if settings.database:
        config.connection_config.CopyFrom(from_url(settings.database))
    elif kind == "mysql" or (kind == "default" and settings.mysql_config_host):
        _mysql_flags(settings, config.connection_config)
    elif kind == "postgresql" or (kind == "default" and settings.postgres_config_host):
        _postgresql_flags(settings, config.connection_config)
    if config.connection_config.WhichOneof("config") in {None, "fake_database"}:
        raise ValueError(_NONE_GIVEN)
    _check(config.connection_config)
    if settings.enable_database_upgrade:
        config.migration_options.enable_upgrade_migration = True
    if settings.downgrade_db_schema_version >= 0:
        config.migration_options.downgrade_to_schema_version = settings.downgrade_db_schema_version
    return config


def from_url(url: str) -> metadata_store_pb2.ConnectionConfig:
    """A database URL as the core's ConnectionConfig. As elsewhere, `sqlite:////x` is an absolute path.

    Raises ValueError; its message holds no password.
    """
    parts = urlsplit(url)
    scheme = parts.scheme.partition("+")[0]
    config = metadata_store_pb2.ConnectionConfig()
    if scheme == "sqlite":
        path = unquote(parts.path.removeprefix("/"))
        if parts.netloc or not path or path == ":memory:":
            raise ValueError("--database: expected sqlite:///PATH; a database in memory cannot be shared")
        config.sqlite.filename_uri = str(Path(path).absolute())
        config.sqlite.connection_mode = metadata_store_pb2.SqliteMetadataSourceConfig.READWRITE_OPENCREATE
    elif scheme in {"mysql", "mariadb"}:
        _mysql_url(parts, config)
    elif scheme in {"postgresql", "postgres"}:
        _postgresql_url(parts, config)
    else:
        raise ValueError(f"--database: expected sqlite, mysql or postgresql, got {parts.scheme!r}")
    return config


def for_core(config: metadata_store_pb2.ConnectionConfig) -> metadata_store_pb2.ConnectionConfig:
    """The configuration as the core must have it: it pastes PostgreSQL's values into libpq's connection
    string (`keyword=value ...`) as they are, so a password with a blank in it would not get through.
    """
    result = metadata_store_pb2.ConnectionConfig()
    result.CopyFrom(config)
    if result.WhichOneof("config") == "postgresql":
        for part in (result.postgresql, result.postgresql.ssloption):
            for field, value in part.ListFields():
                if field.type != field.TYPE_STRING or field.name == "dbname":  # it is pasted into SQL, too
                    continue
                if not value:
                    part.ClearField(field.name)
                elif re.search(r"[\s'\\]", value):
                    setattr(part, field.name, "'" + re.sub(r"(['\\])", r"\\\1", value) + "'")
    return result


def _check(config: metadata_store_pb2.ConnectionConfig) -> None:
    """Raise ValueError for what would make the core abort its process."""
    if config.WhichOneof("config") == "mysql":
        if bool(config.mysql.host) == bool(config.mysql.socket) or not config.mysql.database:
            raise ValueError("MySQL: expected a database and either a host or a socket")
    elif config.WhichOneof("config") == "postgresql":
        postgresql = config.postgresql
        if not postgresql.port:
            postgresql.port = "5432"
        if bool(postgresql.host) == bool(postgresql.hostaddr):
            raise ValueError("PostgreSQL: expected either a host or a hostaddr")
        if not postgresql.dbname or not postgresql.user:
            raise ValueError("PostgreSQL: expected a database's name and a user")


def prepare_sqlite(config: metadata_store_pb2.ConnectionConfig) -> str | None:
    """Make the file ready for readers beside a writer; returns its path, or None for another database.

    Write-ahead logging is a property of the file. Without it a reader and a writer shut each other out
    for hundreds of milliseconds at a time. Raises OSError if the file cannot be opened for writing.
    """
    if config.WhichOneof("config") != "sqlite":
        return None
    path: str = config.sqlite.filename_uri
    if not path or path == ":memory:":
        raise ValueError(_NONE_GIVEN)
    try:
        connection = sqlite3.connect(path, timeout=10)
        try:
            (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
            connection.execute("BEGIN IMMEDIATE").connection.rollback()
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise OSError(f"cannot open the database {path} for writing: {error}") from error
    if mode != "wal":
        structlog.get_logger().warning(
            "reads and writes will wait for each other: no write-ahead log here", path=path, journal_mode=mode
        )
    return path


def write_ahead(path: str) -> bool:
    """Whether SQLite's file has a write-ahead log. Read from its header: opening and closing the file with
    Python's own library would drop locks that the core holds in this process.
    """
    with Path(path).open("rb") as file:
        return file.read(20)[18:20] == b"\x02\x02"


def describe(config: metadata_store_pb2.ConnectionConfig) -> str:
    """Which database is meant, without its password."""
    kind = config.WhichOneof("config")
    if kind == "sqlite":
        return str(config.sqlite.filename_uri)
    if kind == "mysql":
        mysql = config.mysql
        return f"mysql://{mysql.user}@{mysql.host or mysql.socket}:{mysql.port or 3306}/{mysql.database}"
    postgresql = config.postgresql
    where = f"{postgresql.host or postgresql.hostaddr}:{postgresql.port}"
    return f"postgresql://{postgresql.user}@{where}/{postgresql.dbname}"


def opened_again(config: metadata_store_pb2.ConnectionConfig) -> metadata_store_pb2.ConnectionConfig:
    """The same database, but a SQLite file that has vanished is not made anew, empty."""
    again = metadata_store_pb2.ConnectionConfig()
    again.CopyFrom(config)
    if again.WhichOneof("config") == "sqlite":
        again.sqlite.connection_mode = metadata_store_pb2.SqliteMetadataSourceConfig.READWRITE
    return again


def _read_file(path: str, config: metadata_store_pb2.MetadataStoreServerConfig) -> None:
    text = Path(path).read_text(encoding="utf-8")
    try:
        text_format.Parse(text, config)
    except text_format.ParseError as error:
        # The parser's message may quote a value; its line and column are enough to find the place.
        where = f"line {error.GetLine()}, column {error.GetColumn()}"
        raise ValueError(f"{path}: not a MetadataStoreServerConfig as text protobuf ({where})") from None


def _mysql_url(parts: SplitResult, config: metadata_store_pb2.ConnectionConfig) -> None:
    mysql = config.mysql
    mysql.host = parts.hostname or ""
    mysql.port = parts.port or 0
    mysql.user = unquote(parts.username or "")
    mysql.password = unquote(parts.password or "")
    mysql.database = _name(parts)
    for key, value in parse_qsl(parts.query):
        if key == "socket":
            mysql.socket = value
        elif key in {"ssl_key", "ssl_cert", "ssl_ca", "ssl_capath", "ssl_cipher"}:
            setattr(mysql.ssl_options, key.removeprefix("ssl_"), value)
        elif key == "ssl_verify_server_cert":
            mysql.ssl_options.verify_server_cert = value.lower() == "true"
        elif key != "charset":
            raise ValueError(
                "--database: expected socket, ssl_key, ssl_cert, ssl_ca, ssl_capath, ssl_cipher or "
                f"ssl_verify_server_cert after the question mark, got {key!r}"
            )


def _postgresql_url(parts: SplitResult, config: metadata_store_pb2.ConnectionConfig) -> None:
    postgresql = config.postgresql
    postgresql.host = parts.hostname or ""
    postgresql.port = str(parts.port or 5432)
    postgresql.user = unquote(parts.username or "")
    postgresql.password = unquote(parts.password or "")
    postgresql.dbname = _name(parts)
    for key, value in parse_qsl(parts.query):
        if key in {"hostaddr", "passfile", "host"}:
            setattr(postgresql, key, value)
        elif key in {"sslmode", "sslcert", "sslkey", "sslpassword", "sslrootcert"}:
            setattr(postgresql.ssloption, key, value)
        elif key == "skip_db_creation":
            postgresql.skip_db_creation = value.lower() == "true"
        else:
            raise ValueError(
                "--database: expected host, hostaddr, passfile, sslmode, sslcert, sslkey, sslpassword, "
                f"sslrootcert or skip_db_creation after the question mark, got {key!r}"
            )


def _name(parts: SplitResult) -> str:
    name = unquote(parts.path.removeprefix("/"))
    if not name:
        raise ValueError(f"--database: expected {parts.scheme}://USER@HOST:PORT/NAME, got no name")
    return name


def _mysql_flags(settings: Settings, config: metadata_store_pb2.ConnectionConfig) -> None:
    for field in ("host", "database", "user"):
        if not getattr(settings, f"mysql_config_{field}"):
            raise ValueError(f"--mysql_config_{field}: expected a value, since MySQL was chosen")
    for field in ("host", "port", "database", "user", "password"):
        setattr(config.mysql, field, getattr(settings, f"mysql_config_{field}"))


def _postgresql_flags(settings: Settings, config: metadata_store_pb2.ConnectionConfig) -> None:
    for field in ("dbname", "user"):
        if not getattr(settings, f"postgres_config_{field}"):
            raise ValueError(f"--postgres_config_{field}: expected a value, since PostgreSQL was chosen")
    for field in ("host", "hostaddr", "port", "user", "password", "passfile", "dbname", "skip_db_creation"):
        value = getattr(settings, f"postgres_config_{field}")
        if value:
            setattr(config.postgresql, field, value)
    for field in ("sslmode", "sslcert", "sslkey", "sslpassword", "sslrootcert"):
        value = getattr(settings, f"postgres_config_{field}")
        if value:
            setattr(config.postgresql.ssloption, field, value)
