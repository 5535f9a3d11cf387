"""The loop of a worker: claim trials of a study, train each, and finish it or hand it back."""

from __future__ import annotations

import logging
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch

from hpo.artifacts import Artifacts
from hpo.database import losses, overview, queue, rungs, study_state
from hpo.database.attempt import Attempt, FinalState, Loss, Outcome, WorkerId
from hpo.database.overview import Counts
from hpo.errors import BadInput, DeviceLost, LeaseLost, RecipeRefused, StorageUnavailable, StudyFailed
from hpo.masking import mask_secrets
from hpo.recipes.comparison import Comparison
from hpo.settings import DEFAULT_LEASE_S, PROMOTING, StudySettings
from hpo.study import Study, is_hopeless
from hpo.training.data import Dataset
from hpo.training.datasets import load_dataset
from hpo.training.numerics import prepare_torch, require_precision
from hpo.trial.checkpoints import Checkpoints, Sharing
from hpo.trial.objective import AtEnd, Task, run_trial
from hpo.trial.trajectory import Blocked
from hpo.worker.device import require_device
from hpo.worker.registration import IdleBackoff, WorkerRegistration, beat_s, registered, worker_id
from hpo.worker.self_check import checkpoints_if_sound
from hpo.worker.stop import StopSignal
from hpo.worker.supervisor import TrialSupervisor

SHARED_MEMORY = ("cuda",)
"""The types of device whose memory other processes take, so that a trial is not to blame when none is left."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerConfig:
    """What a worker needs besides its study and data set.

    Attributes:
        checkpoints: None to train everything from scratch.
        artifacts: Where the figures of finished trials go; None for none.
        at_end: What is measured of each completed trial besides its value.
        lease_s: How long a trial stays this worker's without a heartbeat, in seconds by the database's clock.
    """

    checkpoints: Checkpoints | None = None
    artifacts: Artifacts | None = None
    at_end: AtEnd | None = None
    lease_s: float = DEFAULT_LEASE_S


def work(
    study: Study,
    *,
    device: torch.device,
    data_dir: Path,
    stop: StopSignal,
    checkpoints: Checkpoints | None = None,
    lease_s: float = DEFAULT_LEASE_S,
    artifacts: Artifacts | None = None,
    at_end: AtEnd | None = None,
) -> int:
    """Train trials of a study until none is waiting or running, somebody stops the study, or `stop` says so.

    While the study is paused, the worker waits.

    Args:
        checkpoints: None to train everything from scratch.
        lease_s: How long a trial stays this worker's without a heartbeat, in seconds by the database's clock.
        artifacts: Where the figures of finished trials go; None for none.
        at_end: What is measured of each completed trial besides its value.

    Returns:
        The number of trials that this worker finished.

    Raises:
        BadInput: The data set on this machine is not the study's.
        StorageUnavailable: The database did not answer for longer than the storage's retry policy allows.
        StudyFailed: Trials keep failing, and none has ever succeeded.
        DeviceLost: The device does not compute, or not any more.

    Side effects:
        Sets torch's number of threads, and catches SIGTERM and SIGINT. Where the device does not repeat training bit
        for bit, warns and trains everything from scratch.
    """
    require_measure(study, at_end)
    prepare_torch(study.settings.precision)
    require_precision(device, study.settings.precision)
    require_device(device)
    dataset = load_checked(study, data_dir).to(device)
    sound = checkpoints_if_sound(device, study.settings.precision, checkpoints)
    config = WorkerConfig(checkpoints=sound, artifacts=artifacts, at_end=at_end, lease_s=lease_s)
    registration = WorkerRegistration(
        storage=study.storage, worker=worker_id(device), study_id=study.study_id, lease_s=lease_s
    )
    with registered(stop, registration):
        return _work(study, dataset, stop, registration, config)
    return 0


def require_measure(study: Study, at_end: AtEnd | None) -> None:
    """Refuse a benchmark if nothing measures its runs on the test split.

    Raises:
        BadInput: The study is a benchmark, and `at_end` is None.
    """
    space = study.space
    if isinstance(space, Comparison) and not space.is_confirmation and at_end is None:
        raise BadInput(
            f"study {study.name} is a benchmark: only `hpo worker` can train it, because its runs need the test split"
        )


def _work(
    study: Study, dataset: Dataset, stop: StopSignal, registration: WorkerRegistration, config: WorkerConfig
) -> int:
    before = overview.count(study.storage, study.study_id)
    finished = 0
    backoff = IdleBackoff(beat_s(config.lease_s))
    while not stop:
        registration.show()
        losses.reap(study.storage, study.study_id)
        attempt = claim_or_end(study, registration.worker, config.lease_s)
        if attempt is not None:
            backoff.end()
            ended = train_attempt(study, attempt, dataset, stop, config)
            finished += ended is not None
            if ended == "failed":
                fail_if_hopeless(study, before)
            continue
        state = study_state.find_state(study.storage, study.study_id)
        if study_state.is_over(state, overview.count(study.storage, study.study_id)):
            break
        # a running trial may yet come back to the queue, or leave a checkpoint that another waits for
        backoff.wait(stop)
    return finished


def claim_or_end(study: Study, worker: WorkerId, lease_s: float) -> Attempt | None:
    """Claim a trial; if there is none, and there never will be, prune those that wait at a rung."""
    attempt = queue.claim(study.storage, study.study_id, worker, lease_s)
    if attempt is None and study.settings.pruner == PROMOTING:
        rungs.prune_if_used_up(study.storage, study.study_id)
    return attempt


def fail_if_hopeless(study: Study, before: Counts) -> None:
    """Raise an error after a failed trial if the next ones would fail as well.

    Raises:
        StudyFailed: Too many trials have failed, and none has ever succeeded.
    """
    now = overview.count(study.storage, study.study_id)
    if is_hopeless(now, before):
        raise StudyFailed(f"the first {now.failed} trials of study {study.name} failed; `hpo dashboard` shows why")


def train_attempt(
    study: Study, attempt: Attempt, dataset: Dataset, stop: StopSignal, config: WorkerConfig
) -> FinalState | None:
    """Train a claimed trial to its end or to a rung where it waits, or hand it back.

    After an exception in training the device is looked at before the trial is judged.

    Returns:
        The state in which the trial ended, or None where it waits, was handed back or lost.

    Raises:
        DeviceLost: The device does not compute any more; the trial is given out again.
        StorageUnavailable: The database did not answer for longer than the storage's retry policy allows.
    """
    supervisor = TrialSupervisor(study=study, attempt=attempt, stop=stop, lease_s=config.lease_s)
    checkpoints = config.checkpoints
    with supervisor:
        try:
            outcome = _run(study, supervisor, dataset, config)
            if is_error(outcome):
                require_device(dataset.train.images.device)
            supervisor.require_open()
            if checkpoints is not None:
                checkpoints.index()
            state = _end(supervisor, outcome, config)
        except DeviceLost as error:
            if checkpoints is not None:
                checkpoints.leave()
            supervisor.give_up(Loss(kind="device lost", reason=str(error)))
            raise
        except LeaseLost as error:
            log.warning("%s", error)
            return None
        except StorageUnavailable:
            if checkpoints is not None:
                checkpoints.leave()
            raise
    if isinstance(outcome, Loss):
        stop.wait(beat_s(config.lease_s))  # so that another worker takes the trial, or memory becomes free
    return state


def is_error(outcome: Outcome | Blocked | Loss) -> bool:
    """Return whether training ended with an exception."""
    return isinstance(outcome, Loss) or (isinstance(outcome, Outcome) and outcome.state == "failed")


def _end(supervisor: TrialSupervisor, outcome: Outcome | Blocked | Loss, config: WorkerConfig) -> FinalState | None:
    storage, attempt = supervisor.study.storage, supervisor.attempt
    if isinstance(outcome, Loss):
        return "failed" if losses.lose(storage, attempt, supervisor.progress, outcome) else None
    if not isinstance(outcome, Outcome):
        queue.hand_back(storage, attempt, supervisor.progress, outcome)
        return None
    supervisor.finish(outcome, config.artifacts)
    return None if outcome.state == "waiting" else outcome.state


def _run(study: Study, supervisor: TrialSupervisor, dataset: Dataset, config: WorkerConfig) -> Outcome | Blocked | Loss:
    try:
        recipe = supervisor.sample()
        if dropped := _find_dropped(study, supervisor.attempt.trial_number):
            return Outcome(state="pruned", value=None, attrs={"outcome": dropped, "iterations": 0})
        settings = study.settings
        task = Task(
            recipe=recipe,
            base=study.base,
            align=settings.align,
            precision=settings.precision,
            at_end=config.at_end,
            promoting=settings.pruner == PROMOTING,
        )
        checkpoints = config.checkpoints
        sharing = None if checkpoints is None else Sharing(checkpoints, supervisor.attempt)
        return run_trial(task, dataset, supervisor, sharing)
    except (LeaseLost, StorageUnavailable):
        raise
    except RecipeRefused as error:
        log.warning("trial %d was refused: %s", supervisor.attempt.trial_number, error)
        return Outcome(state="refused", value=None, attrs={"outcome": f"refused: {error}", "iterations": 0})
    except Exception as error:  # whatever went wrong in training belongs to the trial, or to its device
        queue.renew(study.storage, supervisor.attempt, supervisor.progress, config.lease_s)  # unless it was deleted
        log.exception("trial %d: attempt %d failed", supervisor.attempt.trial_number, supervisor.attempt.number)
        return judge(error, dataset.train.images.device, supervisor.progress.iteration)


def _find_dropped(study: Study, trial_number: int) -> str | None:
    """Explain why a trial of a confirmation is not trained; None if it must be, and in any other study."""
    if not isinstance(study.space, Comparison) or not study.space.is_confirmation:
        return None
    from hpo.results.confirmation import find_dropped  # it loads scipy, which takes a second

    return find_dropped(study, study.space, trial_number)


def judge(error: Exception, device: torch.device, iteration: int) -> Outcome | Loss:
    """Decide what an exception in training means for its trial, on a device that still computes.

    Args:
        iteration: The last one that the trial reached.
    """
    last = traceback.extract_tb(error.__traceback__)[-1]
    reason = mask_secrets(f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})")
    if isinstance(error, torch.OutOfMemoryError) and device.type in SHARED_MEMORY:
        return Loss(kind="device full", reason=reason)
    return Outcome(state="failed", value=None, attrs={"outcome": f"failed: {reason}", "iterations": iteration})


def load_checked(study: Study, data_dir: Path) -> Dataset:
    """Load a study's data set, and check that it is the one that the study was created with.

    Raises:
        BadInput: It is split differently.
    """
    return require_split(study, load_as_in(study.settings, data_dir), data_dir)


def load_as_in(settings: StudySettings, data_dir: Path) -> Dataset:
    """Load the data set that settings name, augmented as they say."""
    return load_dataset(settings.dataset, data_dir, checksum=settings.split, augment=settings.augment)


def require_split(study: Study, dataset: Dataset, data_dir: Path) -> Dataset:
    """Return the data set if it is the study's.

    Raises:
        BadInput: It is split differently.
    """
    if dataset.checksum != study.settings.split:
        raise BadInput(
            f"data set {dataset.name} in {data_dir}: its splits have checksum {dataset.checksum[:12]}, "
            f"the study was created with {study.settings.split[:12]}"
        )
    return dataset
