"""Hand trials to workers, and take what they write, each as one short transaction.

The queue is Optuna's WAITING trials. A claim opens an attempt with a lease; whatever is written for a trial is
written by an open attempt, so that a worker that was given up for dead cannot write any more. Optuna's own methods
would need a transaction each, which is why its tables are written directly here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy import ColumnElement, CursorResult, Select, delete, exists, func, or_, select, update
from sqlalchemy.orm import Session

from hpo.errors import LeaseLost, StudyNotFound
from hpo.notes import note_attrs
from hpo.patience import patient
from hpo.recipes.schedule import CurvePoint
from hpo.search import Draft
from hpo.settings import DEFAULT_LEASE_S, StudyState
from hpo.storage import AttemptRow, CurveRow, ParkedRow, SegmentRow, Storage, StudyRow, WorkerRow, now_s, upsert

LEASE_S = DEFAULT_LEASE_S
MAX_LAPSES = 3
"""How often a trial is given out again after a worker vanished with it and had not got further, before it fails."""

MIN_PARKED = 2
"""How many trials may wait for segments in training, however few workers there are, before no new trial is begun."""

Trials = models.TrialModel
FinalState = Literal["complete", "pruned", "failed"]
_OPTUNA_CHILDREN = (
    models.TrialParamModel,
    models.TrialIntermediateValueModel,
    models.TrialUserAttributeModel,
    models.TrialSystemAttributeModel,
)
_STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerId:
    """Name a worker, for people and for the trail that it leaves."""

    name: str
    host: str
    device: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """Be the right to write for a trial."""

    attempt_id: int
    trial_id: int
    trial_number: int
    number: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Say how far an attempt has come.

    Attributes:
        iteration: Where the trial stands.
        trained_iterations: Optimizer steps that this attempt has executed.
        val_accuracy: Last measured, in [0, 1].
    """

    iteration: int
    trained_iterations: int
    val_accuracy: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Say how a trial ended.

    Attributes:
        value: Validation accuracy in [0, 1]; None where none was measured.
        attrs: User attributes, shown by optuna-dashboard.
        trial_system_attrs: System attributes of the trial.
        study_system_attrs: System attributes of its study: that is where optuna-dashboard keeps a trial's note.
    """

    state: FinalState
    value: float | None
    attrs: dict[str, Any]
    trial_system_attrs: Mapping[str, Any] = field(default_factory=dict)
    study_system_attrs: Mapping[str, Any] = field(default_factory=dict)


@patient
def describe_study(storage: Storage, study_id: int, attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Give a study the user attributes that it does not have yet, and return all that it has then.

    Atomic across processes: of several that describe a study at once, one does, and the others get its words.
    """
    with storage.transaction() as session:
        _lock_study(session, study_id)
        attributes = models.StudyUserAttributeModel
        rows = session.execute(
            select(attributes.key, attributes.value_json).where(attributes.study_id == study_id)
        ).all()
        found: dict[str, Any] = {key: json.loads(value) for key, value in rows}
        session.add_all(
            models.StudyUserAttributeModel(study_id=study_id, key=key, value_json=json.dumps(value))
            for key, value in attrs.items()
            if key not in found
        )
    return dict(attrs) | found


@patient
def add_note(storage: Storage, study_id: int, body: str) -> None:
    """Give a study the note that optuna-dashboard shows, unless it has one: a person may have changed it."""
    attrs = note_attrs(body)
    with storage.transaction() as session:
        rows = [{"study_id": study_id, "key": key, "value_json": json.dumps(value)} for key, value in attrs.items()]
        upsert(session, models.StudySystemAttributeModel, rows, ("study_id", "key"), update=False)


@patient
def fill(storage: Storage, study_id: int, total: int, first: Mapping[str, Any]) -> None:
    """Add waiting trials, or take away those at the end, until the study has `total`.

    Atomic across processes. Failed trials count: the study holds `total` rows, not that many plus retries. Trials
    that are finished or running stay, and so do those before them.

    Args:
        first: Parameters that the study's first trial is to have.
    """
    with storage.transaction() as session:
        _lock_study(session, study_id)
        present = session.scalar(select(func.count()).where(Trials.study_id == study_id)) or 0
        if present > total:
            _trim(session, study_id, total)
        rows = [Trials(study_id=study_id, number=number, state=TrialState.WAITING) for number in range(present, total)]
        session.add_all(rows)
        session.flush()
        ids: list[int] = [row.trial_id for row in rows]  # type: ignore[misc]  # Optuna's models are untyped
        # SQLite gives the ids of deleted trials again, and other tools may delete without our tables.
        _forget(session, ids, (AttemptRow, CurveRow))
        if present == 0 and rows:
            session.add(_system_attr(ids[0], "fixed_params", dict(first)))
        made = {"study_id": study_id, "state": "running", "changed_s": now_s()}
        upsert(session, StudyRow, [made], ("study_id",), update=present == 0)  # the same holds for ids of studies


@patient
def claim(storage: Storage, study_id: int, worker: WorkerId, lease_s: float = LEASE_S) -> Attempt | None:
    """Give the oldest waiting trial of a study that is neither paused nor stopped to one worker.

    Atomic across processes: of several callers, exactly one gets a given trial.

    Args:
        lease_s: Seconds, by the database's clock, until the lease may be reaped.

    Returns:
        The attempt, or None when nothing is waiting, or nothing is to be given out.

    Raises:
        StorageUnavailable: The database did not answer within its deadline.
    """
    with storage.transaction() as session:
        state, number_blocked = _lock_state(session, study_id)
        if state != "running":
            return None
        found = session.execute(
            select(Trials.trial_id, Trials.number)
            .where(*_claimable(session, study_id, number_blocked))
            .order_by(Trials.number)
            .limit(1)
            .with_for_update(skip_locked=True)
        ).first()
        if found is None:
            return None
        changed = session.execute(
            update(Trials)
            .where(Trials.trial_id == found.trial_id, Trials.state == TrialState.WAITING)
            .values(state=TrialState.RUNNING, _datetime_start_utc=_utc_now())
        )
        assert _rows(changed) == 1, "the row was locked"
        before = session.scalar(select(func.max(AttemptRow.number)).where(AttemptRow.trial_id == found.trial_id))
        row = AttemptRow(
            trial_id=found.trial_id,
            number=(before or 0) + 1,
            worker=worker.name,
            host=worker.host,
            device=worker.device,
            claimed_s=now_s(),
            lease_until_s=now_s() + lease_s,
        )
        session.add(row)
        session.flush()
        return Attempt(attempt_id=row.attempt_id, trial_id=found.trial_id, trial_number=found.number, number=row.number)


@patient
def renew(storage: Storage, attempt: Attempt, progress: Progress, lease_s: float = LEASE_S) -> StudyState:
    """Extend the lease of an attempt, and note its progress.

    Returns:
        The state of the study, which says whether the trial is to go on.

    Raises:
        LeaseLost: The attempt has ended.
        StorageUnavailable: The database did not answer within its deadline.
    """
    with storage.transaction() as session:
        return _hold(session, attempt, progress, lease_s)


@patient
def write_draft(storage: Storage, attempt: Attempt, progress: Progress, draft: Draft) -> None:
    """Write what a sampler or a pruner wants to have written for the trial of an attempt.

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
        upsert(session, models.TrialParamModel, params, ("trial_id", "param_name"))
        attrs = [trial | {"key": key, "value_json": json.dumps(value)} for key, value in draft.system_attrs.items()]
        upsert(session, models.TrialSystemAttributeModel, attrs, ("trial_id", "key"))


@patient
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
        The state of the study, which says whether the trial is to go on.

    Raises:
        LeaseLost: The attempt has ended; nothing is written.
        StorageUnavailable: The database did not answer within its deadline.
    """
    with storage.transaction() as session:
        state = _hold(session, attempt, progress, lease_s)
        _write_points(session, attempt, points, values)
    return state


@patient
def finish(storage: Storage, attempt: Attempt, progress: Progress, outcome: Outcome) -> None:
    """End an attempt and its trial.

    Raises:
        LeaseLost: The attempt has ended before; nothing is written.
        StorageUnavailable: The database did not answer within its deadline.
    """
    with storage.transaction() as session:
        _hold(session, attempt, progress)
        _end_attempts(session, [attempt.attempt_id], outcome.state)
        _end_trial(session, attempt.trial_id, outcome)


@patient
def hand_back(storage: Storage, attempt: Attempt, progress: Progress, why: Literal["stopped", "parked"]) -> None:
    """End an attempt and put its trial back in the queue, under its number and with its parameters.

    Raises:
        LeaseLost: The attempt has ended before; nothing is written.
        StorageUnavailable: The database did not answer within its deadline.
    """
    with storage.transaction() as session:
        _hold(session, attempt, progress)
        _end_attempts(session, [attempt.attempt_id], why)
        _requeue(session, attempt.trial_id)


@patient
def reap(storage: Storage, study_id: int | None) -> list[int]:
    """End the attempts whose lease ran out, and put their trials back in the queue, or fail them after too many.

    Any live process may do this at any time.

    Args:
        study_id: None for all studies.

    Returns:
        The numbers of the trials concerned.
    """
    with storage.transaction() as session:
        lapsed = session.execute(
            select(AttemptRow.attempt_id, AttemptRow.trial_id, Trials.number)
            .join(Trials, Trials.trial_id == AttemptRow.trial_id)
            .where(*([] if study_id is None else [Trials.study_id == study_id]))
            .where(AttemptRow.ended_s.is_(None), AttemptRow.lease_until_s < now_s())
            .with_for_update(of=AttemptRow, skip_locked=True)
        ).all()
        if lapsed:
            _end_attempts(session, [row.attempt_id for row in lapsed], "lapsed")
        for row in lapsed:
            _give_up_or_requeue(session, row.trial_id)
    return [row.number for row in lapsed]


def _lock_state(session: Session, study_id: int) -> tuple[StudyState, int]:
    """Read a study's state, which then stays until the transaction ends, and count the trials that wait for another's.

    Whoever changes the state waits for the claims that are under way, and those that come later see the change.
    """
    number_blocked = select(func.count()).select_from(_blocked(study_id).subquery()).scalar_subquery()
    query = select(StudyRow.state, number_blocked).where(StudyRow.study_id == study_id)
    row = session.execute(query.with_for_update(read=True, of=StudyRow)).first()
    return ("running", 0) if row is None else (row[0], row[1])  # Optuna's dashboard renames a study by copying it


def _claimable(session: Session, study_id: int, number_blocked: int) -> list[ColumnElement[bool]]:
    """List the conditions on a trial that may be given out now.

    One that waits for another's segment is passed over while that is being trained. When several wait, and as many as
    there are idle workers, no new trial is begun: its parameters would be sampled without what those will teach.
    """
    begun = []
    if number_blocked >= MIN_PARKED and number_blocked >= (session.scalar(_count_idle(study_id)) or 0):
        last = select(func.max(AttemptRow.trial_id)).scalar_subquery()  # thousands may wait behind it
        begun = [Trials.trial_id <= last, exists().where(AttemptRow.trial_id == Trials.trial_id)]
    waiting = (Trials.study_id == study_id, Trials.state == TrialState.WAITING)
    return [*waiting, *begun, Trials.trial_id.not_in(_blocked(study_id))]


def _blocked(study_id: int) -> Select[Any]:
    """Select the waiting trials whose next segment a live worker is training.

    They are looked for from the few rows that say so, as a study may have thousands of waiting trials; and in the
    statement that chooses a trial, as others park trials meanwhile.
    """
    return (
        select(ParkedRow.trial_id)
        .join(Trials, Trials.trial_id == ParkedRow.trial_id)
        .join(SegmentRow, SegmentRow.segment == ParkedRow.segment)
        .join(AttemptRow, AttemptRow.attempt_id == SegmentRow.attempt_id)
        .where(Trials.study_id == study_id, Trials.state == TrialState.WAITING)
        .where(*_live(), AttemptRow.iteration <= ParkedRow.end)  # at the end it has yet to save what others want
    )


def _count_idle(study_id: int) -> Select[Any]:
    """Select the number of live workers that have nothing to train, though they serve a study."""
    serving = or_(WorkerRow.study_id == study_id, WorkerRow.study_id.is_(None))
    busy = WorkerRow.name.in_(select(AttemptRow.worker).where(*_live()))
    return select(func.count()).where(serving, WorkerRow.seen_s + WorkerRow.lease_s >= now_s(), ~busy)


def _live() -> tuple[ColumnElement[bool], ...]:
    """List the conditions on an attempt that holds its trial."""
    return AttemptRow.ended_s.is_(None), AttemptRow.lease_until_s >= now_s()


def _lock_study(session: Session, study_id: int) -> None:
    study: Select[Any] = select(models.StudyModel.study_id).where(models.StudyModel.study_id == study_id)
    if session.execute(study.with_for_update()).first() is None:
        raise StudyNotFound(f"the study with id {study_id} was deleted")


def _trim(session: Session, study_id: int, total: int) -> None:
    last_taken = session.scalar(
        select(func.max(Trials.number)).where(Trials.study_id == study_id, Trials.state != TrialState.WAITING)
    )
    keep = max(total, -1 if last_taken is None else last_taken + 1)
    ids = session.scalars(select(Trials.trial_id).where(Trials.study_id == study_id, Trials.number >= keep)).all()
    _forget(session, ids, (AttemptRow, CurveRow, *_OPTUNA_CHILDREN, Trials))


def _hold(session: Session, attempt: Attempt, progress: Progress, lease_s: float | None = None) -> StudyState:
    """Make sure that an attempt is open, and keep it so until the transaction ends, or for as long as `lease_s`.

    Returns:
        The state of its study, read on the way.
    """
    lease = {} if lease_s is None else {"lease_until_s": now_s() + lease_s}
    study = select(Trials.study_id).where(Trials.trial_id == attempt.trial_id).scalar_subquery()
    state = select(StudyRow.state).where(StudyRow.study_id == study).scalar_subquery()
    held = session.execute(
        update(AttemptRow)
        .where(AttemptRow.attempt_id == attempt.attempt_id, AttemptRow.ended_s.is_(None))
        # Where another tool deleted the study, SQLite may have kept the attempt.
        .where(exists().where(Trials.trial_id == attempt.trial_id))
        .values(**asdict(progress), **lease)
        .returning(state)
        .execution_options(synchronize_session=False)
    ).first()
    if held is None:
        raise LeaseLost(_ended_message(attempt))
    return held[0] or "running"


def _ended_message(attempt: Attempt) -> str:
    return f"trial {attempt.trial_number}: attempt {attempt.number} has ended; another may be under way"


def _write_points(
    session: Session, attempt: Attempt, points: Sequence[CurvePoint], values: Mapping[int, float]
) -> None:
    curve = [{"trial_id": attempt.trial_id} | asdict(point) for point in points]
    upsert(session, CurveRow, curve, ("trial_id", "iteration"))
    model = models.TrialIntermediateValueModel
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


def _end_trial(session: Session, trial_id: int, outcome: Outcome) -> None:
    session.execute(
        update(Trials)
        .where(Trials.trial_id == trial_id)
        .values(state=_STATES[outcome.state], _datetime_complete_utc=_utc_now())
    )
    if outcome.value is not None:
        finite = models.TrialValueModel.TrialValueType.FINITE
        session.add(models.TrialValueModel(trial_id=trial_id, objective=0, value=outcome.value, value_type=finite))
    study_id = session.scalar(select(Trials.study_id).where(Trials.trial_id == trial_id))
    _set_attrs(session, models.TrialUserAttributeModel, {"trial_id": trial_id}, outcome.attrs)
    _set_attrs(session, models.TrialSystemAttributeModel, {"trial_id": trial_id}, outcome.trial_system_attrs)
    _set_attrs(session, models.StudySystemAttributeModel, {"study_id": study_id}, outcome.study_system_attrs)


def _set_attrs(session: Session, table: Any, owner: Mapping[str, Any], attrs: Mapping[str, Any]) -> None:
    rows = [{**owner, "key": key, "value_json": json.dumps(value)} for key, value in attrs.items()]
    upsert(session, table, rows, (*owner, "key"))


def _requeue(session: Session, trial_id: int) -> None:
    # What was reported goes too: the next attempt reports it again, and a pruner must not see a future.
    _forget(session, [trial_id], (CurveRow, models.TrialIntermediateValueModel))
    notes = models.TrialSystemAttributeModel
    session.execute(delete(notes).where(notes.trial_id == trial_id, notes.key.startswith("completed_rung_")))
    session.execute(
        update(Trials)
        .where(Trials.trial_id == trial_id, Trials.state == TrialState.RUNNING)
        .values(state=TrialState.WAITING)
    )


def _give_up_or_requeue(session: Session, trial_id: int) -> None:
    attempts = session.execute(
        select(AttemptRow.outcome, AttemptRow.iteration)
        .where(AttemptRow.trial_id == trial_id)
        .order_by(AttemptRow.number)
    ).all()
    lapses, deepest = count_lapses([(row.outcome, row.iteration) for row in attempts])
    if lapses <= MAX_LAPSES:
        _requeue(session, trial_id)
        return
    reason = f"its worker vanished {lapses} times without getting past iteration {deepest}"
    note = note_attrs(f"**Failed: {reason}.**", trial_id)
    attrs = {"outcome": f"failed: {reason}", "iterations": deepest}
    _end_trial(session, trial_id, Outcome(state="failed", value=None, attrs=attrs, study_system_attrs=note))


def require_open(session: Session, attempt: Attempt) -> None:
    """Make sure that an attempt is open, and keep it so until the transaction ends.

    Raises:
        LeaseLost: It has ended.
    """
    still_open = select(AttemptRow.attempt_id).where(
        AttemptRow.attempt_id == attempt.attempt_id, AttemptRow.ended_s.is_(None)
    )
    if session.execute(still_open.with_for_update()).first() is None:
        raise LeaseLost(_ended_message(attempt))


def count_lapses(attempts: Iterable[tuple[str | None, int]]) -> tuple[int, int]:
    """Count how often a trial's worker has vanished since an attempt last got further than all before it.

    Args:
        attempts: Outcome, and the iteration that was reached, of each.

    Returns:
        The count, and the furthest iteration.
    """
    lapses = deepest = 0
    for outcome, iteration in attempts:
        if iteration > deepest:
            lapses, deepest = 0, iteration
        lapses += outcome == "lapsed"
    return lapses, deepest


def _forget(session: Session, trial_ids: Sequence[int], tables: Iterable[Any]) -> None:
    for table in tables:
        session.execute(delete(table).where(table.trial_id.in_(trial_ids)))


def _system_attr(trial_id: int, key: str, value: Any) -> models.TrialSystemAttributeModel:
    return models.TrialSystemAttributeModel(trial_id=trial_id, key=key, value_json=json.dumps(value))


def _rows(result: Any) -> int:
    assert isinstance(result, CursorResult)
    return result.rowcount


def _utc_now() -> datetime:
    """Give the time as Optuna's tables hold it: UTC without a zone."""
    return datetime.now(UTC).replace(tzinfo=None)
