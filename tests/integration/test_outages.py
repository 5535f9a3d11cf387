"""Take the database away from workers and drivers: nothing is lost, and nothing fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from optuna.trial import TrialState
from sqlalchemy import update

from hpo import study
from hpo.artifacts import open_artifacts
from hpo.database import losses, overview, queue, retry
from hpo.database.overview import Counts
from hpo.database.retry import RetryPolicy
from hpo.database.storage import Storage
from hpo.database.tables import AttemptRow
from hpo.errors import HpoError, StorageUnavailable
from hpo.settings import DEFAULT_LEASE_S
from hpo.trial.checkpoints import Checkpoints
from hpo.worker.stop import StopSignal
from hpo.worker.work import work
from tests.conftest import PostgreSQL, RestartablePostgreSQL
from tests.integration.conftest import Start
from tests.integration.network import connected_hosts
from tests.integration.proxy import Fault, proxied
from tests.integration.support import (
    SETTINGS,
    SPACE,
    WORKER,
    complete,
    dump,
    list_attempts,
    load_all_of_trials,
    make_study,
    wait_until,
)

Open = Callable[..., Storage]
OUTAGE_S = 5.0
CALL_S = 2.0  # of a database that is silent
LONGEST_OUTAGE_S = 20.0
OUTAGES = 3
START_S = 300.0
CPU = torch.device("cpu")
# Long enough for an outage in the midst of training; without a pruner, nothing has to wait for its decision.
LONG = replace(SETTINGS, iterations=256, pruner="none")


@pytest.fixture
def url(postgresql: PostgreSQL) -> str:
    return postgresql.make_database()


def train(made: study.Study, folder: Path, lease_s: float = DEFAULT_LEASE_S) -> int:
    checkpoints = Checkpoints(made.storage, open_artifacts(str(folder / "artifacts")))
    return work(made, device=CPU, data_dir=folder, stop=StopSignal(), checkpoints=checkpoints, lease_s=lease_s)


def content(made: study.Study) -> list[dict[str, Any]]:
    return [
        {
            "state": trial.state.name,
            "params": trial.params,
            "value": trial.value,
            "reported": trial.intermediate_values,
            "curve": overview.load_curve(made.storage, trial._trial_id),
        }
        for trial in made.trials()
    ]


def count_files(folder: Path) -> int:
    return len(list((folder / "artifacts").glob("*")))


@contextmanager
def beside(action: Callable[[], None]) -> Iterator[None]:
    """Do something in a thread, and see that it succeeded."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:  # noqa: BLE001 - raised below
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    assert failed == []


@pytest.mark.parametrize(("fault", "outage_s"), [("reset", 3.0), ("silent", 5.0)])
def test_training_goes_on_without_a_database_and_its_results_are_delivered_afterwards(
    url: str,
    opened: Open,
    make_url: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    outage_s: float,
) -> None:
    direct = opened(url)  # with the deadlines of every day, as the test looks at it beside the training
    monkeypatch.setattr(retry, "CALL_S", CALL_S)
    made = make_study(direct, 2, LONG)
    undisturbed = make_study(opened(make_url("sqlite")), 2, LONG)
    train(undisturbed, tmp_path / "undisturbed")

    with proxied(url) as (proxy, through):

        def interrupt() -> None:
            wait_until(lambda: dump(direct)["hpo_curve_points"], START_S, "a trial that trains")
            proxy.cut(fault)
            before, until_s = count_files(tmp_path), time.monotonic() + outage_s
            # After the first of the two, the worker knew that there was no database.
            wait_until(lambda: count_files(tmp_path) >= before + 2, LONGEST_OUTAGE_S, "two checkpoints meanwhile")
            time.sleep(max(0.0, until_s - time.monotonic()))
            proxy.mend()

        bearing = opened(through, "write", RetryPolicy(timeout_s=LONGEST_OUTAGE_S + 5.0))
        with beside(interrupt):
            assert train(study.load(bearing, "small"), tmp_path) == 2

    assert content(made) == content(undisturbed)
    assert [row["outcome"] for row in list_attempts(direct)] == ["complete", "complete"]
    assert study.status(made)["iterations_spent"]["trained"] == study.status(undisturbed)["iterations_spent"]["trained"]


def test_a_study_outlives_a_postgresql_that_is_stopped_and_started_again(
    restartable: RestartablePostgreSQL, opened: Open, start: Start, tmp_path: Path
) -> None:
    url = restartable.start().make_database()
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
            "192",
        ),
        *("--trials", "8", "--workers", "2", "--storage-timeout", "60"),
        url=url,
    )
    watched = opened(url)

    for finished in range(OUTAGES):
        wait_until(partial(_has_finished, watched, finished), START_S, f"{finished} trials and one that runs")
        watched.close()
        restartable.stop()
        time.sleep(OUTAGE_S)
        restartable.start()

    output = driver.communicate(timeout=START_S)
    assert driver.returncode == 0, output
    made = study.load(watched, "small")
    assert {trial.state for trial in made.trials()} <= {TrialState.COMPLETE, TrialState.PRUNED}
    counts = overview.count(watched, made.study_id)
    assert (counts.finished, counts.total) == (8, 8)
    assert {row["outcome"] for row in list_attempts(watched)} <= {"complete", "pruned", "parked", "waiting"}
    log = (tmp_path / "small.log").read_text()
    assert "Traceback" not in log
    assert log.count("the database answers again") >= OUTAGES


def _has_finished(storage: Storage, finished: int) -> bool:
    try:
        made = study.load(storage, "small")
    except HpoError:  # not made yet
        return False
    counts = overview.count(storage, made.study_id)
    return counts.finished >= finished and counts.running > 0


def test_a_worker_whose_database_stays_away_leaves_what_it_trained_and_exits_with_3(
    url: str, opened: Open, start: Start, tmp_path: Path
) -> None:
    direct = opened(url)
    longer = replace(LONG, iterations=640)  # so that it is not at its end before its first points can be seen
    made = make_study(direct, 1, longer)
    with proxied(url) as (proxy, through):
        worker = start("worker", "--storage-timeout", "5", url=through)
        wait_until(lambda: dump(direct)["hpo_curve_points"], START_S, "a trial that trains")
        proxy.cut("reset")
        output = worker.communicate(timeout=START_S)

    assert worker.returncode == StorageUnavailable.exit_code, output
    assert output[1].splitlines()[-1].startswith("error: storage postgresql+psycopg://hpo:***@127.0.0.1:")
    assert "Traceback" not in output[1]
    assert overview.count(direct, made.study_id) == Counts(running=1)
    with direct.transaction() as session:
        session.execute(update(AttemptRow).values(lease_until_s=0.0))

    assert [path.name.partition("-")[0] for path in (tmp_path / "artifacts").glob("unindexed-*")] == ["unindexed"]
    assert train(made, tmp_path) == 1
    attempts = list_attempts(direct)
    assert [row["outcome"] for row in attempts] == ["lapsed", "complete"]
    assert list((tmp_path / "artifacts").glob("unindexed-*")) == []
    # What the first worker trained before it gave up was not trained again; it could not say how much that was.
    assert attempts[1]["trained_iterations"] < longer.iterations - attempts[0]["trained_iterations"]


def test_what_was_retried_during_an_outage_is_left_alone_by_the_worker_that_comes_back(
    url: str, opened: Open, tmp_path: Path
) -> None:
    direct = opened(url)
    made = make_study(direct, 1, replace(LONG, pruner="median"))
    retried: list[dict[str, Any]] = []

    with proxied(url) as (proxy, through):

        def retry() -> None:
            wait_until(lambda: dump(direct)["hpo_curve_points"], START_S, "a trial that trains")
            proxy.cut("reset")
            wait_until(lambda: losses.reap(direct, made.study_id), START_S, "a lease that is over")
            attempt = queue.claim(direct, made.study_id, WORKER)
            assert attempt is not None
            complete(made, attempt, 0.25)
            retried.append(load_all_of_trials(direct))
            proxy.mend()

        bearing = opened(through, "write", RetryPolicy(timeout_s=60.0))
        with beside(retry):
            assert train(study.load(bearing, "small"), tmp_path, lease_s=1.5) == 0

    assert [load_all_of_trials(direct)] == retried
    assert [row["outcome"] for row in list_attempts(direct)] == ["lapsed", "complete"]


def test_a_worker_that_is_cut_off_by_the_network_delivers_afterwards(url: str, opened: Open, start: Start) -> None:
    direct = opened(url)
    made = make_study(direct, 1, LONG)
    with connected_hosts(1) as [host], proxied(url, host.gateway) as (_, through):
        worker = start("worker", "--storage-timeout", "12", url=through, program=host.program)
        wait_until(lambda: dump(direct)["hpo_curve_points"], START_S, "a trial that trains")
        host.disconnect()
        time.sleep(7.0)  # a call has 3 s
        host.connect()
        output = worker.communicate(timeout=START_S)

    assert worker.returncode == 0, output
    assert "the database answers again" in output[1]
    assert overview.count(direct, made.study_id) == Counts(complete=1)
    assert [row["outcome"] for row in list_attempts(direct)] == ["complete"]
