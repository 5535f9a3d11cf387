"""Signals and other reasons for which a process stops."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Literal, Self

LAST_CALL_S = 3.5
LOOK_S = 0.1
Reason = Literal["", "interrupted", "terminated", "orphaned", "timed out", "stopped"]
EXIT_CODES: dict[Reason, int] = {"interrupted": 130, "terminated": 143, "orphaned": 143}

log = logging.getLogger(__name__)


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
