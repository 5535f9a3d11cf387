"""The tables of attempts, curves, checkpoints, segments and parked trials."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create our tables next to Optuna's."""
    op.create_table(
        "hpo_attempts",
        sa.Column("attempt_id", sa.Integer, primary_key=True),
        sa.Column("trial_id", sa.Integer, sa.ForeignKey("trials.trial_id", ondelete="CASCADE"), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("worker", sa.String, nullable=False),
        sa.Column("host", sa.String, nullable=False),
        sa.Column("device", sa.String, nullable=False),
        sa.Column("claimed_s", sa.Double, nullable=False),
        sa.Column("lease_until_s", sa.Double, nullable=False),
        sa.Column("ended_s", sa.Double),
        sa.Column("outcome", sa.String),
        sa.Column("iteration", sa.Integer, nullable=False),
        sa.Column("trained_iterations", sa.Integer, nullable=False),
        sa.Column("val_accuracy", sa.Double),
        sa.Column("checkpoint_id", sa.Integer),
        sa.UniqueConstraint("trial_id", "number"),
    )
    op.create_index("ix_hpo_attempts_open", "hpo_attempts", ["ended_s", "lease_until_s"])
    op.create_table(
        "hpo_curve_points",
        sa.Column("trial_id", sa.Integer, sa.ForeignKey("trials.trial_id", ondelete="CASCADE"), primary_key=True),
        sa.Column("iteration", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("train_loss", sa.Double, nullable=False),
        sa.Column("val_loss", sa.Double, nullable=False),
        sa.Column("val_accuracy", sa.Double, nullable=False),
    )
    op.create_table(
        "hpo_checkpoints",
        sa.Column("checkpoint_id", sa.Integer, primary_key=True),
        sa.Column("segment", sa.String(64), nullable=False),
        sa.Column("iteration", sa.Integer, nullable=False),
        sa.Column("curve", sa.Text, nullable=False),
        sa.Column("artifact_id", sa.String, nullable=False),
        sa.Column("size_bytes", sa.Integer, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("last_used_s", sa.Double, nullable=False),
        sa.UniqueConstraint("segment", "iteration"),
    )
    op.create_table(
        "hpo_segments",
        sa.Column("segment", sa.String(64), primary_key=True),
        sa.Column(
            "attempt_id", sa.Integer, sa.ForeignKey("hpo_attempts.attempt_id", ondelete="CASCADE"), nullable=False
        ),
    )
    op.create_table(
        "hpo_parked",
        sa.Column("trial_id", sa.Integer, sa.ForeignKey("trials.trial_id", ondelete="CASCADE"), primary_key=True),
        sa.Column("segment", sa.String(64), nullable=False),
        sa.Column("end", sa.Integer, nullable=False),
    )


def downgrade() -> None:
    """Drop our tables."""
    op.drop_table("hpo_parked")
    op.drop_table("hpo_segments")
    op.drop_table("hpo_checkpoints")
    op.drop_table("hpo_curve_points")
    op.drop_table("hpo_attempts")
