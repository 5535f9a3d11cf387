"""Test when training counts as hung, with a clock that is set by hand."""

import pytest

from hpo.worker.watch import HangLimits, Watch


class Clock:
    """A clock that shows what it is told."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


@pytest.mark.parametrize(
    ("longest_s", "limit_s"), [(0.0, 600.0), (29.9, 600.0), (30.0, 600.0), (31.0, 620.0), (300.0, 6000.0)]
)
def test_training_may_stand_still_for_ten_minutes_or_twenty_times_its_longest_stretch(longest_s, limit_s):
    assert HangLimits().limit_s(longest_s) == limit_s


# Each event is what happens at a second: the device begins or ends to compute, or a "step" of it is done.
@pytest.mark.parametrize(
    ("events", "at_s", "hangs"),
    [
        ([], 1000, False),  # its first step is still prepared, with the database
        ([(50, "begin")], 60, False),
        ([(50, "begin")], 61, True),
        ([(50, "begin"), (60, "step")], 70, False),
        ([(50, "begin"), (51, "end")], 1000, False),  # waits for the database or a pruner
        ([(0, "begin"), (1, "end"), (900, "begin"), (901, "step")], 911, False),
        ([(0, "begin"), (1, "end"), (900, "begin"), (901, "step")], 912, True),  # a wait is no stretch
        ([(0, "begin"), (7, "step")], 7 + 14, False),
        ([(0, "begin"), (7, "step")], 7 + 15, True),
        ([(0, "begin"), (7, "end"), (8, "begin")], 8 + 14, False),  # the first took seven seconds
        ([(0, "begin"), (7, "end"), (8, "begin")], 8 + 15, True),
        ([(0, "begin"), (1, "begin"), (2, "end")], 12, False),  # an evaluation within a measurement
        ([(0, "begin"), (1, "begin"), (2, "end")], 13, True),
        ([(0, "begin"), (1, "begin"), (2, "end"), (3, "end")], 1000, False),
    ],
)
def test_a_device_hangs_when_it_shows_no_progress_for_too_long(events, at_s, hangs):
    clock = Clock()
    watch = Watch(HangLimits(least_s=10.0, stretches=2.0), clock)
    contexts = []
    for second, event in events:
        clock.now_s = second
        if event == "begin":
            contexts.append(watch.computing())
            contexts[-1].__enter__()
        elif event == "end":
            contexts.pop().__exit__(None, None, None)
        else:
            watch.note_progress()

    clock.now_s = at_s

    assert (watch.find_hang() is not None) == hangs


def test_what_the_device_computes_may_fail():
    clock = Clock()
    watch = Watch(HangLimits(least_s=10.0), clock)
    with pytest.raises(MemoryError), watch.computing():
        raise MemoryError
    clock.now_s = 1000

    assert watch.find_hang() is None


def test_a_hang_is_told_with_its_length_and_the_limit():
    clock = Clock()
    watch = Watch(HangLimits(), clock)
    with watch.computing():
        clock.now_s = 1234.0
        hang = watch.find_hang()

    assert hang == "training has made no progress for 1234 s (limit: 600 s)"
