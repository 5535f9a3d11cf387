"""Be a worker: claim trials of a study, train them, and keep their leases alive."""

from __future__ import annotations

import logging
import math
import os
import random
import signal
import socket
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import Literal, Self

import optuna
import torch

from hpo.artifacts import Artifacts
from hpo.database import overview, queue, study_state, workers
from hpo.database.attempt import Attempt, FinalState, Outcome, Progress, WorkerId
from hpo.database.overview import Counts
from hpo.database.storage import Storage
from hpo.errors import BadInput, DeviceLost, LeaseLost, StorageUnavailable, StudyFailed
from hpo.exhibit import exhibit, withdraw
from hpo.objective import AtEnd, Task, run_trial
from hpo.recipes.comparison import Comparison
from hpo.recipes.schedule import CurvePoint
from hpo.recipes.space import Param
from hpo.study import Study, is_hopeless
from hpo.training.data import Dataset
from hpo.training.datasets import load_dataset
from hpo.trajectory import Blocked, Checkpoints, Sharing, compare_with_scratch

BEATS_PER_LEASE = 6
LONGEST_BEAT_S = 10.0  # with every beat a worker learns whether its study was stopped
IDLE_POLL_S = 0.5
IDLE_SHARE = 0.25
WRITE_EVERY_S = 2.0  # a transaction a report would cost more than all the rest of a trial's control plane
LAST_CALL_S = 3.5
LOOK_S = 0.1
CPU_THREADS = 1  # two processes of one thread train nearly twice the images of one process of two

log = logging.getLogger(__name__)

Reason = Literal["", "interrupted", "terminated", "orphaned", "timed out", "stopped"]
EXIT_CODES: dict[Reason, int] = {"interrupted": 130, "terminated": 143, "orphaned": 143}


@dataclass
class StopSignal:
    """Remember why a process is to stop.

    Attributes:
        parent: Process id of the driver that started this worker, or None for a worker started by hand. When the
            driver is gone, the worker hands back its trial.
        deadline: On the monotonic clock, in seconds, or None.
        last_call_s: How long after a signal the process may take to end in order.
    """

    parent: int | None = None
    deadline: float | None = None
    last_call_s: float = LAST_CALL_S
    reason: Reason = ""

    def __bool__(self) -> bool:
        if not self.reason and self.deadline is not None and time.monotonic() >= self.deadline:
            self.reason = "timed out"
        if not self.reason and self.parent is not None and os.getppid() != self.parent:
            self.reason = "orphaned"
        return bool(self.reason)

    @contextmanager
    def installed(self) -> Iterator[Self]:
        """Let SIGTERM and SIGINT ask for a stop; a second SIGINT ends the process at once.

        Side effects:
            Replaces both signal handlers while the context lasts, and ends the process where it lasts too long
            after a signal: a database or a disk that hangs must not keep it.
        """

        def handle(number: int, _frame: FrameType | None) -> None:
            self.reason = "interrupted" if number == signal.SIGINT else "terminated"
            signal.signal(signal.SIGINT, signal.SIG_DFL)

        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        left = threading.Event()
        threading.Thread(target=self._end_at_last, args=[left], name="last call", daemon=True).start()
        try:
            yield self
        finally:
            left.set()
            for number, handler in before.items():
                signal.signal(number, handler)

    def wait(self, seconds: float) -> None:
        """Wait, but no longer than until the process is asked to stop."""
        until_s = time.monotonic() + seconds
        while not self and (left_s := until_s - time.monotonic()) > 0:
            threading.Event().wait(min(LOOK_S, left_s))

    def _end_at_last(self, left: threading.Event) -> None:
        while not left.wait(LOOK_S):
            # A handler must not touch what another thread may have locked, so the signal is looked for here.
            if self and self.reason in EXIT_CODES and not left.wait(self.last_call_s):
                log.error("%s, and not done within %g s: what is left is given up", self.reason, self.last_call_s)
                os._exit(EXIT_CODES[self.reason])


@dataclass
class TrialSupervisor:
    """Keep a trial's lease alive beside its training, and write what is measured.

    Use as a context manager: until it is left, a thread renews the lease and writes, so that training goes on while the
    database does not answer. What ends the attempt before its trial has ended is kept in `failure`; `recalled` says
    whether the study was stopped.
    """

    study: Study
    attempt: Attempt
    stop: StopSignal
    lease_s: float = queue.LEASE_S
    failure: Exception | None = field(default=None, init=False)
    recalled: bool = field(default=False, init=False)
    progress: Progress = field(default=Progress(iteration=0, trained_iterations=0, val_accuracy=None), init=False)
    write_every_s: float = WRITE_EVERY_S
    _trial: optuna.Trial | None = field(default=None, init=False)
    _written_s: float = field(default=-math.inf, init=False)
    _points: list[CurvePoint] = field(default_factory=list, init=False)
    _values: dict[int, float] = field(default_factory=dict, init=False)
    _changed: threading.Condition = field(default_factory=threading.Condition, init=False)
    _wanted: bool = field(default=False, init=False)
    _done: bool = field(default=False, init=False)

    def __enter__(self) -> Self:
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        # Not joined: it may wait for a database that hangs, and what it still writes is refused.
        with self._changed:
            self._done = True
            self._changed.notify_all()

    def stopped(self) -> bool:
        """Tell whether the worker or the study is to stop, or the attempt has ended."""
        return self.recalled or self.failure is not None or bool(self.stop)

    def advanced(self, iteration: int, steps: int) -> None:
        """Take note of optimizer steps."""
        trained = self.progress.trained_iterations + steps
        self.progress = replace(self.progress, iteration=iteration, trained_iterations=trained)

    def sample(self) -> dict[str, Param]:
        """Let the study's sampler choose the trial's parameters, and write them before anything is trained."""
        self._trial = self.study.open_trial(self.attempt)
        params, draft = self.study.suggest(self._trial)
        queue.write_draft(self.study.storage, self.attempt, self.progress, draft)
        return params

    def record(self, point: CurvePoint, values: Mapping[int, float]) -> None:
        """Show values to the pruner, and keep measurements to be written together, at most every `write_every_s`."""
        assert self._trial is not None, "sampled before it is trained"
        for step, value in values.items():
            self._trial.report(value, step)
        with self._changed:
            self.progress = replace(self.progress, iteration=point.iteration, val_accuracy=point.val_accuracy)
            self._points.append(point)
            self._values |= values
            self._wanted = self._wanted or time.monotonic() - self._written_s >= self.write_every_s
            self._changed.notify_all()

    def finish(self, outcome: Outcome, artifacts: Artifacts | None = None) -> None:
        """Write what is left, and the end of the trial with its note and figure.

        Raises:
            LeaseLost: The attempt has ended before.
            StorageUnavailable: The database did not answer for too long.
        """
        self._wait_until_written()
        self.require_open()
        shown, figure_id = exhibit(self.study, self.attempt, outcome, artifacts)
        try:
            queue.finish(self.study.storage, self.attempt, self.progress, shown)
        except LeaseLost:
            withdraw(figure_id, artifacts)
            raise

    def should_prune(self) -> bool:
        """Ask the study's pruner about what was reported so far, and wait for a database that does not answer.

        A decision must not depend on whether the database answered in time. When the attempt has ended, nothing is
        decided, as it is stopped before its next iteration.
        """
        if self.study.settings.pruner == "none":
            return False
        if self.failure is not None:
            return False
        assert self._trial is not None, "sampled before it is trained"
        decided, draft = self.study.should_prune(self._trial)
        queue.write_draft(self.study.storage, self.attempt, self.progress, draft)
        return decided

    def require_open(self) -> None:
        """Raise what ended the attempt, if something did."""
        if self.failure is not None:
            raise self.failure

    def _wait_until_written(self) -> None:
        with self._changed:
            self._wanted = bool(self._points)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self.failure is not None or not self._points)

    def _beat(self) -> None:
        try:
            while self._wait_for_beat():
                self._write()
        except Exception as error:  # noqa: BLE001 - the thread that trains raises it again
            with self._changed:
                self.failure = error
                self._changed.notify_all()

    def _wait_for_beat(self) -> bool:
        """Wait until it is time to write, and tell whether there is still something to write for."""
        with self._changed:
            self._changed.wait_for(lambda: self._done or self._wanted, beat_s(self.lease_s))
            return not self._done

    def _write(self) -> None:
        with self._changed:
            points, values, progress = tuple(self._points), dict(self._values), self.progress
            self._wanted = False
        if points:
            state = queue.record(self.study.storage, self.attempt, progress, points, values, self.lease_s)
        else:
            state = queue.renew(self.study.storage, self.attempt, progress, self.lease_s)
        with self._changed:
            self.recalled = state == "stopped"
            del self._points[: len(points)]
            self._values = {step: value for step, value in self._values.items() if step not in values}
            self._written_s = time.monotonic()
            self._changed.notify_all()


@dataclass(frozen=True, kw_only=True, slots=True)
class Equipment:
    """Be what a worker has beside its study and data.

    Attributes:
        checkpoints: None to train everything from scratch.
        artifacts: Where the figures of finished trials go; None for none.
        at_end: What is measured of each completed trial beside its value.
        lease_s: How long without a sign of life a trial stays this worker's, in seconds by the database's clock.
    """

    checkpoints: Checkpoints | None = None
    artifacts: Artifacts | None = None
    at_end: AtEnd | None = None
    lease_s: float = queue.LEASE_S


@dataclass
class Presence:
    """Keep a worker on the list of those that live, from when the context is entered until it is left.

    Attributes:
        study_id: Of the study that it serves; None where it serves all.
    """

    storage: Storage
    worker: WorkerId
    study_id: int | None
    lease_s: float
    _due_s: float = field(default=-math.inf, init=False)

    def __enter__(self) -> Self:
        workers.forget_the_dead(self.storage)
        self.show()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        try:
            self.storage.patience.once(lambda: workers.leave(self.storage, self.worker))
        except StorageUnavailable as error:
            log.info("%s; this worker is listed until its lease is over", error)

    def show(self) -> None:
        """Give a sign of life where one is due; while a trial is trained, its lease is one."""
        if time.monotonic() >= self._due_s:
            workers.show_life(self.storage, self.worker, self.study_id, self.lease_s)
            self._due_s = time.monotonic() + beat_s(self.lease_s)


def beat_s(lease_s: float) -> float:
    """Give the seconds between two signs of life."""
    return min(lease_s / BEATS_PER_LEASE, LONGEST_BEAT_S)


def worker_id(device: torch.device) -> WorkerId:
    """Name this process."""
    return WorkerId(name=worker_name(os.getpid()), host=socket.gethostname(), device=str(device))


def worker_name(process_id: int) -> str:
    """Name a process of this machine."""
    return f"{socket.gethostname()}:{process_id}"


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
    lease_s: float = queue.LEASE_S,
    artifacts: Artifacts | None = None,
    at_end: AtEnd | None = None,
) -> int:
    """Train trials of a study until none is waiting or running, somebody stops the study, or `stop` says so.

    While the study is paused, the worker waits.

    Args:
        checkpoints: None to train everything from scratch.
        lease_s: How long without a sign of life a trial stays this worker's, in seconds by the database's clock.
        artifacts: Where the figures of finished trials go; None for none.
        at_end: What is measured of each completed trial beside its value.

    Returns:
        How many trials this worker finished.

    Raises:
        BadInput: The data set on this machine is not the study's.
        StorageUnavailable: The database did not answer for longer than the storage's patience.
        StudyFailed: Trials keep failing, and none has ever succeeded.
        DeviceLost: The device computes nothing any more.

    Side effects:
        Sets torch's number of threads, and catches SIGTERM and SIGINT.
    """
    require_measure(study, at_end)
    prepare_torch()
    dataset = _load_checked(study, data_dir).to(device)
    equipment = Equipment(checkpoints=checkpoints, artifacts=artifacts, at_end=at_end, lease_s=lease_s)
    presence = Presence(storage=study.storage, worker=worker_id(device), study_id=study.study_id, lease_s=lease_s)
    with on_duty(stop, presence):
        return _work(study, dataset, stop, presence, equipment)
    return 0


def require_measure(study: Study, at_end: AtEnd | None) -> None:
    """Refuse a benchmark where nothing measures its runs on the test split.

    Raises:
        BadInput: It is one.
    """
    if isinstance(study.space, Comparison) and at_end is None:
        raise BadInput(f"study {study.name} is a benchmark: its runs need the test split, which `hpo worker` opens")


@contextmanager
def on_duty(stop: StopSignal, presence: Presence) -> Iterator[None]:
    """Be a worker that is listed and catches signals.

    Raises:
        StorageUnavailable: The database did not answer for too long. After a signal it is left at that, with a warning.

    Side effects:
        Catches SIGTERM and SIGINT.
    """
    with stop.installed():
        try:
            with presence:
                yield
        except StorageUnavailable as error:
            if not stop:
                raise
            log.warning("%s; a trial that could not be handed back is given out again when its lease is over", error)


def _work(study: Study, dataset: Dataset, stop: StopSignal, presence: Presence, equipment: Equipment) -> int:
    before = overview.count(study.storage, study.study_id)
    finished = 0
    idleness = Idleness(beat_s(equipment.lease_s))
    while not stop:
        presence.show()
        queue.reap(study.storage, study.study_id)
        attempt = queue.claim(study.storage, study.study_id, presence.worker, equipment.lease_s)
        if attempt is not None:
            idleness.end()
            ended = train_attempt(study, attempt, dataset, stop, equipment)
            finished += ended is not None
            if ended == "failed":
                require_hope(study, before, torch.device(presence.worker.device))
            continue
        state = study_state.find_state(study.storage, study.study_id)
        if study_state.is_over(state, overview.count(study.storage, study.study_id)):
            break
        # a running trial may yet come back to the queue, or leave a checkpoint that another waits for
        idleness.wait(stop)
    return finished


def idle_poll_s(idle_s: float, longest_s: float = LONGEST_BEAT_S) -> float:
    """Say how long a worker that has been idle for so long waits at most before it asks again.

    Of hundreds of workers most may be idle for a while, and a question costs the database as much as a claim. So the
    longer it has waited, the longer a worker waits; it is idle for a quarter longer than it would have to be at most.
    """
    return min(longest_s, max(IDLE_POLL_S, IDLE_SHARE * idle_s))


@dataclass
class Idleness:
    """Remember since when a worker has had nothing to do.

    Attributes:
        longest_s: How long it waits at most between two questions, so that it also gives its signs of life in time.
    """

    longest_s: float
    since_s: float | None = None

    def end(self) -> None:
        """Take note that there is something to do."""
        self.since_s = None

    def wait(self, stop: StopSignal) -> None:
        """Wait before the next question, the longer the longer nothing was there; workers do not ask in step."""
        self.since_s = self.since_s or time.monotonic()
        wait_s = idle_poll_s(time.monotonic() - self.since_s, self.longest_s)
        stop.wait(wait_s * random.uniform(0.5, 1.0))


def require_hope(study: Study, before: Counts, device: torch.device) -> None:
    """Go on after a trial has failed, unless the next ones would fail as well.

    Raises:
        StudyFailed: They would.
        DeviceLost: The device computes nothing any more.
    """
    require_device(device)
    now = overview.count(study.storage, study.study_id)
    if is_hopeless(now, before):
        raise StudyFailed(f"the first {now.failed} trials of study {study.name} failed; `hpo dashboard` shows why")


def require_device(device: torch.device) -> None:
    """Make sure that a device still computes: after a failed kernel, a process can never use its GPU again.

    Raises:
        DeviceLost: It does not.
    """
    try:
        torch.ones(1, device=device).sum().item()
        if device.type == "cuda":
            torch.cuda.empty_cache()  # what the failed trial held
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise DeviceLost(f"device {device}: {reason}; this worker ends, another process may use it") from error


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
    stored = overview.load_curve(study.storage, trial._trial_id)
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
    prepare_torch()
    return _load_checked(study, data_dir).to(pick_device("auto"))


def train_attempt(
    study: Study, attempt: Attempt, dataset: Dataset, stop: StopSignal, equipment: Equipment
) -> FinalState | None:
    """Train a claimed trial to its end, or hand it back.

    Returns:
        How the trial ended here, or None where it did not.
    """
    supervisor = TrialSupervisor(study=study, attempt=attempt, stop=stop, lease_s=equipment.lease_s)
    checkpoints = equipment.checkpoints
    with supervisor:
        try:
            outcome = _run(study, supervisor, dataset, equipment)
            supervisor.require_open()
            if checkpoints is not None:
                checkpoints.index()
            if not isinstance(outcome, Outcome):
                queue.hand_back(study.storage, attempt, supervisor.progress, outcome)
                return None
            supervisor.finish(outcome, equipment.artifacts)
        except LeaseLost as error:
            log.warning("%s", error)
            return None
        except StorageUnavailable:
            if checkpoints is not None:
                checkpoints.leave()
            raise
    return outcome.state


def _run(study: Study, supervisor: TrialSupervisor, dataset: Dataset, equipment: Equipment) -> Outcome | Blocked:
    try:
        params = supervisor.sample()
        settings = study.settings
        recipe = study.space.recipe(params, iterations=settings.iterations, seed=settings.seed)
        task = Task(
            recipe=recipe,
            base=study.base,
            align=settings.align,
            precision=settings.precision,
            compiled=settings.compiled,
            at_end=equipment.at_end,
        )
        checkpoints = equipment.checkpoints
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


def prepare_torch() -> None:
    """Let a recipe give the same bits every time, in every process.

    Side effects:
        Sets torch's number of threads.
    """
    torch.set_num_threads(CPU_THREADS)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def _load_checked(study: Study, data_dir: Path) -> Dataset:
    return require_split(study, load_dataset(study.settings.dataset, data_dir), data_dir)


def require_split(study: Study, dataset: Dataset, data_dir: Path) -> Dataset:
    """Give a data set back that is the study's.

    Raises:
        BadInput: It is split otherwise.
    """
    if dataset.checksum != study.settings.split:
        raise BadInput(
            f"data set {dataset.name} in {data_dir}: its splits have checksum {dataset.checksum[:12]}, "
            f"the study was made with {study.settings.split[:12]}"
        )
    return dataset
