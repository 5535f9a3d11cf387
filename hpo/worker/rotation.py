"""The rotation of one worker among all studies of a storage, those that are created later included."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from hpo import study as studies
from hpo.database import losses, overview, study_state
from hpo.database.overview import Counts
from hpo.database.storage import Storage
from hpo.database.study_state import StudyLoad
from hpo.errors import HpoError, StorageUnavailable, StudyFailed, StudyNotFound
from hpo.settings import StudySettings
from hpo.study import Study
from hpo.training.data import Dataset
from hpo.training.numerics import prepare_torch, require_precision
from hpo.trial.objective import AtEnd
from hpo.worker.device import require_device
from hpo.worker.registration import IdleBackoff, WorkerRegistration, beat_s, registered, worker_id
from hpo.worker.self_check import checkpoints_if_sound
from hpo.worker.stop import StopSignal
from hpo.worker.work import (
    WorkerConfig,
    claim_or_end,
    fail_if_hopeless,
    load_as_in,
    require_measure,
    require_split,
    train_attempt,
)

log = logging.getLogger(__name__)

Key = tuple[int, float]
"""A study's id, and when its state was last set: after a resume the key is new, and an earlier refusal forgotten."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """A study that this worker can serve, with its data set and configuration.

    Attributes:
        before: The counts of its trials when this worker first served it.
    """

    study: Study
    dataset: Dataset
    config: WorkerConfig
    before: Counts


def key_of(load: StudyLoad) -> Key:
    """Identify a study until its state is set again or it is deleted."""
    return load.study_id, load.changed_s


def turn_order(loads: Iterable[StudyLoad], refused: Container[Key], last_turns: Mapping[Key, int]) -> list[StudyLoad]:
    """Sort the studies with waiting trials into the order in which a worker asks them for one.

    The study with the fewest running trials comes first. Ties go to the study that this worker served least recently,
    then to the oldest. So studies share the workers evenly, and a single worker takes them in turn.

    Args:
        refused: Studies that this worker cannot serve.
        last_turns: When this worker last served each study, counted in the trials that it trained.
    """
    candidates = [s for s in loads if s.state == "running" and s.waiting and key_of(s) not in refused]
    return sorted(candidates, key=lambda s: (s.running, last_turns.get(key_of(s), 0), s.study_id))


class StudyRotation:
    """A worker that serves the studies of a storage in turn.

    Args:
        config: The same for all studies, except `at_end`.
        at_end_of: Returns what is measured of a study's completed trials besides their values.
        only: Name of the one study that is served; None for all.
    """

    def __init__(
        self,
        storage: Storage,
        device: torch.device,
        data_dir: Path,
        config: WorkerConfig,
        at_end_of: Callable[[Study], AtEnd | None],
        only: str | None = None,
    ) -> None:
        self.storage = storage
        self.device = device
        self.data_dir = data_dir
        self.config = config
        self.at_end_of = at_end_of
        self.only = only
        self._served: dict[Key, Served] = {}
        self._refused: set[Key] = set()
        self._last_turns: dict[Key, int] = {}
        self._datasets: dict[tuple[str, str, str], Dataset] = {}

    def serve(self, stop: StopSignal) -> int:
        """Train trials until `stop` says so.

        Returns:
            The number of trials that this worker finished.

        Raises:
            StorageUnavailable: The database did not answer for longer than the storage's retry policy allows.
            DeviceLost: The device does not compute, or not any more.

        Side effects:
            Sets torch up for each trial, and catches SIGTERM and SIGINT.
        """
        require_device(self.device)
        worker, lease_s = worker_id(self.device), self.config.lease_s
        registration = WorkerRegistration(storage=self.storage, worker=worker, study_id=None, lease_s=lease_s)
        finished, backoff = 0, IdleBackoff(beat_s(lease_s))
        with registered(stop, registration):
            while not stop:
                registration.show()
                losses.reap(self.storage, None)
                loads = study_state.list_study_loads(self.storage, self.only)
                self._forget_all_but({key_of(load) for load in loads})
                order = turn_order(loads, self._refused, self._last_turns)
                ended = self._serve_first(order, registration, stop)
                finished += ended == "finished"
                if ended == "nothing":
                    backoff.wait(stop)
                else:
                    backoff.end()
        return finished

    def _serve_first(self, order: Iterable[StudyLoad], registration: WorkerRegistration, stop: StopSignal) -> str:
        """Train a trial of the first study that has one; return "finished", "left", or "nothing" where none has."""
        for load in order:
            served = self._served.get(key_of(load)) or self._prepare(load)
            if served is None:
                continue
            try:
                attempt = claim_or_end(served.study, registration.worker, registration.lease_s)
            except StudyNotFound as error:
                log.warning("%s", error)
                continue
            if attempt is None:
                continue
            self._last_turns[key_of(load)] = 1 + max(self._last_turns.values(), default=0)
            prepare_torch(served.study.settings.precision)
            ended = train_attempt(served.study, attempt, served.dataset, stop, served.config)
            if ended == "failed":
                self._give_up_if_hopeless(load, served)
            return "left" if ended is None else "finished"
        return "nothing"

    def _prepare(self, load: StudyLoad) -> Served | None:
        """Load a study and its data set; where this machine cannot, log that once and refuse the study."""
        try:
            study = studies.load(self.storage.with_empty_cache(), load.name)
            at_end = self.at_end_of(study)
            require_measure(study, at_end)
            precision = study.settings.precision
            require_precision(self.device, precision)
            dataset = require_split(study, self._dataset(study.settings), self.data_dir)
            checkpoints = checkpoints_if_sound(self.device, precision, self.config.checkpoints)
            served = Served(
                study=study,
                dataset=dataset,
                config=replace(self.config, at_end=at_end, checkpoints=checkpoints),
                before=overview.count(self.storage, study.study_id),
            )
        except StorageUnavailable:
            raise
        except (HpoError, ValueError) as error:  # ValueError: settings that only another release understands
            self._refuse(load, f"cannot be served here: {error}")
            return None
        log.info("serving study %s", load.name)
        self._served[key_of(load)] = served
        return served

    def _dataset(self, settings: StudySettings) -> Dataset:
        key = (settings.dataset, settings.split, settings.augment)
        if key not in self._datasets:
            self._datasets[key] = load_as_in(settings, self.data_dir).to(self.device)
        return self._datasets[key]

    def _give_up_if_hopeless(self, load: StudyLoad, served: Served) -> None:
        try:
            fail_if_hopeless(served.study, served.before)
        except (StudyFailed, StudyNotFound) as error:
            self._refuse(load, f"is given up: {error}")

    def _refuse(self, load: StudyLoad, why: str) -> None:
        log.warning(
            "study %s %s; to make this worker try it again, run `hpo resume --study %s`", load.name, why, load.name
        )
        self._refused.add(key_of(load))

    def _forget_all_but(self, present: set[Key]) -> None:
        self._served = {key: served for key, served in self._served.items() if key in present}
        self._last_turns = {key: turn for key, turn in self._last_turns.items() if key in present}
        self._refused &= present
