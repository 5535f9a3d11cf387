"""Test when a study ends before it has had all its trials."""

import pytest

from hpo.database.ends import Ends, Reached, find_reason

BEST = (4, 0.9)


@pytest.mark.parametrize(
    ("ends", "reached", "reason"),
    [
        (Ends(), Reached(steps=10**9, since_best=10**6, best=(0, 1.0)), None),
        (Ends(budget=100), Reached(steps=99, since_best=0, best=None), None),
        (Ends(budget=100), Reached(steps=100, since_best=0, best=None), "100 optimizer steps of 100"),
        (Ends(budget=64_000), Reached(steps=64_128, since_best=0, best=BEST), "64,128 optimizer steps of 64,000"),
        (Ends(stop_after=3), Reached(steps=0, since_best=2, best=BEST), None),
        (Ends(stop_after=3), Reached(steps=0, since_best=3, best=BEST), "trial 4 (0.9000) is still the best after 3"),
        (Ends(stop_after=3), Reached(steps=0, since_best=0, best=None), None),
        (Ends(target_accuracy=0.91), Reached(steps=0, since_best=9, best=BEST), None),
        (Ends(target_accuracy=0.9), Reached(steps=0, since_best=0, best=BEST), "trial 4 has reached"),
        (Ends(target_accuracy=0.1), Reached(steps=0, since_best=0, best=None), None),
        (
            Ends(budget=100, stop_after=3, target_accuracy=0.95),
            Reached(steps=5, since_best=4, best=BEST),
            "after 4 more trials",
        ),
    ],
)
def test_a_study_ends_with_the_first_end_that_it_has_reached(ends, reached, reason):
    found = find_reason(ends, reached)
    assert found is None if reason is None else reason in found
