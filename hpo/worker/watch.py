"""The watch for a training that stands still: a device that hangs raises no error."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class HangLimits:
    """How long training may stand still, whichever of the two is longer.

    Attributes:
        least_s: Long enough for torch to load and compile the first step.
        stretches: A multiple of the longest time between two signs of progress so far.
    """

    least_s: float = 600.0
    stretches: float = 20.0

    def limit_s(self, longest_s: float) -> float:
        """Return the limit, given the longest time between two signs of progress."""
        return max(self.least_s, self.stretches * longest_s)


class Watch:
    """A clock that the training thread sets back with each sign of progress, and another thread reads.

    Only training and evaluations are watched: all else waits for the database or the artifact store, in calls with
    deadlines of their own.

    Args:
        clock: Returns seconds that only grow.
    """

    def __init__(self, hang_limits: HangLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self.hang_limits = hang_limits
        self.clock = clock
        self.longest_s = 0.0
        self._since_s = clock()
        self._trains = False

    def note_progress(self) -> None:
        """Take note that training goes on; what follows is training or an evaluation."""
        now_s = self.clock()
        if self._trains:
            self.longest_s = max(self.longest_s, now_s - self._since_s)
        self._since_s, self._trains = now_s, True

    def note_rest(self) -> None:
        """Take note that what follows is not training."""
        if self._trains:
            self.note_progress()
        self._trains = False

    def find_hang(self) -> str | None:
        """Return why training counts as hung; None while it does not."""
        still_s, limit_s = self.clock() - self._since_s, self.hang_limits.limit_s(self.longest_s)
        if not self._trains or still_s <= limit_s:
            return None
        return f"training has stood still for {still_s:.4g} s, and {limit_s:.4g} s are allowed"
