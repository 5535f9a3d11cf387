"""Trials that are lent: another client has asked Optuna for them, so they run although none of our workers trains them.

Optuna's `ask` gives no sign of life. So whatever the client writes for its trial counts as one: a parameter, a report
or an attribute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optuna.trial import TrialState
from sqlalchemy import ColumnElement, func, literal, select
from sqlalchemy.orm import Session

from hpo.database.optuna_tables import (
    TrialIntermediateValueModel,
    TrialModel,
    TrialParamModel,
    TrialSystemAttributeModel,
    TrialUserAttributeModel,
)
from hpo.database.tables import LentRow, StudyRow, is_open, now_s, upsert

LENT_S = 3600.0
"""How long another client may keep a trial without a sign of life; nothing is known of what it trains."""

_SIGNS = (TrialParamModel, TrialIntermediateValueModel, TrialUserAttributeModel, TrialSystemAttributeModel)
"""The tables in which a client writes for its trial."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lent:
    """A trial that is lent.

    Attributes:
        signs: How much has been written for it.
        signs_before: How much had been when its lease was last extended; None if it has no lease yet.
        left_s: Seconds that are left of the lease.
    """

    trial_id: int
    number: int
    signs: int
    signs_before: int | None
    left_s: float | None


def is_overdue(trial: Lent) -> bool:
    """Return whether a trial is to be taken back."""
    return trial.signs == trial.signs_before and trial.left_s is not None and trial.left_s < 0


def find_overdue(session: Session, study_id: int | None, lent_s: float) -> dict[int, int]:
    """Find the lent trials that are to be taken back, and extend the leases of those that gave a sign of life.

    Args:
        study_id: None for all our studies.
        lent_s: Length of a lease.

    Returns:
        Their numbers, by id; they are locked.
    """
    trials = find_lent(session, study_id)
    alive = [
        {"trial_id": trial.trial_id, "signs": trial.signs, "until_s": now_s() + lent_s}
        for trial in trials
        if trial.signs != trial.signs_before
    ]
    for row in alive:  # one by one, since the database's clock is an expression
        upsert(session, LentRow, [row], ("trial_id",))
    return {trial.trial_id: trial.number for trial in trials if is_overdue(trial)}


def find_lent(session: Session, study_id: int | None) -> list[Lent]:
    """Find the lent trials of a study, or of all our studies, and lock them."""
    ours = StudyRow.study_id if study_id is None else literal(study_id)
    is_lent = (TrialModel.state == TrialState.RUNNING, ~is_open())
    query = select(TrialModel.trial_id).join(StudyRow, StudyRow.study_id == TrialModel.study_id)
    query = query.where(TrialModel.study_id == ours, *is_lent).with_for_update(of=TrialModel, skip_locked=True)
    locked = session.scalars(query).all()
    if not locked:
        return []
    # Asked again, since a worker may have begun to train one of them before it was locked.
    return _read(session, locked, is_lent)


def _read(session: Session, trial_ids: Sequence[int], is_lent: tuple[ColumnElement[bool], ...]) -> list[Lent]:
    signs = sum(
        (select(func.count()).where(table.trial_id == TrialModel.trial_id).scalar_subquery() for table in _SIGNS),
        start=literal(0),
    )
    query = (
        select(TrialModel.trial_id, TrialModel.number, signs, LentRow.signs, LentRow.until_s - now_s())
        .outerjoin(LentRow, LentRow.trial_id == TrialModel.trial_id)
        .where(TrialModel.trial_id.in_(trial_ids), *is_lent)
    )
    return [
        Lent(trial_id=trial_id, number=number, signs=signs, signs_before=before, left_s=left_s)
        for trial_id, number, signs, before, left_s in session.execute(query)
    ]
