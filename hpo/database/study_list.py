"""The list of all studies of a storage, in a number of queries that does not grow with the number of studies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna.trial import TrialState
from sqlalchemy import and_, case, func, select
from sqlalchemy.orm import Session

from hpo.database import overview
from hpo.database.optuna_tables import (
    StudyModel,
    StudyUserAttributeModel,
    TrialModel,
    TrialUserAttributeModel,
    TrialValueModel,
)
from hpo.database.overview import best_first
from hpo.database.retry import retried
from hpo.database.storage import Storage
from hpo.database.study_state import shown_state
from hpo.database.tables import UNCLAIMED, AttemptRow, StudyRow, is_trained, now_s
from hpo.database.workers import list_workers
from hpo.settings import SPACE, STANDARD_ERROR


@dataclass(frozen=True, kw_only=True, slots=True)
class BestValue:
    """The value of a study's best trial.

    Attributes:
        value: Validation accuracy in [0, 1].
        standard_error: None if another client has deleted or spoilt it.
    """

    trial: int
    value: float
    standard_error: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedStudy:
    """A study, as `hpo studies` shows it.

    Attributes:
        kind: search, confirmation or benchmark.
        state: done, running, paused, stopping, stopped or ended.
        finished: Number of its trials that have ended, of `target`.
        trained_iterations: Optimizer steps of all workers.
        idle_s: Seconds since something last happened to it, by the database's clock; None for a copy that another
            client has made.
        workers: Names of the live workers that have joined it or train one of its trials.
    """

    study: str
    kind: str
    state: str
    finished: int
    target: int
    best: BestValue | None
    trained_iterations: int
    idle_s: float | None
    workers: tuple[str, ...]


@retried
def list_studies(storage: Storage) -> list[ListedStudy]:
    """List the studies of ours in a storage, in the order in which they were created."""
    described = and_(StudyRow.study_id == StudyModel.study_id, StudyRow.name == StudyModel.study_name)
    ours = and_(StudyUserAttributeModel.study_id == StudyModel.study_id, StudyUserAttributeModel.key == SPACE)
    query = (
        select(StudyModel.study_id, StudyModel.study_name, StudyUserAttributeModel.value_json.label("space"))
        .add_columns(StudyRow.state, StudyRow.target, (now_s() - StudyRow.changed_s).label("idle_s"))
        .join(StudyUserAttributeModel, ours)
        .outerjoin(StudyRow, described)
        .order_by(StudyModel.study_id)
    )
    workers: dict[str | None, list[str]] = {}
    for worker in list_workers(storage):
        workers.setdefault(worker.study, []).append(worker.worker)
    with storage.transaction() as session:
        rows = session.execute(query).all()
        counts = overview.count_each(session, {row.study_id: row.target or 0 for row in rows})
        best, spent = _find_best(session), _sum_attempts(session)
    listed = []
    for row in rows:
        trained, attempt_idle_s = spent.get(row.study_id, (0, None))
        ages = [age for age in (row.idle_s, attempt_idle_s) if age is not None]
        listed.append(
            ListedStudy(
                study=row.study_name,
                kind=_kind(json.loads(row.space)),
                state=shown_state(row.state or UNCLAIMED, counts[row.study_id]),
                finished=counts[row.study_id].finished,
                target=counts[row.study_id].total,
                best=best.get(row.study_id),
                trained_iterations=trained,
                idle_s=max(0.0, min(ages)) if ages else None,
                workers=tuple(workers.get(row.study_name, ())),
            )
        )
    return listed


@retried
def list_names(storage: Storage) -> list[str]:
    """List the names of all studies in a storage, also of other tools, in the order in which they were created."""
    with storage.transaction() as session:
        return list(session.scalars(select(StudyModel.study_name).order_by(StudyModel.study_id)))


def _kind(space: object) -> str:
    """Return what a study with a stored space is for."""
    if not isinstance(space, Mapping) or "runs" not in space:
        return "search"
    return "confirmation" if space.get("trials") else "benchmark"


def _find_best(session: Session) -> dict[int, BestValue]:
    """Find the best completed trial of each study that has one."""
    rank = func.row_number().over(partition_by=TrialModel.study_id, order_by=best_first()).label("rank")
    ranked = (
        select(TrialModel.study_id, TrialModel.trial_id, TrialModel.number, TrialValueModel.value, rank)
        .join(TrialValueModel, TrialValueModel.trial_id == TrialModel.trial_id)
        .where(TrialModel.state == TrialState.COMPLETE, is_trained())
        .subquery()
    )
    attributes = TrialUserAttributeModel
    error = and_(attributes.trial_id == ranked.c.trial_id, attributes.key == STANDARD_ERROR)
    columns = (ranked.c.study_id, ranked.c.number, ranked.c.value, attributes.value_json)
    query = select(*columns).outerjoin(attributes, error).where(ranked.c.rank == 1)
    return {
        study_id: BestValue(trial=number, value=value, standard_error=_number(text))
        for study_id, number, value, text in session.execute(query)
    }


def _number(text: str | None) -> float | None:
    value: Any = None if text is None else json.loads(text)
    return value if isinstance(value, float) else None


def _sum_attempts(session: Session) -> dict[int, tuple[int, float]]:
    """Sum the optimizer steps of each study with attempts, and find how long ago one of them was last active."""
    ended_s = func.coalesce(AttemptRow.ended_s, AttemptRow.claimed_s)
    active_s = case((and_(AttemptRow.ended_s.is_(None), AttemptRow.lease_until_s >= now_s()), now_s()), else_=ended_s)
    query = (
        select(TrialModel.study_id, func.sum(AttemptRow.trained_iterations), now_s() - func.max(active_s))
        .join(TrialModel, TrialModel.trial_id == AttemptRow.trial_id)
        .group_by(TrialModel.study_id)
    )
    return {study_id: (int(steps), idle_s) for study_id, steps, idle_s in session.execute(query)}
