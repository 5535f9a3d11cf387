"""Kill the head of a Ray cluster, and interrupt a local Ray."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from hpo import study
from hpo.database import overview
from hpo.database.overview import Counts
from hpo.database.storage import Storage
from tests.integration.conftest import Start
from tests.integration.ray_cluster import (
    END_S,
    FINISH_S,
    LOCAL_RUN,
    RAY_RUN,
    descendants,
    new_cluster,
    on,
    outcomes,
    pids,
    require_end,
)
from tests.integration.sharing import require_undisturbed
from tests.integration.support import SPACE, START_S, find_study, is_running, wait_until, wait_until_it_trains

# Ray, torch and a study are started for each; ten times as long where others use the machine.
pytestmark = pytest.mark.timeout(600)

Open = Callable[..., Storage]
# `hpo` gives up a cluster's head after a second.
HASTY = """
from hpo.launch import ray_cluster

ray_cluster.LOOK_S, ray_cluster.HEAD_GONE_S = 0.2, 1.0
"""


@pytest.fixture(autouse=True)
def _space(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SPACE))


@pytest.mark.parametrize("kind", ["sqlite"])
def test_the_death_of_the_head_ends_the_driver_in_a_line_and_the_study_goes_on_elsewhere(
    storage_url: str, opened: Open, start: Start, tmp_path: Path
) -> None:
    with new_cluster(num_cpus=1) as doomed:
        driver = start(*on(doomed, 2, 640), before=HASTY)
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

    again = start(*LOCAL_RUN, "--workers", "1", "--trials", "2", "--iterations", "640", "--json")
    out, err = again.communicate(timeout=FINISH_S)
    assert again.returncode == 0, err
    trials = json.loads(out)["trials"]
    assert (trials["complete"] + trials["pruned"], sum(trials.values())) == (2, 2)
    assert outcomes(made.storage)[0] == "stopped"
    require_undisturbed(made, tmp_path)


@pytest.mark.parametrize("kind", ["sqlite"])
def test_an_interrupt_ends_a_local_ray_with_its_workers_and_the_same_command_continues(
    storage_url: str, opened: Open, start: Start
) -> None:
    command = (*RAY_RUN, "--workers", "1", "--trials", "1", "--iterations", "192", "--json")
    driver = start(*command)
    made = wait_until(lambda: find_study(storage_url, opened), START_S, "a study")
    wait_until_it_trains(made)
    processes = descendants(driver.pid)
    [pid] = pids(made)
    assert pid in processes
    require_end(driver, signal.SIGINT, 130, "interrupted", pid)
    wait_until(lambda: not any(map(is_running, processes)), END_S, "the end of all that Ray started")
    assert overview.count(made.storage, made.study_id) == Counts(waiting=1)

    again = start(*command)
    out, err = again.communicate(timeout=FINISH_S)
    assert again.returncode == 0, err
    assert json.loads(out)["trials"]["complete"] == 1
    assert outcomes(made.storage) == ["stopped", "complete"]
    assert study.status(made)["iterations_spent"]["trained"] == 192
