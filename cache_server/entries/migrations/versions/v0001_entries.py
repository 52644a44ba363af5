"""The table of the entries."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0001"
down_revision = None

_INDEXES = {
    "entries_namespace_key": ["namespace", "entry_key"],
    "entries_pod_uid": ["pod_uid"],
    "entries_namespace_pod_name": ["namespace", "pod_name"],
    "entries_namespace_workflow": ["namespace", "workflow"],
    "entries_finished_at": ["finished_at"],
}


def upgrade() -> None:
    """Create it."""
    # MySQL and MariaDB commit every statement: go on where an attempt that was killed has ended.
    commits_each = op.get_bind().dialect.name == "mysql"
    long_text = sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")
    op.create_table(
        "entries",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("namespace", sa.String(63), nullable=False),
        sa.Column("entry_key", sa.String(128), nullable=False),
        sa.Column("key_version", sa.Integer, nullable=False),
        sa.Column("components", long_text, nullable=False),
        sa.Column("template_name", sa.String(253), nullable=False),
        sa.Column("workflow", sa.String(253), nullable=False),
        sa.Column("workflow_uid", sa.String(64), nullable=False),
        sa.Column("node_id", sa.String(253), nullable=False),
        sa.Column("pod_name", sa.String(253), nullable=False),
        sa.Column("pod_uid", sa.String(64), nullable=False),
        sa.Column("image_id", sa.Text, nullable=False),
        sa.Column("outputs", long_text, nullable=False),
        sa.Column("execution_id", sa.BigInteger),
        sa.Column("started_at", sa.BigInteger, nullable=False),
        sa.Column("finished_at", sa.BigInteger, nullable=False),
        sa.Column("recorded_at", sa.BigInteger, nullable=False),
        sa.Column("last_used_at", sa.BigInteger),
        sa.Column("uses", sa.BigInteger, nullable=False),
        sa.Column("max_staleness_seconds", sa.BigInteger),
        if_not_exists=commits_each,
        mysql_engine="InnoDB",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_row_format="DYNAMIC",
    )
    present = _indexes() if commits_each else set()
    for name, columns in _INDEXES.items():
        if name not in present:
            op.create_index(name, "entries", columns, unique=name == "entries_namespace_key")


def _indexes() -> set[str | None]:
    return {index["name"] for index in sa.inspect(op.get_bind()).get_indexes("entries")}


def downgrade() -> None:
    """Drop it."""
    op.drop_table("entries")
