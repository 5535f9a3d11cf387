"""The list of live workers.

A worker writes its row between trials; while it trains, the lease of its attempt is its heartbeat, so that nothing is
written twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, exists, func, or_, select
from sqlalchemy.orm import Session

from hpo.database.attempt import WorkerId
from hpo.database.optuna_tables import StudyModel, TrialModel
from hpo.database.retry import retried
from hpo.database.storage import Storage
from hpo.database.tables import AttemptRow, StudyRow, WorkerRow, now_s, upsert


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveWorker:
    """A live worker, as `hpo workers` shows it.

    Attributes:
        study: Name of the study that it trains for or has joined; None for an idle worker that serves all.
        state: State of that study: running, paused or stopping.
        heartbeat_age_s: Seconds since the last heartbeat, by the database's clock.
    """

    worker: str
    host: str
    device: str
    study: str | None
    state: str | None
    trial: int | None
    iteration: int | None
    heartbeat_age_s: float


@retried
def heartbeat(storage: Storage, worker: WorkerId, study_id: int | None, lease_s: float) -> None:
    """Write a worker's heartbeat; called between its trials.

    Args:
        study_id: Id of the study that it serves; None if it serves all.
    """
    row = {"name": worker.name, "host": worker.host, "device": worker.device}
    row_now: dict[str, Any] = {**row, "study_id": study_id, "lease_s": lease_s, "seen_s": now_s()}
    with storage.transaction() as session:
        upsert(session, WorkerRow, [row_now], ("name",))


@retried
def delete_stale_workers(storage: Storage) -> None:
    """Delete the rows of workers without a heartbeat for longer than their lease."""
    with storage.transaction() as session:
        trains = exists().where(*_trained_by_row())
        session.execute(delete(WorkerRow).where(WorkerRow.seen_s + WorkerRow.lease_s < now_s(), ~trains))


def deregister(storage: Storage, worker: WorkerId) -> None:
    """Remove a worker that ends from the list.

    Raises:
        StorageUnavailable: The database did not answer; the row is deleted when its lease has run out.
    """
    with storage.transaction() as session:
        session.execute(delete(WorkerRow).where(WorkerRow.name == worker.name))


@retried
def list_workers(storage: Storage) -> list[LiveWorker]:
    """List the live workers of all studies, by name."""
    joined = func.coalesce(TrialModel.study_id, WorkerRow.study_id)
    query = (
        select(
            WorkerRow.name.label("worker"),
            WorkerRow.host,
            WorkerRow.device,
            StudyModel.study_name.label("study"),
            StudyRow.state,
            TrialModel.number.label("trial"),
            AttemptRow.iteration,
            (now_s() - WorkerRow.seen_s).label("row_age_s"),
            (now_s() - AttemptRow.lease_until_s + WorkerRow.lease_s).label("attempt_age_s"),
            WorkerRow.lease_s,
        )
        .outerjoin(AttemptRow, and_(*_trained_by_row()))
        .outerjoin(TrialModel, TrialModel.trial_id == AttemptRow.trial_id)
        .outerjoin(StudyModel, StudyModel.study_id == joined)
        .outerjoin(StudyRow, StudyRow.study_id == joined)
        .order_by(WorkerRow.name)
    )
    with storage.transaction() as session:
        return live_workers([dict(row) for row in session.execute(query).mappings()])


def live_workers(rows: Iterable[dict[str, Any]]) -> list[LiveWorker]:
    """Select the workers whose last heartbeat is not older than their lease.

    Args:
        rows: The fields of `LiveWorker`, but in place of the heartbeat's age: the ages of the worker's row and of its
            attempt's last renewal, and the length of the lease.
    """
    live = []
    for row in rows:
        row_age_s, attempt_age_s, lease_s = (row.pop(name) for name in ("row_age_s", "attempt_age_s", "lease_s"))
        age_s = min(age for age in (row_age_s, attempt_age_s) if age is not None)
        if age_s <= lease_s:
            row["state"] = "stopping" if row["state"] in ("stopped", "finishing", "ended") else row["state"]
            live.append(LiveWorker(heartbeat_age_s=max(0.0, age_s), **row))
    return live


@retried
def list_workers_on(storage: Storage, study_id: int) -> list[str]:
    """List the names of the workers that train for a study, or have joined it and are idle."""
    with storage.transaction() as session:
        return workers_on(session, study_id)


def workers_on(session: Session, study_id: int) -> list[str]:
    """List the names of the workers that train for a study, or have joined it and are idle, within a transaction.

    An open attempt counts even if its lease has run out: until it is reaped, its worker may come back.
    """
    training = (
        select(AttemptRow.worker)
        .join(TrialModel, TrialModel.trial_id == AttemptRow.trial_id)
        .where(TrialModel.study_id == study_id, AttemptRow.ended_s.is_(None))
    )
    alive = or_(WorkerRow.seen_s + WorkerRow.lease_s >= now_s(), exists().where(*_trained_by_row()))
    joined = select(WorkerRow.name).where(WorkerRow.study_id == study_id, alive)
    return sorted({*session.scalars(training), *session.scalars(joined)})


def _trained_by_row() -> list[ColumnElement[bool]]:
    """List the conditions under which an attempt is what the worker of a row trains now.

    A restarted container reuses names, so an attempt of an earlier worker of the same name may still be open.
    """
    mine = (AttemptRow.worker == WorkerRow.name, AttemptRow.claimed_s >= WorkerRow.seen_s)
    return [*mine, AttemptRow.ended_s.is_(None), AttemptRow.lease_until_s >= now_s()]
