"""Signals and other reasons for which a process stops."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Literal, Never, Self

from hpo.settings import EXIT_INTERRUPTED, EXIT_TERMINATED
from hpo.waiting import LOOK_S, wait

LAST_CALL_S = 3.5
"""How long a worker may take to end in order after a signal."""

Reason = Literal["", "interrupted", "terminated", "orphaned", "timed out", "stopped", "ended"]
"""Why a process stops; empty while it does not."""

EXIT_CODES: dict[Reason, int] = {
    "interrupted": EXIT_INTERRUPTED,
    "terminated": EXIT_TERMINATED,
    "orphaned": EXIT_TERMINATED,
}
"""The exit codes of a process that did not choose to stop."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""What asks a process to stop; the last two are what Slurm, SGE and others send some time before a limit."""

log = logging.getLogger(__name__)


def end_at_once(code: int) -> Never:
    """End the process without the interpreter's clean-up, which can hang on a device that has failed.

    Side effects:
        Ends the process; what was logged and printed is written before.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class StopSignal:
    """A request to stop this process, and the reason for it; true once the process is to stop.

    Args:
        parent: Process id of the driver that started this worker, or None for a worker started by hand. When the
            driver is gone, the worker hands back its trial.
        deadline: On the monotonic clock, in seconds, or None.
        last_call_s: How long after a signal the process may take to end in order.
    """

    def __init__(
        self,
        parent: int | None = None,
        deadline: float | None = None,
        last_call_s: float = LAST_CALL_S,
        reason: Reason = "",
    ) -> None:
        self.parent = parent
        self.deadline = deadline
        self.last_call_s = last_call_s
        self.reason: Reason = reason

    def __bool__(self) -> bool:
        if not self.reason and self.deadline is not None and time.monotonic() >= self.deadline:
            self.reason = "timed out"
        if not self.reason and self.parent is not None and os.getppid() != self.parent:
            self.reason = "orphaned"
        return bool(self.reason)

    @contextmanager
    def installed(self) -> Iterator[Self]:
        """Treat the signals as requests to stop; a second SIGINT ends the process at once.

        Side effects:
            Replaces the signals' handlers while the context lasts, and ends the process where it lasts too long
            after a signal: a database or a disk that hangs must not keep it.
        """

        def handle(number: int, _frame: FrameType | None) -> None:
            """Take note of a signal, and let a second SIGINT end the process."""
            self.reason = "interrupted" if number == signal.SIGINT else "terminated"
            signal.signal(signal.SIGINT, signal.SIG_DFL)

        before = {number: signal.signal(number, handle) for number in SIGNALS}
        left = threading.Event()
        threading.Thread(target=self._end_at_last, args=[left], name="last call", daemon=True).start()
        try:
            yield self
        finally:
            left.set()
            for number, handler in before.items():
                signal.signal(number, handler)

    def wait(self, seconds: float) -> None:
        """Wait for some seconds, or until the process is asked to stop."""
        wait(seconds, interrupted=self.__bool__)

    def _end_at_last(self, left: threading.Event) -> None:
        while not left.wait(LOOK_S):
            # A handler must not touch what another thread may have locked, so the signal is looked for here.
            if self and self.reason in EXIT_CODES and not left.wait(self.last_call_s):
                log.error("%s, and not finished within %g s: exiting now", self.reason, self.last_call_s)
                os._exit(EXIT_CODES[self.reason])
