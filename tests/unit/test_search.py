"""Check that samplers and pruners are shown what Optuna's own storage would show them, in few queries."""

from __future__ import annotations

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState
from sqlalchemy import event

from hpo import queue
from hpo.queue import Outcome, Progress, WorkerId
from hpo.search import LOOK_EVERY_S, SearchStorage
from hpo.storage import open_storage

WORKER = WorkerId(name="host:1", host="host", device="cpu")
NOTHING = Progress(iteration=0, trained_iterations=0, val_accuracy=None)
TRIALS = 12
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
ASKED = (None, (TrialState.COMPLETE,), (TrialState.COMPLETE, TrialState.PRUNED), (TrialState.RUNNING,), FINISHED)


@pytest.fixture
def storage(tmp_path):
    found = open_storage(f"sqlite:///{tmp_path / 'hpo.db'}", "create")
    yield found
    found.close()


@pytest.fixture
def study_id(storage):
    return make_study(storage)


def make_study(storage):
    made = optuna.create_study(storage=storage.optuna, direction="maximize")
    queue.fill(storage, made._study_id, TRIALS, first={})
    return made._study_id


def finish(storage, attempt, state="complete", value=0.5):
    queue.record(storage, attempt, NOTHING, [], {1: value, 2: value})
    queue.finish(storage, attempt, NOTHING, Outcome(state=state, value=value, attrs={"outcome": state}))


def count_statements(storage, call):
    """Count the statements of a call."""
    sent = []
    event.listen(storage.engine, "before_cursor_execute", lambda *arguments: sent.append(arguments[2]))
    call()
    return len([statement for statement in sent if not statement.startswith("BEGIN")])


steps = st.lists(
    st.one_of(
        st.just(("claim", 0)),
        st.tuples(st.sampled_from(["complete", "pruned", "failed", "stopped", "look"]), st.integers(0, TRIALS)),
    ),
    max_size=40,
)


@settings(max_examples=15)
@given(steps)
def test_whatever_happens_the_same_trials_are_shown_as_by_optunas_storage_but_for_waiting_ones(tmp_path_factory, drawn):
    storage = open_storage(f"sqlite:///{tmp_path_factory.mktemp('search')}/hpo.db", "create")
    make_study(storage)  # another study in the same storage
    study_id, held = make_study(storage), []
    for what, which in drawn:
        if what == "claim":
            held += filter(None, [queue.claim(storage, study_id, WORKER)])
        elif what == "look":
            storage.search.get_all_trials(study_id)
        elif held:
            attempt = held.pop(which % len(held))
            if what == "stopped":
                queue.hand_back(storage, attempt, NOTHING, "stopped")
            else:
                finish(storage, attempt, what, 0.1 * which)
    for states in ASKED:
        theirs = storage.optuna.get_all_trials(study_id, states=states)
        shown = [trial for trial in theirs if trial.state != TrialState.WAITING]
        assert storage.search.get_all_trials(study_id, states=states) == shown
    storage.close()


class Clock:
    """Stand still until it is moved."""

    now = 0.0

    def __call__(self):
        return self.now


def test_a_look_costs_one_query_however_many_trials_run_and_is_not_repeated_at_once(storage, study_id):
    clock = Clock()
    search = SearchStorage(storage.search._backend, clock)

    def look(number):
        assert len(search.get_all_trials(study_id, deepcopy=False, states=(TrialState.COMPLETE,))) == number

    finish(storage, queue.claim(storage, study_id, WORKER))
    look(1)
    attempts = [queue.claim(storage, study_id, WORKER) for _ in range(8)]
    assert count_statements(storage, lambda: look(1)) == 0
    clock.now += LOOK_EVERY_S
    assert count_statements(storage, lambda: look(1)) == 1

    finish(storage, attempts[0])
    look(1)
    search.look_again(study_id)
    look(2)
    finish(storage, attempts[1])
    clock.now += LOOK_EVERY_S
    look(3)


def test_what_is_sampled_and_reported_is_not_written_before_the_queue_writes_it(storage, study_id):
    attempt = queue.claim(storage, study_id, WORKER)
    loaded = optuna.load_study(study_name=storage.optuna.get_study_name_from_id(study_id), storage=storage.search)
    trial = optuna.Trial(loaded, attempt.trial_id)
    rate = trial.suggest_float("rate", 0, 1)
    trial.report(0.5, 1)

    written = storage.optuna.get_trial(attempt.trial_id)
    assert (written.params, written.intermediate_values) == ({}, {})

    queue.choose(storage, attempt, trial.params, trial.distributions)
    written = storage.optuna.get_trial(attempt.trial_id)
    assert (written.params, written.distributions) == ({"rate": rate}, {"rate": FloatDistribution(0, 1)})


def test_parameters_that_an_earlier_attempt_chose_stay(storage, study_id):
    first = queue.claim(storage, study_id, WORKER)
    rate = {"rate": FloatDistribution(0, 1)}
    queue.choose(storage, first, {"rate": 0.25}, rate)
    queue.hand_back(storage, first, NOTHING, "stopped")

    with pytest.raises(queue.LeaseLost):
        queue.choose(storage, first, {"rate": 0.75, "other": 0.5}, rate | {"other": FloatDistribution(0, 1)})
    again = queue.claim(storage, study_id, WORKER)
    queue.choose(storage, again, {"rate": 0.75}, rate)

    assert storage.optuna.get_trial(first.trial_id).params == {"rate": 0.25}


def test_a_trial_that_changes_between_two_looks_is_shown_as_it_is_now(storage, study_id):
    attempt = queue.claim(storage, study_id, WORKER)
    assert [trial.state for trial in storage.search.get_all_trials(study_id)] == [TrialState.RUNNING]
    finish(storage, attempt)
    [shown] = storage.search.get_all_trials(study_id)
    assert (shown.state, shown.value, shown.intermediate_values) == (TrialState.COMPLETE, 0.5, {1: 0.5, 2: 0.5})
