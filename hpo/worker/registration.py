"""The list of live workers from a worker's side: its name, its heartbeats, and its waits."""

from __future__ import annotations

import logging
import math
import os
import random
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import torch

from hpo.database import workers
from hpo.database.attempt import WorkerId
from hpo.database.storage import Storage
from hpo.errors import StorageUnavailable
from hpo.worker.name import worker_name
from hpo.worker.stop import StopSignal

BEATS_PER_LEASE = 6
LONGEST_BEAT_S = 10.0
"""The longest time between two heartbeats: with each of them a worker learns whether its study was stopped."""

IDLE_POLL_S = 0.5
"""The shortest wait of an idle worker."""

IDLE_SHARE = 0.25
"""The part of its idle time so far that a worker waits before it asks again."""

log = logging.getLogger(__name__)


class WorkerRegistration:
    """A worker's row in the list of live workers, from when the context is entered until it is left.

    Args:
        study_id: The study that the worker serves; None where it serves all.
    """

    def __init__(self, storage: Storage, worker: WorkerId, study_id: int | None, lease_s: float) -> None:
        self.storage = storage
        self.worker = worker
        self.study_id = study_id
        self.lease_s = lease_s
        self._due_s = -math.inf

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
            log.info("%s; this worker is listed until its lease expires", error)

    def show(self) -> None:
        """Send a heartbeat where one is due; while a trial is trained, renewing its lease counts as one."""
        if time.monotonic() >= self._due_s:
            workers.heartbeat(self.storage, self.worker, self.study_id, self.lease_s)
            self._due_s = time.monotonic() + beat_s(self.lease_s)


def beat_s(lease_s: float) -> float:
    """Return the seconds between two heartbeats."""
    return min(lease_s / BEATS_PER_LEASE, LONGEST_BEAT_S)


def worker_id(device: torch.device) -> WorkerId:
    """Identify this process as a worker on a device."""
    shown = device_name(device, os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    return WorkerId(name=worker_name(os.getpid()), host=socket.gethostname(), device=shown)


def device_name(device: torch.device, visible: str) -> str:
    """Return a name of a device that tells it from the others of its machine.

    Workers that see one GPU each all call it `cuda:0`.

    Args:
        visible: CUDA_VISIBLE_DEVICES, which numbers the devices of a process: indices or UUIDs of GPUs and slices.
    """
    entries = [entry.strip() for entry in visible.split(",") if entry.strip()]
    index = device.index or 0
    if device.type != "cuda" or index >= len(entries):
        return str(device)
    entry = entries[index]
    return f"cuda:{entry}" if entry.isdigit() else entry


@contextmanager
def registered(stop: StopSignal, registration: WorkerRegistration) -> Iterator[None]:
    """List this worker and catch signals while the context lasts.

    Raises:
        StorageUnavailable: The database did not answer for too long. After a signal this is only a warning.

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
            log.warning("%s; a trial that could not be handed back is retried when its lease expires", error)


def idle_poll_s(idle_s: float, longest_s: float = LONGEST_BEAT_S) -> float:
    """Return how many seconds at most a worker waits before it asks again, given how long it has been idle.

    Most of several hundred workers may be idle for a while, and each question costs the database as much as a claim.
    So the wait grows with the idle time; at worst a worker is idle for a quarter longer than necessary.
    """
    return min(longest_s, max(IDLE_POLL_S, IDLE_SHARE * idle_s))


class IdleBackoff:
    """The waits of a worker that has nothing to do, which grow longer.

    Args:
        longest_s: The longest wait between two questions, so that heartbeats are still sent in time.
        since_s: Since when the worker has been idle, on the monotonic clock; None while it is not.
    """

    def __init__(self, longest_s: float, since_s: float | None = None) -> None:
        self.longest_s = longest_s
        self.since_s = since_s

    def end(self) -> None:
        """Reset the back-off, because there is work."""
        self.since_s = None

    def wait(self, stop: StopSignal) -> None:
        """Wait before the next question, for a random part of the longest wait so that workers do not ask in step."""
        self.since_s = self.since_s or time.monotonic()
        wait_s = idle_poll_s(time.monotonic() - self.since_s, self.longest_s)
        stop.wait(wait_s * random.uniform(0.5, 1.0))
