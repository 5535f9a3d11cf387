"""The queue: hand trials to workers, and write their results, each in one short transaction.

The queue is Optuna's WAITING trials. A claim opens an attempt with a lease. Only an open attempt can write for its
trial, so a worker that was taken for dead cannot write any more. Optuna's own methods would need a transaction each,
which is why its tables are written directly here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal, get_args

from optuna.trial import TrialState
from sqlalchemy import ColumnElement, CursorResult, delete, exists, func, select, true, update
from sqlalchemy.orm import Session

from hpo.database import rungs
from hpo.database.attempt import Attempt, Loss, LossKind, Outcome, Progress, WorkerId, ended_message
from hpo.database.note_attrs import FIGURE_NAME, note_attrs
from hpo.database.optuna_tables import (
    ARTIFACT_PREFIX,
    COMPLETED_RUNG_PREFIX,
    StudySystemAttributeModel,
    TrialIntermediateValueModel,
    TrialModel,
    TrialParamModel,
    TrialSystemAttributeModel,
    TrialUserAttributeModel,
    TrialValueModel,
    utc_now,
)
from hpo.database.optuna_view import Draft
from hpo.database.parking import claimable, parked
from hpo.database.retry import retried
from hpo.database.storage import Storage
from hpo.database.tables import AttemptRow, CurveRow, StudyRow, delete_of_trials, is_at_rung, now_s, upsert
from hpo.errors import LeaseLost
from hpo.recipes.promotion import Reached
from hpo.recipes.schedule import CurvePoint
from hpo.settings import DEFAULT_LEASE_S, StudyState

LEASE_S = DEFAULT_LEASE_S

MAX_LAPSES = 3
"""How often a trial is retried after its worker vanished or its device failed without making progress, before the trial
fails."""

_LOSSES = frozenset({"lapsed", *get_args(LossKind)})
"""The outcomes of attempts that spend a retry."""

_STATES = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
    "waiting": TrialState.WAITING,
}


@retried
def claim(storage: Storage, study_id: int, worker: WorkerId, lease_s: float = LEASE_S) -> Attempt | None:
    """Give a waiting trial of a study to one worker, unless the study is paused or stopped.

    A trial that was interrupted comes first, then one that is promoted from its rung, then the oldest new one. Atomic
    across processes: of several callers, exactly one gets a given trial. A trial that was lost on the worker's device
    comes last, as the device may be to blame.

    Args:
        lease_s: Seconds, by the database's clock, until the lease may be reaped.

    Returns:
        The attempt, or None if no trial may be claimed now.

    Raises:
        StorageUnavailable: The database did not answer within its deadline.
    """
    with storage.transaction() as session:
        state, number_parked = _lock_state(session, study_id)
        if state != "running":
            return None
        waiting = (*claimable(session, study_id, number_parked), ~is_at_rung())
        promotable = rungs.load_promotable(session, study_id)
        claimed = _choose(session, waiting, promotable, ~_lost_on(worker)) or _choose(
            session, waiting, promotable, true()
        )
        if claimed is None:
            return None
        trial_id, trial_number = claimed
        changed = session.execute(
            update(TrialModel)
            .where(TrialModel.trial_id == trial_id, TrialModel.state == TrialState.WAITING)
            .values(state=TrialState.RUNNING, _datetime_start_utc=utc_now())
        )
        assert _rows(changed) == 1, "the row was locked"
        before = session.scalar(select(func.max(AttemptRow.number)).where(AttemptRow.trial_id == trial_id))
        row = AttemptRow(
            trial_id=trial_id,
            number=(before or 0) + 1,
            worker=worker.name,
            host=worker.host,
            device=worker.device,
            claimed_s=now_s(),
            lease_until_s=now_s() + lease_s,
        )
        session.add(row)
        session.flush()
        return Attempt(attempt_id=row.attempt_id, trial_id=trial_id, trial_number=trial_number, number=row.number)


@retried
def renew(storage: Storage, attempt: Attempt, progress: Progress, lease_s: float = LEASE_S) -> StudyState:
    """Extend the lease of an attempt, and note its progress.

    Returns:
        The state of the study, which decides whether the trial continues.

    Raises:
        LeaseLost: The attempt has ended.
        StorageUnavailable: The database did not answer within its deadline.
    """
    with storage.transaction() as session:
        return _hold(session, attempt, progress, lease_s)


@retried
def write_draft(storage: Storage, attempt: Attempt, progress: Progress, draft: Draft) -> None:
    """Write what a sampler or pruner wants to write for the trial of an attempt.

    Raises:
        LeaseLost: The attempt has ended; nothing is written.
        StorageUnavailable: The database did not answer within its deadline.
    """
    if not draft.params and not draft.system_attrs:
        return
    with storage.transaction() as session:
        _hold(session, attempt, progress)
        trial = {"trial_id": attempt.trial_id}
        params = [
            trial | {"param_name": name, "param_value": param.value, "distribution_json": param.distribution}
            for name, param in draft.params.items()
        ]
        upsert(session, TrialParamModel, params, ("trial_id", "param_name"))
        attrs = [trial | {"key": key, "value_json": json.dumps(value)} for key, value in draft.system_attrs.items()]
        upsert(session, TrialSystemAttributeModel, attrs, ("trial_id", "key"))


@retried
def record(
    storage: Storage,
    attempt: Attempt,
    progress: Progress,
    points: Sequence[CurvePoint],
    values: Mapping[int, float],
    lease_s: float = LEASE_S,
) -> StudyState:
    """Write curve points, and values for Optuna by step, for the trial of an attempt.

    Returns:
        The state of the study, which decides whether the trial continues.

    Raises:
        LeaseLost: The attempt has ended; nothing is written.
        StorageUnavailable: The database did not answer within its deadline.
    """
    with storage.transaction() as session:
        state = _hold(session, attempt, progress, lease_s)
        _write_points(session, attempt, points, values)
    return state


@retried
def reach_rung(
    storage: Storage, attempt: Attempt, progress: Progress, rung: int, value: float, *, promoted: bool
) -> bool:
    """Note that the trial of an attempt has reached a rung, and return whether it trains on.

    Args:
        promoted: Whether the trial trains on whatever its value is.

    Raises:
        LeaseLost: The attempt has ended; nothing is written.
        StorageUnavailable: The database did not answer within its deadline.
    """
    with storage.transaction() as session:
        _hold(session, attempt, progress)
        return rungs.enter_rung(session, attempt.trial_id, rung, value, promoted=promoted)


@retried
def finish(storage: Storage, attempt: Attempt, progress: Progress, outcome: Outcome) -> None:
    """End an attempt, and its trial too unless it waits at a rung.

    Raises:
        LeaseLost: The attempt has already ended; nothing is written.
        StorageUnavailable: The database did not answer within its deadline.
    """
    with storage.transaction() as session:
        _hold(session, attempt, progress)
        _end_attempts(session, [attempt.attempt_id], outcome.state)
        if outcome.state != "waiting":
            rungs.forget_rung(session, attempt.trial_id)
        _write_outcome(session, attempt.trial_id, outcome)


@retried
def hand_back(storage: Storage, attempt: Attempt, progress: Progress, why: Literal["stopped", "parked"]) -> None:
    """End an attempt and put its trial back in the queue, under its number and with its parameters.

    Raises:
        LeaseLost: The attempt has already ended; nothing is written.
        StorageUnavailable: The database did not answer within its deadline.
    """
    with storage.transaction() as session:
        _hold(session, attempt, progress)
        _end_attempts(session, [attempt.attempt_id], why)
        _put_back(session, attempt.trial_id)


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
        _hold(session, attempt, progress)
        _end_attempts(session, [attempt.attempt_id], loss.kind)
        return _fail_or_put_back(session, attempt.trial_id, loss.reason)


@retried
def reap(storage: Storage, study_id: int | None) -> list[int]:
    """End the attempts whose lease has run out, and put their trials back in the queue, or fail them after too many.

    Any live process may call this at any time.

    Args:
        study_id: None for all studies.

    Returns:
        The numbers of these trials.
    """
    with storage.transaction() as session:
        lapsed = session.execute(
            select(AttemptRow.attempt_id, AttemptRow.trial_id, TrialModel.number)
            .join(TrialModel, TrialModel.trial_id == AttemptRow.trial_id)
            .where(*([] if study_id is None else [TrialModel.study_id == study_id]))
            .where(AttemptRow.ended_s.is_(None), AttemptRow.lease_until_s < now_s())
            .with_for_update(of=AttemptRow, skip_locked=True)
        ).all()
        if lapsed:
            _end_attempts(session, [row.attempt_id for row in lapsed], "lapsed")
        for row in lapsed:
            _fail_or_put_back(session, row.trial_id, "its worker vanished")
    return [row.number for row in lapsed]


def _choose(
    session: Session,
    waiting: Iterable[ColumnElement[bool]],
    promotable: Sequence[Reached],
    condition: ColumnElement[bool],
) -> tuple[int, int] | None:
    """Choose the next trial that meets a condition, and lock it; return its id and number.

    Args:
        waiting: The conditions on a trial that may be claimed without being promoted.
        promotable: The trials that may be promoted, in the order in which they are.
    """
    oldest = (
        select(TrialModel.trial_id, TrialModel.number)
        .where(*waiting, condition)
        .order_by(TrialModel.number)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    if promotable:
        interrupted = session.execute(oldest.where(exists().where(AttemptRow.trial_id == TrialModel.trial_id))).first()
        promoted = None if interrupted else rungs.take_promotable(session, promotable, condition)
        if promoted is not None:
            return promoted
    row = session.execute(oldest).first()
    return None if row is None else (row.trial_id, row.number)


def _lost_on(worker: WorkerId) -> ColumnElement[bool]:
    """Return the condition that a trial was lost on a worker's device before."""
    here = (AttemptRow.host == worker.host, AttemptRow.device == worker.device)
    return exists().where(AttemptRow.trial_id == TrialModel.trial_id, AttemptRow.outcome.in_(get_args(LossKind)), *here)


def _lock_state(session: Session, study_id: int) -> tuple[StudyState, int]:
    """Read a study's state, lock it until the transaction ends, and count the parked trials.

    A change of the state waits for the claims in progress, and later claims see the change.
    """
    number_parked = select(func.count()).select_from(parked(study_id).subquery()).scalar_subquery()
    query = select(StudyRow.state, number_parked).where(StudyRow.study_id == study_id)
    row = session.execute(query.with_for_update(read=True, of=StudyRow)).first()
    return ("running", 0) if row is None else (row[0], row[1])  # Optuna's dashboard renames a study by copying it


def _hold(session: Session, attempt: Attempt, progress: Progress, lease_s: float | None = None) -> StudyState:
    """Make sure that an attempt is open, and keep it open until the transaction ends, or for `lease_s`.

    Returns:
        The state of its study, read in the same statement.

    Raises:
        LeaseLost: The attempt has ended.
    """
    lease = {} if lease_s is None else {"lease_until_s": now_s() + lease_s}
    study = select(TrialModel.study_id).where(TrialModel.trial_id == attempt.trial_id).scalar_subquery()
    state = select(StudyRow.state).where(StudyRow.study_id == study).scalar_subquery()
    held = session.execute(
        update(AttemptRow)
        .where(AttemptRow.attempt_id == attempt.attempt_id, AttemptRow.ended_s.is_(None))
        # If another tool deleted the study, SQLite may have kept the attempt.
        .where(exists().where(TrialModel.trial_id == attempt.trial_id))
        .values(**asdict(progress), **lease)
        .returning(state)
        .execution_options(synchronize_session=False)
    ).first()
    if held is None:
        raise LeaseLost(ended_message(attempt))
    return held[0] or "running"


def _write_points(
    session: Session, attempt: Attempt, points: Sequence[CurvePoint], values: Mapping[int, float]
) -> None:
    curve = [{"trial_id": attempt.trial_id} | asdict(point) for point in points]
    upsert(session, CurveRow, curve, ("trial_id", "iteration"))
    model = TrialIntermediateValueModel
    finite = model.TrialIntermediateValueType.FINITE
    reported = [
        {
            "trial_id": attempt.trial_id,
            "step": step,
            "intermediate_value": value,
            "intermediate_value_type": finite,
        }
        for step, value in values.items()
    ]
    upsert(session, model, reported, ("trial_id", "step"))


def _end_attempts(session: Session, attempt_ids: list[int], outcome: str) -> None:
    session.execute(
        update(AttemptRow).where(AttemptRow.attempt_id.in_(attempt_ids)).values(ended_s=now_s(), outcome=outcome)
    )


def _write_outcome(session: Session, trial_id: int, outcome: Outcome) -> None:
    completed = None if outcome.state == "waiting" else utc_now()
    session.execute(
        update(TrialModel)
        .where(TrialModel.trial_id == trial_id)
        .values(state=_STATES[outcome.state], _datetime_complete_utc=completed)
    )
    if outcome.value is not None:
        finite = TrialValueModel.TrialValueType.FINITE
        session.add(TrialValueModel(trial_id=trial_id, objective=0, value=outcome.value, value_type=finite))
    study_id = session.scalar(select(TrialModel.study_id).where(TrialModel.trial_id == trial_id))
    _set_attrs(session, TrialUserAttributeModel, {"trial_id": trial_id}, outcome.attrs)
    if outcome.trial_system_attrs:
        _delete_figures(session, trial_id)
    _set_attrs(session, TrialSystemAttributeModel, {"trial_id": trial_id}, outcome.trial_system_attrs)
    _set_attrs(session, StudySystemAttributeModel, {"study_id": study_id}, outcome.study_system_attrs)


def _delete_figures(session: Session, trial_id: int) -> None:
    """Delete the attributes of the figures that a new one replaces."""
    files = TrialSystemAttributeModel
    figures = (files.key.startswith(ARTIFACT_PREFIX), files.value_json.contains(FIGURE_NAME))
    session.execute(delete(files).where(files.trial_id == trial_id, *figures))


def _set_attrs(session: Session, table: Any, owner: Mapping[str, Any], attrs: Mapping[str, Any]) -> None:
    rows = [{**owner, "key": key, "value_json": json.dumps(value)} for key, value in attrs.items()]
    upsert(session, table, rows, (*owner, "key"))


def _put_back(session: Session, trial_id: int) -> None:
    rungs.forget_rung(session, trial_id)
    # Reported values go too: the next attempt reports them again, and a pruner must not see the future.
    delete_of_trials(session, [trial_id], (CurveRow, TrialIntermediateValueModel))
    notes = TrialSystemAttributeModel
    session.execute(delete(notes).where(notes.trial_id == trial_id, notes.key.startswith(COMPLETED_RUNG_PREFIX)))
    session.execute(
        update(TrialModel)
        .where(TrialModel.trial_id == trial_id, TrialModel.state == TrialState.RUNNING)
        .values(state=TrialState.WAITING)
    )


def _fail_or_put_back(session: Session, trial_id: int, last: str) -> bool:
    """Put a trial whose attempt was lost back in the queue, or fail it after too many; return whether it failed.

    Args:
        last: Why the last attempt was lost.
    """
    attempts = session.execute(
        select(AttemptRow.outcome, AttemptRow.iteration)
        .where(AttemptRow.trial_id == trial_id)
        .order_by(AttemptRow.number)
    ).all()
    lapses, deepest = count_lapses([(row.outcome, row.iteration) for row in attempts])
    if lapses <= MAX_LAPSES:
        _put_back(session, trial_id)
        return False
    rungs.forget_rung(session, trial_id)
    reason = f"{lapses} attempts were lost without getting past iteration {deepest}; the last: {last}"
    note = note_attrs(f"**Failed: {reason}.**", trial_id)
    attrs = {"outcome": f"failed: {reason}", "iterations": deepest}
    _write_outcome(session, trial_id, Outcome(state="failed", value=None, attrs=attrs, study_system_attrs=note))
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
        lapses += outcome in _LOSSES
    return lapses, deepest


def _rows(result: Any) -> int:
    assert isinstance(result, CursorResult)
    return result.rowcount
