"""The store's settings: upstream's flags, and a few of our own."""

from dataclasses import dataclass

from memopod.service import setting


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Flags and environment of the metadata store.

    The flags with underscores are those of `ml_metadata_store_server`, with the same meaning.
    """

    grpc_port: int = setting(8080, "port of the gRPC service; 0 chooses a free one", env=["GRPC_PORT"])
    listen_address: str = setting(
        "", "address to listen on; empty means all, IPv4 and IPv6", aliases=["--listen_host"]
    )
    health_port: int | None = setting(
        None, "port of /healthz, /readyz and /metrics over HTTP; without it they are not served"
    )
    database: str | None = setting(
        None,
        "where the metadata lives: sqlite:///PATH, mysql://USER:PASSWORD@HOST:PORT/NAME "
        "or postgresql://USER:PASSWORD@HOST:PORT/NAME",
    )
    workers: int | None = setting(
        None,
        "worker processes, each with a store of its own. On SQLite one of them writes and the others read. "
        "One of those that read is kept for light calls (default: 4)",
    )
    queue_depth: int = setting(
        1000, "calls that may wait for a worker; further ones are answered UNAVAILABLE at once"
    )
    longest_call: float = setting(
        600.0,
        "seconds after which a call is given up and its worker replaced; clients' deadlines count first",
    )
    drain_seconds: float = setting(
        20.0, "seconds that calls under way get on SIGTERM; less than Kubernetes' 30 s grace"
    )
    access_log: bool = setting(
        False, "log a line a call: RPC, code, seconds, peer and sizes; never what was asked or answered"
    )
    log_level: str = setting("info", "debug, info, warning or error")

    grpc_channel_arguments: str = setting("", "gRPC channel arguments of the server, KEY=VALUE,...")
    metadata_source_config_type: str = setting(
        "default", "where the connection comes from: default, config_file, mysql or postgresql"
    )
    metadata_store_server_config_file: str = setting(
        "",
        "file with a MetadataStoreServerConfig as text protobuf",
        env=["METADATA_STORE_SERVER_CONFIG_FILE"],
    )
    metadata_store_connection_retries: int = setting(
        5, "attempts to open the database at start, a second apart"
    )
    enable_database_upgrade: bool = setting(False, "upgrade a database with an older schema")
    downgrade_db_schema_version: int = setting(
        -1, "downgrade the schema to this version and end; -1 does not"
    )

    mysql_config_host: str = setting("", "MySQL: host")
    mysql_config_port: int = setting(0, "MySQL: port; 0 is MySQL's own")
    mysql_config_database: str = setting("", "MySQL: database")
    mysql_config_user: str = setting("", "MySQL: user")
    mysql_config_password: str = setting("", "MySQL: password; better given in the environment")

    postgres_config_host: str = setting("", "PostgreSQL: host")
    postgres_config_hostaddr: str = setting("", "PostgreSQL: IP address, instead of a look-up of the host")
    postgres_config_port: str = setting("", "PostgreSQL: port")
    postgres_config_user: str = setting("", "PostgreSQL: user")
    postgres_config_password: str = setting("", "PostgreSQL: password; better given in the environment")
    postgres_config_passfile: str = setting("", "PostgreSQL: password file")
    postgres_config_dbname: str = setting("", "PostgreSQL: database")
    postgres_config_skip_db_creation: bool = setting(False, "PostgreSQL: do not try to create the database")
    postgres_config_sslmode: str = setting("", "PostgreSQL: sslmode, as libpq's")
    postgres_config_sslcert: str = setting("", "PostgreSQL: client certificate")
    postgres_config_sslkey: str = setting("", "PostgreSQL: client key")
    postgres_config_sslpassword: str = setting("", "PostgreSQL: password of the client key")
    postgres_config_sslrootcert: str = setting("", "PostgreSQL: certificate authorities")

    logtostderr: bool | None = setting(None, "accepted for upstream's sake: logs always go to stderr")
    minloglevel: int | None = setting(None, "accepted for upstream's sake: see --log-level")
    v: int | None = setting(None, "accepted for upstream's sake: see --log-level")

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"--workers: expected at least 1, got {self.workers}")
        if self.queue_depth < 1:
            raise ValueError(f"--queue-depth: expected at least 1, got {self.queue_depth}")

    def without_meaning(self) -> list[str]:
        """The flags that were given and that mean nothing here."""
        return [
            f"--{name}" for name in ("logtostderr", "minloglevel", "v") if getattr(self, name) is not None
        ]
