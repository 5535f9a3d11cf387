"""Make Ray clusters on this machine, and find the processes that they consist of."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hpo import study
from hpo.database import overview
from hpo.database.storage import Storage
from tests.integration.conftest import Process
from tests.integration.support import is_running, list_attempts, wait_until

FINISH_S = 480.0
END_S = 5.0
STORE = {"object_store_memory": 100 * 2**20, "include_dashboard": False}
# A node that says nothing for ten seconds is dead, in place of a quarter of a minute; a busy one is not.
HEALTH = {"health_check_period_ms": 1000, "health_check_failure_threshold": 10, "health_check_initial_delay_ms": 0}
_SMALL = ("--space", "small.yaml", "--study", "small", "--dataset", "digits", "--precision", "fp32")
LOCAL_RUN = ("run", "--no-confirm", *_SMALL)
RAY_RUN = (*LOCAL_RUN, "--launcher", "ray")


@contextmanager
def new_cluster(num_cpus: int) -> Iterator[Any]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    with _signals_as_before():
        made = Cluster(initialize_head=True, head_node_args=STORE | {"num_cpus": num_cpus, "_system_config": HEALTH})
    try:
        yield made
    finally:
        made.shutdown()


def add_node(cluster: Any) -> None:
    with _signals_as_before():
        cluster.add_node(num_cpus=1, num_gpus=1, **STORE)
        cluster.wait_for_nodes()


@contextmanager
def _signals_as_before() -> Iterator[None]:
    """Give back SIGTERM, which Ray takes when it starts a node."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def on(cluster: Any, trials: int, iterations: int, *options: str) -> tuple[str, ...]:
    """Write the command line of a run on a cluster."""
    return (*RAY_RUN, "--address", cluster.address, "--trials", str(trials), "--iterations", str(iterations), *options)


def outcomes(storage: Storage) -> list[str]:
    """List how attempts ended, in their order."""
    return [row["outcome"] for row in list_attempts(storage)]


def pids(made: study.Study) -> list[int]:
    """List the processes of the workers that train."""
    return [int(row.worker.rpartition(":")[2]) for row in overview.list_running(made.storage, made.study_id)]


def raylet(node: Any) -> int:
    """Give the process that is a node of Ray."""
    found: int = node.all_processes["raylet"][0].process.pid
    return found


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def descendants(pid: int) -> list[int]:
    children = [int(word) for file in Path(f"/proc/{pid}/task").glob("*/children") for word in file.read_text().split()]
    return children + [below for child in children for below in descendants(child)]


def require_end(driver: Process, number: signal.Signals, code: int, word: str, pid: int) -> None:
    asked = time.monotonic()
    driver.send_signal(number)
    out, err = driver.communicate(timeout=FINISH_S)
    took_s = time.monotonic() - asked
    assert (driver.returncode, out, err.splitlines()[-1]) == (code, "", f"{word}; the same command continues")
    assert took_s < END_S
    # A busy machine may end the actor first, whose worker then notices that.
    wait_until(lambda: not is_running(pid), FINISH_S, "the end of the worker")
