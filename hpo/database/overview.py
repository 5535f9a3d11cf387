"""The state of a study, each part read in one short transaction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import TrialState
from sqlalchemy import ColumnElement, Double, Select, and_, cast, func, select
from sqlalchemy.orm import Session

from hpo.database.copies import load_points
from hpo.database.optuna_tables import TrialModel, TrialUserAttributeModel, TrialValueModel
from hpo.database.retry import retried
from hpo.database.storage import Storage
from hpo.database.studies import find_target
from hpo.database.tables import AttemptRow, RungRow, is_open, is_trained
from hpo.recipes.schedule import CurvePoint
from hpo.settings import VALIDATION_LOSS


@dataclass(frozen=True, kw_only=True, slots=True)
class Running:
    """A running trial, and who trains it."""

    worker: str
    host: str
    device: str
    trial_number: int
    iteration: int
    val_accuracy: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """Numbers of a study's trials by state.

    Attributes:
        at_rungs: How many of the waiting trials wait for promotion, by rung.
        lent: How many of the running trials another client has asked for.
        told: How many of the complete and pruned trials another client has ended or added.
        refused: How many of the failed trials another client has ended, or has chosen outside the search space.
    """

    complete: int = 0
    pruned: int = 0
    failed: int = 0
    running: int = 0
    waiting: int = 0
    at_rungs: Mapping[int, int] = field(default_factory=dict)
    lent: int = 0
    told: int = 0
    refused: int = 0

    @property
    def finished(self) -> int:
        """Count the trials that have ended."""
        return self.complete + self.pruned + self.failed

    @property
    def training(self) -> int:
        """Count the running trials that our workers train."""
        return self.running - self.lent

    @property
    def total(self) -> int:
        """Count all trials, those that the study is still to have included."""
        return self.finished + self.running + self.waiting


@retried
def count(storage: Storage, study_id: int) -> Counts:
    """Count a study's trials by state; those that it is still to have wait.

    Raises:
        StudyNotFound: The study was deleted or renamed.
    """
    with storage.transaction() as session:
        return count_each(session, {study_id: find_target(session, study_id)})[study_id]


def count_each(session: Session, targets: Mapping[int, int]) -> dict[int, Counts]:
    """Count the trials of studies by state.

    Args:
        targets: How many trials each is to have, by the studies' ids.
    """
    flags = (is_open().label("is_open"), is_trained().label("is_trained"))
    each = (
        select(TrialModel.study_id, TrialModel.state, RungRow.rung, *flags)
        .outerjoin(RungRow, and_(RungRow.trial_id == TrialModel.trial_id, ~RungRow.promoted))
        .where(TrialModel.study_id.in_(targets))
        .subquery()
    )
    query = select(*each.c, func.count()).group_by(*each.c).order_by(each.c.rung)
    rows: dict[int, list[Any]] = {study_id: [] for study_id in targets}
    for study_id, *row in session.execute(query):
        rows[study_id].append(row)
    return {study_id: _sum(rows[study_id], target) for study_id, target in targets.items()}


def _sum(rows: Sequence[Any], target: int) -> Counts:
    """Sum the numbers of a study's trials by state, rung, and whether workers of ours hold or have ended them."""
    by_state: Counter[TrialState] = Counter()
    others: Counter[TrialState] = Counter()
    for state, _, held, trained, number in rows:
        by_state[state] += number
        ours = held if state == TrialState.RUNNING else trained
        others[state] += 0 if ours else number
    at_rungs = {rung: number for state, rung, *_, number in rows if state == TrialState.WAITING and rung is not None}
    return Counts(
        complete=by_state[TrialState.COMPLETE],
        pruned=by_state[TrialState.PRUNED],
        failed=by_state[TrialState.FAIL],
        running=by_state[TrialState.RUNNING],
        waiting=by_state[TrialState.WAITING] + max(0, target - by_state.total()),
        at_rungs=at_rungs,
        lent=others[TrialState.RUNNING],
        told=others[TrialState.COMPLETE] + others[TrialState.PRUNED],
        refused=others[TrialState.FAIL],
    )


@retried
def list_trained(storage: Storage, study_id: int) -> set[int]:
    """List the ids of a study's trials that were trained to their ends here."""
    with storage.transaction() as session:
        return set(session.scalars(select(TrialModel.trial_id).where(TrialModel.study_id == study_id, is_trained())))


@retried
def has_finished_one(storage: Storage, study_id: int, worker: str) -> bool:
    """Return whether a worker has completed or pruned a trial of a study, or trained one up to a rung."""
    with storage.transaction() as session:
        finished = session.execute(
            select(AttemptRow.attempt_id)
            .join(TrialModel, TrialModel.trial_id == AttemptRow.trial_id)
            .where(TrialModel.study_id == study_id, AttemptRow.worker == worker)
            .where(AttemptRow.outcome.in_(("complete", "pruned", "waiting")))
            .limit(1)
        )
        return finished.first() is not None


@retried
def list_running(storage: Storage, study_id: int) -> list[Running]:
    """List the running trials with their workers, in the order of the trials' numbers."""
    with storage.transaction() as session:
        rows = session.execute(
            select(AttemptRow, TrialModel.number)
            .join(TrialModel, TrialModel.trial_id == AttemptRow.trial_id)
            .where(TrialModel.study_id == study_id, AttemptRow.ended_s.is_(None))
            .where(TrialModel.state == TrialState.RUNNING)
            .order_by(TrialModel.number)
        ).all()
        return [
            Running(
                worker=row.worker,
                host=row.host,
                device=row.device,
                trial_number=number,
                iteration=row.iteration,
                val_accuracy=row.val_accuracy,
            )
            for row, number in rows
        ]


@retried
def trained_iterations(storage: Storage, study_id: int) -> int:
    """Count the optimizer steps that all attempts of a study have executed, redone work included."""
    with storage.transaction() as session:
        total = session.scalar(
            select(func.sum(AttemptRow.trained_iterations))
            .join(TrialModel, TrialModel.trial_id == AttemptRow.trial_id)
            .where(TrialModel.study_id == study_id)
        )
        return int(total or 0)


@retried
def find_best(storage: Storage, study_id: int) -> tuple[int, float] | None:
    """Find the number and value of the best completed trial."""
    with storage.transaction() as session:
        row = session.execute(select_best(study_id)).first()
        return None if row is None else (row.number, row.value)


def select_best(study_id: int) -> Select[Any]:
    """Select id, number and value of the best completed trial that was trained here; no row while there is none."""
    return (
        select(TrialModel.trial_id, TrialModel.number, TrialValueModel.value)
        .join(TrialValueModel, TrialValueModel.trial_id == TrialModel.trial_id)
        .where(TrialModel.study_id == study_id, TrialModel.state == TrialState.COMPLETE, is_trained())
        .order_by(*best_first())
        .limit(1)
    )


def best_first() -> tuple[ColumnElement[Any], ...]:
    """Return the order of completed trials from the best: highest value, then lowest validation loss, then oldest."""
    attributes = TrialUserAttributeModel
    loss = (
        select(cast(attributes.value_json, Double))
        .where(attributes.trial_id == TrialModel.trial_id, attributes.key == VALIDATION_LOSS)
        .scalar_subquery()
    )
    return TrialValueModel.value.desc(), loss.asc().nulls_last(), TrialModel.number.asc()


@retried
def load_curve(storage: Storage, trial_id: int) -> list[CurvePoint]:
    """Load a trial's curve, in the order of iterations."""
    with storage.transaction() as session:
        return load_points(session, trial_id)
