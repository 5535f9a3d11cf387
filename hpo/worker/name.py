"""The names of workers, which differ wherever they run."""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
NAMESPACE = Path("/proc/self/ns/pid")


def worker_name(process_id: int) -> str:
    """Return the name of a worker process that this process can see."""
    return name_worker(socket.gethostname(), process_id, _read_place())


def name_worker(host: str, process_id: int, place: str) -> str:
    """Name a worker: containers and cloned machines may have one host name, and each of them a process 1.

    Args:
        place: What tells its process ids from those of another machine or container.
    """
    return f"{host}-{hashlib.sha256(place.encode()).hexdigest()[:6]}:{process_id}"


def _read_place() -> str:
    try:
        return f"{BOOT_ID.read_text('utf-8').strip()} {os.readlink(NAMESPACE)}"  # noqa: PTH115 - it is no path
    except OSError:  # another system than Linux
        return ""
