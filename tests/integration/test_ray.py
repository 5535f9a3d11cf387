"""Run studies on a real Ray cluster of several nodes, and kill what it consists of."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
import torch
import yaml

from hpo import overview, study
from hpo.overview import Counts
from hpo.storage import Storage
from hpo.worker import StopSignal, work
from integration.conftest import Start
from integration.sharing import require_undisturbed
from integration.support import (
    SETTINGS,
    SPACE,
    START_S,
    dump,
    find_study,
    is_running,
    load_all_of_trials,
    make_study,
    wait_until,
    wait_until_it_trains,
)

# Ray, torch and a study are started for each; ten times as long where others use the machine.
pytestmark = pytest.mark.timeout(600)

Open = Callable[..., Storage]
FINISH_S = 300.0
LEASE = "4"  # of a worker that is alive, a busy machine may take more than half
END_S = 5.0
ROOM_S = 11.0  # after which the driver says that a worker waits for room
STORE = {"object_store_memory": 100 * 2**20, "include_dashboard": False}
# `hpo` gives up a cluster's head after three seconds.
HASTY = """
from hpo.launch import ray

ray.HEAD_GONE_S = 3.0
"""
# A node that says nothing for three seconds is dead, in place of a quarter of a minute.
HEALTH = {"health_check_period_ms": 1000, "health_check_failure_threshold": 3, "health_check_initial_delay_ms": 0}
LOCAL_RUN = ("run", "--space", "small.yaml", "--study", "small", "--dataset", "digits", "--precision", "fp32")
RUN = (*LOCAL_RUN, "--launcher", "ray")


@pytest.fixture(scope="module")
def head() -> Iterator[Any]:
    """Give a cluster of a head that has no room."""
    with _new_cluster(num_cpus=0) as made:
        yield made


@contextmanager
def _new_cluster(num_cpus: int) -> Iterator[Any]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    with _signals_as_before():
        made = Cluster(initialize_head=True, head_node_args=STORE | {"num_cpus": num_cpus, "_system_config": HEALTH})
    try:
        yield made
    finally:
        made.shutdown()


@pytest.fixture(scope="module")
def cluster(head: Any) -> Any:
    """Give the cluster with a node more, of one CPU and what Ray takes for a GPU."""
    add_node(head)
    return head


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


@pytest.fixture(autouse=True)
def _space(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SPACE))


def on(cluster: Any, trials: int, iterations: int, *options: str) -> tuple[str, ...]:
    """Write the command line of a run on a cluster."""
    return (*RUN, "--address", cluster.address, "--trials", str(trials), "--iterations", str(iterations), *options)


def outcomes(storage: Storage) -> list[str]:
    """List how attempts ended, in their order."""
    return [row[9] for row in sorted(dump(storage)["hpo_attempts"])]


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


def test_a_cluster_without_room_is_refused_at_once_with_what_it_has(head: Any, start: Start, tmp_path: Path) -> None:
    refused = start(*on(head, 1, 32), url=f"sqlite:///{tmp_path}/hpo.db")  # before `cluster` adds a node

    assert refused.communicate(timeout=START_S) == (
        "",
        f"error: a CPU for each worker: the Ray cluster {head.address} has no room for that; "
        "it has 0 CPUs and 0 GPUs in all\n",
    )
    assert refused.returncode == 2
    assert {path.name for path in tmp_path.iterdir()} == {"small.yaml"}


@pytest.mark.parametrize("kind", ["sqlite"])
def test_actors_on_shares_of_a_gpu_find_what_a_local_worker_finds(
    cluster: Any, storage_url: str, opened: Open, start: Start, tmp_path: Path
) -> None:
    driver = start(*on(cluster, 4, 32, "--gpus-per-worker", "0.5", "--sampler", "random", "--pruner", "none", "--json"))
    out, err = driver.communicate(timeout=FINISH_S)

    assert driver.returncode == 0, err
    assert json.loads(out)["trials"] == {"complete": 4, "pruned": 0, "failed": 0, "running": 0, "waiting": 0}
    first, *others = err.splitlines()
    assert first.startswith(f"study small: 2 workers on the Ray cluster {cluster.address} (0.5 GPU each), their output")
    assert [line for line in others if " / 4 finished, " not in line and not line.endswith(" wait for room")] == []
    logs = Path(first.rpartition(" ")[2])
    assert sum(file.read_text().count(" trials of small\n") for file in logs.glob("worker-*.err")) >= 1
    made = study.load(opened(storage_url, "read"), "small")
    assert content(made) == content(_train_here(opened, tmp_path))


def _train_here(opened: Open, folder: Path) -> study.Study:
    before = torch.get_num_threads()
    made = make_study(opened(f"sqlite:///{folder}/local.db"), 4, replace(SETTINGS, sampler="random", pruner="none"))
    work(made, device=torch.device("cpu"), data_dir=folder, stop=StopSignal())
    torch.set_num_threads(before)
    return made


def content(made: study.Study) -> list[tuple[Any, ...]]:
    return [
        (trial.number, trial.params, trial.value, overview.load_curve(made.storage, trial._trial_id))
        for trial in made.trials()
    ]


def test_a_benchmark_on_a_cluster_finds_what_one_on_this_machine_finds(
    cluster: Any, start: Start, tmp_path: Path
) -> None:
    path = tmp_path / "hpo.db"
    searched = start(*LOCAL_RUN, "--workers", "1", "--trials", "2", "--iterations", "32", url=f"sqlite:///{path}")
    _, err = searched.communicate(timeout=FINISH_S)
    assert searched.returncode == 0, err
    copy = shutil.copyfile(path, path.with_name("copy.db"))

    found = []
    for file, options in ((path, ("--launcher", "ray", "--address", cluster.address)), (copy, ())):
        benchmark = start("benchmark", "--seeds", "1", "--workers", "1", "--json", *options, url=f"sqlite:///{file}")
        out, err = benchmark.communicate(timeout=FINISH_S)
        assert benchmark.returncode == 0, err
        assert ("1 workers on the Ray cluster" in err) is (file is path)
        found.append({run: json.loads(out)[run]["test_accuracy"] for run in ("candidate", "baseline")})
    assert found[0] == found[1]
    assert len(found[0]["candidate"]) == 1


@pytest.mark.parametrize("kind", ["postgresql"])
def test_the_death_of_a_node_costs_no_trial_and_changes_no_value(
    cluster: Any, storage_url: str, opened: Open, start: Start, tmp_path: Path
) -> None:
    add_node(cluster)
    driver = start(*on(cluster, 2, 128, "--workers", "1", "--gpus-per-worker", "0", "--lease", LEASE, "--json"))
    made = wait_until(lambda: find_study(storage_url, opened), START_S, "a study")
    wait_until_it_trains(made)
    [pid] = pids(made)
    [node] = [node for node in cluster.list_all_nodes() if pid in descendants(raylet(node))]
    for each in (raylet(node), *descendants(raylet(node))):  # all of it at once, as when its power is cut
        os.kill(each, signal.SIGKILL)
    cluster.remove_node(node, allow_graceful=False)
    out, err = driver.communicate(timeout=FINISH_S)

    assert driver.returncode == 0, err
    assert "is gone; its worker starts wherever there is room" in err
    trials = json.loads(out)["trials"]
    assert (trials["complete"] + trials["pruned"], sum(trials.values())) == (2, 2)
    assert [trial.number for trial in made.trials()] == [0, 1]
    assert overview.list_running(made.storage, made.study_id) == []
    lost, *others = sorted(dump(made.storage)["hpo_attempts"])
    assert (lost[3].endswith(f":{pid}"), lost[9]) == (True, "lapsed")
    assert {row[3] for row in others} != {lost[3]}
    assert [(row[1] == lost[1], row[9]) for row in others] == [(True, "complete"), (False, ANY)]
    require_undisturbed(made, tmp_path)


@pytest.mark.parametrize("kind", ["postgresql"])
def test_a_worker_that_ray_believes_dead_changes_nothing_of_its_trials_retry(
    cluster: Any, storage_url: str, storage: Storage, opened: Open, start: Start
) -> None:
    driver = start(*on(cluster, 1, 128, "--workers", "1", "--gpus-per-worker", "0", "--lease", LEASE, "--json"))
    made = wait_until(lambda: find_study(storage_url, opened), START_S, "a study")
    wait_until_it_trains(made)
    [sleeper] = pids(made)
    os.kill(sleeper, signal.SIGSTOP)
    try:
        os.kill(parent(sleeper), signal.SIGKILL)
        _, err = driver.communicate(timeout=FINISH_S)
        assert driver.returncode == 0, err
        before = load_all_of_trials(storage)
    finally:
        os.kill(sleeper, signal.SIGCONT)
    wait_until(lambda: not is_running(sleeper), FINISH_S, "the end of the worker that was believed dead")

    assert load_all_of_trials(storage) == before
    assert outcomes(storage) == ["lapsed", "complete"]
    assert overview.count(storage, made.study_id) == Counts(complete=1)


@pytest.mark.parametrize("kind", ["sqlite"])
def test_the_death_of_the_head_ends_the_driver_in_a_line_and_the_study_goes_on_elsewhere(
    storage_url: str, opened: Open, start: Start, tmp_path: Path
) -> None:
    with _new_cluster(num_cpus=1) as doomed:
        driver = start(*on(doomed, 2, 960), before=HASTY)
        made = wait_until(lambda: find_study(storage_url, opened), START_S, "a study")
        wait_until_it_trains(made)
        [pid] = pids(made)
        os.kill(doomed.head_node.all_processes["gcs_server"][0].process.pid, signal.SIGKILL)
        out, err = driver.communicate(timeout=FINISH_S)
        assert (driver.returncode, out) == (1, "")
        assert err.splitlines()[-1] == (
            f"error: the head of the Ray cluster {doomed.address} is gone (Connection refused); its workers hand back "
            "their trials, and the same command continues, on this cluster or another"
        )
        wait_until(lambda: not is_running(pid), FINISH_S, "the end of the worker")
    assert overview.count(made.storage, made.study_id) == Counts(waiting=2)

    again = start(*LOCAL_RUN, "--workers", "1", "--trials", "2", "--iterations", "960", "--json")
    out, err = again.communicate(timeout=FINISH_S)
    assert again.returncode == 0, err
    trials = json.loads(out)["trials"]
    assert (trials["complete"] + trials["pruned"], sum(trials.values())) == (2, 2)
    assert outcomes(made.storage)[0] == "stopped"
    require_undisturbed(made, tmp_path)


@pytest.mark.parametrize("kind", ["sqlite"])
def test_sigterm_ends_the_workers_on_a_cluster_and_says_who_had_no_room(
    cluster: Any, storage_url: str, opened: Open, start: Start
) -> None:
    driver = start(*on(cluster, 3, 6400, "--workers", "2", "--gpus-per-worker", "0", "--json"))
    made = wait_until(lambda: find_study(storage_url, opened), START_S, "a study")
    wait_until_it_trains(made)
    [pid] = pids(made)
    time.sleep(ROOM_S)
    _require_end(driver, signal.SIGTERM, 143, "terminated", pid)
    assert overview.count(made.storage, made.study_id) == Counts(waiting=3)
    assert outcomes(made.storage) == ["stopped"]


def _require_end(driver: Any, number: signal.Signals, code: int, word: str, pid: int) -> None:
    asked = time.monotonic()
    driver.send_signal(number)
    out, err = driver.communicate(timeout=FINISH_S)
    took_s = time.monotonic() - asked
    assert (driver.returncode, out, err.splitlines()[-1]) == (code, "", f"{word}; the same command continues")
    assert took_s < END_S
    assert not is_running(pid)
    if word == "terminated":
        assert "1 of 2 workers wait for room\n" in err


@pytest.mark.parametrize("kind", ["sqlite"])
def test_an_interrupt_ends_a_local_ray_with_its_workers_and_the_same_command_continues(
    storage_url: str, opened: Open, start: Start
) -> None:
    command = (*RUN, "--workers", "1", "--trials", "1", "--iterations", "192", "--json")
    driver = start(*command)
    made = wait_until(lambda: find_study(storage_url, opened), START_S, "a study")
    wait_until_it_trains(made)
    processes = descendants(driver.pid)
    [pid] = pids(made)
    assert pid in processes
    _require_end(driver, signal.SIGINT, 130, "interrupted", pid)
    wait_until(lambda: not any(map(is_running, processes)), END_S, "the end of all that Ray started")
    assert overview.count(made.storage, made.study_id) == Counts(waiting=1)

    again = start(*command)
    out, err = again.communicate(timeout=FINISH_S)
    assert again.returncode == 0, err
    assert json.loads(out)["trials"]["complete"] == 1
    assert outcomes(made.storage) == ["stopped", "complete"]
    assert study.status(made)["iterations_spent"]["trained"] == 192
