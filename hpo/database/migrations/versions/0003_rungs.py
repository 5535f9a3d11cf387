"""The table of the rungs that trials have reached, and the new name of the pruner that never promotes.

A migration imports nothing from the package: the package may change, and a migration may not.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table, and keep the studies of the pruner `asha` with the pruner that they were created with."""
    op.create_table(
        "hpo_rungs",
        sa.Column("trial_id", sa.Integer, sa.ForeignKey("trials.trial_id", ondelete="CASCADE"), primary_key=True),
        sa.Column("rung", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("value", sa.Double, nullable=False),
        sa.Column("promoted", sa.Boolean, nullable=False),
    )
    _rename_pruner("asha", "asha-stop")


def downgrade() -> None:
    """Drop the table, and give the pruner its former name."""
    _rename_pruner("asha-stop", "asha")
    op.drop_table("hpo_rungs")


def _rename_pruner(before: str, after: str) -> None:
    attributes = sa.table("study_user_attributes", *map(sa.column, ("study_id", "key", "value_json")))
    ours = sa.select(attributes.c.study_id).where(attributes.c.key == "search space")
    op.execute(
        attributes.update()
        .where(attributes.c.study_id.in_(ours), attributes.c.key == "pruner", attributes.c.value_json == f'"{before}"')
        .values(value_json=f'"{after}"')
    )
