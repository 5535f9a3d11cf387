"""End studies on real databases before they have had all their trials, and continue them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hpo import study
from hpo.artifacts import open_artifacts
from hpo.database import losses, queue, removal, study_state
from hpo.database.attempt import Attempt, Outcome, Progress
from hpo.database.ends import Ends, find_ends
from hpo.database.storage import Storage
from tests.integration.support import NOTHING, SETTINGS, WORKER, claim, complete, make_study


def give(storage: Storage, total: int = 9, **ends: Any) -> study.Study:
    """Make or continue the study `small` with ends, as `hpo run` does."""
    return study.continue_or_create(storage, "small", SETTINGS, total, ends=ends)


def state_and_reason(made: study.Study) -> tuple[str, str | None]:
    return study_state.find_state(made.storage, made.study_id), find_ends(made.storage, made.study_id)[1]


def trained(steps: int) -> Progress:
    return Progress(iteration=1, trained_iterations=steps, val_accuracy=None)


def try_to_claim(made: study.Study) -> Attempt | None:
    return queue.claim(made.storage, made.study_id, WORKER)


def test_the_heartbeat_that_uses_up_the_budget_ends_the_study_for_all(storage: Storage) -> None:
    made = give(storage, budget=100)
    one, other = claim(made), claim(made)

    assert queue.renew(storage, one, trained(60)) == "running"
    assert queue.record(storage, other, trained(40), [], {}) == "ended"
    assert queue.renew(storage, one, trained(61)) == "ended"
    assert state_and_reason(made) == ("ended", "its workers have trained 101 optimizer steps of 100")
    assert try_to_claim(made) is None

    queue.hand_back(storage, one, trained(61), "stopped")
    queue.hand_back(storage, other, trained(40), "stopped")
    assert state_and_reason(give(storage, budget=101))[0] == "running"
    assert try_to_claim(made) is None
    assert state_and_reason(made) == ("ended", "its workers have trained 101 optimizer steps of 101")
    assert state_and_reason(give(storage, budget=200)) == ("running", None)
    assert claim(made).trial_number == 0


def test_trials_of_other_studies_and_lost_attempts_count_where_they_belong(storage: Storage) -> None:
    other = study.continue_or_create(storage, "other", SETTINGS, 3)
    queue.renew(storage, claim(other), trained(500))
    made = give(storage, budget=100)
    lost = claim(made, lease_s=-1)
    queue.renew(storage, lost, trained(70), lease_s=-1)
    assert losses.reap(storage, made.study_id) == [0]

    again = claim(made)
    assert queue.renew(storage, again, trained(29)) == "running"
    assert queue.renew(storage, again, trained(30)) == "ended"
    assert study_state.find_state(storage, other.study_id) == "running"


def test_a_study_ends_after_trials_without_a_better_one(storage: Storage) -> None:
    made = give(storage, stop_after=2)
    for value in (0.5, 0.4, 0.6, 0.6):
        complete(made, claim(made), value, loss=1.0)
    at_rung = Outcome(state="waiting", value=None, attrs={"outcome": "waiting at rung 1 (iteration 8)"})
    attempt = claim(made)
    assert study_state.find_state(storage, made.study_id) == "running"
    queue.finish(storage, attempt, NOTHING, at_rung)

    assert try_to_claim(made) is None
    assert state_and_reason(made) == ("ended", "trial 2 (0.6000) is still the best after 2 more trials")
    assert state_and_reason(give(storage, stop_after=3)) == ("running", None)
    assert try_to_claim(made) is not None


def test_a_study_ends_with_the_accuracy_that_was_wanted(storage: Storage) -> None:
    made = give(storage, target_accuracy=0.6)
    complete(made, claim(made), 0.59)
    running = claim(made)
    complete(made, claim(made), 0.6)

    assert queue.renew(storage, running, NOTHING) == "ended"
    reason = "trial 2 has reached a validation accuracy of 0.6000, at least 0.6"
    assert state_and_reason(made) == ("ended", reason)


def test_an_end_stays_until_another_is_given_or_it_is_removed(storage: Storage) -> None:
    made = give(storage, budget=100, stop_after=5)
    give(storage, total=12)
    assert find_ends(storage, made.study_id) == (Ends(budget=100, stop_after=5), None)
    give(storage, budget=0, target_accuracy=0.8)
    assert find_ends(storage, made.study_id) == (Ends(stop_after=5, target_accuracy=0.8), None)
    give(storage, stop_after=0, target_accuracy=0)
    assert queue.renew(storage, claim(made), trained(10**6)) == "running"


@pytest.mark.parametrize("state", ["paused", "finishing", "stopped"])
def test_what_people_have_decided_is_not_overruled(storage: Storage, state: Any) -> None:
    made = give(storage, budget=100)
    attempt = claim(made)
    study_state.set_state(storage, made.study_id, state)
    assert queue.renew(storage, attempt, trained(100)) == state


def test_a_study_in_the_place_of_a_deleted_one_has_none_of_its_ends(storage: Storage, tmp_path: Path) -> None:
    made = give(storage, budget=100)
    removal.delete_study(storage, made.study_id, "small", open_artifacts(str(tmp_path)))
    again = make_study(storage.with_empty_cache(), 2)
    assert find_ends(storage, again.study_id) == (Ends(), None)
