"""The watch for training that makes no progress: a device that hangs raises no error."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class HangLimits:
    """How long training may make no progress, whichever of the two is longer.

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

    Only what a device computes is watched: all else waits for the database or the artifact store, in calls with
    deadlines of their own.

    Args:
        clock: Returns seconds that only grow.
    """

    def __init__(self, hang_limits: HangLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self.hang_limits = hang_limits
        self.clock = clock
        self.longest_s = 0.0
        self._since_s = clock()
        self._computes = False

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Watch what the device computes within the context, which may lie in another such context."""
        outer, self._since_s, self._computes = self._computes, self.clock(), True
        try:
            yield
        finally:
            self.note_progress()
            self._computes = outer

    def note_progress(self) -> None:
        """Record that the device has computed something."""
        now_s = self.clock()
        self.longest_s = max(self.longest_s, now_s - self._since_s)
        self._since_s = now_s

    def find_hang(self) -> str | None:
        """Return why the device counts as hung; None while it does not."""
        still_s, limit_s = self.clock() - self._since_s, self.hang_limits.limit_s(self.longest_s)
        if not self._computes or still_s <= limit_s:
            return None
        return f"training has made no progress for {still_s:.4g} s (limit: {limit_s:.4g} s)"
