"""Test the decisions about studies that are paused or stopped, and about who is alive."""

import pytest

from hpo.database.overview import Counts
from hpo.database.study_state import is_over, shown_state
from hpo.database.workers import LiveWorker, live_workers

NOTHING_LEFT = Counts(complete=3)
WAITING = Counts(complete=1, waiting=2)
RUNNING = Counts(running=1, waiting=2)


@pytest.mark.parametrize(
    ("state", "counts", "word", "over"),
    [
        ("running", WAITING, "running", False),
        ("running", RUNNING, "running", False),
        ("running", NOTHING_LEFT, "done", True),
        ("paused", WAITING, "paused", False),
        ("paused", RUNNING, "paused", False),
        ("paused", NOTHING_LEFT, "done", True),
        ("finishing", RUNNING, "stopping", False),
        ("finishing", WAITING, "stopped", True),
        ("finishing", NOTHING_LEFT, "done", True),
        ("stopped", RUNNING, "stopping", True),
        ("stopped", WAITING, "stopped", True),
        ("stopped", NOTHING_LEFT, "done", True),
        ("ended", RUNNING, "stopping", True),
        ("ended", WAITING, "ended", True),
        ("ended", NOTHING_LEFT, "done", True),
    ],
)
def test_what_a_state_is_called_and_whether_workers_end(state, counts, word, over):
    assert (shown_state(state, counts), is_over(state, counts)) == (word, over)


HOST = {"worker": "a:1", "host": "a", "device": "cpu"}
IDLE = HOST | {"study": None, "state": None, "trial": None, "iteration": None}
BUSY = HOST | {"study": "mine", "state": "paused", "trial": 4, "iteration": 120}


@pytest.mark.parametrize(
    ("known", "row_age_s", "attempt_age_s", "age_s"),
    [
        (IDLE, 5.0, None, 5.0),
        (IDLE, 60.0, None, 60.0),
        (IDLE, 60.1, None, None),
        (BUSY, 3600.0, 2.0, 2.0),  # it trains: its lease is its sign of life
        (BUSY, 3600.0, 61.0, None),
        (BUSY, 2.0, 2.5, 2.0),
        (IDLE, -0.5, None, 0.0),  # the database's clock was set back
    ],
)
def test_a_worker_lives_for_its_lease_after_its_last_sign_of_life(known, row_age_s, attempt_age_s, age_s):
    row = {**known, "row_age_s": row_age_s, "attempt_age_s": attempt_age_s, "lease_s": 60.0}
    assert live_workers([row]) == ([] if age_s is None else [LiveWorker(heartbeat_age_s=age_s, **known)])


@pytest.mark.parametrize("state", ["stopped", "finishing", "ended"])
def test_a_study_that_a_worker_is_still_on_is_not_called_stopped(state):
    row = BUSY | {"state": state, "row_age_s": 1.0, "attempt_age_s": None, "lease_s": 60.0}
    assert live_workers([row]) == [LiveWorker(**BUSY | {"state": "stopping"}, heartbeat_age_s=1.0)]
