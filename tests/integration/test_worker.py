"""Start real workers and drivers, interrupt and kill them, and see that nothing is lost."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import select, update

from hpo import study
from hpo.artifacts import open_artifacts
from hpo.database import overview
from hpo.database.overview import Counts
from hpo.database.storage import Storage
from hpo.database.tables import AttemptRow
from hpo.trial.checkpoints import Checkpoints
from hpo.worker.stop import StopSignal
from hpo.worker.work import work
from tests.integration.conftest import Process, Start
from tests.integration.support import (
    SETTINGS,
    SPACE,
    START_S,
    find_study,
    is_running,
    list_attempts,
    make_study,
    wait_until,
    wait_until_it_trains,
)

Open = Callable[..., Storage]

HAND_BACK_S = 5.0
ORPHANED_S = 20.0  # two heartbeats
FINISH_S = 300.0
SHORT = replace(SETTINGS, iterations=256)  # long enough to be interrupted, short enough to be finished


def first_trial(made: study.Study) -> FrozenTrial:
    return made.storage.optuna.get_trial(made.storage.optuna.get_trial_id_from_study_id_trial_number(made.study_id, 0))


@pytest.mark.parametrize(
    ("kind", "number", "code", "word"),
    [
        ("sqlite", signal.SIGTERM, 143, "terminated"),
        ("sqlite", signal.SIGINT, 130, "interrupted"),
        ("postgresql", signal.SIGTERM, 143, "terminated"),
        ("sqlite", signal.SIGUSR1, 143, "terminated"),
        ("sqlite", signal.SIGUSR2, 143, "terminated"),
    ],
)
def test_a_worker_that_is_asked_to_stop_hands_back_its_trial_which_another_finishes(
    storage: Storage, start: Start, number: signal.Signals, code: int, word: str, tmp_path: Path
) -> None:
    made = make_study(storage, 1, SHORT)
    worker = start("worker")
    wait_until_it_trains(made)
    params = first_trial(made).params
    assert params == made.space.base_params()

    asked = time.monotonic()
    worker.send_signal(number)
    output = worker.communicate(timeout=FINISH_S)
    took_s = time.monotonic() - asked

    assert worker.returncode == code, output
    assert took_s < HAND_BACK_S
    assert output[1].splitlines()[-2:] == ["finished 0 trials of small", f"{word}; the same command continues"]
    assert "Traceback" not in output[1]
    waiting = first_trial(made)
    assert (waiting.state, waiting.params, waiting.intermediate_values) == (TrialState.WAITING, params, {})
    assert overview.count(storage, made.study_id) == Counts(waiting=1)

    assert _work_here(made, tmp_path) == 1

    finished = first_trial(made)
    assert (finished.state, finished.params) == (TrialState.COMPLETE, params)
    assert [row["number"] for row in list_attempts(storage)] == [1, 2]
    curve = overview.load_curve(storage, finished._trial_id)
    assert curve[-1].iteration == SHORT.iterations
    spent = study.status(made)["iterations_spent"]
    # What the first worker trained since its last checkpoint is stored as well when it is asked to stop.
    assert spent == {"naive": SHORT.iterations, "requested": SHORT.iterations, "trained": SHORT.iterations}


@pytest.mark.parametrize("kind", ["postgresql"])
def test_a_worker_that_is_killed_leaves_its_trial_to_whoever_reaps_it(storage: Storage, start: Start) -> None:
    made = make_study(storage, 1, SHORT)
    worker = start("worker")
    wait_until_it_trains(made)
    params = first_trial(made).params
    worker.kill()
    worker.communicate()
    assert overview.count(storage, made.study_id) == Counts(running=1)
    _let_leases_lapse(storage)

    successor = start("worker")
    output = successor.communicate(timeout=FINISH_S)

    assert (successor.returncode, output[1].splitlines()[-1]) == (0, "finished 1 trial of small")
    finished = first_trial(made)
    assert (finished.state, finished.params) == (TrialState.COMPLETE, params)
    assert overview.count(storage, made.study_id) == Counts(complete=1)


def _work_here(made: study.Study, folder: Path) -> int:
    """Work in this process."""
    checkpoints = Checkpoints(made.storage, open_artifacts(str(folder / "artifacts")))
    return work(made, device=torch.device("cpu"), data_dir=folder, stop=StopSignal(), checkpoints=checkpoints)


def _let_leases_lapse(storage: Storage) -> None:
    """Do at once what a minute without a heartbeat does."""
    with storage.transaction() as session:
        session.execute(update(AttemptRow).values(lease_until_s=0.0))


@pytest.mark.parametrize("kind", ["sqlite"])
def test_workers_whose_driver_is_killed_hand_back_their_trials_and_end(
    storage_url: str, opened: Open, start: Start, tmp_path: Path
) -> None:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SPACE))
    driver = start(
        *(
            "run",
            "--no-confirm",
            "--space",
            "small.yaml",
            "--study",
            "small",
            "--dataset",
            "digits",
            "--iterations",
            "6400",
        ),
        *("--trials", "3", "--workers", "2", "--no-reuse"),
    )
    made = wait_until(lambda: find_study(storage_url, opened), START_S, "a study")
    wait_until_it_trains(made, workers=2)
    workers = [int(row.worker.rpartition(":")[2]) for row in overview.list_running(made.storage, made.study_id)]
    params = {trial.number: trial.params for trial in made.trials()}

    driver.kill()
    driver.communicate()

    try:
        wait_until(lambda: not any(map(is_running, workers)), ORPHANED_S, "workers that have noticed")
        assert overview.count(made.storage, made.study_id) == Counts(waiting=3)
        assert {trial.number: trial.params for trial in made.trials()} == params
        log = (tmp_path / "small.log").read_text()
        assert log.count("orphaned; the same command continues") == 2
        assert "Traceback" not in log
    finally:
        for pid in filter(is_running, workers):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("kind", ["sqlite"])
def test_eight_workers_on_one_file_finish_exactly_the_trials_that_were_asked_for(
    storage_url: str, opened: Open, start: Start, tmp_path: Path
) -> None:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SPACE))
    driver = start(
        *(
            "run",
            "--no-confirm",
            "--space",
            "small.yaml",
            "--study",
            "small",
            "--dataset",
            "digits",
            "--iterations",
            "32",
        ),
        *("--trials", "16", "--workers", "8", "--pruner", "asha-stop", "--json"),
    )
    output = driver.communicate(timeout=2 * START_S)

    assert driver.returncode == 0, output
    made = study.load(opened(storage_url, "read"), "small")
    trials = made.trials()
    assert [trial.number for trial in trials] == list(range(16))
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert overview.list_running(made.storage, made.study_id) == []
    log = (tmp_path / "small.log").read_text()
    assert "database is locked" not in log
    assert "Traceback" not in log
    assert _finished_in(log) == 16
    assert _outcomes(made) <= {"complete", "pruned", "parked"}


def _finished_in(log: str) -> int:
    lines = [line.split() for line in log.splitlines() if line.startswith("finished ")]
    return sum(int(words[1]) for words in lines)


def _outcomes(made: study.Study) -> set[Any]:
    with made.storage.transaction() as session:
        return set(session.scalars(select(AttemptRow.outcome)))


RUN = (
    "run",
    "--no-confirm",
    "--space",
    "small.yaml",
    "--study",
    "small",
    "--dataset",
    "digits",
    "--iterations",
    "256",
    "--trials",
    "2",
)


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_driver_that_is_asked_to_stop_ends_its_workers_and_the_same_command_continues(
    storage_url: str, opened: Open, start: Start, tmp_path: Path
) -> None:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SPACE))
    driver, made, pid = _start_driver(storage_url, opened, start)

    asked = time.monotonic()
    driver.send_signal(signal.SIGTERM)
    output = driver.communicate(timeout=FINISH_S)
    took_s = time.monotonic() - asked

    assert (driver.returncode, output[1].splitlines()[-1]) == (143, "terminated; the same command continues")
    assert took_s < HAND_BACK_S
    assert not is_running(pid)
    assert overview.count(made.storage, made.study_id) == Counts(waiting=2)

    again = start(*RUN, "--workers", "1", "--json")
    printed = again.communicate(timeout=FINISH_S)
    assert again.returncode == 0, printed
    counts = overview.count(made.storage, made.study_id)
    assert (counts.complete + counts.pruned, counts.total) == (2, 2)


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_second_interrupt_ends_a_driver_at_once_and_its_workers_follow(
    storage_url: str, opened: Open, start: Start, tmp_path: Path
) -> None:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SPACE))
    driver, made, pid = _start_driver(storage_url, opened, start)
    os.kill(pid, signal.SIGSTOP)  # so that the driver has to wait for it
    try:
        driver.send_signal(signal.SIGINT)
        time.sleep(1.0)
        assert driver.poll() is None
        driver.send_signal(signal.SIGINT)
        driver.communicate(timeout=HAND_BACK_S)
        assert driver.returncode == -signal.SIGINT
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: not is_running(pid), HAND_BACK_S, "a worker that has noticed")
    assert overview.count(made.storage, made.study_id) == Counts(waiting=2)


def _start_driver(url: str, opened: Open, start: Start) -> tuple[Process, study.Study, int]:
    """Start a driver, and wait until its one worker trains."""
    driver = start(*RUN, "--workers", "1", "--json")
    made = wait_until(lambda: find_study(url, opened), START_S, "a study")
    wait_until_it_trains(made)
    [running] = overview.list_running(made.storage, made.study_id)
    return driver, made, int(running.worker.rpartition(":")[2])


NO_MEMORY = """
from hpo.training.train import Training

def fail(*_): raise MemoryError('none is left')

Training.advance = fail
"""


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_study_in_which_everything_fails_ends_early_with_the_reason_and_code_1(
    storage_url: str, opened: Open, start: Start, tmp_path: Path
) -> None:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SPACE))
    driver = start(*RUN[:-1], "30", "--workers", "1", before=NO_MEMORY)
    output = driver.communicate(timeout=START_S)

    assert driver.returncode == 1, output
    assert output[1].splitlines()[-1] == f"error: the first 5 trials failed; their output is in {tmp_path}/small.log"
    made = study.load(opened(storage_url, "read"), "small")
    assert overview.count(made.storage, made.study_id) == Counts(failed=5, waiting=25)
    reasons = {trial.user_attrs["outcome"] for trial in made.trials()[:5]}
    assert reasons == {"failed: MemoryError: none is left (<string>:4)"}
