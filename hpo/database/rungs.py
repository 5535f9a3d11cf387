"""The rungs that trials have reached: promote a trial, and end or revive those that wait for it.

A trial waits at a rung if it is WAITING, and the rung's row says that it has not been promoted. It keeps its curve and
its reported values meanwhile. When nothing else is left to train it is pruned. It waits again if the study is extended.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from datetime import datetime

from optuna.trial import TrialState
from sqlalchemy import ColumnElement, and_, delete, func, or_, select, update
from sqlalchemy.orm import Session

from hpo.database.optuna_tables import (
    StudyModel,
    TrialIntermediateValueModel,
    TrialModel,
    TrialUserAttributeModel,
    TrialValueModel,
    utc_now,
)
from hpo.database.retry import retried
from hpo.database.storage import Storage
from hpo.database.tables import RungRow, StudyRow, delete_of_trials, is_at_rung, upsert
from hpo.recipes.promotion import Reached, list_promotable

OUTCOME = "outcome"
"""The user attribute that says in words how a trial ended, or where it waits."""

CHANGED_AT_ONCE = 1_000
"""Number of trials that are changed in one statement."""


def load_promotable(session: Session, study_id: int) -> list[Reached]:
    """List the trials of a study that may be promoted, in the order in which they are."""
    columns = (RungRow.trial_id, TrialModel.number, RungRow.rung, RungRow.value, RungRow.promoted)
    query = select(*columns).join(TrialModel, TrialModel.trial_id == RungRow.trial_id)
    rows = session.execute(query.where(TrialModel.study_id == study_id)).all()
    fields = ("trial_id", "trial_number", "rung", "value", "promoted")
    return list_promotable(Reached(**dict(zip(fields, row, strict=True))) for row in rows)


def enter_rung(session: Session, trial_id: int, rung: int, value: float, *, promoted: bool) -> bool:
    """Note that a running trial has reached a rung, and return whether it trains on.

    Args:
        promoted: Whether the trial trains on whatever its value is.
    """
    row = {"trial_id": trial_id, "rung": rung, "value": value, "promoted": promoted}
    upsert(session, RungRow, [row], ("trial_id", "rung"), update=False)
    at = (RungRow.trial_id == trial_id, RungRow.rung == rung)
    if session.scalar(select(RungRow.promoted).where(*at)):
        return True
    study_id = session.scalars(select(TrialModel.study_id).where(TrialModel.trial_id == trial_id)).one()
    if (trial_id, rung) not in {(each.trial_id, each.rung) for each in load_promotable(session, study_id)}:
        return False
    session.execute(update(RungRow).where(*at).values(promoted=True))
    return True


def take_promotable(
    session: Session, promotable: Collection[Reached], condition: ColumnElement[bool]
) -> tuple[int, int] | None:
    """Promote the first trial that still waits and meets a condition.

    Returns:
        Its id and number; None if there is none.
    """
    for each in promotable:
        trial = (TrialModel.trial_id == each.trial_id, TrialModel.state == TrialState.WAITING)
        locked = select(TrialModel.trial_id).where(*trial, condition).with_for_update(skip_locked=True)
        if session.execute(locked).first() is None:
            continue
        at = (RungRow.trial_id == each.trial_id, RungRow.rung == each.rung)
        waits = update(RungRow).where(*at, ~RungRow.promoted).values(promoted=True).returning(RungRow.rung)
        if session.execute(waits.execution_options(synchronize_session=False)).first() is not None:
            _reword_outcomes(session, [each.trial_id], "waiting at", "promoted from")
            return each.trial_id, each.trial_number
    return None


def forget_rung(session: Session, trial_id: int) -> None:
    """Forget the rung from which a trial has not been promoted: the trial did not come to wait there."""
    session.execute(delete(RungRow).where(RungRow.trial_id == trial_id, ~RungRow.promoted))


@retried
def prune_if_used_up(storage: Storage, study_id: int) -> int:
    """Prune the trials that wait at a rung if nothing else is left to train, and none of them may be promoted.

    Atomic across processes: no trial can be claimed or added meanwhile.

    Returns:
        The number of trials that were pruned.
    """
    with storage.transaction() as session:
        if not _is_used_up(session, study_id):
            return 0
        # Claims share the first lock, and adding trials takes the second.
        state = session.scalar(select(StudyRow.state).where(StudyRow.study_id == study_id).with_for_update())
        session.execute(select(StudyModel.study_id).where(StudyModel.study_id == study_id).with_for_update())
        if state != "running" or not _is_used_up(session, study_id):
            return 0
        waiting = _at_rung(session, study_id, TrialState.WAITING)
        for trial_ids in waiting:
            _prune(session, trial_ids)
    return sum(map(len, waiting))


def wait_again(session: Session, study_id: int) -> None:
    """Let the trials that were pruned while they waited at a rung wait there again."""
    for trial_ids in _at_rung(session, study_id, TrialState.PRUNED):
        delete_of_trials(session, trial_ids, (TrialValueModel,))
        _set_state(session, trial_ids, TrialState.WAITING, None)
        _reword_outcomes(session, trial_ids, "pruned at", "waiting at")


def _at_rung(session: Session, study_id: int, state: TrialState) -> list[Sequence[int]]:
    """List the trials at a rung from which they have not been promoted, in groups that one statement can hold."""
    query = select(TrialModel.trial_id).where(TrialModel.study_id == study_id, TrialModel.state == state, is_at_rung())
    ids = session.scalars(query).all()
    return [ids[start : start + CHANGED_AT_ONCE] for start in range(0, len(ids), CHANGED_AT_ONCE)]


def _is_used_up(session: Session, study_id: int) -> bool:
    """Return whether trials wait at rungs, no other is left to train, and none may be promoted.

    The order matters: what runs may change which trials may be promoted.
    """
    waiting_there = and_(TrialModel.state == TrialState.WAITING, is_at_rung())
    unfinished = or_(TrialModel.state == TrialState.RUNNING, TrialModel.state == TrialState.WAITING)
    query = select(func.count(), func.count().filter(unfinished), func.count().filter(waiting_there))
    number, left, at_rungs = session.execute(query.where(TrialModel.study_id == study_id)).one()
    target = session.scalar(select(StudyRow.target).where(StudyRow.study_id == study_id)) or 0
    return 0 < at_rungs == left and number >= target and not load_promotable(session, study_id)


def _prune(session: Session, trial_ids: Collection[int]) -> None:
    """Prune trials, each with the value that it reported last."""
    table = TrialIntermediateValueModel
    reported = select(table.trial_id, table.intermediate_value).where(table.trial_id.in_(trial_ids))
    ascending = session.execute(reported.order_by(table.trial_id, table.step))
    last: dict[int, float] = {trial_id: value for trial_id, value in ascending}  # noqa: C416 - rows are not pairs
    finite = TrialValueModel.TrialValueType.FINITE
    session.add_all(
        TrialValueModel(trial_id=trial_id, objective=0, value=value, value_type=finite)
        for trial_id, value in last.items()
    )
    _set_state(session, trial_ids, TrialState.PRUNED, utc_now())
    _reword_outcomes(session, trial_ids, "waiting at", "pruned at")


def _set_state(session: Session, trial_ids: Collection[int], state: TrialState, completed: datetime | None) -> None:
    changed = update(TrialModel).where(TrialModel.trial_id.in_(trial_ids))
    changed = changed.values(state=state, _datetime_complete_utc=completed)
    session.execute(changed.execution_options(synchronize_session=False))


def _reword_outcomes(session: Session, trial_ids: Collection[int], before: str, after: str) -> None:
    table = TrialUserAttributeModel
    query = select(table.trial_id, table.value_json).where(table.trial_id.in_(trial_ids), table.key == OUTCOME)
    rows = [
        {"trial_id": trial_id, "key": OUTCOME, "value_json": json.dumps(json.loads(text).replace(before, after, 1))}
        for trial_id, text in session.execute(query)
    ]
    upsert(session, table, rows, ("trial_id", "key"))
