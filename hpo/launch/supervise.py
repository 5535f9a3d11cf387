"""The driver's watch over its workers: one at every place until the study is done, whatever the places are."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from hpo.database import losses, overview
from hpo.database.overview import Counts
from hpo.errors import StudyFailed
from hpo.study import Study, is_hopeless
from hpo.wording import counted
from hpo.worker.stop import LAST_CALL_S, StopSignal

POLL_S = 0.5
"""How long the driver waits between two looks at its workers."""

TERMINATE_S = LAST_CALL_S + 0.3
"""How long workers that are asked to end may take before they are killed."""

DRIVER_LAST_CALL_S = TERMINATE_S + 0.7
"""How long the driver itself may take to end in order after a signal."""

MAX_RESTARTS = 3
"""How often a worker that died without having finished a trial is started again, before its place is given up."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a worker.

    Attributes:
        in_order: Whether it ended by itself and without an error.
        how: What people are told about it, such as `with code 1`.
    """

    in_order: bool
    how: str


class Place(Protocol):
    """A slot in which one worker runs; a worker that died is replaced in it, until the place is given up."""

    @property
    def name(self) -> str:
        """Return the place's name for messages."""

    @property
    def worker(self) -> str:
        """Return the name of the last worker that was started, as in its attempts; empty where it is not known yet."""

    @property
    def output(self) -> str:
        """Return where the last worker's output is."""

    def start(self) -> None:
        """Start a worker."""

    def waits(self) -> bool:
        """Return whether the worker still waits for room."""

    def poll(self) -> Ended | None:
        """Return how the worker ended; None while it runs or waits."""

    def ask_to_end(self) -> None:
        """Ask the worker to hand back its trial and end, without waiting for it."""

    def end(self, limit_s: float) -> None:
        """Wait for the worker to end, and kill it after `limit_s`."""


class Workers:
    """The workers of a study, one at each place that has not been given up.

    Args:
        summary: A description of the places for messages.
        output: Where the output of all workers is.
        require_answer: Raises an error when the places as a whole are gone.
    """

    def __init__(
        self,
        study: Study,
        places: Sequence[Place],
        summary: str,
        output: str,
        require_answer: Callable[[], None] = lambda: None,
    ) -> None:
        self.study = study
        self.places = places
        self.summary = summary
        self.output = output
        self.require_answer = require_answer
        self._deaths: dict[Place, int] = {}
        self._left = list(places)

    def run(self, stop: StopSignal, on_poll: Callable[[Counts, str], None]) -> None:
        """Start the workers, and wait until the study is done or `stop` asks to end.

        Args:
            on_poll: Called at every look with the counts of trials and a note for people.

        Raises:
            StudyFailed: Workers kept dying at every place.
            ClusterUnavailable: All places are gone.

        Side effects:
            Starts workers, and ends those that still run.
        """
        before = overview.count(self.study.storage, self.study.study_id)
        with self._started():
            while not stop:
                self.require_answer()
                ends = {place: place.poll() for place in self._left}
                losses.reap(self.study.storage, self.study.study_id)
                counts = overview.count(self.study.storage, self.study.study_id)
                on_poll(counts, waiting_note([place.waits() for place in self._left]))
                if counts.waiting + counts.running == 0:
                    return
                if is_hopeless(counts, before):
                    raise StudyFailed(f"the first {counts.failed} trials failed; their output is in {self.output}")
                if all(ended and ended.in_order for ended in ends.values()) and not stop:
                    self._start_all()  # the study was stopped and resumed between two looks
                self._restart_dead(ends)
                stop.wait(POLL_S)

    @contextmanager
    def _started(self) -> Iterator[None]:
        try:
            self._start_all()
            yield
        finally:
            self._end_all()

    def _start_all(self) -> None:
        for place in self._left:
            place.start()

    def _restart_dead(self, ends: Mapping[Place, Ended | None]) -> None:
        for place, ended in ends.items():
            if ended is None or ended.in_order:
                continue
            if overview.has_finished_one(self.study.storage, self.study.study_id, place.worker):
                self._deaths[place] = 0
            self._deaths[place] = self._deaths.get(place, 0) + 1
            if self._deaths[place] > MAX_RESTARTS:
                self._give_up(place, ended)
            else:
                place.start()

    def _give_up(self, place: Place, ended: Ended) -> None:
        """Go on without a place, whose device may be broken.

        Raises:
            StudyFailed: It was the last one.
        """
        self._left.remove(place)
        why = (
            f"the worker on {place.name} died {MAX_RESTARTS + 1} times in a row, last {ended.how}; "
            f"its output is in {place.output}"
        )
        if not self._left:
            raise StudyFailed(why if len(self.places) == 1 else f"{why}; no other device remains")
        log.warning("%s; no more workers are started there, %d devices remain", why, len(self._left))

    def _end_all(self) -> None:
        for place in self.places:
            place.ask_to_end()
        deadline = time.monotonic() + TERMINATE_S
        for place in self.places:
            place.end(deadline - time.monotonic())


class Launcher(Protocol):
    """A way to start workers: on this machine, or on a cluster."""

    def prepare(self, study: Study, options: Sequence[str], environment: Mapping[str, str]) -> Workers:
        """Choose places for workers of a study, without starting any.

        Args:
            options: Options of `hpo worker`, the same for all workers.
            environment: Variables that are added to the workers' environment.
        """

    def close(self) -> None:
        """Release what is held for the workers, which have ended; a second call does nothing."""


def waiting_note(waiting: Sequence[bool]) -> str:
    """Write how many workers still wait for room; empty where none does."""
    return f"waiting for room: {sum(waiting)} of {counted(len(waiting), 'worker')}" if any(waiting) else ""
