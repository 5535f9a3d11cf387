"""The ends of studies.

A migration imports nothing from the package: the package may change, and a migration may not.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; studies made before have no ends."""
    op.add_column("hpo_studies", sa.Column("ends", sa.Text, nullable=True))


def downgrade() -> None:
    """Drop the column."""
    op.drop_column("hpo_studies", "ends")
