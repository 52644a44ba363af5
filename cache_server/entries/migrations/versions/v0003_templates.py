"""An index by template: what `memopod why` and previews compare a step with."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_INDEX = "entries_namespace_template"


def upgrade() -> None:
    """Add the index."""
    indexes = sa.inspect(op.get_bind()).get_indexes("entries")
    if _INDEX not in {index["name"] for index in indexes}:
        op.create_index(_INDEX, "entries", ["namespace", "template_name", "finished_at"])


def downgrade() -> None:
    """Take it back."""
    op.drop_index(_INDEX, "entries")
