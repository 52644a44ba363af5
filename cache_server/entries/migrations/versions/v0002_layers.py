"""Pins and retention, tokens for what is remembered of entries, counts of decisions, imports."""

import uuid

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_MYSQL = {
    "mysql_engine": "InnoDB",
    "mysql_charset": "utf8mb4",
    "mysql_collate": "utf8mb4_bin",
    "mysql_row_format": "DYNAMIC",
}
_INDEX = "entries_namespace_active_at"


def upgrade() -> None:
    """Add columns to the entries, and three tables."""
    connection = op.get_bind()
    # MySQL and MariaDB commit every statement: go on where an attempt that was killed has ended.
    commits_each = connection.dialect.name == "mysql"
    present = {column["name"] for column in sa.inspect(connection).get_columns("entries")}
    for column in (
        sa.Column("pinned", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("active_at", sa.BigInteger, nullable=False, server_default=sa.text("0")),
        sa.Column("replaced", sa.Integer, nullable=False, server_default=sa.text("0")),
    ):
        if column.name not in present:
            op.add_column("entries", column)
    op.execute(
        "UPDATE entries SET active_at = CASE WHEN last_used_at > recorded_at THEN last_used_at "
        "ELSE recorded_at END"
    )
    if _INDEX not in {index["name"] for index in sa.inspect(connection).get_indexes("entries")}:
        op.create_index(_INDEX, "entries", ["namespace", "active_at"])
    op.create_table(
        "tokens",
        sa.Column("namespace", sa.String(63), primary_key=True),
        sa.Column("token", sa.String(32), nullable=False),
        if_not_exists=commits_each,
        **_MYSQL,
    )
    op.create_table(
        "decisions",
        sa.Column("day", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("namespace", sa.String(63), primary_key=True),
        sa.Column("template_name", sa.String(253), primary_key=True),
        sa.Column("reason", sa.String(63), primary_key=True),
        sa.Column("decided", sa.BigInteger, nullable=False),
        sa.Column("saved_ms", sa.BigInteger, nullable=False),
        if_not_exists=commits_each,
        **_MYSQL,
    )
    op.create_table(
        "imports",
        sa.Column("source", sa.String(255), primary_key=True),
        sa.Column("namespace", sa.String(63), primary_key=True),
        sa.Column("top_id", sa.BigInteger, nullable=False),
        sa.Column("cursor_id", sa.BigInteger, nullable=False),
        sa.Column("bottom_id", sa.BigInteger, nullable=False),
        if_not_exists=commits_each,
        **_MYSQL,
    )
    _give_tokens(connection)


def _give_tokens(connection: sa.Connection) -> None:
    """A token for each namespace that has entries and none yet."""
    absent = sa.text(
        "SELECT DISTINCT namespace FROM entries WHERE namespace NOT IN (SELECT namespace FROM tokens)"
    )
    for (namespace,) in connection.execute(absent).all():
        connection.execute(
            sa.text("INSERT INTO tokens (namespace, token) VALUES (:namespace, :token)"),
            {"namespace": namespace, "token": uuid.uuid4().hex},
        )


def downgrade() -> None:
    """Take it back."""
    for table in ("imports", "decisions", "tokens"):
        op.drop_table(table)
    op.drop_index(_INDEX, "entries")
    with op.batch_alter_table("entries") as batch:
        for column in ("replaced", "active_at", "pinned"):
            batch.drop_column(column)
