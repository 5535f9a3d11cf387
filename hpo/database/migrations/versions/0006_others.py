"""Trials that are lent to other clients, what studies were created with, and how many trials each is to have.

A migration imports nothing from the package: the package may change, and a migration may not.
"""

import json

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

studies = sa.table("hpo_studies", *map(sa.column, ("study_id", "name", "target", "settings")))
theirs = sa.table("studies", *map(sa.column, ("study_id", "study_name")))
shown = sa.table("study_user_attributes", *map(sa.column, ("study_id", "key", "value_json")))
trials = sa.table("trials", *map(sa.column, ("trial_id", "study_id", "number", "state")))
attributes = sa.table("trial_system_attributes", sa.column("trial_id"))
attempts = sa.table("hpo_attempts", *map(sa.column, ("trial_id", "outcome", "val_accuracy")))
values = sa.table("trial_values", *map(sa.column, ("trial_id", "value")))


def upgrade() -> None:
    """Create table and columns, and remove the waiting trials that workers now add when they begin them."""
    op.create_table(
        "hpo_lent",
        sa.Column("trial_id", sa.Integer, sa.ForeignKey("trials.trial_id", ondelete="CASCADE"), primary_key=True),
        sa.Column("signs", sa.Integer, nullable=False),
        sa.Column("until_s", sa.Double, nullable=False),
    )
    op.add_column("hpo_studies", sa.Column("name", sa.String, nullable=False, server_default=""))
    op.add_column("hpo_studies", sa.Column("target", sa.Integer, nullable=False, server_default="0"))
    op.add_column("hpo_studies", sa.Column("settings", sa.Text, nullable=False, server_default="{}"))
    number = sa.select(sa.func.count()).select_from(trials).where(trials.c.study_id == studies.c.study_id)
    name = sa.select(theirs.c.study_name).where(theirs.c.study_id == studies.c.study_id)
    op.execute(
        studies.update().values(target=number.scalar_subquery(), name=sa.func.coalesce(name.scalar_subquery(), ""))
    )
    _keep_settings()
    _remove_waiting()
    measured = sa.select(values.c.value).where(values.c.trial_id == attempts.c.trial_id).scalar_subquery()
    op.execute(attempts.update().where(attempts.c.outcome == "complete").values(val_accuracy=measured))


def downgrade() -> None:
    """Drop table and columns."""
    for name in ("settings", "target", "name"):
        op.drop_column("hpo_studies", name)
    op.drop_table("hpo_lent")


def _keep_settings() -> None:
    """Copy the attributes of each hpo study to our table."""
    ours = shown.c.study_id.in_(sa.select(studies.c.study_id))
    made_with: dict[int, dict[str, object]] = {}
    for study_id, key, text in op.get_bind().execute(sa.select(shown).where(ours)):
        made_with.setdefault(study_id, {})[key] = json.loads(text)
    for study_id, settings in made_with.items():
        op.execute(studies.update().where(studies.c.study_id == study_id).values(settings=json.dumps(settings)))


def _remove_waiting() -> None:
    """Delete the trials at the end of each hpo study that wait and were never begun."""
    later = trials.alias()
    same = later.c.study_id == trials.c.study_id
    last = sa.select(sa.func.max(later.c.number)).where(same, _is_begun(later)).scalar_subquery()
    ours = trials.c.study_id.in_(sa.select(studies.c.study_id))
    op.execute(trials.delete().where(ours, trials.c.number > sa.func.coalesce(last, -1)))


def _is_begun(table: sa.FromClause) -> sa.ColumnElement[bool]:
    """Return the condition that a trial does not wait, was claimed before, or was given parameters."""
    return sa.or_(
        table.c.state != sa.literal_column("'WAITING'"),
        sa.exists().where(attempts.c.trial_id == table.c.trial_id),
        sa.exists().where(attributes.c.trial_id == table.c.trial_id),
    )
