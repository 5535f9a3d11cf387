"""The states of studies: pause, resume and stop them, each in one short transaction.

Every claim reads the state of its study, and so does every heartbeat.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from optuna.trial import TrialState
from sqlalchemy import and_, func, select, update
from sqlalchemy.orm import Session

from hpo.database import losses, overview
from hpo.database.optuna_tables import StudyModel, TrialModel
from hpo.database.overview import Counts
from hpo.database.retry import retried
from hpo.database.storage import Storage
from hpo.database.tables import UNCLAIMED, StudyRow, described, now_s, require_study
from hpo.database.workers import list_workers_on
from hpo.errors import StillRunning
from hpo.settings import StudyState

NOT_TRAINED = ("stopped", "finishing", "ended")
"""The states in which no trial is claimed until somebody resumes the study, and its driver and workers end."""

STOP_POLL_S = 0.5
"""Time between two checks of whether a study has stopped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyLoad:
    """A study's state, and its numbers of running and waiting trials.

    Attributes:
        changed_s: When its state was last set, by the database's clock. With the id, it distinguishes a study from a
            later one with the same id.
    """

    study_id: int
    name: str
    state: StudyState
    changed_s: float
    running: int
    waiting: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Stopped:
    """The outcome of stopping a study, by what happened to the trials that were running."""

    handed_back: int
    finished: int
    counts: Counts


def shown_state(state: StudyState, counts: Counts) -> str:
    """Return a study's state in one word: done, running, paused, stopping, stopped or ended."""
    if counts.waiting + counts.running == 0:
        return "done"
    if state in NOT_TRAINED and counts.training:
        return "stopping"
    return "stopped" if state == "finishing" else state


def is_over(state: StudyState, counts: Counts) -> bool:
    """Return whether the study's driver and workers should end now; a finishing study first finishes its trials."""
    if counts.waiting + counts.running == 0:
        return True
    return state in ("stopped", "ended") or (state == "finishing" and not counts.training)


@retried
def find_state(storage: Storage, study_id: int) -> StudyState:
    """Return a study's state."""
    with storage.transaction() as session:
        return _state(session, study_id)


@retried
def set_state(storage: Storage, study_id: int, state: StudyState) -> StudyState:
    """Set a study's state; when this returns, no claim that began under the old state is still in progress.

    Returns:
        The old state.

    Raises:
        StudyNotFound: The study was deleted or renamed.
    """
    with storage.transaction() as session:
        before = _state(session, study_id, lock=True)
        require_study(session, study_id)
        at = StudyRow.study_id == study_id
        session.execute(update(StudyRow).where(at).values(state=state, changed_s=now_s()))
    return before


@retried
def reopen(storage: Storage, study_id: int) -> None:
    """Resume a stopped study, or one that has ended; a paused study stays paused."""
    with storage.transaction() as session:
        stopped = (StudyRow.study_id == study_id, StudyRow.state.in_(NOT_TRAINED))
        session.execute(update(StudyRow).where(*stopped).values(state="running", changed_s=now_s()))


def stop(storage: Storage, study_id: int, name: str, *, finish: bool, timeout_s: float | None) -> Stopped:
    """Stop a study, and wait until nothing runs and its workers have ended.

    Args:
        finish: Let running trials finish; otherwise they are handed back with a checkpoint.
        timeout_s: How long to wait; None for as long as it takes.

    Raises:
        StillRunning: The workers did not end in time, or somebody resumed the study meanwhile.
    """
    before = {row.trial_number for row in overview.list_running(storage, study_id)}
    set_state(storage, study_id, "finishing" if finish else "stopped")
    deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
    while left := list_workers_on(storage, study_id):
        if find_state(storage, study_id) not in NOT_TRAINED:
            raise StillRunning(f"study {name} was resumed before its last trial had finished")
        if deadline_s is not None and time.monotonic() >= deadline_s:
            raise StillRunning(
                f"study {name} is stopped, but these workers were still running "
                f"after {timeout_s:g} s: {', '.join(left)}"
            )
        time.sleep(STOP_POLL_S)
        losses.reap(storage, study_id)
    finished = _count_finished(storage, study_id, before)
    return Stopped(handed_back=len(before) - finished, finished=finished, counts=overview.count(storage, study_id))


@retried
def list_study_loads(storage: Storage, name: str | None = None) -> list[StudyLoad]:
    """List all our studies, or the one with a name, the oldest first."""
    columns = (StudyRow.study_id, StudyModel.study_name, StudyRow.state, StudyRow.changed_s, StudyRow.target)
    number = func.count(TrialModel.trial_id)
    running, waiting = (number.filter(TrialModel.state == state) for state in (TrialState.RUNNING, TrialState.WAITING))
    query = (
        select(*columns, number, running, waiting)
        .join(StudyModel, and_(StudyModel.study_id == StudyRow.study_id, StudyModel.study_name == StudyRow.name))
        .outerjoin(TrialModel, TrialModel.study_id == StudyRow.study_id)
        .where(*([] if name is None else [StudyModel.study_name == name]))
        .group_by(*columns)
        .order_by(StudyRow.study_id)
    )
    with storage.transaction() as session:
        rows = session.execute(query).all()
    return [
        StudyLoad(
            study_id=study_id,
            name=title,
            state=state,
            changed_s=changed_s,
            running=running,
            waiting=waiting + max(0, target - number),
        )
        for study_id, title, state, changed_s, target, number, running, waiting in rows
    ]


def _state(session: Session, study_id: int, *, lock: bool = False) -> StudyState:
    query = select(StudyRow.state).where(*described(study_id))
    state = session.scalar(query.with_for_update() if lock else query)
    if state is None:
        require_study(session, study_id)
    return state or UNCLAIMED


@retried
def _count_finished(storage: Storage, study_id: int, numbers: Iterable[int]) -> int:
    ended = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    query = select(func.count()).where(TrialModel.study_id == study_id, TrialModel.state.in_(ended))
    with storage.transaction() as session:
        return int(session.scalar(query.where(TrialModel.number.in_(tuple(numbers)))) or 0)
