"""Start real workers and drivers, and pause, resume, stop and delete their studies with the command line."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from optuna.trial import TrialState
from sqlalchemy import select

from hpo import study
from hpo.artifacts import open_artifacts
from hpo.database import overview, removal, study_state, workers
from hpo.database.overview import Counts
from hpo.database.storage import Storage
from hpo.database.tables import AttemptRow
from hpo.errors import HpoError
from hpo.results import benchmark
from hpo.results.test_split import end_of_run
from hpo.training.train import Training
from hpo.trial.checkpoints import Checkpoints
from hpo.worker.rotation import StudyRotation
from hpo.worker.stop import StopSignal
from hpo.worker.work import WorkerConfig
from tests.integration.conftest import Process, Start
from tests.integration.sharing import require_undisturbed
from tests.integration.support import (
    SETTINGS,
    SPACE,
    claim,
    complete,
    dump,
    list_attempts,
    make_study,
    suggest,
    wait_until,
    wait_until_it_trains,
)

Open = Callable[..., Storage]

START_S = 300.0  # to import torch on a busy machine
FINISH_S = 300.0
END_S = 5.0
NOTICED_S = 60.0  # a heartbeat is due within ten
CPU = torch.device("cpu")
# A worker writes what it measures, and so learns that its study was stopped, five times as often.
EAGER = """
from functools import partial

from hpo.worker import work

work.TrialSupervisor = partial(work.TrialSupervisor, write_every_s=0.4)
"""


def said(process: Process, code: int = 0) -> str:
    """Wait for a command, and give what it printed."""
    out, err = process.communicate(timeout=START_S)
    assert process.returncode == code, (out, err)
    assert "Traceback" not in err
    return out + err


@pytest.mark.parametrize("kind", ["postgresql"])
def test_a_paused_study_waits_with_its_workers_until_it_is_resumed_and_has_exactly_its_trials(
    storage: Storage, start: Start
) -> None:
    made = make_study(storage, 8, replace(SETTINGS, iterations=128, pruner="none"))
    paused = "study small is paused: 0 running trials to finish, 8 waiting; "
    assert said(start("pause")).startswith(paused)
    joined = [start("worker"), start("worker")]
    wait_until(lambda: len(workers.list_workers(storage)) == 2, START_S, "two workers")
    listed = json.loads(said(start("workers", "--json")))
    assert [(row["study"], row["trial"], row["iteration"], row["device"]) for row in listed] == [
        ("small", None, None, "cpu")
    ] * 2
    assert all(0 <= row["heartbeat_age_s"] < 60 for row in listed)
    assert overview.count(storage, made.study_id) == Counts(waiting=8)

    resumed = re.fullmatch(
        r"study small was paused and continues: (\d) trials? running, (\d) waiting\n", said(start("resume"))
    )
    assert resumed is not None
    assert sum(map(int, resumed.groups())) == 8, "the workers may have begun some by then"
    wait_until_it_trains(made, workers=2)
    study_state.set_state(storage, made.study_id, "paused")
    begun = {trial.number for trial in made.trials() if trial.state != TrialState.WAITING}
    wait_until(lambda: not overview.count(storage, made.study_id).running, FINISH_S, "trials that finished")
    assert re.search(r"^state +paused +$", said(start("status")), re.MULTILINE)
    assert {trial.number for trial in made.trials() if trial.state == TrialState.COMPLETE} == begun
    assert overview.count(storage, made.study_id).waiting == 8 - len(begun) > 0
    assert [worker.poll() for worker in joined] == [None, None]

    study_state.set_state(storage, made.study_id, "running")
    assert all(said(worker) for worker in joined)
    assert overview.count(storage, made.study_id) == Counts(complete=8)
    assert said(start("workers")) == "no live workers\n"


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_driver_waits_while_paused_ends_with_a_stop_and_the_same_command_continues(
    storage_url: str, opened: Open, start: Start, tmp_path: Path
) -> None:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SPACE))
    command = [
        "run",
        "--no-confirm",
        "--space",
        "small.yaml",
        "--study",
        "small",
        "--dataset",
        "digits",
        "--iterations",
        "192",
    ]
    command += ["--trials", "3", "--workers", "2", "--pruner", "none", "--precision", "fp32"]
    said(start(*command, "--submit"))
    made = study.load(opened(storage_url), "small")
    study_state.set_state(made.storage, made.study_id, "paused")
    driver = start(*command, before=EAGER)
    wait_until(lambda: len(workers.list_workers(made.storage)) == 2, START_S, "two workers that wait")
    assert overview.count(made.storage, made.study_id) == Counts(waiting=3)

    study_state.set_state(made.storage, made.study_id, "running")
    wait_until_it_trains(made, workers=2)
    params = [(trial.number, trial.params) for trial in made.trials() if trial.params]
    done = study_state.stop(made.storage, made.study_id, "small", finish=False, timeout_s=NOTICED_S)
    output = said(driver).splitlines()

    assert done.handed_back >= 1
    assert (done.counts.running, done.counts.complete + done.counts.waiting) == (0, 3)
    assert [line for line in output if line.startswith("paused: 0 / 3 finished")] != []
    assert "study small was stopped; `hpo resume --study small`, or the same command, continues" in output
    assert len(params) >= 2
    assert [pair for pair in params if pair not in [(t.number, t.params) for t in made.trials()]] == []
    assert _outcomes(made) <= {"complete", "stopped", "parked"}, "no retry is spent"
    assert dump(made.storage)["hpo_workers"] == []

    assert "3 / 3 finished" in said(start(*command))
    assert overview.count(made.storage, made.study_id) == Counts(complete=3)
    trained = study.status(made)["iterations_spent"]["trained"]
    assert trained <= 3 * 192, "what was trained before the stop is not trained again"
    require_undisturbed(made, tmp_path)


def _outcomes(made: study.Study) -> set[Any]:
    with made.storage.transaction() as session:
        return set(session.scalars(select(AttemptRow.outcome)))


ENDED = "finished {} of small\nstudy small was stopped; continue it with `hpo resume --study small`\n"


@pytest.mark.parametrize("kind", ["postgresql"])
def test_stopping_hands_back_what_a_worker_trains_and_ends_it(storage: Storage, start: Start) -> None:
    made = make_study(storage, 2, replace(SETTINGS, iterations=6400))
    worker = start("worker")
    wait_until_it_trains(made)
    params = made.trials()[0].params

    output = said(start("stop"))

    became = "1 running trial handed back, 0 finished; 0 finished in all, 2 waiting. "
    assert f"study small is stopped: {became}" in output
    assert "study small: waiting for " in output
    assert said(worker).endswith(ENDED.format("0 trials"))
    assert _outcomes(made) == {"stopped"}
    assert (made.trials()[0].state, made.trials()[0].params) == (TrialState.WAITING, params)
    assert said(start("worker")).endswith(ENDED.format("0 trials"))


@pytest.mark.parametrize("kind", ["sqlite"])
def test_stopping_may_let_a_trial_come_to_its_end(storage: Storage, start: Start) -> None:
    made = make_study(storage, 2, replace(SETTINGS, iterations=256))
    worker = start("worker")
    wait_until_it_trains(made)

    done = study_state.stop(storage, made.study_id, "small", finish=True, timeout_s=FINISH_S)

    assert done == study_state.Stopped(handed_back=0, finished=1, counts=Counts(complete=1, waiting=1))
    assert said(worker).endswith(ENDED.format("1 trial"))


@pytest.mark.parametrize("kind", ["postgresql"])
def test_a_worker_serves_studies_in_turn_and_one_made_later_and_drains_on_a_signal(
    storage: Storage, start: Start
) -> None:
    first = study.continue_or_create(storage, "first", SETTINGS, 3)
    second = study.continue_or_create(storage, "second", replace(SETTINGS, seed=1), 3)
    worker = start("worker", "--forever")
    for made in (first, second):
        wait_until(partial(_finished, made, 3), FINISH_S, made.name)
    assert _served(storage) == ["first", "second"] * 3

    third = study.continue_or_create(storage, "third", replace(SETTINGS, iterations=6400, seed=2), 1)
    wait_until_it_trains(third)
    [listed] = workers.list_workers(storage)
    assert (listed.study, listed.trial) == ("third", 0)
    assert (listed.iteration or 0) > 0
    output = drain(worker)
    assert output[-2:] == ["finished 6 trials", "terminated; the same command continues"]
    assert overview.count(storage, third.study_id) == Counts(waiting=1)
    assert workers.list_workers(storage) == []


def drain(worker: Process) -> list[str]:
    """Send SIGTERM, and give the lines that a worker printed."""
    asked_s = time.monotonic()
    worker.send_signal(signal.SIGTERM)
    output = said(worker, 143)
    assert time.monotonic() - asked_s < END_S
    return output.splitlines()


@pytest.mark.parametrize("options", [(), ("--study", "later")])
@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_worker_waits_for_the_first_study_and_drains_while_it_waits(
    storage_url: str, opened: Open, start: Start, options: tuple[str, ...]
) -> None:
    worker = start("worker", "--forever", *options)
    database = storage_url.removeprefix("sqlite:///")
    wait_until(lambda: Path(database).exists() and _workers_of(storage_url, opened), START_S, "a worker that waits")
    [listed] = _workers_of(storage_url, opened)
    assert (listed.study, listed.trial) == (None, None)
    if options:
        other = study.continue_or_create(opened(storage_url), "other", SETTINGS, 1)
        later = study.continue_or_create(opened(storage_url), "later", SETTINGS, 1)
        wait_until(lambda: overview.count(later.storage, later.study_id).finished == 1, FINISH_S, "the later study")
        assert overview.count(other.storage, other.study_id) == Counts(waiting=1)
    finished = "1 trial" if options else "0 trials"
    assert drain(worker)[-2:] == [f"finished {finished}", "terminated; the same command continues"]
    assert _workers_of(storage_url, opened) == []


def _finished(made: study.Study, number: int) -> bool:
    return overview.count(made.storage, made.study_id).finished == number


def _workers_of(url: str, opened: Open) -> list[workers.LiveWorker]:
    try:
        return workers.list_workers(opened(url, "read"))
    except HpoError:  # its tables are not made yet
        return []


def _served(storage: Storage) -> list[str]:
    """List the studies of all attempts, in their order."""
    names = {load.study_id: load.name for load in study_state.list_study_loads(storage)}
    owners = {row["trial_id"]: names[row["study_id"]] for row in dump(storage)["trials"]}
    return [owners[row["trial_id"]] for row in list_attempts(storage)]


def serve_until(storage: Storage, folder: Path, holds: Callable[[], Any]) -> None:
    """Work for all studies in this process, until something holds."""
    stop = StopSignal()

    def watch() -> None:
        try:
            wait_until(holds, FINISH_S, "what the worker is to do", pause_s=0.5)  # it shares the interpreter
        finally:
            stop.reason = "timed out"

    watcher = threading.Thread(target=watch)
    watcher.start()
    artifacts = open_artifacts(str(folder / "artifacts"))
    config = WorkerConfig(checkpoints=Checkpoints(storage, artifacts), artifacts=artifacts)
    at_end_of = partial(end_of_run, data_dir=folder)
    StudyRotation(storage=storage, device=CPU, data_dir=folder, config=config, at_end_of=at_end_of).serve(stop)
    watcher.join()
    assert holds()


def count(made: study.Study) -> Counts:
    return overview.count(made.storage, made.study_id)


def test_what_a_machine_cannot_serve_is_passed_over_with_one_warning(
    storage: Storage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make = partial(study.continue_or_create, storage, total=2)
    missing = make("missing", replace(SETTINGS, dataset="cifar10"))
    foreign = make("foreign", replace(SETTINGS, split="0" * 64))
    served = make("served", SETTINGS)

    serve_until(storage, tmp_path, lambda: count(served).finished == 2)

    assert (count(missing), count(foreign)) == (Counts(waiting=2), Counts(waiting=2))
    remedy = "to make this worker try it again, run `hpo resume --study"
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"study missing cannot be served here: cifar10 is not in {tmp_path}: the folder "
        f"{tmp_path}/cifar-10-batches-py does not exist; {remedy} missing`",
        f"study foreign cannot be served here: data set digits in {tmp_path}: its splits have checksum 0f0e738ae99d, "
        f"the study was created with 000000000000; {remedy} foreign`",
    ]


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_study_in_which_everything_fails_is_given_up_until_it_is_resumed(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = study.continue_or_create(storage, "broken", replace(SETTINGS, seed=1), 6)
    whole = study.continue_or_create(storage, "whole", SETTINGS, 3)
    advance = Training.advance

    def fail(self: Training, *arguments: Any) -> int:
        if self.recipe.seed == 1:
            raise MemoryError("none is left")
        return advance(self, *arguments)

    monkeypatch.setattr(Training, "advance", fail)

    resumed: list[bool] = []

    def resume_once_given_up() -> bool:
        if not resumed and "is given up" in caplog.text and count(whole).finished == 3:
            assert (count(broken).failed, count(broken).waiting) == (5, 1)
            monkeypatch.setattr(Training, "advance", advance)
            study_state.set_state(storage, broken.study_id, "running")  # as `hpo resume` does
            resumed.append(True)
        return bool(resumed) and count(broken).finished == 6

    serve_until(storage, tmp_path, resume_once_given_up)

    counts = count(broken)
    assert (counts.failed, counts.complete + counts.pruned, counts.total) == (5, 1, 6)
    assert caplog.text.count("study broken is given up: the first 5 trials of study broken failed") == 1


def test_a_benchmark_is_served_with_its_measurements_on_the_test_split(storage: Storage, tmp_path: Path) -> None:
    search = make_study(storage, 1)
    attempt = claim(search)
    suggest(search, attempt)
    complete(search, attempt, 0.5)
    companion = benchmark.begin(search, 2, tmp_path)

    serve_until(storage, tmp_path, lambda: count(companion).finished == 2)

    found = benchmark.result(companion)
    assert (len(found.seeds), found.missing, found.waiting) == (2, (), 0)


def test_a_stopped_study_is_handed_back_and_one_made_in_the_place_of_a_deleted_one_is_served_as_new(
    storage_url: str, storage: Storage, opened: Open, tmp_path: Path
) -> None:
    made = make_study(storage, 1, replace(SETTINGS, iterations=6400, seed=3))
    theirs, made_again = opened(storage_url), []

    def replace_it() -> bool:
        wait_until_it_trains(made)
        done = study_state.stop(theirs, made.study_id, "small", finish=False, timeout_s=NOTICED_S)
        assert done == study_state.Stopped(handed_back=1, finished=0, counts=Counts(waiting=1))
        removal.delete_study(theirs, made.study_id, "small", open_artifacts(str(tmp_path / "artifacts")))
        made_again.append(make_study(opened(storage_url), 2))
        wait_until(lambda: count(made_again[0]).finished == 2, FINISH_S, "the new study")
        return True

    serve_until(storage, tmp_path, lambda: bool(made_again) or replace_it())

    [again] = made_again
    if storage_url.startswith("sqlite"):
        assert again.study_id == made.study_id, "the worker had to tell them apart"
    assert {trial.user_attrs["iterations"] for trial in again.trials()} == {32}
