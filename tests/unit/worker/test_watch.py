"""Test when training counts as hung, with a clock that is set by hand."""

import pytest

from hpo.worker.watch import HangLimits, Watch


class Clock:
    """Be a clock that shows what it is told."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


@pytest.mark.parametrize(
    ("longest_s", "limit_s"), [(0.0, 600.0), (29.9, 600.0), (30.0, 600.0), (31.0, 620.0), (300.0, 6000.0)]
)
def test_training_may_stand_still_for_ten_minutes_or_twenty_times_its_longest_stretch(longest_s, limit_s):
    assert HangLimits().limit_s(longest_s) == limit_s


# Each event is what happens at a second: "step" asks whether to stop, "rest" leaves training.
@pytest.mark.parametrize(
    ("events", "at_s", "hangs"),
    [
        ([], 1000, False),  # its first step is still prepared, with the database
        ([(50, "step")], 60, False),
        ([(50, "step")], 61, True),
        ([(50, "step"), (60, "step")], 70, False),
        ([(50, "step"), (51, "rest")], 1000, False),  # waits for the database or a pruner
        ([(0, "step"), (1, "rest"), (900, "step"), (901, "step")], 911, False),
        ([(0, "step"), (1, "rest"), (900, "step"), (901, "step")], 912, True),  # a rest is no stretch
        ([(0, "step"), (7, "step")], 7 + 14, False),
        ([(0, "step"), (7, "step")], 7 + 15, True),
        ([(0, "step"), (7, "rest"), (8, "step")], 8 + 14, False),  # an evaluation is one
        ([(0, "step"), (7, "rest"), (8, "step")], 8 + 15, True),
    ],
)
def test_a_training_hangs_when_it_shows_no_progress_for_too_long(events, at_s, hangs):
    clock = Clock()
    watch = Watch(HangLimits(least_s=10.0, stretches=2.0), clock)
    for second, event in events:
        clock.now_s = second
        {"step": watch.note_progress, "rest": watch.note_rest}[event]()

    clock.now_s = at_s

    assert (watch.find_hang() is not None) == hangs


def test_a_hang_is_told_with_its_length_and_the_limit():
    clock = Clock()
    watch = Watch(HangLimits(), clock)
    watch.note_progress()
    clock.now_s = 1234.0

    assert watch.find_hang() == "training has stood still for 1234 s, and 600 s are allowed"
