"""Start one worker process per device on this machine, and watch over them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hpo import queue
from hpo.errors import StudyFailed
from hpo.queue import Counts
from hpo.study import Study, is_hopeless
from hpo.worker import LAST_CALL_S, StopSignal, worker_name

POLL_S = 0.5
TERMINATE_S = LAST_CALL_S + 0.3
DRIVER_LAST_CALL_S = TERMINATE_S + 0.7
MAX_RESTARTS = 3
"""How often a worker that died without having finished a trial is started again."""

DRIVER_ENV = "HPO_DRIVER_PID"


@dataclass
class LocalWorker:
    """Be one worker process and the place it works at."""

    device: str
    process: subprocess.Popen[bytes]
    restarts: int = 0


@dataclass
class LocalWorkers:
    """Keep a worker process per place running until a study is done.

    Attributes:
        devices: One name per worker, such as `cpu` or `cuda:0`.
        options: Of `hpo worker`, the same for all.
        environment: For the workers; the storage URL is in it, as a process list would show its password elsewhere.
        log_path: Where the workers' output goes.
    """

    study: Study
    devices: Sequence[str]
    options: Sequence[str]
    environment: Mapping[str, str]
    log_path: Path
    _workers: list[LocalWorker] = field(default_factory=list, init=False)

    def run(self, stop: StopSignal, on_poll: Callable[[Counts], None]) -> None:
        """Start the workers and wait until the study is done or `stop` says so.

        Raises:
            StudyFailed: A worker kept dying.

        Side effects:
            Starts processes, and ends those that are left.
        """
        before = queue.count(self.study.storage, self.study.study_id)
        with self._started():
            while not stop:
                left = all(worker.process.poll() == 0 for worker in self._workers)
                queue.reap(self.study.storage, self.study.study_id)
                counts = queue.count(self.study.storage, self.study.study_id)
                on_poll(counts)
                if counts.waiting + counts.running == 0:
                    return
                if is_hopeless(counts, before):
                    raise StudyFailed(f"the first {counts.failed} trials failed; their output is in {self.log_path}")
                if left and not stop:  # the study was stopped and resumed between two looks
                    self._workers = [LocalWorker(device, self._spawn(device)) for device in self.devices]
                self._restart_dead()
                time.sleep(POLL_S)

    @contextmanager
    def _started(self) -> Iterator[None]:
        try:
            self._workers = [LocalWorker(device, self._spawn(device)) for device in self.devices]
            yield
        finally:
            self._end_all()

    def _spawn(self, device: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "hpo", "worker", "--study", self.study.name, "--device", device]
        command += self.options
        environment = os.environ | dict(self.environment) | {DRIVER_ENV: str(os.getpid())}
        with self.log_path.open("ab") as log:
            # A session of its own, so that Ctrl-C reaches the driver alone, which then ends the workers in order.
            return subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _restart_dead(self) -> None:
        for worker in self._workers:
            code = worker.process.poll()
            if code in (None, 0):
                continue
            if queue.has_finished_one(self.study.storage, self.study.study_id, worker_name(worker.process.pid)):
                worker.restarts = 0
            if worker.restarts == MAX_RESTARTS:
                raise StudyFailed(
                    f"the worker on {worker.device} died {MAX_RESTARTS + 1} times in a row, last with code {code}; "
                    f"its output is in {self.log_path}"
                )
            worker.restarts += 1
            worker.process = self._spawn(worker.device)

    def _end_all(self) -> None:
        for worker in self._workers:
            if worker.process.poll() is None:
                worker.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + TERMINATE_S
        for worker in self._workers:
            try:
                worker.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()


def choose_devices(workers: int | None, gpus: int, cores: int) -> list[str]:
    """Place workers: one per GPU, or per core where there is no GPU; more than GPUs share them in turn."""
    if gpus == 0:
        return ["cpu"] * (workers or cores)
    return [f"cuda:{index % gpus}" for index in range(workers or gpus)]
