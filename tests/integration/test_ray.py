"""Run studies on a real Ray cluster of several nodes, and kill what it consists of."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
import torch
import yaml

from hpo import study
from hpo.database import overview
from hpo.database.overview import Counts
from hpo.database.storage import Storage
from hpo.worker.stop import StopSignal
from hpo.worker.work import work
from tests.integration.conftest import Start
from tests.integration.preloaded import Forked
from tests.integration.ray_cluster import (
    FINISH_S,
    LOCAL_RUN,
    add_node,
    descendants,
    new_cluster,
    on,
    outcomes,
    parent,
    pids,
    raylet,
    require_end,
)
from tests.integration.sharing import require_undisturbed
from tests.integration.support import (
    SETTINGS,
    SPACE,
    START_S,
    find_study,
    is_running,
    list_attempts,
    load_all_of_trials,
    make_study,
    wait_until,
    wait_until_it_trains,
)

# Ray, torch and a study are started for each; ten times as long where others use the machine.
pytestmark = pytest.mark.timeout(600)

Open = Callable[..., Storage]
LEASE = "4"  # of a worker that is alive, a busy machine may take more than half
# The driver says after two seconds that a worker waits for room.
SOON = """
from hpo.launch import ray

ray.ROOM_S = 2.0
"""
# An actor kills its worker after a second, long before the driver kills the actor, also on a busy machine.
IMPATIENT = """
from hpo.launch import ray

ray.ANSWER_S = 3.0
"""
# Ray was told of GPUs that are not there.
WITHOUT_GPU = """
from hpo.launch import ray

ray.GPU_DEVICE = "cpu"
"""


@pytest.fixture(autouse=True)
def _space(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SPACE))


@pytest.fixture(scope="module")
def head() -> Iterator[Any]:
    """Give a cluster of a head that has no room."""
    with new_cluster(num_cpus=0) as made:
        yield made


@pytest.fixture(scope="module")
def cluster(head: Any) -> Any:
    """Give the cluster with a node more, of one CPU and what Ray takes for a GPU."""
    add_node(head)
    return head


def test_a_cluster_without_room_is_refused_at_once_with_what_it_has(head: Any, start: Start, tmp_path: Path) -> None:
    refused = start(*on(head, 1, 32), url=f"sqlite:///{tmp_path}/hpo.db")  # before `cluster` adds a node

    assert refused.communicate(timeout=START_S) == (
        "",
        f"error: a CPU for each worker: the Ray cluster {head.address} has no room for that; "
        "its total is 0 CPUs and 0 GPUs\n",
    )
    assert refused.returncode == 2
    assert {path.name for path in tmp_path.iterdir()} == {"small.yaml"}


@pytest.mark.parametrize("kind", ["sqlite"])
def test_actors_on_shares_of_a_gpu_find_what_a_local_worker_finds(
    cluster: Any, storage_url: str, opened: Open, start: Start, tmp_path: Path
) -> None:
    shares = ("--gpus-per-worker", "0.5", "--sampler", "random", "--pruner", "none", "--json")
    driver = start(*on(cluster, 4, 32, *shares), before=WITHOUT_GPU)
    out, err = driver.communicate(timeout=FINISH_S)

    assert driver.returncode == 0, err
    assert json.loads(out)["trials"] == {"complete": 4, "pruned": 0, "failed": 0, "running": 0, "waiting": 0}
    _sketch, first, *others = err.splitlines()
    assert first.startswith(f"study small: 2 workers on the Ray cluster {cluster.address} (0.5 GPU each), output in ")
    assert [line for line in others if " / 4 finished, " not in line and "waiting for room: " not in line] == []
    logs = Path(first.rpartition(" ")[2])
    said = "".join(file.read_text() for file in logs.glob("worker-*.err"))
    assert re.search(r"finished \d trials? of small\n", said) is not None
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
        command = ("benchmark", "--seeds", "1", "--workers", "1", "--json", *options)
        benchmark = start(*command, url=f"sqlite:///{file}", before=WITHOUT_GPU)
        out, err = benchmark.communicate(timeout=FINISH_S)
        assert benchmark.returncode == 0, err
        assert ("1 worker on the Ray cluster" in err) is (file is path)
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
    assert "is lost; its worker will start on another node" in err
    trials = json.loads(out)["trials"]
    assert (trials["complete"] + trials["pruned"], sum(trials.values())) == (2, 2)
    assert [trial.number for trial in made.trials()] == [0, 1]
    assert overview.list_running(made.storage, made.study_id) == []
    lost, *others = list_attempts(made.storage)
    assert (lost["worker"].endswith(f":{pid}"), lost["outcome"]) == (True, "lapsed")
    assert {row["worker"] for row in others} != {lost["worker"]}
    assert [(row["trial_id"] == lost["trial_id"], row["outcome"]) for row in others] == [
        (True, "complete"),
        (False, ANY),
    ]
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
def test_sigterm_ends_the_workers_on_a_cluster_and_says_who_had_no_room(
    cluster: Any, storage_url: str, opened: Open, start: Start
) -> None:
    driver = start(*on(cluster, 3, 6400, "--workers", "2", "--gpus-per-worker", "0", "--json"), before=SOON)
    assert isinstance(driver, Forked)
    made = wait_until(lambda: find_study(storage_url, opened), START_S, "a study")
    wait_until_it_trains(made)
    [pid] = pids(made)
    wait_until(lambda: "waiting for room: 1 of 2 workers\n" in driver.printed(), FINISH_S, "a worker without room")
    require_end(driver, signal.SIGTERM, 143, "terminated", pid)
    assert overview.count(made.storage, made.study_id) == Counts(waiting=3)
    assert outcomes(made.storage) == ["stopped"]


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_worker_that_does_not_end_is_killed(cluster: Any, storage_url: str, opened: Open, start: Start) -> None:
    command = on(cluster, 1, 6400, "--workers", "1", "--gpus-per-worker", "0", "--json")
    driver = start(*command, before=IMPATIENT)
    made = wait_until(lambda: find_study(storage_url, opened), START_S, "a study")
    wait_until_it_trains(made)
    [pid] = pids(made)
    os.kill(pid, signal.SIGSTOP)
    require_end(driver, signal.SIGTERM, 143, "terminated", pid)
    assert overview.count(made.storage, made.study_id) == Counts(running=1)  # until its lease ends
