"""Keep a worker at every place until a study is done, whatever the places are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from hpo.database import overview, queue
from hpo.database.overview import Counts
from hpo.errors import StudyFailed
from hpo.study import Study, is_hopeless
from hpo.worker.stop import LAST_CALL_S, StopSignal

POLL_S = 0.5
TERMINATE_S = LAST_CALL_S + 0.3
DRIVER_LAST_CALL_S = TERMINATE_S + 0.7
MAX_RESTARTS = 3
"""How often a worker that died without having finished a trial is started again."""


@dataclass(frozen=True, slots=True)
class Ended:
    """Say how a worker ended: in order, or after what."""

    in_order: bool
    how: str


class Place(Protocol):
    """Be where one worker runs, and after it the one that takes its place."""

    @property
    def name(self) -> str:
        """Name the place for people."""

    @property
    def worker(self) -> str:
        """Name the last worker that was started, as its attempts do; empty where it is not known yet."""

    @property
    def output(self) -> str:
        """Say where the last worker's output is."""

    def start(self) -> None:
        """Start a worker."""

    def waits(self) -> bool:
        """Tell whether there is no room for the worker yet."""

    def poll(self) -> Ended | None:
        """Say how the worker ended; None while it runs or waits."""

    def ask_to_end(self) -> None:
        """Let the worker hand back its trial and end, without waiting for it."""

    def end(self, limit_s: float) -> None:
        """Wait for the worker, and kill it after `limit_s`."""


@dataclass
class Workers:
    """Keep a worker per place running until a study is done.

    Attributes:
        summary: What the places are, for people.
        output: Where the output of all workers is.
        require_answer: Raises an error when the places as a whole are gone.
    """

    study: Study
    places: Sequence[Place]
    summary: str
    output: str
    require_answer: Callable[[], None] = lambda: None
    _restarts: dict[int, int] = field(default_factory=dict, init=False)

    def run(self, stop: StopSignal, on_poll: Callable[[Counts, str], None]) -> None:
        """Start the workers and wait until the study is done or `stop` says so.

        Args:
            on_poll: Is given the counts, and what people should know beside them.

        Raises:
            StudyFailed: A worker kept dying.
            ClusterUnavailable: All places are gone.

        Side effects:
            Starts workers, and ends those that are left.
        """
        before = overview.count(self.study.storage, self.study.study_id)
        with self._started():
            while not stop:
                self.require_answer()
                ends = [place.poll() for place in self.places]
                queue.reap(self.study.storage, self.study.study_id)
                counts = overview.count(self.study.storage, self.study.study_id)
                on_poll(counts, waiting_note([place.waits() for place in self.places]))
                if counts.waiting + counts.running == 0:
                    return
                if is_hopeless(counts, before):
                    raise StudyFailed(f"the first {counts.failed} trials failed; their output is in {self.output}")
                if all(ended and ended.in_order for ended in ends) and not stop:
                    self._start_all()  # the study was stopped and resumed between two looks
                self._restart_dead(ends)
                time.sleep(POLL_S)

    @contextmanager
    def _started(self) -> Iterator[None]:
        try:
            self._start_all()
            yield
        finally:
            self._end_all()

    def _start_all(self) -> None:
        for place in self.places:
            place.start()

    def _restart_dead(self, ends: Sequence[Ended | None]) -> None:
        for index, (place, ended) in enumerate(zip(self.places, ends, strict=True)):
            if ended is None or ended.in_order:
                continue
            if overview.has_finished_one(self.study.storage, self.study.study_id, place.worker):
                self._restarts[index] = 0
            self._restarts[index] = self._restarts.get(index, 0) + 1
            if self._restarts[index] > MAX_RESTARTS:
                raise StudyFailed(
                    f"the worker on {place.name} died {MAX_RESTARTS + 1} times in a row, last {ended.how}; "
                    f"its output is in {place.output}"
                )
            place.start()

    def _end_all(self) -> None:
        for place in self.places:
            place.ask_to_end()
        deadline = time.monotonic() + TERMINATE_S
        for place in self.places:
            place.end(deadline - time.monotonic())


class Launcher(Protocol):
    """Know where workers can run."""

    def prepare(self, study: Study, options: Sequence[str], environment: Mapping[str, str]) -> Workers:
        """Choose places for workers of a study, without starting any.

        Args:
            options: Of `hpo worker`, the same for all.
            environment: For the workers.
        """

    def close(self) -> None:
        """Give back what is held for the workers, which have ended; again, it does nothing."""


def waiting_note(waiting: Sequence[bool]) -> str:
    """Say how many workers have no room yet, if any."""
    return f"{sum(waiting)} of {len(waiting)} workers wait for room" if any(waiting) else ""
