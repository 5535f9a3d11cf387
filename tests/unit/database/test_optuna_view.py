"""Check that samplers and pruners are shown what Optuna's own storage would show them, in few queries."""

from __future__ import annotations

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution, distribution_to_json
from optuna.trial import TrialState
from sqlalchemy import event

from hpo.database import queue, studies
from hpo.database.attempt import Outcome, Progress, WorkerId
from hpo.database.optuna_tables import RECORD
from hpo.database.optuna_view import Draft, DraftParam
from hpo.database.storage import open_storage
from hpo.errors import LeaseLost

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
    studies.describe_study(storage, made._study_id, {})
    studies.set_target(storage, made._study_id, TRIALS, first={})
    return made._study_id


def finish(storage, attempt, state="complete", value=0.5):
    queue.record(storage, attempt, NOTHING, [], {1: value, 2: value})
    queue.finish(storage, attempt, NOTHING, Outcome(state=state, value=value, attrs={"outcome": state}))


def begin(storage, study_id, rate=0.5):
    """Claim a trial, and give it a parameter."""
    attempt = queue.claim(storage, study_id, WORKER)
    if attempt is not None:
        given = DraftParam(value=rate, distribution=distribution_to_json(FloatDistribution(0, 1)))
        queue.write_draft(storage, attempt, NOTHING, Draft(params={"rate": given}, system_attrs={}))
    return attempt


def statements_of(storage, call):
    """List the statements of a call."""
    sent = []
    event.listen(storage.engine, "before_cursor_execute", lambda *arguments: sent.append(arguments[2]))
    call()
    return [statement for statement in sent if not statement.startswith("BEGIN")]


numbers = st.integers(0, TRIALS)
steps = st.lists(
    st.one_of(
        st.just(("claim", 0)),
        st.tuples(st.sampled_from(["begin", "note", "complete", "pruned", "failed", "stopped", "look"]), numbers),
    ),
    max_size=40,
)


@pytest.mark.slow
@settings(max_examples=15)
@given(steps)
def test_whatever_happens_the_same_trials_are_shown_as_by_optunas_storage_but_for_waiting_ones(tmp_path_factory, drawn):
    storage = open_storage(f"sqlite:///{tmp_path_factory.mktemp('search')}/hpo.db", "create")
    make_study(storage)  # another study in the same storage
    study_id, held = make_study(storage), []
    for what, which in drawn:
        if what == "claim":
            held += filter(None, [queue.claim(storage, study_id, WORKER)])
        elif what == "begin":
            held += filter(None, [begin(storage, study_id, 0.1 * which)])
        elif what == "look":
            storage.view.get_all_trials(study_id)
        elif held and what == "note":
            attempt = held[which % len(held)]
            queue.record(storage, attempt, NOTHING, [], {1: 0.1 * which})
            queue.write_draft(storage, attempt, NOTHING, Draft(params={}, system_attrs={"rung": which}))
        elif held:
            attempt = held.pop(which % len(held))
            if what == "stopped":
                queue.hand_back(storage, attempt, NOTHING, "stopped")
            else:
                finish(storage, attempt, what, 0.1 * which)
    for states in ASKED:
        theirs = storage.optuna.get_all_trials(study_id, states=states)
        shown = [trial for trial in theirs if trial.state != TrialState.WAITING]
        for trial in shown:
            trial.system_attrs.pop(RECORD, None)  # nobody samples by what it holds
            if trial.state == TrialState.RUNNING:
                trial.intermediate_values = {}  # nobody looks at them before the end
        assert storage.view.get_all_trials(study_id, states=states) == shown
    storage.close()


def test_what_has_not_changed_costs_one_query_however_many_trials_run(storage, study_id):
    def look():
        assert len(storage.view.get_all_trials(study_id, deepcopy=False, states=(TrialState.COMPLETE,))) == 1

    finish(storage, queue.claim(storage, study_id, WORKER))
    look()
    for _ in range(8):
        assert queue.claim(storage, study_id, WORKER) is not None
    assert len(statements_of(storage, look)) == 1


def test_of_running_trials_that_are_known_only_the_notes_are_read_again(storage, study_id):
    attempts = [begin(storage, study_id) for _ in range(8)]
    storage.view.get_all_trials(study_id, deepcopy=False)
    queue.write_draft(storage, attempts[3], NOTHING, Draft(params={}, system_attrs={"rung": 0.25}))

    def look():
        found = storage.view.get_all_trials(study_id, deepcopy=False)
        assert [trial.params for trial in found] == [{"rate": 0.5}] * 8
        assert [trial.number for trial in found if "rung" in trial.system_attrs] == [attempts[3].trial_number]

    tables = ("trial_params", "trial_system_attributes", "trial_intermediate_values")
    sent = " ".join(statements_of(storage, look)).split()
    assert {table: sent.count(table) for table in tables} == dict(zip(tables, (0, 1, 0), strict=True))


def open_trial(storage, study_id, attempt):
    loaded = optuna.load_study(study_name=storage.optuna.get_study_name_from_id(study_id), storage=storage.view)
    return optuna.Trial(loaded, attempt.trial_id)


def test_what_is_sampled_reported_and_noted_is_not_written_before_the_queue_writes_it(storage, study_id):
    attempt = queue.claim(storage, study_id, WORKER)
    trial = open_trial(storage, study_id, attempt)
    rate = trial.suggest_float("rate", 0, 1)
    trial.report(0.5, 1)
    storage.view.set_trial_system_attr(attempt.trial_id, "rung", 0.5)

    written = storage.optuna.get_trial(attempt.trial_id)
    assert (written.params, written.intermediate_values, written.system_attrs) == ({}, {}, {"fixed_params": {}})

    queue.write_draft(storage, attempt, NOTHING, storage.view.take_draft(attempt.trial_id))
    written = storage.optuna.get_trial(attempt.trial_id)
    assert (written.params, written.distributions) == ({"rate": rate}, {"rate": FloatDistribution(0, 1)})
    assert written.system_attrs == {"fixed_params": {}, "rung": 0.5}
    assert storage.view.take_draft(attempt.trial_id) == Draft(params={}, system_attrs={})


def test_parameters_that_an_earlier_attempt_chose_stay(storage, study_id):
    first = queue.claim(storage, study_id, WORKER)
    rate = open_trial(storage, study_id, first).suggest_float("rate", 0, 1)
    queue.write_draft(storage, first, NOTHING, storage.view.take_draft(first.trial_id))
    queue.hand_back(storage, first, NOTHING, "stopped")

    open_trial(storage, study_id, first).suggest_float("other", 0, 1)
    with pytest.raises(LeaseLost):
        queue.write_draft(storage, first, NOTHING, storage.view.take_draft(first.trial_id))
    again = queue.claim(storage, study_id, WORKER)

    assert open_trial(storage, study_id, again).suggest_float("rate", 0, 1) == rate
    assert storage.view.take_draft(first.trial_id) == Draft(params={}, system_attrs={})
    assert storage.optuna.get_trial(first.trial_id).params == {"rate": rate}


def test_a_trial_that_changes_between_two_looks_is_shown_as_it_is_now(storage, study_id):
    attempt = queue.claim(storage, study_id, WORKER)
    assert [trial.state for trial in storage.view.get_all_trials(study_id)] == [TrialState.RUNNING]
    finish(storage, attempt)
    [shown] = storage.view.get_all_trials(study_id)
    assert (shown.state, shown.value, shown.intermediate_values) == (TrialState.COMPLETE, 0.5, {1: 0.5, 2: 0.5})
