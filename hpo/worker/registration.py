"""The list of live workers from a worker's side: its name, its signs of life, and its waits."""

from __future__ import annotations

import logging
import math
import os
import random
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import torch

from hpo.database import workers
from hpo.database.attempt import WorkerId
from hpo.database.storage import Storage
from hpo.errors import StorageUnavailable
from hpo.worker.stop import StopSignal

BEATS_PER_LEASE = 6
LONGEST_BEAT_S = 10.0  # with every beat a worker learns whether its study was stopped
IDLE_POLL_S = 0.5
IDLE_SHARE = 0.25

log = logging.getLogger(__name__)


@dataclass
class WorkerRegistration:
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
        workers.delete_stale_workers(self.storage)
        self.show()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        try:
            self.storage.retry_policy.once(lambda: workers.deregister(self.storage, self.worker))
        except StorageUnavailable as error:
            log.info("%s; this worker is listed until its lease is over", error)

    def show(self) -> None:
        """Give a sign of life where one is due; while a trial is trained, its lease is one."""
        if time.monotonic() >= self._due_s:
            workers.heartbeat(self.storage, self.worker, self.study_id, self.lease_s)
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


@contextmanager
def registered(stop: StopSignal, registration: WorkerRegistration) -> Iterator[None]:
    """Be a worker that is listed and catches signals.

    Raises:
        StorageUnavailable: The database did not answer for too long. After a signal it is left at that, with a warning.

    Side effects:
        Catches SIGTERM and SIGINT.
    """
    with stop.installed():
        try:
            with registration:
                yield
        except StorageUnavailable as error:
            if not stop:
                raise
            log.warning("%s; a trial that could not be handed back is given out again when its lease is over", error)


def idle_poll_s(idle_s: float, longest_s: float = LONGEST_BEAT_S) -> float:
    """Say how long a worker that has been idle for so long waits at most before it asks again.

    Of hundreds of workers most may be idle for a while, and a question costs the database as much as a claim. So the
    longer it has waited, the longer a worker waits; it is idle for a quarter longer than it would have to be at most.
    """
    return min(longest_s, max(IDLE_POLL_S, IDLE_SHARE * idle_s))


@dataclass
class IdleBackoff:
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
