"""The table of secrets, with the key that signs workers' notes."""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table, and draw the key."""
    table = op.create_table(
        "hpo_secrets",
        sa.Column("name", sa.String(16), primary_key=True),
        sa.Column("secret", sa.String(64), nullable=False),
    )
    op.execute(table.insert().values(name="notes", secret=secrets.token_hex(32)))


def downgrade() -> None:
    """Drop the table."""
    op.drop_table("hpo_secrets")
