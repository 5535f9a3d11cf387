"""Test when progress is said without a terminal."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from hpo.cli import progress
from hpo.database.overview import Counts

NOTE = "waiting for room: 1 of 2 workers"


@pytest.fixture
def watched(monkeypatch):
    """Give a progress whose clock is set by hand, and what it has printed."""
    clock, printed = SimpleNamespace(now=0.0), io.StringIO()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(progress, "Console", lambda **_: Console(file=printed, force_terminal=False, width=200))
    monkeypatch.setattr(progress.overview, "find_best", lambda *_: None)
    monkeypatch.setattr(progress.overview, "trained_iterations", lambda *_: 1234)
    return progress.Progress(SimpleNamespace(storage=None, study_id=1)), clock, printed


def lines(watched, updates):
    """Make updates (second, finished of 4, state, note), and count the lines that were printed by then."""
    shown, clock, printed = watched
    counts = []
    for now, finished, state, note in updates:
        clock.now = now
        shown.update(Counts(complete=finished, waiting=4 - finished), state, note)
        counts.append(len(printed.getvalue().splitlines()))
    return counts


@pytest.mark.parametrize(
    ("updates", "expected"),
    [
        ([(20, 1, "running", ""), (25, 2, "running", ""), (31, 2, "running", "")], [1, 1, 2]),
        ([(20, 1, "running", ""), (60, 1, "running", "")], [1, 1]),
        ([(20, 1, "running", ""), (319, 1, "running", ""), (320, 1, "running", "")], [1, 1, 2]),
        ([(20, 1, "running", ""), (21, 1, "paused", ""), (22, 1, "paused", "")], [1, 2, 2]),
        ([(20, 1, "running", ""), (21, 4, "done", "")], [1, 2]),
        ([(20, 1, "running", NOTE), (21, 1, "running", NOTE), (22, 1, "running", "")], [2, 2, 2]),
    ],
    ids=[
        "at most every ten seconds",
        "only when something has changed",
        "at least every five minutes",
        "a new state",
        "the end",
        "a note, once",
    ],
)
def test_a_line_is_printed_when_it_says_something_new(watched, updates, expected):
    assert lines(watched, updates) == expected


def test_trials_that_wait_at_a_rung_count_as_settled_for_the_time_left(watched):
    shown, clock, printed = watched
    shown.update(Counts(waiting=10), "running")
    clock.now = 60.0
    shown.update(Counts(complete=1, running=1, waiting=8, at_rungs={1: 3, 2: 1}), "running")

    assert printed.getvalue().splitlines()[-1].endswith("time left 1 min 00 s")
