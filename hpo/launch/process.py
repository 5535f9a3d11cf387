"""A worker's process: its start and its end.

This runs in the driver, and on the nodes of a Ray cluster, where it must be loaded at once: it imports nothing heavy.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import IO

DRIVER_ENV = "HPO_DRIVER_PID"
"""The variable that tells a worker the process id of its driver."""


def start_worker(
    options: Sequence[str], environment: Mapping[str, str], output: IO[bytes] | None = None
) -> subprocess.Popen[bytes]:
    """Start `hpo worker` in a process that hands its trial back when this process is gone.

    Args:
        environment: Added to this process's environment. The storage URL is passed there, as a process list would
            show the password of an option.
        output: Where stdout and stderr go; None to inherit this process's.
    """
    # A session of its own, so that Ctrl-C reaches the driver alone, which then ends the workers in order.
    return subprocess.Popen(
        [sys.executable, "-m", "hpo", "worker", *options],
        env=os.environ | dict(environment) | {DRIVER_ENV: str(os.getpid())},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=None if output is None else subprocess.STDOUT,
        start_new_session=True,
    )


def ask_to_end(process: subprocess.Popen[bytes]) -> None:
    """Ask a worker to hand back its trial and end."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)


def await_end(process: subprocess.Popen[bytes], limit_s: float) -> None:
    """Wait for a process to end, and kill it after `limit_s`."""
    try:
        process.wait(max(0.0, limit_s))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
