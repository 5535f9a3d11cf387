"""Be a worker: claim trials of a study, train them, and keep their leases alive."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Literal, Self

import optuna
import torch

from hpo import queue
from hpo.comparison import Comparison
from hpo.data import Dataset, load_dataset
from hpo.errors import BadInput, LeaseLost, StorageUnavailable
from hpo.objective import AtEnd, Task, run_trial
from hpo.queue import Attempt, Outcome, Progress, WorkerId
from hpo.schedule import CurvePoint
from hpo.study import Study
from hpo.trajectory import Blocked, Checkpoints, Sharing, compare_with_scratch

HEARTBEAT_S = 10.0
IDLE_POLL_S = 0.5
CPU_THREADS = 1  # two processes of one thread train nearly twice the images of one process of two

log = logging.getLogger(__name__)

Reason = Literal["", "interrupted", "terminated", "orphaned", "timed out"]


@dataclass
class StopSignal:
    """Remember why a worker is to stop.

    Attributes:
        parent: Process id of the driver that started this worker, or None for a worker started by hand. When the
            driver is gone, the worker hands back its trial.
        deadline: On the monotonic clock, in seconds, or None.
    """

    parent: int | None = None
    deadline: float | None = None
    reason: Reason = ""

    def __bool__(self) -> bool:
        if not self.reason and self.deadline is not None and time.monotonic() >= self.deadline:
            self.reason = "timed out"
        return bool(self.reason)

    def notice_orphanhood(self) -> None:
        """Stop when the driver is gone."""
        if self.parent is not None and os.getppid() != self.parent and not self.reason:
            self.reason = "orphaned"

    @contextmanager
    def installed(self) -> Iterator[Self]:
        """Let SIGTERM and SIGINT ask for a stop; a second SIGINT ends the process at once.

        Side effects:
            Replaces both signal handlers while the context lasts.
        """

        def handle(number: int, _frame: FrameType | None) -> None:
            self.reason = "interrupted" if number == signal.SIGINT else "terminated"
            signal.signal(signal.SIGINT, signal.SIG_DFL)

        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@dataclass
class TrialSupervisor:
    """Keep a trial's lease alive beside its training, and write what is measured.

    Use as a context manager: a thread renews the lease until it is left.
    """

    study: Study
    optuna_study: optuna.Study
    attempt: Attempt
    stop: StopSignal
    heartbeat_s: float = HEARTBEAT_S
    lease_s: float = queue.LEASE_S
    _progress: Progress = field(default=Progress(iteration=0, trained_iterations=0, val_accuracy=None), init=False)
    _pending: list[CurvePoint] = field(default_factory=list, init=False)
    _lost: threading.Event = field(default_factory=threading.Event, init=False)
    _done: threading.Event = field(default_factory=threading.Event, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self._done.set()
        assert self._thread is not None
        self._thread.join()

    @property
    def progress(self) -> Progress:
        """Give how far the attempt has come."""
        return self._progress

    def stopped(self) -> bool:
        """Tell whether the worker is to stop, or the trial is no longer its own."""
        return bool(self.stop) or self._lost.is_set()

    def advanced(self, iteration: int, steps: int) -> None:
        """Take note of optimizer steps."""
        before = self._progress
        self._progress = Progress(
            iteration=iteration,
            trained_iterations=before.trained_iterations + steps,
            val_accuracy=before.val_accuracy,
        )

    def record(self, point: CurvePoint, values: Mapping[int, float]) -> None:
        """Write measurements, as often as Optuna is given a value."""
        before = self._progress
        self._progress = Progress(
            iteration=point.iteration,
            trained_iterations=before.trained_iterations,
            val_accuracy=point.val_accuracy,
        )
        self._pending.append(point)
        if values:
            self._write(values)

    def finish(self, outcome: Outcome) -> None:
        """Write what is left, and the end of the trial."""
        self._write({})
        queue.finish(self.study.storage, self.attempt, self._progress, outcome)

    def should_prune(self) -> bool:
        """Ask the study's pruner about what was recorded so far."""
        with self.study.storage.translated():
            trial = self.study.storage.optuna.get_trial(self.attempt.trial_id)
            return self.optuna_study.pruner.prune(self.optuna_study, trial)

    def _write(self, values: Mapping[int, float]) -> None:
        queue.record(self.study.storage, self.attempt, self._progress, self._pending, values, self.lease_s)
        self._pending = []

    def _beat(self) -> None:
        while not self._done.wait(self.heartbeat_s):
            self.stop.notice_orphanhood()
            try:
                queue.renew(self.study.storage, self.attempt, self._progress, self.lease_s)
            except LeaseLost:
                self._lost.set()
                return
            except StorageUnavailable as error:
                log.warning("heartbeat: %s", error)


def worker_id(device: torch.device) -> WorkerId:
    """Name this process."""
    host = socket.gethostname()
    return WorkerId(name=f"{host}:{os.getpid()}", host=host, device=str(device))


def pick_device(name: str) -> torch.device:
    """Find a device by name; `auto` is the first GPU, or the CPU where there is none.

    Raises:
        BadInput: There is no such device.
    """
    if name == "auto":
        name = "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BadInput(f"device {name!r}: allowed are auto, cpu, cuda and cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise BadInput(f"device {name!r}: allowed are auto, cpu, cuda and cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BadInput(f"device {name!r}: this machine has {torch.cuda.device_count()} GPUs")
    return device


def work(
    study: Study,
    *,
    device: torch.device,
    data_dir: Path,
    stop: StopSignal,
    checkpoints: Checkpoints | None = None,
    at_end: AtEnd | None = None,
) -> int:
    """Train trials of a study until none is waiting or running, or `stop` says so.

    Args:
        checkpoints: None to train everything from scratch.
        at_end: What is measured of each completed trial beside its value.

    Returns:
        How many trials this worker finished.

    Raises:
        BadInput: The data set on this machine is not the study's.
        StorageUnavailable: The database did not answer within its deadline.

    Side effects:
        Sets torch's number of threads, and catches SIGTERM and SIGINT.
    """
    if isinstance(study.space, Comparison) and at_end is None:
        raise BadInput(f"study {study.name} is a benchmark: its runs need the test split, which `hpo worker` opens")
    _prepare_torch()
    dataset = _load_checked(study, data_dir).to(device)
    worker = worker_id(device)
    finished = 0
    with stop.installed():
        while not stop:
            queue.reap(study.storage, study.study_id)
            attempt = queue.claim(study.storage, study.study_id, worker)
            if attempt is not None:
                finished += train_attempt(study, attempt, dataset, stop, checkpoints, at_end)
            elif _is_done(study):
                break
            else:  # a running trial may yet come back to the queue, or leave a checkpoint that another waits for
                stop.notice_orphanhood()
                threading.Event().wait(IDLE_POLL_S)
    return finished


def verify(study: Study, trial_number: int, data_dir: Path, checkpoints: Checkpoints) -> str:
    """Train a finished trial's recipe from scratch, and compare with what the study holds, bit for bit.

    Returns:
        What was compared, in one line.

    Raises:
        BadInput: There is no such finished trial, or this machine computes otherwise than the study's.
        VerificationFailed: Curve or weights differ.
    """
    trial = next((t for t in study.trials() if t.number == trial_number and t.state.is_finished()), None)
    if trial is None:
        raise BadInput(f"--trial {trial_number}: study {study.name} has no such finished trial")
    stored = queue.load_curve(study.storage, trial._trial_id)
    if not stored:
        raise BadInput(f"--trial {trial_number}: it has no curve: {trial.user_attrs.get('outcome')}")
    dataset = load_as_worker(study, data_dir)
    settings = study.settings
    return compare_with_scratch(
        study.recipe_of(trial), dataset, settings.precision, stored, checkpoints, settings.compiled
    )


def load_as_worker(study: Study, data_dir: Path) -> Dataset:
    """Load a study's data set onto this machine's device, to compute there what its workers would.

    Raises:
        BadInput: The data set on this machine is not the study's.

    Side effects:
        Sets torch's number of threads.
    """
    _prepare_torch()
    return _load_checked(study, data_dir).to(pick_device("auto"))


def _is_done(study: Study) -> bool:
    counts = queue.count(study.storage, study.study_id)
    return counts.waiting + counts.running == 0


def train_attempt(
    study: Study,
    attempt: Attempt,
    dataset: Dataset,
    stop: StopSignal,
    checkpoints: Checkpoints | None = None,
    at_end: AtEnd | None = None,
) -> bool:
    """Train a claimed trial to its end, or hand it back.

    Returns:
        Whether the trial was finished here.
    """
    supervisor = TrialSupervisor(
        study=study, optuna_study=study.optuna_study(attempt.trial_number), attempt=attempt, stop=stop
    )
    with supervisor:
        try:
            outcome = _run(study, supervisor, dataset, checkpoints, at_end)
            if not isinstance(outcome, Outcome):
                queue.hand_back(study.storage, attempt, supervisor.progress, outcome)
                return False
            supervisor.finish(outcome)
        except LeaseLost as error:
            log.warning("%s", error)
            return False
    return True


def _run(
    study: Study,
    supervisor: TrialSupervisor,
    dataset: Dataset,
    checkpoints: Checkpoints | None,
    at_end: AtEnd | None,
) -> Outcome | Blocked:
    try:
        study.trials()  # Optuna's cache must know the trial before it takes parameters for it
        with study.storage.translated():
            trial = optuna.trial.Trial(supervisor.optuna_study, supervisor.attempt.trial_id)
            params = study.space.suggest(trial)
        settings = study.settings
        recipe = study.space.recipe(params, iterations=settings.iterations, seed=settings.seed)
        task = Task(
            recipe=recipe,
            base=study.base,
            align=settings.align,
            precision=settings.precision,
            compiled=settings.compiled,
            at_end=at_end,
        )
        sharing = None if checkpoints is None else Sharing(checkpoints, supervisor.attempt)
        return run_trial(task, dataset, supervisor, sharing)
    except (LeaseLost, StorageUnavailable):
        raise
    except Exception as error:  # whatever went wrong in training belongs to the trial
        log.exception("trial %d failed", supervisor.attempt.trial_number)
        last = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"failed: {type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"
        return Outcome(
            state="failed", value=None, attrs={"outcome": reason, "iterations": supervisor.progress.iteration}
        )


def _prepare_torch() -> None:
    """Let a recipe give the same bits every time, in every process."""
    torch.set_num_threads(CPU_THREADS)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def _load_checked(study: Study, data_dir: Path) -> Dataset:
    dataset = load_dataset(study.settings.dataset, data_dir)
    if dataset.checksum != study.settings.split:
        raise BadInput(
            f"data set {dataset.name} in {data_dir}: its splits have checksum {dataset.checksum[:12]}, "
            f"the study was made with {study.settings.split[:12]}"
        )
    return dataset
