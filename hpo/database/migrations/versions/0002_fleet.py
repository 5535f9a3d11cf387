"""The tables of studies' states and of workers.

A migration imports nothing from the package: the package may change, and a migration may not.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

NOW_S = {
    "sqlite": "(julianday('now') - 2440587.5) * 86400.0",
    "postgresql": "extract(epoch from clock_timestamp())::double precision",
}
"""The database's clock in seconds since the epoch."""


def upgrade() -> None:
    """Create the tables, and mark every hpo study as running."""
    studies = op.create_table(
        "hpo_studies",
        sa.Column(
            "study_id",
            sa.Integer,
            sa.ForeignKey("studies.study_id", ondelete="CASCADE"),
            primary_key=True,
            autoincrement=False,
        ),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("changed_s", sa.Double, nullable=False),
    )
    op.create_table(
        "hpo_workers",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("host", sa.String, nullable=False),
        sa.Column("device", sa.String, nullable=False),
        sa.Column("study_id", sa.Integer),
        sa.Column("lease_s", sa.Double, nullable=False),
        sa.Column("seen_s", sa.Double, nullable=False),
    )
    now_s: sa.ColumnElement[float] = sa.literal_column(NOW_S[op.get_bind().dialect.name])
    attributes = sa.table("study_user_attributes", sa.column("study_id"), sa.column("key"))
    ours = sa.select(attributes.c.study_id, sa.literal("running"), now_s).where(attributes.c.key == "search space")
    op.execute(studies.insert().from_select(["study_id", "state", "changed_s"], ours))


def downgrade() -> None:
    """Drop the tables."""
    op.drop_table("hpo_workers")
    op.drop_table("hpo_studies")
