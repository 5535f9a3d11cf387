"""The CPU cores that workers of this machine can have: a container's may be fewer than the processor's."""

from __future__ import annotations

import os
from pathlib import Path

GROUPS = Path("/proc/self/cgroup")
MOUNTS = Path("/sys/fs/cgroup")
"""Where Linux shows the groups of a process, and the limits of groups."""


def count_cores() -> int:
    """Count the cores that this process may use, by its affinity and by the CPU quotas of its control groups."""
    cores, quota = len(os.sched_getaffinity(0)), find_quota()
    return max(1, cores if quota is None else min(cores, int(quota)))


def find_quota() -> float | None:
    """Find the smallest CPU quota of this process's control groups, in cores; None if there is none."""
    return min((quota for quota in map(parse_quota, _read_limits()) if quota is not None), default=None)


def parse_quota(limit: str) -> float | None:
    """Read a limit as in `cpu.max`, QUOTA PERIOD in microseconds, in cores; None without a limit."""
    quota, period = limit.split()
    return int(quota) / int(period) if quota.isdigit() and int(period) else None


def list_groups(groups: str) -> list[tuple[str, str]]:
    """List the control groups that may limit a process, given `/proc/self/cgroup`: its own and those above.

    Returns:
        For each, the hierarchy's folder below the mounts, empty for the unified one, and the group's path.
    """
    found = []
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        parts = [part for part in path.split("/") if part]
        found += [(controllers, "/".join(parts[:end])) for end in range(len(parts), -1, -1)]
    return found


def _read_limits() -> list[str]:
    """Read what limits this process; a container sees its own group in place of the root."""
    limits = []
    for hierarchy, path in list_groups(_read(GROUPS)):
        group = MOUNTS / hierarchy / path
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if hierarchy else ("cpu.max",)
        texts = [_read(group / name) for name in names]
        if all(texts):
            limits.append(" ".join(texts))
    return limits


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except OSError:  # no such group, or another system than Linux
        return ""
