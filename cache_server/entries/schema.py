"""The tables, in types that SQLite, MariaDB and PostgreSQL share."""

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    false,
    text,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.types import TypeDecorator

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

LongText = Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")
"""Outputs can exceed the 64 KiB of MariaDB's TEXT."""


class Instant(TypeDecorator[datetime]):
    """An aware UTC datetime, stored as microseconds since 1970: no database changes or rounds those."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _dialect: Dialect) -> int | None:
        """To microseconds. Raises TypeError for a naive datetime."""
        return None if value is None else (value - EPOCH) // timedelta(microseconds=1)

    def process_result_value(self, value: Any | None, _dialect: Dialect) -> datetime | None:
        """From microseconds."""
        return None if value is None else EPOCH + timedelta(microseconds=value)


metadata = MetaData()

_MYSQL: dict[str, Any] = {
    "mysql_engine": "InnoDB",
    # Whatever the database's default: a step may put out any character, and names differ in case.
    "mysql_charset": "utf8mb4",
    "mysql_collate": "utf8mb4_bin",
    "mysql_row_format": "DYNAMIC",
}

# An index of MariaDB holds 3072 bytes, at 4 bytes a character: 768 characters for all its columns.
# Kubernetes allows 63 characters in a namespace's name and 253 in other names.
entries = Table(
    "entries",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("namespace", String(63), nullable=False),
    Column("entry_key", String(128), nullable=False),
    Column("key_version", Integer, nullable=False),
    Column("components", LongText, nullable=False),
    Column("template_name", String(253), nullable=False),
    Column("workflow", String(253), nullable=False),
    Column("workflow_uid", String(64), nullable=False),
    Column("node_id", String(253), nullable=False),
    Column("pod_name", String(253), nullable=False),
    Column("pod_uid", String(64), nullable=False),
    Column("image_id", Text, nullable=False),
    Column("outputs", LongText, nullable=False),
    Column("execution_id", BigInteger),
    Column("started_at", Instant, nullable=False),
    Column("finished_at", Instant, nullable=False),
    Column("recorded_at", Instant, nullable=False),
    Column("last_used_at", Instant),
    Column("uses", BigInteger, nullable=False),
    Column("max_staleness_seconds", BigInteger),
    Column("pinned", Boolean, nullable=False, server_default=false()),
    # When it was recorded or last used, whichever is later: what a use extends.
    Column("active_at", Instant, nullable=False, server_default=text("0")),
    # How many entries of its key it followed: above 0, something may be remembered of an earlier one.
    Column("replaced", Integer, nullable=False, server_default=text("0")),
    Index("entries_namespace_key", "namespace", "entry_key", unique=True),
    Index("entries_pod_uid", "pod_uid"),
    Index("entries_namespace_pod_name", "namespace", "pod_name"),
    Index("entries_namespace_workflow", "namespace", "workflow"),
    Index("entries_finished_at", "finished_at"),
    Index("entries_namespace_active_at", "namespace", "active_at"),
    Index("entries_namespace_template", "namespace", "template_name", "finished_at"),
    **_MYSQL,
)

# What everybody who remembers an entry compares: see `cache_server.entries.layers`.
tokens = Table(
    "tokens",
    metadata,
    Column("namespace", String(63), primary_key=True),
    Column("token", String(32), nullable=False),
    **_MYSQL,
)

decisions = Table(
    "decisions",
    metadata,
    # Days since 1970, UTC.
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("namespace", String(63), primary_key=True),
    Column("template_name", String(253), primary_key=True),
    Column("reason", String(63), primary_key=True),
    Column("decided", BigInteger, nullable=False),
    Column("saved_ms", BigInteger, nullable=False),
    **_MYSQL,
)

# How far an import has come: the rows from `top_id` down to `cursor_id` are in, those down to `bottom_id`
# (without it) are still to come.
imports = Table(
    "imports",
    metadata,
    Column("source", String(255), primary_key=True),
    Column("namespace", String(63), primary_key=True),
    Column("top_id", BigInteger, nullable=False),
    Column("cursor_id", BigInteger, nullable=False),
    Column("bottom_id", BigInteger, nullable=False),
    **_MYSQL,
)
