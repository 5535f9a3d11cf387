"""An interruptible wait."""

from __future__ import annotations

import time
from collections.abc import Callable

LOOK_S = 0.1
"""How often a process that waits looks whether it is to stop."""


def wait(seconds: float, interrupted: Callable[[], bool]) -> None:
    """Wait for some seconds, or until `interrupted` returns True, which is asked every `LOOK_S`."""
    until_s = time.monotonic() + seconds
    while not interrupted() and (left_s := until_s - time.monotonic()) > 0:
        time.sleep(min(LOOK_S, left_s))
