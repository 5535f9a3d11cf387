"""Losses: put trials back whose workers, devices or clients are gone, or fail them after too many.

Any live process may do so at any time: a lease that is over is enough.
"""

from __future__ import annotations

from collections.abc import Iterable

from optuna.trial import TrialState
from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from hpo.database import attempt_rows, lent, rungs, trial_rows
from hpo.database.attempt import LOSSES, Attempt, Loss, Outcome, Progress
from hpo.database.lent import LENT_S
from hpo.database.note_attrs import note_attrs
from hpo.database.optuna_tables import TrialModel, TrialParamModel, TrialSystemAttributeModel
from hpo.database.retry import retried
from hpo.database.storage import Storage
from hpo.database.tables import AttemptRow, delete_of_trials, now_s

MAX_LAPSES = 3
"""How often a trial is retried after its worker vanished or its device failed without making progress, before the trial
fails."""

RETRIED = "hpo:retried"
"""The trial's system attribute that holds the number of the last attempt before somebody put the failed trial back."""


@retried
def lose(storage: Storage, attempt: Attempt, progress: Progress, loss: Loss) -> bool:
    """End an attempt whose device failed, and put its trial back in the queue, or fail it after too many.

    Returns:
        Whether the trial failed.

    Raises:
        LeaseLost: The attempt has already ended; nothing is written.
        StorageUnavailable: The database did not answer within its deadline.
    """
    with storage.transaction() as session:
        attempt_rows.hold_to_the_end(session, attempt, progress)
        attempt_rows.end_attempts(session, [attempt.attempt_id], loss.kind)
        return _fail_or_put_back(session, attempt.trial_id, loss.reason)


@retried
def reap(storage: Storage, study_id: int | None, lent_s: float = LENT_S) -> list[int]:
    """Put trials back in the queue whose workers or clients gave no sign of life, or fail them after too many losses.

    Any live process may call this at any time. An attempt whose trial another client has ended, or put back, ends too.

    Args:
        study_id: None for all studies.
        lent_s: How long another client may keep a trial without writing anything for it.

    Returns:
        The numbers of these trials.
    """
    with storage.transaction() as session:
        over = session.execute(
            select(AttemptRow.attempt_id, AttemptRow.trial_id, TrialModel.number)
            .join(TrialModel, TrialModel.trial_id == AttemptRow.trial_id)
            .where(*([] if study_id is None else [TrialModel.study_id == study_id]))
            .where(AttemptRow.ended_s.is_(None))
            .where(or_(AttemptRow.lease_until_s < now_s(), TrialModel.state != TrialState.RUNNING))
            .with_for_update(of=AttemptRow, skip_locked=True)
        ).all()
        lapsed = [row for row in over if attempt_rows.is_running(session, row.trial_id)]
        attempt_rows.end_attempts(session, [row.attempt_id for row in over if row not in lapsed], "overtaken")
        attempt_rows.end_attempts(session, [row.attempt_id for row in lapsed], "lapsed")
        for row in lapsed:
            _fail_or_put_back(session, row.trial_id, "its worker vanished")
        overdue = lent.find_overdue(session, study_id, lent_s)
        for trial_id in overdue:
            _take_back(session, trial_id)
    return [*(row.number for row in lapsed), *overdue.values()]


@retried
def reclaim(storage: Storage, study_id: int) -> list[int]:
    """Put the trials of a study that other clients have asked for back in the queue, and return their numbers."""
    with storage.transaction() as session:
        trials = lent.find_lent(session, study_id)
        for trial in trials:
            _take_back(session, trial.trial_id)
    return [trial.number for trial in trials]


def _take_back(session: Session, trial_id: int) -> None:
    """Put a lent trial back in the queue, without the parameters that another client has drawn for it."""
    if session.scalar(select(AttemptRow.attempt_id).where(AttemptRow.trial_id == trial_id).limit(1)) is None:
        delete_of_trials(session, [trial_id], (TrialParamModel,))
    attempt_rows.put_back(session, trial_id)


def _fail_or_put_back(session: Session, trial_id: int, last: str) -> bool:
    """Put a trial whose attempt was lost back in the queue, or fail it after too many; return whether it failed.

    Args:
        last: Why the last attempt was lost.
    """
    notes = TrialSystemAttributeModel
    retried_at = session.scalar(select(notes.value_json).where(notes.trial_id == trial_id, notes.key == RETRIED))
    attempts = session.execute(
        select(AttemptRow.outcome, AttemptRow.iteration)
        .where(AttemptRow.trial_id == trial_id, AttemptRow.number > int(retried_at or 0))
        .order_by(AttemptRow.number)
    ).all()
    lapses, deepest = count_lapses([(row.outcome, row.iteration) for row in attempts])
    if lapses <= MAX_LAPSES:
        attempt_rows.put_back(session, trial_id)
        return False
    rungs.forget_rung(session, trial_id)
    reason = f"{lapses} attempts were lost without getting past iteration {deepest}; the last: {last}"
    note = note_attrs(f"**Failed: {reason}.**", trial_id)
    attrs = {"outcome": f"failed: {reason}", "iterations": deepest}
    trial_rows.write_outcome(
        session, trial_id, Outcome(state="failed", value=None, attrs=attrs, study_system_attrs=note)
    )
    return True


def count_lapses(attempts: Iterable[tuple[str | None, int]]) -> tuple[int, int]:
    """Count the attempts that were lost, with their worker or device, since one last got further than all earlier ones.

    Args:
        attempts: The outcome and the last iteration of each, the oldest first.

    Returns:
        The count, and the furthest iteration.
    """
    lapses = deepest = 0
    for outcome, iteration in attempts:
        if iteration > deepest:
            lapses, deepest = 0, iteration
        lapses += outcome in LOSSES
    return lapses, deepest
