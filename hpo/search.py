"""Show a study to samplers and pruners as one worker needs it, in few queries.

Optuna's own storage reads every trial that is not finished, waiting ones too, at each prune decision, and writes each
parameter and each value in a transaction of its own, whoever holds the trial.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field
from threading import Lock

from optuna.distributions import BaseDistribution
from optuna.storages import RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.storages._rdb.models import TrialModel
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import func, select
from sqlalchemy.orm import Session

LOOK_EVERY_S = 2.0
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@dataclass
class Finished:
    """Be the finished trials of a study that have been read, by id.

    Attributes:
        floor: Every trial of a lower id has been read.
        looked_at: When that was, by the clock of the storage.
    """

    trials: dict[int, FrozenTrial] = field(default_factory=dict)
    floor: int = 0
    looked_at: float = -math.inf


class SearchStorage(_CachedStorage):
    """Be Optuna's storage for the trial that a worker holds.

    Each finished trial is read once, and where no running ones are asked for, a look is not repeated within
    `LOOK_EVERY_S`: a pruner that goes through an inherited curve asks many times at once. Waiting trials are left
    out: they have nothing that a sampler or pruner looks at. What is sampled and reported stays in Optuna's `Trial`;
    `queue` writes it, under the trial's lease.
    """

    def __init__(self, backend: RDBStorage, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(backend)
        self._clock = clock
        self._study_ids: dict[str, int] = {}
        self._finished: dict[int, Finished] = {}
        self._reading = Lock()

    def get_study_id_from_name(self, study_name: str) -> int:
        """Find a study's id, which does not change."""
        if study_name not in self._study_ids:
            self._study_ids[study_name] = super().get_study_id_from_name(study_name)
        return self._study_ids[study_name]

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """List the finished and the running trials of certain states, in the order of their numbers."""
        by_id: dict[int, FrozenTrial] = {}
        running = states is None or TrialState.RUNNING in states
        if running:
            by_id = _by_id(self._backend._get_trials(study_id, (TrialState.RUNNING,), set(), -1))
        by_id |= self._read_finished(study_id, at_once=running)
        found = [trial for trial in by_id.values() if states is None or trial.state in states]
        found.sort(key=lambda trial: trial.number)
        return copy.deepcopy(found) if deepcopy else found

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Write nothing: `queue.choose` writes all parameters of a trial at once."""

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Write nothing: `queue.record` writes values together with the curve."""

    def look_again(self, study_id: int) -> None:
        """Look for finished trials at the next call; a new trial must know of all that ended before it."""
        with self._reading:
            self._finished.setdefault(study_id, Finished()).looked_at = -math.inf

    def _read_finished(self, study_id: int, *, at_once: bool) -> dict[int, FrozenTrial]:
        with self._reading:
            known, now = self._finished.setdefault(study_id, Finished()), self._clock()
            if not at_once and now - known.looked_at < LOOK_EVERY_S:
                return dict(known.trials)
            ids, floor = self._list_finished(study_id, known.floor)
            new = ids - known.trials.keys()
            if new:
                known.trials |= _by_id(self._backend._get_trials(study_id, FINISHED, new, max(new)))
                known.floor = floor
            known.looked_at = now
            return dict(known.trials)

    def _list_finished(self, study_id: int, floor: int) -> tuple[set[int], int]:
        """List the ids from a floor on, and find the lowest that is not finished, both at the same moment."""
        trials = (TrialModel.study_id == study_id, TrialModel.trial_id >= floor)
        lowest = select(func.min(TrialModel.trial_id)).where(*trials, TrialModel.state.not_in(FINISHED))
        query = select(TrialModel.trial_id, lowest.scalar_subquery()).where(*trials, TrialModel.state.in_(FINISHED))
        with Session(self._backend.engine) as session:
            rows = session.execute(query).all()
        ids = {trial_id for trial_id, _ in rows}
        next_floor = rows[0][1] if rows else floor
        return ids, max(ids) + 1 if next_floor is None else next_floor


def _by_id(trials: Iterable[FrozenTrial]) -> dict[int, FrozenTrial]:
    return {trial._trial_id: trial for trial in trials}
