"""Kill, stop and starve workers at any moment: a study ends with exactly its trials, each with its recipe's value."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from optuna.trial import TrialState
from sqlalchemy import select

from hpo import study
from hpo.artifacts import open_artifacts
from hpo.database import losses, overview
from hpo.database.overview import Counts
from hpo.database.storage import Storage, open_storage
from hpo.database.tables import CheckpointRow
from hpo.errors import StudyFailed
from hpo.settings import DEFAULT_LEASE_S
from hpo.training.train import Training
from hpo.trial.checkpoints import Checkpoints
from hpo.worker.stop import StopSignal
from hpo.worker.work import work
from tests.integration.sharing import require_undisturbed
from tests.integration.support import SETTINGS, dump, list_attempts, load_all_of_trials, make_study, wait_until

Open = Callable[..., Storage]
CPU = torch.device("cpu")
TRIALS = 30
WORKERS = 3
KILL_EVERY = 80
"""Iterations that all workers together train from one kill to the next, however long they take."""

LEASE_S = 3.0
STORM_S = 200.0
FINISH_S = 300.0
# So long that most workers die in the midst of a trial.
STORMY = replace(SETTINGS, iterations=64)

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["hpo.worker.work", "psycopg", "sklearn.datasets", "tests.integration.test_faults"])


def be_worker(url: str, artifacts: str) -> None:
    """Work in a process that is forked from one in which all is imported, so that it trains at once."""
    storage = open_storage(url)
    checkpoints = Checkpoints(storage, open_artifacts(artifacts))
    stop = StopSignal()
    work(study.load(storage, None), device=CPU, data_dir=Path(), stop=stop, checkpoints=checkpoints, lease_s=LEASE_S)
    storage.close()


def start_worker(url: str, folder: Path) -> BaseProcess:
    process = FORK.Process(target=be_worker, args=(url, str(folder / "artifacts")), daemon=True)
    process.start()
    return process


def work_here(made: study.Study, folder: Path, lease_s: float = DEFAULT_LEASE_S) -> int:
    checkpoints = Checkpoints(made.storage, open_artifacts(str(folder / "artifacts")))
    return work(made, device=CPU, data_dir=folder, stop=StopSignal(), checkpoints=checkpoints, lease_s=lease_s)


def let_train(made: study.Study, iterations: int) -> None:
    """Wait until workers have trained so many iterations more, or all trials are finished."""
    wanted = overview.trained_iterations(made.storage, made.study_id) + iterations

    def is_over() -> bool:
        finished = overview.count(made.storage, made.study_id).finished
        return finished == TRIALS or overview.trained_iterations(made.storage, made.study_id) >= wanted

    wait_until(is_over, FINISH_S, "training between two kills")


@pytest.mark.alone
def test_a_storm_of_kills_costs_no_trial_and_changes_no_value(
    storage_url: str, storage: Storage, tmp_path: Path
) -> None:
    made = make_study(storage, TRIALS, STORMY)
    chance = random.Random(0)
    workers = [start_worker(storage_url, tmp_path) for _ in range(WORKERS)]
    # Before that, torch may still be on its way from the disk, and a life of a few seconds too short to train anything.
    wait_until(lambda: overview.count(storage, made.study_id).finished, FINISH_S, "a finished trial")
    kills = 0
    until_s = time.monotonic() + STORM_S
    while overview.count(storage, made.study_id).finished < TRIALS:
        assert time.monotonic() < until_s
        let_train(made, KILL_EVERY)
        struck = chance.randrange(WORKERS)
        kills += workers[struck].is_alive()
        workers[struck].kill()
        workers[struck].join()
        workers[struck] = start_worker(storage_url, tmp_path)
    for worker in workers:
        worker.join(FINISH_S)

    counts = overview.count(storage, made.study_id)
    reasons = [trial.user_attrs["outcome"] for trial in made.trials() if trial.state == TrialState.FAIL]
    assert (counts.complete + counts.pruned, counts.total) == (TRIALS, TRIALS), reasons
    outcomes = Counter(row["outcome"] for row in list_attempts(storage))
    assert set(outcomes) <= {"complete", "pruned", "parked", "lapsed"}
    print(f"{kills} kills, {outcomes['lapsed']} of them in a trial")
    assert outcomes["lapsed"] > 0
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), FORK) as pool:
        require_undisturbed(made, tmp_path, pool.map)


@pytest.mark.parametrize("kind", ["postgresql"])
def test_a_worker_that_was_stopped_past_its_lease_changes_nothing_when_it_goes_on(
    storage_url: str, storage: Storage, tmp_path: Path
) -> None:
    made = make_study(storage, 1, replace(SETTINGS, iterations=256, sampler="random", pruner="asha-stop"))
    sleeper = start_worker(storage_url, tmp_path)
    wait_until(lambda: dump(storage)["hpo_curve_points"], FINISH_S, "a trial that trains")
    assert sleeper.pid is not None
    os.kill(sleeper.pid, signal.SIGSTOP)
    try:
        wait_until(lambda: losses.reap(storage, made.study_id), FINISH_S, "a lease that is over")
        assert work_here(made, tmp_path) == 1
        before = load_all_of_trials(storage)
    finally:
        os.kill(sleeper.pid, signal.SIGCONT)
    sleeper.join(FINISH_S)

    assert sleeper.exitcode == 0
    assert load_all_of_trials(storage) == before
    assert [row["outcome"] for row in list_attempts(storage)] == ["lapsed", "complete"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Give a folder that holds three checkpoints and no more."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    folder = tmp_path / "artifacts"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_full_disk_costs_one_warning_and_no_trial(
    storage: Storage,
    small_disk: Path,
    make_url: Callable[[str], str],
    opened: Open,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = make_study(storage, 3)
    assert work_here(made, tmp_path) == 3

    warnings = [record.getMessage() for record in caplog.records if record.name.startswith("hpo")]
    assert warnings == [
        f"artifacts {small_disk}: [Errno 28] No space left on device; training continues without new checkpoints"
    ]
    assert overview.count(storage, made.study_id) == Counts(complete=3)
    with storage.transaction() as session:
        rows = {row.artifact_id: row.sha256 for row in session.scalars(select(CheckpointRow))}
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in small_disk.iterdir()}
    assert files == rows
    assert len(files) == 3
    require_undisturbed(made, tmp_path)


def test_a_trial_that_runs_out_of_memory_fails_with_the_reason_and_the_worker_goes_on(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_study(storage, 3)
    train = Training.advance
    calls = 0

    def starve(self: Training, until: int, *stop: Callable[[], bool]) -> int:
        nonlocal calls
        calls += 1
        if calls == 2:
            torch.empty(2**60)
        return train(self, until, *stop)

    monkeypatch.setattr(Training, "advance", starve)
    assert work_here(made, tmp_path) == 3

    first, *others = made.trials()
    assert first.state == TrialState.FAIL
    assert first.user_attrs["outcome"].startswith("failed: RuntimeError: ")
    assert "memory" in first.user_attrs["outcome"]
    assert {trial.state for trial in others} == {TrialState.COMPLETE}


def break_training(_self: Training, _until: int, *_stop: object) -> int:
    return len([0] * 0) // 0  # an exception like any other


def test_a_worker_started_by_hand_gives_up_a_study_in_which_everything_fails(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_study(storage, 20)
    monkeypatch.setattr(Training, "advance", break_training)

    with pytest.raises(StudyFailed) as given_up:
        work_here(made, tmp_path)

    assert str(given_up.value) == "the first 5 trials of study small failed; `hpo dashboard` shows why"
    assert given_up.value.exit_code == 1
    assert overview.count(storage, made.study_id) == Counts(failed=5, waiting=15)


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_mended_study_goes_on_after_it_was_given_up(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_study(storage, 6)
    with monkeypatch.context() as broken, suppress(StudyFailed):
        broken.setattr(Training, "advance", break_training)
        work_here(made, tmp_path)

    assert work_here(made, tmp_path) == 1
    assert overview.count(storage, made.study_id) == Counts(complete=1, failed=5)
