"""A view of a study for samplers and pruners, read in few queries, which collects what they want to write.

Optuna's own storage reads every unfinished trial, waiting ones too, at each prune decision. It writes each parameter
and each value in a transaction of its own, and checks no lease: a worker that was taken for dead would change the trial
while another worker retries it, and one that dies between two parameters would leave only some of them.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from threading import Lock
from typing import Any

from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import and_, func, or_, select, true
from sqlalchemy.orm import Session

from hpo.database.optuna_tables import (
    RECORD,
    CachedStorage,
    StudyModel,
    TrialIntermediateValueModel,
    TrialModel,
    TrialParamModel,
    TrialSystemAttributeModel,
    TrialUserAttributeModel,
    TrialValueModel,
)
from hpo.database.retry import RetryPolicy, retried
from hpo.database.tables import RungRow, StudyRow, is_at_rung, is_open, is_trained

NOTES = TrialSystemAttributeModel
"""The table in which samplers and pruners keep their notes."""

READ_AT_ONCE = 1_000
"""Number of trials read in one query."""

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@dataclass(frozen=True, kw_only=True, slots=True)
class DraftParam:
    """A sampled parameter in Optuna's internal form, with its distribution as JSON."""

    value: float
    distribution: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """Attributes that a sampler or pruner wants to write for a trial."""

    params: Mapping[str, DraftParam]
    system_attrs: Mapping[str, Any]


@dataclass
class Finished:
    """The finished trials of a study that have been read, by id, and those at a rung, by id and rung.

    Attributes:
        floor: Every trial with a lower id has been read.
        changed_s: When the study's state was last set: a failed trial that is tried again counts as such a change.
    """

    trials: dict[int, FrozenTrial] = field(default_factory=dict)
    at_rungs: dict[tuple[int, int], FrozenTrial] = field(default_factory=dict)
    floor: int = 0
    changed_s: float | None = None


class OptunaView(CachedStorage):
    """Optuna's storage for the trials that a worker holds.

    Those that other clients train, or have ended, are left out: what they tell was not measured here, and their
    parameters may be of any kind. Each finished trial is read once. Waiting trials are left out, since samplers and
    pruners use nothing of them. Those at a rung are shown as pruned there, whether they still wait or were pruned when
    the study ended. What is sampled and reported stays in Optuna's `Trial`; what must be written goes into a draft,
    which `queue` writes under the trial's lease.
    """

    def __init__(self, backend: RDBStorage, retry_policy: RetryPolicy) -> None:
        super().__init__(backend)
        self.retry_policy = retry_policy
        self._params: dict[int, dict[str, DraftParam]] = {}
        self._attrs: dict[int, dict[str, Any]] = {}
        self._study_ids: dict[str, int] = {}
        self._finished: dict[int, Finished] = {}
        self._running: dict[int, dict[Any, FrozenTrial]] = {}
        self._reading = Lock()

    def get_study_id_from_name(self, study_name: str) -> int:
        """Return a study's id, which is read once."""
        if study_name not in self._study_ids:
            self._study_ids[study_name] = super().get_study_id_from_name(study_name)
        return self._study_ids[study_name]

    @retried
    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """List the finished and running trials with the given states, in the order of their numbers."""
        by_id: dict[int, FrozenTrial] = {}
        if states is None or TrialState.RUNNING in states:
            by_id = self._read_running(study_id)
        by_id |= self._read_finished(study_id)
        trials = [trial for trial in by_id.values() if states is None or trial.state in states]
        trials.sort(key=lambda trial: trial.number)
        return copy.deepcopy(trials) if deepcopy else trials

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Add a parameter to the draft."""
        param = DraftParam(value=param_value_internal, distribution=distribution_to_json(distribution))
        self._params.setdefault(trial_id, {})[param_name] = param

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Add a note of a sampler or pruner to the draft."""
        self._attrs.setdefault(trial_id, {})[key] = value

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Do nothing: `queue.record` writes values together with the curve."""

    def take_draft(self, trial_id: int) -> Draft:
        """Return the draft of a trial, and forget it."""
        return Draft(params=self._params.pop(trial_id, {}), system_attrs=self._attrs.pop(trial_id, {}))

    def _read_running(self, study_id: int) -> dict[int, FrozenTrial]:
        """Read the running trials; of known ones only the notes, since their parameters do not change."""
        running = (TrialModel.study_id == study_id, TrialModel.state == TrialState.RUNNING, is_open())
        with self._reading, Session(self._backend.engine) as session:
            begun = session.execute(select(TrialModel.trial_id, TrialModel._datetime_start_utc).where(*running)).all()
            before = self._running.get(study_id, {})
            known = {start.trial_id: before[start] for start in begun if start in before and before[start].params}
            new = [start.trial_id for start in begun if start.trial_id not in known]
            trials = read_trials(session, new, with_reports=False)
            notes = _read_attrs(session, NOTES, list(known))
        trials = {trial_id: trial for trial_id, trial in trials.items() if trial.state == TrialState.RUNNING}
        trials |= {trial_id: _with_notes(trial, notes.get(trial_id, {})) for trial_id, trial in known.items()}
        self._running[study_id] = {start: trials[start.trial_id] for start in begun if start.trial_id in trials}
        return trials

    def _read_finished(self, study_id: int) -> dict[int, FrozenTrial]:
        with self._reading:
            known = self._finished.setdefault(study_id, Finished())
            changed_s, ids, at_rungs, floor = self._list_finished(study_id, known.floor)
            if changed_s != known.changed_s:  # finished trials may have been put back
                if known.floor:
                    _, ids, at_rungs, floor = self._list_finished(study_id, 0)
                known = self._finished[study_id] = Finished(changed_s=changed_s)
            new = ids - known.trials.keys()
            arrived = {trial_id for trial_id, _ in at_rungs - known.at_rungs.keys()}
            if new | arrived:
                with Session(self._backend.engine) as session:
                    trials = read_trials(session, sorted(new | arrived))
                known.trials |= {trial_id: trials[trial_id] for trial_id in new}
                known.at_rungs |= {key: _pruned(trials[key[0]]) for key in at_rungs if key[0] in arrived}
                known.floor = floor
            shown = {key: trial for key, trial in known.at_rungs.items() if key in at_rungs and trial.value is not None}
            return known.trials | {trial_id: trial for (trial_id, _), trial in shown.items()}

    def _list_finished(self, study_id: int, floor: int) -> tuple[float | None, set[int], set[tuple[int, int]], int]:
        """Return when the study changed, finished trials from a floor on, those at a rung with it, and the next floor.

        All are read at the same moment. A trial at a rung is not finished: it may be promoted later.
        """
        trials = (TrialModel.study_id == study_id, TrialModel.trial_id >= floor)
        finished = TrialModel.state.in_(FINISHED)
        lowest = select(func.min(TrialModel.trial_id)).where(*trials, or_(~finished, is_at_rung()))
        waiting = and_(TrialModel.state == TrialState.WAITING, RungRow.rung.is_not(None))
        listed = (
            select(TrialModel.trial_id, RungRow.rung, lowest.scalar_subquery().label("lowest"))
            .outerjoin(RungRow, and_(RungRow.trial_id == TrialModel.trial_id, ~RungRow.promoted))
            .where(*trials, or_(and_(finished, is_trained()), waiting))
            .subquery()
        )
        query = (
            select(StudyRow.changed_s, *listed.c)
            .select_from(StudyModel)
            .outerjoin(StudyRow, StudyRow.study_id == StudyModel.study_id)
            .outerjoin(listed, true())
            .where(StudyModel.study_id == study_id)
        )
        with Session(self._backend.engine) as session:
            found = session.execute(query).all()
        changed_s = found[0][0] if found else None
        rows = [row[1:] for row in found if row[1] is not None]
        ids = {trial_id for trial_id, rung, _ in rows if rung is None}
        at_rungs = {(trial_id, rung) for trial_id, rung, _ in rows if rung is not None}
        next_floor = rows[0][2] if rows else floor
        return changed_s, ids, at_rungs, max(ids) + 1 if next_floor is None else next_floor


def read_trials(session: Session, trial_ids: Sequence[int], *, with_reports: bool = True) -> dict[int, FrozenTrial]:
    """Read the parts of trials that samplers and pruners use, as plain rows: Optuna's storage creates many objects.

    Args:
        with_reports: Whether to read reported values; nothing uses those of other running trials.
    """
    trials: dict[int, FrozenTrial] = {}
    for start in range(0, len(trial_ids), READ_AT_ONCE):
        ids = trial_ids[start : start + READ_AT_ONCE]
        params, values = _read_params(session, ids), _read_values(session, ids)
        notes, shown = (_read_attrs(session, table, ids) for table in (NOTES, TrialUserAttributeModel))
        reports = _read_reports(session, ids) if with_reports else {}
        row: Any  # Optuna's models are untyped
        for row in session.scalars(select(TrialModel).where(TrialModel.trial_id.in_(ids))):
            given = params.get(row.trial_id, {})
            trials[row.trial_id] = FrozenTrial(
                trial_id=row.trial_id,
                number=row.number,
                state=row.state,
                value=values.get(row.trial_id),
                datetime_start=row.datetime_start,
                datetime_complete=row.datetime_complete,
                params={name: distribution.to_external_repr(value) for name, (value, distribution) in given.items()},
                distributions={name: distribution for name, (_, distribution) in given.items()},
                user_attrs=shown.get(row.trial_id, {}),
                system_attrs=notes.get(row.trial_id, {}),
                intermediate_values=reports.get(row.trial_id, {}),
            )
    return trials


def _read_params(session: Session, ids: Sequence[int]) -> dict[int, dict[str, tuple[float, BaseDistribution]]]:
    table = TrialParamModel
    query = select(table.trial_id, table.param_name, table.param_value, table.distribution_json)
    params: dict[int, dict[str, tuple[float, BaseDistribution]]] = {}
    for trial_id, name, value, distribution in session.execute(
        query.where(table.trial_id.in_(ids)).order_by(table.param_id)
    ):
        params.setdefault(trial_id, {})[name] = (value, _distribution(distribution))
    return params


def _read_values(session: Session, ids: Sequence[int]) -> dict[int, float]:
    table = TrialValueModel
    query = select(table.trial_id, table.value, table.value_type).where(table.trial_id.in_(ids))
    return {trial_id: table.stored_repr_to_value(value, kind) for trial_id, value, kind in session.execute(query)}


def _read_reports(session: Session, ids: Sequence[int]) -> dict[int, dict[int, float]]:
    table = TrialIntermediateValueModel
    query = select(table.trial_id, table.step, table.intermediate_value, table.intermediate_value_type)
    reports: dict[int, dict[int, float]] = {}
    for trial_id, step, value, kind in session.execute(query.where(table.trial_id.in_(ids))):
        reports.setdefault(trial_id, {})[step] = table.stored_repr_to_intermediate_value(value, kind)
    return reports


def _read_attrs(session: Session, table: Any, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
    query = select(table.trial_id, table.key, table.value_json).where(table.trial_id.in_(ids))
    attrs: dict[int, dict[str, Any]] = {}
    for trial_id, key, value in session.execute(query.where(table.key != RECORD)):
        attrs.setdefault(trial_id, {})[key] = json.loads(value)
    return attrs


@cache
def _distribution(text: str) -> BaseDistribution:
    return json_to_distribution(text)


def _pruned(trial: FrozenTrial) -> FrozenTrial:
    """Return a trial that waits at a rung as if it had been pruned there."""
    pruned = copy.copy(trial)
    pruned.state = TrialState.PRUNED
    # No value: it was promoted and interrupted while it was read.
    pruned.value = trial.intermediate_values[max(trial.intermediate_values)] if trial.intermediate_values else None
    return pruned


def _with_notes(trial: FrozenTrial, notes: dict[str, Any]) -> FrozenTrial:
    changed = copy.copy(trial)
    changed.system_attrs = notes
    return changed
