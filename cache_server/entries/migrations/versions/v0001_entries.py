"""The table of the entries."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create it."""
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
    )
    op.create_index("entries_namespace_key", "entries", ["namespace", "entry_key"], unique=True)
    op.create_index("entries_pod_uid", "entries", ["pod_uid"])
    op.create_index("entries_namespace_pod_name", "entries", ["namespace", "pod_name"])
    op.create_index("entries_namespace_workflow", "entries", ["namespace", "workflow"])
    op.create_index("entries_finished_at", "entries", ["finished_at"])


def downgrade() -> None:
    """Drop it."""
    op.drop_table("entries")
