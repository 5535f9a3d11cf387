"""Leases on segments, and parked trials, which wait because another worker is training the segment they need next."""

from __future__ import annotations

from typing import Any

from optuna.trial import TrialState
from sqlalchemy import ColumnElement, Select, delete, exists, func, or_, select
from sqlalchemy.orm import Session

from hpo.database.attempt import Attempt, ended_message
from hpo.database.attempt_rows import runs
from hpo.database.optuna_tables import TrialModel
from hpo.database.storage import Storage
from hpo.database.tables import AttemptRow, ParkedRow, SegmentRow, WorkerRow, now_s, upsert
from hpo.errors import LeaseLost

MIN_PARKED = 2
"""While fewer trials than this are parked, new trials may begin, however few workers are idle."""


def take_segment(storage: Storage, attempt: Attempt, segment: str, end: int) -> bool:
    """Take the lease on a segment, unless a live worker is training it and has not passed its end.

    If the lease is refused, the trial is marked as waiting for the segment.

    Args:
        segment: Its key.
        end: Its last iteration.

    Returns:
        Whether the attempt holds the lease.

    Raises:
        LeaseLost: The attempt has ended.
    """
    with storage.transaction() as session:
        _require_open(session, attempt)
        row = {"segment": segment, "attempt_id": attempt.attempt_id}
        upsert(session, SegmentRow, [row], ("segment",), update=False)
        # Of several attempts that ask when a holder has ended, the second must see that the first holds it now.
        session.execute(select(SegmentRow.segment).where(SegmentRow.segment == segment).with_for_update())
        holder = session.execute(
            select(AttemptRow.attempt_id, AttemptRow.iteration)
            .join(SegmentRow, SegmentRow.attempt_id == AttemptRow.attempt_id)
            .where(SegmentRow.segment == segment, *_live())
        ).first()
        if holder is None:
            upsert(session, SegmentRow, [row], ("segment",))
        elif holder.attempt_id != attempt.attempt_id and holder.iteration <= end:
            upsert(session, ParkedRow, [{"trial_id": attempt.trial_id, "segment": segment, "end": end}], ("trial_id",))
            return False
        left = (SegmentRow.attempt_id == attempt.attempt_id, SegmentRow.segment != segment)
        session.execute(delete(SegmentRow).where(*left))
        session.execute(delete(ParkedRow).where(ParkedRow.trial_id == attempt.trial_id))
    return True


def may_begin(session: Session, study_id: int, number_parked: int) -> bool:
    """Return whether a trial may begin that was not begun before.

    When several trials are parked, and at least as many as there are idle workers, none may: its parameters would be
    sampled without knowing the results of the parked ones.
    """
    return number_parked < MIN_PARKED or number_parked < (session.scalar(_count_idle(study_id)) or 0)


def parked(study_id: int) -> Select[Any]:
    """Select the waiting trials whose next segment a live worker is training.

    The search starts from the few parked rows, since a study may have thousands of waiting trials. It is part of the
    statement that chooses a trial, since other workers park trials meanwhile.
    """
    return (
        select(ParkedRow.trial_id)
        .join(TrialModel, TrialModel.trial_id == ParkedRow.trial_id)
        .join(SegmentRow, SegmentRow.segment == ParkedRow.segment)
        .join(AttemptRow, AttemptRow.attempt_id == SegmentRow.attempt_id)
        .where(TrialModel.study_id == study_id, TrialModel.state == TrialState.WAITING)
        .where(*_live(), AttemptRow.iteration <= ParkedRow.end)  # at the end, its worker has yet to save the checkpoint
    )


def _count_idle(study_id: int) -> Select[Any]:
    """Select the number of live workers that serve a study and have nothing to train."""
    serving = or_(WorkerRow.study_id == study_id, WorkerRow.study_id.is_(None))
    busy = WorkerRow.name.in_(select(AttemptRow.worker).where(*_live()))
    return select(func.count()).where(serving, WorkerRow.seen_s + WorkerRow.lease_s >= now_s(), ~busy)


def _live() -> tuple[ColumnElement[bool], ...]:
    """Return the conditions on an attempt that holds its trial."""
    return AttemptRow.ended_s.is_(None), AttemptRow.lease_until_s >= now_s()


def _require_open(session: Session, attempt: Attempt) -> None:
    """Make sure that an attempt is open, and keep it so until the transaction ends.

    Raises:
        LeaseLost: It has ended, or another client has ended or deleted its trial.
    """
    still_open = select(AttemptRow.attempt_id).where(
        AttemptRow.attempt_id == attempt.attempt_id,
        AttemptRow.ended_s.is_(None),
        exists().where(*runs(attempt.trial_id)),
    )
    if session.execute(still_open.with_for_update()).first() is None:
        raise LeaseLost(ended_message(attempt))
