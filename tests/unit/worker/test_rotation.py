"""Test whose turn it is where one worker serves several studies."""

import pytest

from hpo.database.study_state import StudyLoad
from hpo.worker.rotation import key_of, turn_order


def load(study_id, state="running", running=0, waiting=1, changed_s=0.0):
    return StudyLoad(
        study_id=study_id, name=f"s{study_id}", state=state, changed_s=changed_s, running=running, waiting=waiting
    )


@pytest.mark.parametrize(
    ("loads", "refused", "last_turns", "order"),
    [
        ([], set(), {}, []),
        ([load(2), load(1)], set(), {}, [1, 2]),  # the oldest first
        ([load(1), load(2)], set(), {(1, 0.0): 1}, [2, 1]),  # in turn
        ([load(1), load(2)], set(), {(1, 0.0): 1, (2, 0.0): 2}, [1, 2]),
        ([load(1), load(2), load(3)], set(), {(1, 0.0): 2, (2, 0.0): 1}, [3, 2, 1]),  # a new one at once
        (
            [load(1, running=2), load(2, running=1)],
            set(),
            {(2, 0.0): 9},
            [2, 1],
        ),  # equal shares go before turns
        ([load(1, state="paused"), load(2, state="stopped"), load(3, state="finishing")], set(), {}, []),
        ([load(1, waiting=0, running=1), load(2)], set(), {}, [2]),
        ([load(1), load(2)], {(1, 0.0)}, {}, [2]),
        ([load(1, changed_s=5.0)], {(1, 0.0)}, {}, [1]),  # resumed since it was given up
    ],
)
def test_the_study_with_the_fewest_running_trials_is_asked_first_then_the_one_not_served_for_longest(
    loads, refused, last_turns, order
):
    assert [s.study_id for s in turn_order(loads, refused, last_turns)] == order


def test_workers_that_take_turns_share_themselves_evenly_whatever_the_studies_sizes():
    waiting, running = {1: 100, 2: 4, 3: 50}, {1: 0, 2: 0, 3: 0}
    for _ in range(12):
        loads = [load(n, running=running[n], waiting=waiting[n]) for n in waiting]
        first = turn_order(loads, set(), {})[0].study_id
        waiting[first] -= 1
        running[first] += 1
    assert running == {1: 4, 2: 4, 3: 4}


def test_one_worker_takes_three_studies_in_turn():
    last_turns, taken = {}, []
    for turn in range(1, 7):
        first = turn_order([load(1), load(2), load(3)], set(), last_turns)[0]
        last_turns[key_of(first)] = turn
        taken.append(first.study_id)
    assert taken == [1, 2, 3, 1, 2, 3]
