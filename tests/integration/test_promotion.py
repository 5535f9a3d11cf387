"""Run small studies whose trials wait at rungs from end to end, on both kinds of database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hpo import study
from hpo.artifacts import open_artifacts
from hpo.database import overview
from hpo.database.storage import Storage, open_storage
from hpo.trial.checkpoints import Checkpoints
from hpo.worker.stop import StopSignal
from hpo.worker.supervisor import TrialSupervisor
from tests.integration.support import PROMOTING, list_attempts, make_study, wait_until
from tests.integration.test_faults import start_worker
from tests.integration.test_study import content, train

Open = Callable[..., Storage]
TRIALS = 9


@pytest.fixture(scope="module", autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Run the study that others are compared with: one worker, SQLite, everything from scratch."""
    storage = open_storage(f"sqlite:///{tmp_path_factory.mktemp('undisturbed')}/hpo.db", "create")
    made = make_study(storage, TRIALS, PROMOTING)
    train(made)
    found = content(made)
    attempts = list_attempts(storage)
    storage.close()
    states = [trial["state"] for trial in found]
    assert (states[0], set(states)) == ("COMPLETE", {"COMPLETE", "PRUNED"})
    assert max(row["number"] for row in attempts) > 1, "one that waited is promoted"
    return found


@pytest.mark.parametrize("reuse", [False, True])
def test_a_study_that_promotes_is_a_pure_function_of_its_settings(
    storage: Storage, undisturbed: list[dict[str, Any]], tmp_path: Path, reuse: bool
) -> None:
    made = make_study(storage, TRIALS, PROMOTING)
    train(made, Checkpoints(storage, open_artifacts(str(tmp_path))) if reuse else None)

    assert content(made) == undisturbed
    spent = study.status(made)["iterations_spent"]
    assert (spent["trained"] <= spent["requested"]) == reuse


def test_a_study_that_promotes_and_is_extended_is_the_one_that_was_longer_at_once(
    storage_url: str, opened: Open, undisturbed: list[dict[str, Any]], tmp_path: Path
) -> None:
    for trials in (5, TRIALS):
        storage = opened(storage_url)
        made = make_study(storage, trials, PROMOTING)
        train(made, Checkpoints(storage, open_artifacts(str(tmp_path))))
        assert overview.count(storage, made.study_id).finished == trials

    assert content(made) == undisturbed


@pytest.mark.parametrize("kind", ["sqlite"])
@pytest.mark.parametrize("measured", [45, 80])
def test_a_study_that_promotes_and_is_interrupted_finds_the_same(
    storage: Storage, undisturbed: list[dict[str, Any]], tmp_path: Path, measured: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_study(storage, TRIALS, PROMOTING)
    checkpoints = Checkpoints(storage, open_artifacts(str(tmp_path)))
    stop, record = StopSignal(), TrialSupervisor.record
    left = iter(range(measured))

    def record_and_stop(supervisor: TrialSupervisor, *arguments: Any) -> None:
        record(supervisor, *arguments)
        if next(left, None) is None:
            stop.reason = "stopped"

    monkeypatch.setattr(TrialSupervisor, "record", record_and_stop)
    train(made, checkpoints, stop)
    assert "stopped" in [row["outcome"] for row in list_attempts(storage)]
    assert overview.count(storage, made.study_id).waiting > 0
    monkeypatch.undo()

    train(made, checkpoints)

    assert content(made) == undisturbed


@pytest.mark.parametrize("kind", ["postgresql"])
def test_workers_that_are_killed_cost_no_trial_that_waits_and_change_no_value(
    storage_url: str, storage: Storage, tmp_path: Path
) -> None:
    made = make_study(storage, TRIALS, PROMOTING)
    workers = [start_worker(storage_url, tmp_path) for _ in range(2)]
    wait_until(lambda: overview.count(storage, made.study_id).at_rungs, 120.0, "a trial that waits at a rung")
    for worker in workers:
        worker.kill()
        worker.join()
    workers = [start_worker(storage_url, tmp_path) for _ in range(2)]
    for worker in workers:
        worker.join(120.0)

    assert [worker.exitcode for worker in workers] == [0, 0]
    counts = overview.count(storage, made.study_id)
    assert (counts.complete + counts.pruned, counts.total) == (TRIALS, TRIALS)
    scratch = make_scratch(made, opened_folder=tmp_path)
    for found, whole in zip(content(made), scratch, strict=True):
        assert found["curve"] == whole["curve"][: len(found["curve"])]
        if found["state"] == "COMPLETE":
            assert (found["value"], found["user_attrs"]) == (whole["value"], whole["user_attrs"])
        else:
            assert found["value"] == found["reported"][max(found["reported"])]


def make_scratch(made: study.Study, opened_folder: Path) -> list[dict[str, Any]]:
    """Train the same recipes to their ends: with random sampling they do not depend on what others find."""
    storage = open_storage(f"sqlite:///{opened_folder}/scratch.db", "create")
    alone = make_study(storage, TRIALS, replace(made.settings, pruner="none"))
    train(alone)
    found = content(alone)
    storage.close()
    return found
