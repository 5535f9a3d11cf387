"""Statements about open attempts and their trials, within the transaction of whoever calls them."""

from __future__ import annotations

from dataclasses import asdict

from optuna.trial import TrialState
from sqlalchemy import ColumnElement, delete, exists, select, update
from sqlalchemy.orm import Session

from hpo.database import ends, rungs
from hpo.database.attempt import Attempt, Progress, ended_message, overtaken_message
from hpo.database.optuna_tables import (
    COMPLETED_RUNG_PREFIX,
    StudyModel,
    TrialIntermediateValueModel,
    TrialModel,
    TrialSystemAttributeModel,
)
from hpo.database.tables import UNCLAIMED, AttemptRow, CurveRow, LentRow, StudyRow, delete_of_trials, now_s
from hpo.errors import LeaseLost
from hpo.settings import StudyState

STATE_AND_ENDS = (StudyRow.study_id, StudyRow.state, StudyRow.ends)


def hold(session: Session, attempt: Attempt, progress: Progress, lease_s: float | None = None) -> StudyState:
    """Make sure that an attempt is open, and keep it open until the transaction ends, or for `lease_s`.

    Returns:
        The state of its study, read in the same statement; a study that has reached an end is ended.

    Raises:
        LeaseLost: The attempt has ended, or another client has ended its trial.
    """
    lease = {} if lease_s is None else {"lease_until_s": now_s() + lease_s}
    study = select(TrialModel.study_id).where(TrialModel.trial_id == attempt.trial_id).scalar_subquery()
    of_study = [select(column).where(StudyRow.study_id == study).scalar_subquery() for column in STATE_AND_ENDS]
    still_open = (AttemptRow.attempt_id == attempt.attempt_id, AttemptRow.ended_s.is_(None))
    running = exists().where(*runs(attempt.trial_id))
    held = session.execute(
        update(AttemptRow)
        .where(*still_open, running)
        .values(**asdict(progress), **lease)
        .returning(*of_study)
        .execution_options(synchronize_session=False)
    ).first()
    if held is None:
        overtaken = session.execute(select(AttemptRow.attempt_id).where(*still_open)).first()
        raise LeaseLost(overtaken_message(attempt) if overtaken else ended_message(attempt))
    study_id, state, given = held
    return ends.end_if_reached(session, study_id, state or UNCLAIMED, given)


def hold_to_the_end(session: Session, attempt: Attempt, progress: Progress) -> None:
    """Make sure that an attempt is open, and that no other client changes its trial until the transaction ends.

    Raises:
        LeaseLost: The attempt has ended, or another client has ended its trial.
    """
    hold(session, attempt, progress)
    if not is_running(session, attempt.trial_id):
        raise LeaseLost(overtaken_message(attempt))


def is_running(session: Session, trial_id: int) -> bool:
    """Return whether a trial runs, which stays so until the transaction ends."""
    running = select(TrialModel.trial_id).where(*runs(trial_id))
    return session.execute(running.with_for_update(of=TrialModel)).first() is not None


def runs(trial_id: int) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions under which a trial runs, in a study that is there.

    On SQLite, other tools delete trials without their rows in our tables, and studies without the trials that are added
    meanwhile.
    """
    study = exists().where(StudyModel.study_id == TrialModel.study_id)
    return (TrialModel.trial_id == trial_id, TrialModel.state == TrialState.RUNNING, study)


def end_attempts(session: Session, attempt_ids: list[int], outcome: str) -> None:
    """End attempts with an outcome."""
    session.execute(
        update(AttemptRow).where(AttemptRow.attempt_id.in_(attempt_ids)).values(ended_s=now_s(), outcome=outcome)
    )


def clear_progress(session: Session, trial_id: int) -> None:
    """Delete what a trial has reported since it began, but not its parameters and attempts."""
    rungs.forget_rung(session, trial_id)
    # Reported values go too: the next attempt reports them again, and a pruner must not see the future.
    delete_of_trials(session, [trial_id], (LentRow, CurveRow, TrialIntermediateValueModel))
    notes = TrialSystemAttributeModel
    session.execute(delete(notes).where(notes.trial_id == trial_id, notes.key.startswith(COMPLETED_RUNG_PREFIX)))


def put_back(session: Session, trial_id: int) -> None:
    """Put a running trial back in the queue, under its number and with its parameters."""
    clear_progress(session, trial_id)
    session.execute(
        update(TrialModel)
        .where(TrialModel.trial_id == trial_id, TrialModel.state == TrialState.RUNNING)
        .values(state=TrialState.WAITING)
    )
