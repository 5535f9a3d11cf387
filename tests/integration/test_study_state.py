"""Pause, resume, stop and delete studies on real databases, and list their workers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import update

from hpo import study
from hpo.artifacts import open_artifacts
from hpo.database import overview, queue, removal, study_state, workers
from hpo.database.attempt import Attempt, Outcome, Progress, WorkerId
from hpo.database.note_attrs import figure_attrs
from hpo.database.overview import Counts
from hpo.database.storage import Storage, open_storage
from hpo.database.study_state import StudyLoad
from hpo.database.tables import AttemptRow, StudyRow, WorkerRow
from hpo.database.workers import LiveWorker
from hpo.errors import BadInput, StillRunning, StudyNotFound
from hpo.settings import StudyState
from tests.integration.support import (
    NOTHING,
    PROCESSES_S,
    SETTINGS,
    WORKER,
    claim,
    complete,
    dump,
    in_processes,
    make_study,
    suggest,
    wait_until,
)

Open = Callable[..., Storage]
PROCESSES = 4
LEASE_S = 60.0


@pytest.fixture
def made(storage: Storage) -> study.Study:
    return make_study(storage, 3)


def state_of(made: study.Study) -> StudyState:
    return study_state.find_state(made.storage, made.study_id)


def set_state(made: study.Study, state: StudyState) -> StudyState:
    return study_state.set_state(made.storage, made.study_id, state)


def try_to_claim(made: study.Study) -> Attempt | None:
    return queue.claim(made.storage, made.study_id, WORKER)


@pytest.mark.parametrize("state", ["paused", "finishing", "stopped"])
def test_nothing_is_given_out_until_the_study_is_resumed(
    storage: Storage, made: study.Study, state: StudyState
) -> None:
    other = study.continue_or_create(storage, "other", SETTINGS, 1)
    assert state_of(made) == "running"
    assert set_state(made, state) == "running"
    before = dump(storage)
    assert try_to_claim(made) is None
    assert dump(storage) == before
    assert claim(other).trial_number == 0
    assert set_state(made, "running") == state
    assert claim(made).trial_number == 0


@pytest.mark.parametrize("state", ["running", "paused", "finishing", "stopped"])
def test_a_heartbeat_learns_the_state_and_is_not_hindered_by_it(made: study.Study, state: StudyState) -> None:
    attempt = claim(made)
    set_state(made, state)
    assert queue.renew(made.storage, attempt, NOTHING) == state
    assert queue.record(made.storage, attempt, NOTHING, [], {}) == state
    complete(made, attempt, 0.5)
    assert overview.count(made.storage, made.study_id) == Counts(complete=1, waiting=2)


def test_when_pausing_returns_no_process_claims_another_trial(storage_url: str, storage: Storage) -> None:
    made = make_study(storage, 100_000)
    taken = in_processes(_claim_or_pause, [(storage_url, made.study_id, number) for number in range(PROCESSES)])

    [at_pause] = [found for found in taken if found is not None]
    assert 0 < at_pause < 100_000
    assert overview.count(storage, made.study_id).running == at_pause


def _claim_or_pause(url: str, study_id: int, number: int) -> int | None:
    """Claim trials until there are none, or, as the first of the processes, pause in their midst and count them."""
    storage = open_storage(url)
    try:
        if number == 0:
            wait_until(lambda: overview.count(storage, study_id).running >= 20, PROCESSES_S, "claims")
            study_state.set_state(storage, study_id, "paused")
            return overview.count(storage, study_id).running
        while queue.claim(storage, study_id, WORKER):
            pass
        return None
    finally:
        storage.close()


def test_the_same_command_lets_a_stopped_study_go_on_but_not_one_that_somebody_paused(
    storage: Storage, made: study.Study
) -> None:
    for before, after in (("stopped", "running"), ("finishing", "running"), ("paused", "paused")):
        set_state(made, before)  # type: ignore[arg-type]
        make_study(storage, 3)
        assert state_of(made) == after


def test_the_state_is_part_of_the_status(made: study.Study) -> None:
    assert study.status(made)["state"] == "running"
    set_state(made, "paused")
    assert study.status(made)["state"] == "paused"
    set_state(made, "stopped")
    assert study.status(made)["state"] == "stopped"


def test_a_study_that_was_deleted_has_no_state_to_set(made: study.Study, tmp_path: Path) -> None:
    removal.delete_study(made.storage, made.study_id, made.name, open_artifacts(str(tmp_path)))
    with pytest.raises(StudyNotFound):
        set_state(made, "paused")
    with pytest.raises(StudyNotFound):
        try_to_claim(made)


def test_standings_are_those_of_all_our_studies_the_oldest_first(storage: Storage, made: study.Study) -> None:
    other = study.continue_or_create(storage, "other", SETTINGS, 2)
    claim(made)
    complete(made, claim(made), 0.5)
    complete(other, claim(other), 0.5)
    complete(other, claim(other), 0.5)
    set_state(other, "paused")

    found = study_state.list_study_loads(storage)

    changed = {load.name: load.changed_s for load in found}
    assert changed["small"] < changed["other"]
    expected = [
        StudyLoad(
            study_id=made.study_id, name="small", state="running", changed_s=changed["small"], running=1, waiting=1
        ),
        StudyLoad(
            study_id=other.study_id, name="other", state="paused", changed_s=changed["other"], running=0, waiting=0
        ),
    ]
    assert found == expected
    assert study_state.list_study_loads(storage, "other") == expected[1:]
    assert study_state.list_study_loads(storage, "third") == []


def list_workers(storage: Storage) -> list[LiveWorker]:
    return workers.list_workers(storage)


def test_workers_are_listed_while_they_wait_and_while_they_train(storage: Storage, made: study.Study) -> None:
    idle = WorkerId(name="idle:2", host="idle", device="cuda:1")
    workers.heartbeat(storage, WORKER, made.study_id, LEASE_S)
    workers.heartbeat(storage, idle, None, LEASE_S)
    attempt = claim(made)
    queue.renew(storage, attempt, Progress(iteration=16, trained_iterations=16, val_accuracy=0.5))
    _let_rows_age(storage, 3600.0)
    assert [worker.worker for worker in list_workers(storage)] == ["host:1"], "its lease is a sign of life"

    workers.heartbeat(storage, idle, None, LEASE_S)
    busy, waiting = list_workers(storage)

    assert (busy.worker, busy.host, busy.device, busy.study, busy.state, busy.trial, busy.iteration) == (
        *("host:1", "host", "cpu", "small", "running"),
        *(0, 16),
    )
    assert (waiting.worker, waiting.device, waiting.study, waiting.trial, waiting.iteration) == (
        *("idle:2", "cuda:1"),
        *(None, None, None),
    )
    assert 0 <= busy.heartbeat_age_s < 30
    assert 0 <= waiting.heartbeat_age_s < 30


def _let_rows_age(storage: Storage, seconds: float) -> None:
    with storage.transaction() as session:
        session.execute(update(WorkerRow).values(seen_s=WorkerRow.seen_s - seconds))


def test_a_worker_that_died_leaves_the_list_with_its_lease_and_the_table_with_the_next_worker(
    storage: Storage, made: study.Study
) -> None:
    workers.heartbeat(storage, WORKER, made.study_id, LEASE_S)
    claim(made)
    with storage.transaction() as session:
        session.execute(update(AttemptRow).values(lease_until_s=AttemptRow.lease_until_s - 2 * LEASE_S))
    _let_rows_age(storage, 2 * LEASE_S)
    assert list_workers(storage) == []
    assert len(dump(storage)["hpo_workers"]) == 1

    workers.delete_stale_workers(storage)

    assert dump(storage)["hpo_workers"] == []


def test_no_live_worker_is_forgotten(storage: Storage, made: study.Study) -> None:
    workers.heartbeat(storage, WORKER, made.study_id, LEASE_S)
    claim(made)
    _let_rows_age(storage, 3600.0)
    workers.heartbeat(storage, WorkerId(name="idle:2", host="idle", device="cpu"), None, LEASE_S)
    before = dump(storage)
    workers.delete_stale_workers(storage)
    assert dump(storage) == before


def test_a_worker_of_the_name_of_a_dead_one_does_not_train_its_trial(storage: Storage, made: study.Study) -> None:
    workers.heartbeat(storage, WORKER, made.study_id, LEASE_S)
    claim(made)
    workers.heartbeat(storage, WORKER, made.study_id, LEASE_S)  # as after the restart of a container
    assert [(worker.worker, worker.trial) for worker in list_workers(storage)] == [("host:1", None)]
    assert claim(made).trial_number == 1
    assert [(worker.worker, worker.trial) for worker in list_workers(storage)] == [("host:1", 1)]


def test_a_worker_that_ends_leaves_the_list(storage: Storage, made: study.Study) -> None:
    workers.heartbeat(storage, WORKER, made.study_id, LEASE_S)
    assert workers.list_workers_on(storage, made.study_id) == ["host:1"]
    workers.deregister(storage, WORKER)
    assert workers.list_workers_on(storage, made.study_id) == []
    assert dump(storage)["hpo_workers"] == []


def test_stopping_waits_until_trials_are_handed_back_and_says_what_became_of_them(
    storage_url: str, storage: Storage, opened: Open
) -> None:
    made = make_study(storage, 5)
    complete(made, claim(made), 0.5)
    first, second = claim(made), claim(made)
    params = suggest(made, first)
    theirs = opened(storage_url)

    def work_on() -> None:
        wait_until(lambda: queue.renew(theirs, first, NOTHING) == "stopped", PROCESSES_S, "the stop")
        queue.hand_back(theirs, first, NOTHING, "stopped")
        attrs = {"outcome": "complete", "iterations": 32}
        queue.finish(theirs, second, NOTHING, Outcome(state="complete", value=0.75, attrs=attrs))

    worker = threading.Thread(target=work_on)
    worker.start()
    done = study_state.stop(storage, made.study_id, "small", finish=False, timeout_s=PROCESSES_S)
    worker.join()

    assert done == study_state.Stopped(handed_back=1, finished=1, counts=Counts(complete=2, waiting=3))
    assert made.trials()[1].params == params
    assert state_of(made) == "stopped"


def test_stopping_reaps_whoever_died_and_names_whoever_does_not_end(storage: Storage, made: study.Study) -> None:
    claim(made, lease_s=0.5)  # its worker is dead
    done = study_state.stop(storage, made.study_id, "small", finish=True, timeout_s=PROCESSES_S)
    assert done == study_state.Stopped(handed_back=1, finished=0, counts=Counts(waiting=3))
    assert state_of(made) == "finishing"

    set_state(made, "running")
    claim(made)
    with pytest.raises(StillRunning) as late:
        study_state.stop(storage, made.study_id, "small", finish=False, timeout_s=0.1)
    assert str(late.value) == "study small is stopped, but these workers were still running after 0.1 s: host:1"
    assert state_of(made) == "stopped"


def test_stopping_gives_up_where_somebody_resumes(storage_url: str, made: study.Study, opened: Open) -> None:
    claim(made)
    theirs = opened(storage_url)

    def resume() -> None:
        wait_until(lambda: study_state.find_state(theirs, made.study_id) == "stopped", PROCESSES_S, "the stop")
        study_state.set_state(theirs, made.study_id, "running")

    other = threading.Thread(target=resume)
    other.start()
    with pytest.raises(StillRunning, match="study small was resumed before its last trial had finished"):
        study_state.stop(made.storage, made.study_id, "small", finish=False, timeout_s=PROCESSES_S)
    other.join()


def finish_with_figure(made: study.Study, figure_id: str) -> None:
    attempt = claim(made)
    suggest(made, attempt)
    attrs = {"outcome": "complete", "iterations": 32, "validation loss": 0.5, "standard error": 0.01}
    shown = Outcome(state="complete", value=0.5, attrs=attrs, trial_system_attrs=figure_attrs(figure_id))
    queue.finish(made.storage, attempt, NOTHING, shown)


def test_deleting_takes_a_study_with_its_figures_and_nothing_of_another(storage: Storage, tmp_path: Path) -> None:
    artifacts = open_artifacts(str(tmp_path / "artifacts"))
    kept = make_study(storage, 2)
    finish_with_figure(kept, artifacts.write(b"kept").artifact_id)
    before, files = dump(storage), set((tmp_path / "artifacts").iterdir())
    gone = study.continue_or_create(storage, "gone", SETTINGS, 3, note="a note")
    finish_with_figure(gone, artifacts.write(b"gone").artifact_id)
    finish_with_figure(gone, "not there")
    queue.hand_back(storage, claim(gone), NOTHING, "stopped")

    removed = removal.delete_study(storage, gone.study_id, "gone", artifacts)

    assert removed == removal.Removed(trials=3, files=1, missing_files=1)
    assert dump(storage) == before
    assert set((tmp_path / "artifacts").iterdir()) == files
    assert study.load(storage, None).name == "small"


@pytest.mark.parametrize("on_it", ["trains", "has joined it"])
def test_a_study_that_workers_are_on_is_not_deleted(
    storage: Storage, made: study.Study, tmp_path: Path, on_it: str
) -> None:
    if on_it == "trains":
        claim(made)
    else:
        workers.heartbeat(storage, WORKER, made.study_id, LEASE_S)
    before = dump(storage)
    for refuse in (
        lambda: removal.require_unused(storage, made.study_id, "small"),
        lambda: removal.delete_study(storage, made.study_id, "small", open_artifacts(str(tmp_path))),
    ):
        with pytest.raises(BadInput) as refused:
            refuse()
        assert (
            str(refused.value)
            == "study small still has active workers: host:1; stop them with `hpo stop --study small`"
        )
    assert dump(storage) == before


def test_a_study_made_again_in_the_place_of_a_deleted_one_inherits_nothing(storage: Storage, tmp_path: Path) -> None:
    made = make_study(storage, 2)
    complete(made, claim(made), 0.5)
    assert len(made.storage.view.get_all_trials(made.study_id)) == 1
    set_state(made, "paused")
    removal.delete_study(storage, made.study_id, "small", open_artifacts(str(tmp_path)))
    again = make_study(storage.with_empty_cache(), 2)

    assert state_of(again) == "running"
    assert again.storage.view.get_all_trials(again.study_id) == []
    assert overview.count(again.storage, again.study_id) == Counts(waiting=2)


def test_a_state_that_another_tool_left_behind_does_not_hold_back_a_new_study(storage: Storage) -> None:
    made = make_study(storage, 0)
    with storage.transaction() as session:  # what is left of a study that was deleted without our tables
        session.execute(update(StudyRow).values(state="paused"))
    made = make_study(storage, 1)
    assert state_of(made) == "running"
