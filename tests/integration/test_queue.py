"""Hand out trials on real databases, to many processes at once, and take them back."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from hpo import study
from hpo.database import losses, overview, parking, queue, studies
from hpo.database.attempt import Attempt, Loss, Outcome, WorkerId
from hpo.database.optuna_tables import FIXED_PARAMS, RECORD
from hpo.database.overview import Counts
from hpo.database.recipe_index import RECIPE_KEY
from hpo.database.storage import Storage, open_storage
from hpo.errors import LeaseLost, StudyMismatch, StudyNotFound
from hpo.recipes.schedule import CurvePoint
from hpo.settings import StudySettings
from tests.integration.support import (
    HALFWAY,
    LAPSED,
    NOTHING,
    POINTS,
    PROCESSES,
    PROCESSES_S,
    SETTINGS,
    VALUES,
    WORKER,
    claim,
    complete,
    dump,
    in_processes,
    list_attempts,
    make_study,
    states,
    suggest,
    wait_until,
)

FAILED = Outcome(
    state="failed",
    value=None,
    attrs={"outcome": "failed: for a test", "iterations": 0},
    study_system_attrs={"dashboard:0:note_ver": 1},
)
LOSS = Loss(kind="device lost", reason="device cuda:0: CUDA error")

EIGHT_RECIPES = {
    "name": "eight",
    "base": "dropout",
    "search": {
        "head": ["linear", "dropout"],
        "dropout": {"low": 0.1, "high": 0.5, "step": 0.2},
        "values": [[0.1], [0.01, 0.1], [0.001]],
    },
}

WRITES: dict[str, Callable[[Storage, Attempt], object]] = {
    "renew": lambda storage, attempt: queue.renew(storage, attempt, HALFWAY),
    "record": lambda storage, attempt: queue.record(storage, attempt, HALFWAY, POINTS, VALUES),
    "finish": lambda storage, attempt: queue.finish(storage, attempt, HALFWAY, FAILED),
    "hand_back": lambda storage, attempt: queue.hand_back(storage, attempt, HALFWAY, "stopped"),
    "lose": lambda storage, attempt: losses.lose(storage, attempt, HALFWAY, LOSS),
}


@pytest.fixture
def made(storage: Storage) -> study.Study:
    return make_study(storage, 3)


def test_many_processes_claim_each_trial_exactly_once(storage_url: str, storage: Storage) -> None:
    made = make_study(storage, 40)

    claimed = in_processes(_claim_all, [(storage_url, made.study_id, f"worker {i}") for i in range(8)])

    assert sorted(number for numbers in claimed for number in numbers) == list(range(40))
    assert overview.count(storage, made.study_id) == Counts(running=40)
    holders = {row.trial_number: row.worker for row in overview.list_running(storage, made.study_id)}
    assert holders == {number: f"worker {i}" for i, numbers in enumerate(claimed) for number in numbers}


def _claim_all(url: str, study_id: int, name: str) -> list[int]:
    storage = open_storage(url)
    worker = WorkerId(name=name, host="host", device="cpu")
    claimed = []
    while attempt := queue.claim(storage, study_id, worker):
        assert attempt.number == 1
        claimed.append(attempt.trial_number)
    storage.close()
    return claimed


def test_many_processes_that_claim_and_hand_back_never_share_a_trial(storage_url: str, storage: Storage) -> None:
    made = make_study(storage, 4)

    in_processes(_claim_and_hand_back, [(storage_url, made.study_id, 10)] * PROCESSES)

    assert overview.count(storage, made.study_id) == Counts(waiting=4)
    attempts = [(row["trial_id"], row["number"]) for row in list_attempts(storage)]
    per_trial = Counter(trial_id for trial_id, _ in attempts)
    assert sum(per_trial.values()) == PROCESSES * 10
    assert sorted(attempts) == sorted((t, n) for t, number in per_trial.items() for n in range(1, number + 1))


def _claim_and_hand_back(url: str, study_id: int, times: int) -> None:
    storage = open_storage(url)
    for _ in range(times):
        attempt = wait_until(lambda: queue.claim(storage, study_id, WORKER), PROCESSES_S, "another handed back")
        queue.record(storage, attempt, HALFWAY, POINTS, VALUES)
        queue.hand_back(storage, attempt, HALFWAY, "stopped")
    storage.close()


def test_many_processes_that_sample_at_once_never_try_a_recipe_twice(storage_url: str, storage: Storage) -> None:
    made = make_study(storage, 8, replace(SETTINGS, space=EIGHT_RECIPES, sampler="random"))

    in_processes(_sample_all, [(storage_url, made.name, f"worker {i}") for i in range(PROCESSES)])

    keys = {made.key_of(trial.params) for trial in made.trials()}
    assert (len(keys), len(made.trials()), study.status(made)["recipes"]) == (8, 8, {"tried": 8, "possible": 8})


def _sample_all(url: str, name: str, worker: str) -> int:
    made = study.load(open_storage(url), name)
    sampled = 0
    while attempt := queue.claim(made.storage, made.study_id, WorkerId(name=worker, host="host", device="cpu")):
        suggest(made, attempt)
        sampled += 1
    return sampled


def test_several_processes_begin_exactly_the_trials_that_were_asked_for(storage_url: str, made: study.Study) -> None:
    in_processes(_set_target, [(storage_url, made.study_id, 20)] * PROCESSES)

    claimed = in_processes(_claim_all, [(storage_url, made.study_id, f"worker {i}") for i in range(PROCESSES)])

    assert sorted(number for numbers in claimed for number in numbers) == list(range(20))
    assert [(t.number, t.state) for t in made.trials()] == [(n, TrialState.RUNNING) for n in range(20)]


def test_processes_that_ask_for_different_totals_leave_one_of_these(storage_url: str, made: study.Study) -> None:
    in_processes(_set_target, [(storage_url, made.study_id, total) for total in (5, 10, 15, 20)])

    assert overview.count(made.storage, made.study_id).waiting in (5, 10, 15, 20)
    assert len(made.trials()) == 1


def _set_target(url: str, study_id: int, total: int) -> None:
    storage = open_storage(url)
    studies.set_target(storage, study_id, total, first={})
    storage.close()


def test_asking_for_the_same_total_again_changes_nothing(storage: Storage, made: study.Study) -> None:
    before = dump(storage)
    studies.set_target(storage, made.study_id, 3, first={"other": 1})
    assert dump(storage) == before


def test_the_first_trial_alone_has_fixed_parameters(made: study.Study) -> None:
    studies.set_target(made.storage, made.study_id, 5, first={"other": 1})
    for _ in range(3):
        claim(made)
    assert [trial.system_attrs.get(FIXED_PARAMS) for trial in made.trials()] == [made.space.base_params(), None, None]


def test_a_smaller_total_takes_away_no_trial_that_was_begun(storage: Storage) -> None:
    made = make_study(storage, 10)
    complete(made, claim(made), 0.5)
    queue.finish(storage, claim(made), NOTHING, FAILED)
    claim(made)
    begun = (TrialState.COMPLETE, TrialState.FAIL, TrialState.RUNNING)

    studies.set_target(storage, made.study_id, 5, first={})
    assert overview.count(storage, made.study_id).waiting == 2

    studies.set_target(storage, made.study_id, 1, first={})
    assert overview.count(storage, made.study_id).waiting == 0
    assert queue.claim(storage, made.study_id, WORKER) is None
    assert states(made) == [*enumerate(begun)]

    studies.set_target(storage, made.study_id, 4, first={})
    assert [claim(made).trial_number, queue.claim(storage, made.study_id, WORKER)] == [3, None]


def test_a_million_trials_are_asked_for_with_one_row(storage: Storage) -> None:
    space = SETTINGS.space | {"search": {"weight_decay": {"low": 1e-5, "high": 1e-2, "log": True}}}
    space["base"] = space["base"] | {"weight_decay": 1e-4}
    made = make_study(storage, 1_000_000, replace(SETTINGS, space=space))

    assert overview.count(storage, made.study_id).waiting == 1_000_000
    assert len(dump(storage)["trials"]) == 1


def test_a_waiting_trial_before_one_that_was_begun_stays(storage: Storage) -> None:
    made = make_study(storage, 5)
    first, second = claim(made), claim(made)
    complete(made, second, 0.5)
    queue.hand_back(storage, first, NOTHING, "stopped")

    studies.set_target(storage, made.study_id, 1, first={})

    assert states(made) == [(0, TrialState.WAITING), (1, TrialState.COMPLETE)]


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_trial_with_the_id_of_a_deleted_one_inherits_nothing(storage_url: str, storage: Storage) -> None:
    made = make_study(storage, 2)
    complete(made, claim(made), 0.5)
    attempt = claim(made)
    queue.record(storage, attempt, HALFWAY, POINTS, VALUES)
    with closing(sqlite3.connect(storage_url.removeprefix("sqlite:///"))) as theirs:  # they do not know our tables
        for table in ("trial_intermediate_values", "trials"):
            theirs.execute(f"DELETE FROM {table} WHERE trial_id = {attempt.trial_id}")
        theirs.commit()

    again = claim(made)

    assert (again.trial_id, again.trial_number, again.number) == (attempt.trial_id, 1, 1)
    assert overview.load_curve(storage, again.trial_id) == []
    assert overview.trained_iterations(storage, made.study_id) == 0


def test_nothing_to_claim_is_none(storage: Storage, made: study.Study) -> None:
    for _ in range(3):
        claim(made)
    before = dump(storage)
    assert queue.claim(storage, made.study_id, WORKER) is None
    assert dump(storage) == before


def test_trials_are_claimed_in_their_order_and_the_handed_back_one_first(storage: Storage, made: study.Study) -> None:
    attempts = [claim(made), claim(made)]
    queue.hand_back(storage, attempts[0], NOTHING, "stopped")
    assert [claim(made).trial_number, claim(made).trial_number] == [0, 2]


def test_a_study_hands_out_no_trial_of_another(storage: Storage, made: study.Study) -> None:
    other = study.continue_or_create(storage, "other", SETTINGS, 1)
    assert claim(other).trial_number == 0
    assert queue.claim(storage, other.study_id, WORKER) is None
    assert overview.count(storage, made.study_id) == Counts(waiting=3)


@pytest.mark.parametrize("since", ["reaped", "claimed by another", "finished by another", "handed back", "finished"])
def test_an_attempt_that_has_ended_cannot_write(storage: Storage, made: study.Study, since: str) -> None:
    attempt = claim(made, LAPSED)
    suggest(made, attempt)
    if since == "handed back":
        queue.hand_back(storage, attempt, NOTHING, "stopped")
    elif since == "finished":
        complete(made, attempt, 0.75)
    else:
        assert losses.reap(storage, made.study_id) == [0]
    if since == "claimed by another":
        assert claim(made).trial_number == 0
    if since == "finished by another":
        complete(made, claim(made), 0.75)
    before = dump(storage)

    for write in WRITES.values():
        with pytest.raises(LeaseLost) as lost:
            write(storage, attempt)
        assert str(lost.value) == "trial 0: attempt 1 has ended; another may be under way"
        assert dump(storage) == before


def test_a_trial_that_is_handed_back_keeps_its_parameters_and_forgets_its_curve(
    storage: Storage, made: study.Study
) -> None:
    attempt = claim(made)
    params = suggest(made, attempt)
    queue.record(storage, attempt, HALFWAY, POINTS, VALUES)

    queue.hand_back(storage, attempt, HALFWAY, "stopped")

    trial = made.trials()[0]
    assert (trial.state, trial.params, trial.intermediate_values) == (TrialState.WAITING, params, {})
    assert overview.load_curve(storage, attempt.trial_id) == []
    assert overview.list_running(storage, made.study_id) == []
    assert overview.trained_iterations(storage, made.study_id) == 16


def test_recording_twice_is_recording_once(storage: Storage, made: study.Study) -> None:
    attempt = claim(made)
    queue.record(storage, attempt, HALFWAY, POINTS, VALUES)
    once = _without_leases(dump(storage))

    queue.record(storage, attempt, HALFWAY, POINTS, VALUES)

    assert _without_leases(dump(storage)) == once
    assert overview.load_curve(storage, attempt.trial_id) == list(POINTS)
    assert made.trials()[0].intermediate_values == VALUES


def test_what_is_recorded_again_replaces_what_was_there(storage: Storage, made: study.Study) -> None:
    attempt = claim(made)
    queue.record(storage, attempt, HALFWAY, POINTS, VALUES)
    other = CurvePoint(iteration=16, train_loss=0.1, val_loss=0.2, val_accuracy=0.9375)

    queue.record(storage, attempt, HALFWAY, [other], {16: 0.9375})

    assert overview.load_curve(storage, attempt.trial_id) == [POINTS[0], other]
    assert made.trials()[0].intermediate_values == {8: 0.25, 16: 0.9375}


def test_numbers_are_stored_to_the_last_bit(storage: Storage, made: study.Study) -> None:
    attempt = claim(made)
    point = CurvePoint(iteration=1, train_loss=1 / 3, val_loss=2 / 3, val_accuracy=0.1 + 0.2)
    queue.record(storage, attempt, NOTHING, [point], {1: 0.1 + 0.2})
    complete(made, attempt, 1 / 3)
    assert overview.load_curve(storage, attempt.trial_id) == [point]
    trial = made.trials()[0]
    assert (trial.value, trial.intermediate_values) == (1 / 3, {1: 0.1 + 0.2})


def test_a_finished_trial_reads_in_optuna_as_one_that_it_finished_itself(storage: Storage, made: study.Study) -> None:
    attempt = claim(made)
    params = suggest(made, attempt)
    queue.record(storage, attempt, HALFWAY, POINTS, VALUES)
    attrs = {"outcome": "complete", "iterations": 32, "validation loss": 0.25, "standard error": 0.01}
    queue.finish(storage, attempt, HALFWAY, Outcome(state="complete", value=0.75, attrs=attrs))

    theirs = optuna.create_study(direction="maximize")
    theirs.enqueue_trial(made.space.base_params())
    trial = theirs.ask()
    made.space.suggest(trial)
    for step, value in VALUES.items():
        trial.report(value, step)
    for key, attr in attrs.items():
        trial.set_user_attr(key, attr)
    theirs.tell(trial, 0.75)

    assert _content(made.trials()[0]) == _content(theirs.trials[0])
    assert _content(made.trials()[0])["params"] == params


def test_a_pruned_trial_reads_in_optuna_as_one_that_it_pruned_itself(storage: Storage, made: study.Study) -> None:
    attempt = claim(made)
    suggest(made, attempt)
    queue.record(storage, attempt, HALFWAY, POINTS, VALUES)
    queue.finish(storage, attempt, HALFWAY, Outcome(state="pruned", value=0.5, attrs={"outcome": "pruned"}))

    theirs = optuna.create_study(direction="maximize")
    theirs.enqueue_trial(made.space.base_params())
    trial = theirs.ask()
    made.space.suggest(trial)
    for step, value in VALUES.items():
        trial.report(value, step)
    trial.set_user_attr("outcome", "pruned")
    theirs.tell(trial, state=TrialState.PRUNED)

    assert _content(made.trials()[0]) == _content(theirs.trials[0])


def test_a_study_that_several_processes_describe_at_once_has_one_description(
    storage_url: str, storage: Storage, made: study.Study
) -> None:
    described = in_processes(_describe, [(storage_url, made.study_id, f"driver {i}") for i in range(PROCESSES)])

    stored = storage.optuna.get_study_user_attrs(made.study_id)
    described_with_target = [attrs | {studies.TARGET: 3} for attrs in described]
    assert described_with_target == [stored] * PROCESSES
    assert stored["described by"].startswith("driver ")


def _describe(url: str, study_id: int, name: str) -> dict[str, Any]:
    storage = open_storage(url)
    found = studies.describe_study(storage, study_id, {"described by": name})
    storage.close()
    return found


def test_several_drivers_at_once_make_one_study(storage_url: str, storage: Storage) -> None:
    assert in_processes(_make, [(storage_url, SETTINGS)] * PROCESSES) == ["made"] * PROCESSES

    found = study.load(storage, None)
    assert (found.settings, study.status(found)["target"]) == (SETTINGS, 5)
    assert [trial.number for trial in found.trials()] == [0]


def test_of_drivers_that_differ_one_makes_the_study_and_the_others_are_refused(
    storage_url: str, storage: Storage
) -> None:
    settings = [replace(SETTINGS, seed=seed) for seed in range(PROCESSES)]

    said = in_processes(_make, [(storage_url, each) for each in settings])

    seed = said.index("made")
    assert study.load(storage, None).settings == settings[seed]
    assert said == [
        "made"
        if other == seed
        else f"study small was created with other settings: seed is {seed} in the study and "
        f"{other} here. Use the study's settings, or another name with --study."
        for other in range(PROCESSES)
    ]
    assert overview.count(storage, study.load(storage, None).study_id).waiting == 5


def _make(url: str, settings: StudySettings) -> str:
    storage = open_storage(url, "create")
    try:
        make_study(storage, 5, settings)
        return "made"
    except StudyMismatch as error:
        return str(error)
    finally:
        storage.close()


def test_a_study_that_is_deleted_under_its_workers_is_missed_by_name(
    storage_url: str, storage: Storage, made: study.Study, opened: Callable[..., Storage]
) -> None:
    attempt = claim(made)
    queue.record(storage, attempt, HALFWAY, POINTS, VALUES)
    optuna.delete_study(study_name=made.name, storage=opened(storage_url).optuna)

    with pytest.raises(StudyNotFound):
        studies.set_target(storage, made.study_id, 5, first={})
    for ask in (lambda: queue.claim(storage, made.study_id, WORKER), lambda: overview.count(storage, made.study_id)):
        with pytest.raises(StudyNotFound, match="no longer exists: it was deleted or renamed"):
            ask()
    assert losses.reap(storage, made.study_id) == []
    for write in WRITES.values():
        with pytest.raises(LeaseLost):
            write(storage, attempt)


def test_a_study_that_another_tool_deletes_is_missed_as_well(
    storage_url: str, storage: Storage, made: study.Study
) -> None:
    attempt = claim(made)
    queue.record(storage, attempt, HALFWAY, POINTS, VALUES)
    _delete_with_optuna_alone(storage_url, made.name)

    for write in WRITES.values():
        with pytest.raises(LeaseLost):
            write(storage, attempt)


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_trial_that_another_tool_forgot_when_it_deleted_the_study_is_missed_as_well(
    storage_url: str, storage: Storage, made: study.Study
) -> None:
    holder, late = claim(made), claim(made)
    assert parking.take_segment(storage, holder, "segment", 8)
    with closing(sqlite3.connect(storage_url.removeprefix("sqlite:///"))) as theirs:  # it does not enforce foreign keys
        theirs.execute("DELETE FROM studies")
        theirs.commit()
    before = dump(storage)

    for write in (*WRITES.values(), lambda storage, attempt: parking.take_segment(storage, attempt, "segment", 8)):
        with pytest.raises(LeaseLost):
            write(storage, late)
    assert dump(storage) == before


def test_a_trial_that_another_tool_has_deleted_is_not_parked(
    storage_url: str, storage: Storage, made: study.Study
) -> None:
    holder, late = claim(made), claim(made)
    assert parking.take_segment(storage, holder, "segment", 8)
    _delete_with_optuna_alone(storage_url, made.name)

    with pytest.raises(LeaseLost, match="trial 1: attempt 1 has ended"):
        parking.take_segment(storage, late, "segment", 8)


def test_a_study_that_another_tool_deletes_leaves_nothing_to_its_successor(
    storage_url: str, storage: Storage, made: study.Study
) -> None:
    queue.record(storage, claim(made), HALFWAY, POINTS, VALUES)
    _delete_with_optuna_alone(storage_url, made.name)

    successor = make_study(storage, 2)

    assert overview.list_running(storage, successor.study_id) == []
    assert overview.trained_iterations(storage, successor.study_id) == 0
    first = claim(successor)
    assert (first.trial_number, first.number) == (0, 1)
    assert overview.load_curve(storage, first.trial_id) == []


def _delete_with_optuna_alone(url: str, name: str) -> None:
    """Delete a study as optuna-dashboard does, whose connections to SQLite do not enforce foreign keys."""
    backend = RDBStorage(url.replace("postgresql://", "postgresql+psycopg://"))
    optuna.delete_study(study_name=name, storage=backend)
    backend.engine.dispose()


def _without_leases(tables: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    attempts = [
        {name: value for name, value in row.items() if name != "lease_until_s"} for row in tables["hpo_attempts"]
    ]
    return tables | {"hpo_attempts": attempts}


def _content(trial: FrozenTrial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "state": trial.state,
        "values": trial.values,
        "params": trial.params,
        "distributions": trial.distributions,
        "intermediate_values": trial.intermediate_values,
        "user_attrs": trial.user_attrs,
        "system_attrs": {key: value for key, value in trial.system_attrs.items() if key not in (RECORD, RECIPE_KEY)},
        "started": trial.datetime_start is not None,
        "ended": trial.datetime_complete is not None,
    }
