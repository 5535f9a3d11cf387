"""The queue: hand trials to workers, and write their results, each in one short transaction.

The queue is Optuna's WAITING trials, and the new ones that a study is still to have. A claim opens an attempt with a
lease. Only an open attempt can write for its trial, so a worker that was taken for dead cannot write any more. Optuna's
own methods would need a transaction each, which is why its tables are written directly here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from types import MappingProxyType
from typing import Any, Literal, get_args

from optuna.trial import TrialState
from sqlalchemy import ColumnElement, CursorResult, delete, exists, func, or_, select, update
from sqlalchemy.orm import Session

from hpo.database import ends, lent, recipe_index, rungs, studies, trial_rows
from hpo.database.attempt import (
    LOSSES,
    Attempt,
    Loss,
    LossKind,
    Outcome,
    Progress,
    WorkerId,
    ended_message,
    overtaken_message,
)
from hpo.database.copies import write_record
from hpo.database.lent import LENT_S
from hpo.database.note_attrs import note_attrs
from hpo.database.optuna_tables import (
    COMPLETED_RUNG_PREFIX,
    TrialIntermediateValueModel,
    TrialModel,
    TrialParamModel,
    TrialSystemAttributeModel,
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
    CurveRow,
    LentRow,
    StudyRow,
    delete_of_trials,
    described,
    is_at_rung,
    now_s,
    require_study,
)
from hpo.errors import LeaseLost
from hpo.recipes.schedule import CurvePoint
from hpo.settings import DEFAULT_LEASE_S, StudyState

LEASE_S = DEFAULT_LEASE_S

STATE_AND_ENDS = (StudyRow.study_id, StudyRow.state, StudyRow.ends)

MAX_LAPSES = 3
"""How often a trial is retried after its worker vanished or its device failed without making progress, before the trial
fails."""

RETRIED = "hpo:retried"
"""The trial's system attribute that holds the number of the last attempt before somebody put the failed trial back."""


@retried
def claim(storage: Storage, study_id: int, worker: WorkerId, lease_s: float = LEASE_S) -> Attempt | None:
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
        _hold(session, attempt, progress)
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
        _hold_to_the_end(session, attempt, progress)
        assert study_id is not None, "an open attempt has a trial"
        tail = recipe_index.list_unsettled_tail(session, study_id)
        if attempt.trial_id not in tail:
            _end_attempts(session, [attempt.attempt_id], "failed")
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
        _hold(session, attempt, progress)
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
        _hold_to_the_end(session, attempt, progress)
        _end_attempts(session, [attempt.attempt_id], outcome.state)
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
        _hold_to_the_end(session, attempt, progress)
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
        _hold_to_the_end(session, attempt, progress)
        _end_attempts(session, [attempt.attempt_id], loss.kind)
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
        lapsed = [row for row in over if _is_running(session, row.trial_id)]
        _end_attempts(session, [row.attempt_id for row in over if row not in lapsed], "overtaken")
        _end_attempts(session, [row.attempt_id for row in lapsed], "lapsed")
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
    _end_attempts(session, [row.attempt_id for row in before if row.ended_s is None], "overtaken")
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
    return _end_if_reached(session, study_id, state, given), target, parked_now


def _hold(session: Session, attempt: Attempt, progress: Progress, lease_s: float | None = None) -> StudyState:
    """Make sure that an attempt is open, and keep it open until the transaction ends, or for `lease_s`.

    Returns:
        The state of its study, read in the same statement; a study that has reached an end is ended.

    Raises:
        LeaseLost: The attempt has ended, or ended by another clients trial.
    """
    lease = {} if lease_s is None else {"lease_until_s": now_s() + lease_s}
    study = select(TrialModel.study_id).where(TrialModel.trial_id == attempt.trial_id).scalar_subquery()
    of_study = [select(column).where(StudyRow.study_id == study).scalar_subquery() for column in STATE_AND_ENDS]
    still_open = (AttemptRow.attempt_id == attempt.attempt_id, AttemptRow.ended_s.is_(None))
    running = exists().where(TrialModel.trial_id == attempt.trial_id, TrialModel.state == TrialState.RUNNING)
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
    return _end_if_reached(session, study_id, state or UNCLAIMED, given)


def _end_if_reached(session: Session, study_id: int, state: StudyState, given: str | None) -> StudyState:
    return ends.end_if_reached(session, study_id, given) if state == "running" and given else state


def _hold_to_the_end(session: Session, attempt: Attempt, progress: Progress) -> None:
    """Make sure that an attempt is open, and that no other client changes its trial until the transaction ends.

    Raises:
        LeaseLost: The attempt has ended, or ended by another clients trial.
    """
    _hold(session, attempt, progress)
    if not _is_running(session, attempt.trial_id):
        raise LeaseLost(overtaken_message(attempt))


def _is_running(session: Session, trial_id: int) -> bool:
    """Return whether a trial runs, which stays so until the transaction ends."""
    running = (TrialModel.trial_id == trial_id, TrialModel.state == TrialState.RUNNING)
    return session.execute(select(TrialModel.trial_id).where(*running).with_for_update()).first() is not None


def _end_attempts(session: Session, attempt_ids: list[int], outcome: str) -> None:
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


def _put_back(session: Session, trial_id: int) -> None:
    clear_progress(session, trial_id)
    session.execute(
        update(TrialModel)
        .where(TrialModel.trial_id == trial_id, TrialModel.state == TrialState.RUNNING)
        .values(state=TrialState.WAITING)
    )


def _take_back(session: Session, trial_id: int) -> None:
    """Put a lent trial back in the queue, without the parameters that another client has drawn for it."""
    if session.scalar(select(AttemptRow.attempt_id).where(AttemptRow.trial_id == trial_id).limit(1)) is None:
        delete_of_trials(session, [trial_id], (TrialParamModel,))
    _put_back(session, trial_id)


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
        _put_back(session, trial_id)
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


def _rows(result: Any) -> int:
    assert isinstance(result, CursorResult)
    return result.rowcount
