"""The queue: hand trials to workers, and write their results, each in one short transaction.

The queue is Optuna's WAITING trials, and the new ones that a study is still to have. A claim opens an attempt with a
lease. Only an open attempt can write for its trial, so a worker that was taken for dead cannot write any more. Optuna's
own methods would need a transaction each, which is why its tables are written directly here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal, get_args

from optuna.trial import TrialState
from sqlalchemy import ColumnElement, CursorResult, delete, exists, func, select, update
from sqlalchemy.orm import Session

from hpo.database import attempt_rows, ends, recipe_index, rungs, studies, trial_rows
from hpo.database.attempt import (
    Attempt,
    LossKind,
    Outcome,
    Progress,
    WorkerId,
)
from hpo.database.copies import write_record
from hpo.database.optuna_tables import (
    TrialModel,
    TrialParamModel,
    utc_now,
)
from hpo.database.optuna_view import Draft, DraftParam
from hpo.database.parking import may_begin, parked
from hpo.database.recipe_index import RECIPE_KEY
from hpo.database.retry import retried
from hpo.database.storage import Storage
from hpo.database.studies import add_trial
from hpo.database.tables import (
    UNCLAIMED,
    AttemptRow,
    LentRow,
    StudyRow,
    delete_of_trials,
    described,
    is_at_rung,
    now_s,
    require_study,
)
from hpo.recipes.schedule import CurvePoint
from hpo.settings import DEFAULT_LEASE_S, StudyState


@retried
def claim(storage: Storage, study_id: int, worker: WorkerId, lease_s: float = DEFAULT_LEASE_S) -> Attempt | None:
    """Return a trial of a study to one worker, unless the study is paused or stopped.

    A trial that was interrupted or enqueued comes first, then one that is promoted from its rung, then a new one while
    the study holds fewer than it is to have. Atomic across processes: of several callers, exactly one gets a given
    trial. A trial that was lost on the worker's device comes last, as the device may be to blame.

    Args:
        lease_s: Seconds, by the database's clock, until the lease may be reaped.

    Returns:
        The attempt, or None if no trial may be claimed now.

    Raises:
        StorageUnavailable: The database did not answer within its deadline.
        StudyNotFound: The study was deleted or renamed.
    """
    with storage.transaction() as session:
        state, target, number_parked = _lock_study(session, study_id)
        if state != "running":
            return None
        begins = may_begin(session, study_id, number_parked)
        chosen = _choose(session, study_id, target if begins else 0, worker, begins=begins)
        return None if chosen is None else _open_attempt(session, *chosen, worker, lease_s)


@retried
def renew(storage: Storage, attempt: Attempt, progress: Progress, lease_s: float = DEFAULT_LEASE_S) -> StudyState:
    """Extend the lease of an attempt, and note its progress.

    Returns:
        The state of the study, which decides whether the trial continues.

    Raises:
        LeaseLost: The attempt has ended.
        StorageUnavailable: The database did not answer within its deadline.
    """
    with storage.transaction() as session:
        return attempt_rows.hold(session, attempt, progress, lease_s)


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
        attempt_rows.hold(session, attempt, progress)
        trial_rows.write_draft(session, attempt.trial_id, draft)


@retried
def write_params(
    storage: Storage,
    attempt: Attempt,
    progress: Progress,
    draft: Draft,
    key: str,
    key_of: recipe_index.KeyOf,
    *,
    is_last: bool = False,
) -> bool:
    """Write the sampled parameters of an attempt's trial, unless another trial of the study has the same recipe.

    Atomic across processes: of several trials with one recipe, one gets it. Enqueued parameters may repeat a recipe: at
    once if they are all that the trial has, else with the last that are drawn for the others.

    Args:
        key: The key of the trial's recipe.
        key_of: Returns the keys of recipes of earlier trials that have none.
        is_last: Whether no others will be drawn if parameters were enqueued.

    Returns:
        Whether the parameters were written.

    Raises:
        LeaseLost: The attempt has ended; nothing is written.
        StorageUnavailable: The database did not answer within its deadline.
    """
    with storage.transaction() as session:
        study_id = recipe_index.lock_recipes(session, attempt.trial_id)
        attempt_rows.hold(session, attempt, progress)
        assert study_id is not None, "an open attempt has a trial"
        recipe_index.add_missing_keys(session, study_id, key_of)
        holder = recipe_index.find_holder(session, study_id, key, besides=attempt.trial_id)
        if holder is not None:
            enqueued = recipe_index.find_enqueued(session, attempt.trial_id)
            if not enqueued or not (is_last or draft.params.keys() <= enqueued):
                return False
        trial_rows.write_draft(
            session, attempt.trial_id, replace(draft, system_attrs={**draft.system_attrs, RECIPE_KEY: key})
        )
    return True


@retried
def withdraw(storage: Storage, attempt: Attempt, progress: Progress, why: str) -> None:
    """Remove the trial of an attempt for which no recipe is left, and all trials after it that would have none.

    If a later trial has a recipe, the trial fails instead, since the numbers of trials have no gaps.

    Raises:
        LeaseLost: The attempt has ended; nothing is changed.
        StorageUnavailable: The database did not answer within its deadline.
    """
    with storage.transaction() as session:
        study_id = studies.lock_study_of(session, attempt.trial_id)
        attempt_rows.hold_to_the_end(session, attempt, progress)
        assert study_id is not None, "an open attempt has a trial"
        tail = recipe_index.list_unsettled_tail(session, study_id)
        if attempt.trial_id not in tail:
            attempt_rows.end_attempts(session, [attempt.attempt_id], "failed")
            attrs = {"outcome": f"failed: {why}", "iterations": 0}
            trial_rows.write_outcome(session, attempt.trial_id, Outcome(state="failed", value=None, attrs=attrs))
        studies.remove_trials(session, study_id, tail)


@retried
def record(
    storage: Storage,
    attempt: Attempt,
    progress: Progress,
    points: Sequence[CurvePoint],
    values: Mapping[int, float],
    lease_s: float = DEFAULT_LEASE_S,
) -> StudyState:
    """Write curve points, and values for Optuna by step, for the trial of an attempt.

    Returns:
        The state of the study, which decides whether the trial continues.

    Raises:
        LeaseLost: The attempt has ended; nothing is written.
        StorageUnavailable: The database did not answer within its deadline.
    """
    with storage.transaction() as session:
        state = attempt_rows.hold(session, attempt, progress, lease_s)
        trial_rows.write_points(session, attempt, points, values)
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
        attempt_rows.hold(session, attempt, progress)
        return rungs.enter_rung(session, attempt.trial_id, rung, value, promoted=promoted)


@retried
def finish(
    storage: Storage,
    attempt: Attempt,
    progress: Progress,
    outcome: Outcome,
    params: Mapping[str, DraftParam] = MappingProxyType({}),
) -> None:
    """End an attempt, and its trial too unless it waits at a rung.

    Args:
        params: The parameters with which it was trained; another client may have changed them meanwhile.

    Raises:
        LeaseLost: The attempt has already ended; nothing is written.
        StorageUnavailable: The database did not answer within its deadline.
    """
    if outcome.state == "complete":  # whatever other clients write, this is what was measured
        progress = replace(progress, val_accuracy=outcome.value)
    with storage.transaction() as session:
        attempt_rows.hold_to_the_end(session, attempt, progress)
        attempt_rows.end_attempts(session, [attempt.attempt_id], outcome.state)
        if outcome.state != "waiting":
            rungs.forget_rung(session, attempt.trial_id)
        if params:
            others = (TrialParamModel.trial_id == attempt.trial_id, TrialParamModel.param_name.not_in(params))
            session.execute(delete(TrialParamModel).where(*others))
            trial_rows.write_params(session, attempt.trial_id, params)
        trial_rows.write_outcome(session, attempt.trial_id, outcome)
        write_record(session, attempt.trial_id)


@retried
def hand_back(storage: Storage, attempt: Attempt, progress: Progress, why: Literal["stopped", "parked"]) -> None:
    """End an attempt and put its trial back in the queue, under its number and with its parameters.

    Raises:
        LeaseLost: The attempt has already ended; nothing is written.
        StorageUnavailable: The database did not answer within its deadline.
    """
    with storage.transaction() as session:
        attempt_rows.hold_to_the_end(session, attempt, progress)
        attempt_rows.end_attempts(session, [attempt.attempt_id], why)
        attempt_rows.put_back(session, attempt.trial_id)


def _choose(session: Session, study_id: int, target: int, worker: WorkerId, *, begins: bool) -> tuple[int, int] | None:
    """Choose the next trial for a worker, and lock it; return its id and number.

    Args:
        begins: Whether it may be one that was not begun before.
    """
    waiting = [TrialModel.study_id == study_id, TrialModel.state == TrialState.WAITING, ~is_at_rung()]
    waiting += [TrialModel.trial_id.not_in(parked(study_id))]
    waiting += [] if begins else [exists().where(AttemptRow.trial_id == TrialModel.trial_id)]
    lost_here = _lost_on(worker)
    oldest = _find_oldest(session, waiting, ~lost_here)
    if oldest is not None:
        return oldest
    promotable = rungs.load_promotable(session, study_id)
    return (
        rungs.take_promotable(session, promotable, ~lost_here)
        or add_trial(session, study_id, target)
        or _find_oldest(session, waiting, lost_here)
        or rungs.take_promotable(session, promotable, lost_here)
    )


def _find_oldest(
    session: Session, waiting: Iterable[ColumnElement[bool]], condition: ColumnElement[bool]
) -> tuple[int, int] | None:
    """Find the oldest trial that meets all conditions, and lock it; return its id and number."""
    oldest = select(TrialModel.trial_id, TrialModel.number).where(*waiting, condition).order_by(TrialModel.number)
    row = session.execute(oldest.limit(1).with_for_update(skip_locked=True)).first()
    return None if row is None else (row.trial_id, row.number)


def _open_attempt(session: Session, trial_id: int, trial_number: int, worker: WorkerId, lease_s: float) -> Attempt:
    """Open an attempt at a locked trial."""
    changed = session.execute(
        update(TrialModel)
        .where(TrialModel.trial_id == trial_id, TrialModel.state == TrialState.WAITING)
        .values(state=TrialState.RUNNING, _datetime_start_utc=utc_now())
    )
    assert _rows(changed) == 1, "the row was locked"
    delete_of_trials(session, [trial_id], (LentRow,))
    attempts = select(AttemptRow.attempt_id, AttemptRow.number, AttemptRow.ended_s).where(
        AttemptRow.trial_id == trial_id
    )
    before = session.execute(attempts).all()
    attempt_rows.end_attempts(session, [row.attempt_id for row in before if row.ended_s is None], "overtaken")
    row = AttemptRow(
        trial_id=trial_id,
        number=max((row.number for row in before), default=0) + 1,
        worker=worker.name,
        host=worker.host,
        device=worker.device,
        claimed_s=now_s(),
        lease_until_s=now_s() + lease_s,
    )
    session.add(row)
    session.flush()
    return Attempt(attempt_id=row.attempt_id, trial_id=trial_id, trial_number=trial_number, number=row.number)


def _lost_on(worker: WorkerId) -> ColumnElement[bool]:
    """Return the condition that a trial was lost on a worker's device before."""
    here = (AttemptRow.host == worker.host, AttemptRow.device == worker.device)
    return exists().where(AttemptRow.trial_id == TrialModel.trial_id, AttemptRow.outcome.in_(get_args(LossKind)), *here)


def _lock_study(session: Session, study_id: int) -> tuple[StudyState, int, int]:
    """Read a study's state and target, lock them until the transaction ends, and count its parked trials.

    Claims take turns, since those that add a trial have to, and a change of the state has its turn among them. A study
    that has reached an end is ended first.

    Raises:
        StudyNotFound: It was deleted or renamed.
    """
    number_parked = select(func.count()).select_from(parked(study_id).subquery()).scalar_subquery()
    query = select(StudyRow.state, StudyRow.ends, StudyRow.target, number_parked).where(*described(study_id))
    row = session.execute(query.with_for_update(key_share=True, of=StudyRow)).first()
    if row is None:
        require_study(session, study_id)
        return UNCLAIMED, 0, 0
    state, given, target, parked_now = row
    return ends.end_if_reached(session, study_id, state, given), target, parked_now


def _rows(result: Any) -> int:
    assert isinstance(result, CursorResult)
    return result.rowcount
