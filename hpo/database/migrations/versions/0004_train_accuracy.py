"""The training accuracy of curve points; those that were measured before have none."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.add_column("hpo_curve_points", sa.Column("train_accuracy", sa.Double))


def downgrade() -> None:
    """Drop the column."""
    op.drop_column("hpo_curve_points", "train_accuracy")
