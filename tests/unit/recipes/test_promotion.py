"""Test where rungs lie, what is compared there, and which trials are promoted."""

from dataclasses import replace

import pytest

from hpo.recipes.promotion import Reached, compared_value, first_drop, list_promotable, promotion_rungs
from hpo.recipes.recipe import documented_runs
from hpo.recipes.schedule import CurvePoint, grid

BASE = documented_runs()["baseline"].recipe


def at_rungs(**trials):
    """Describe trials: rung, value and whether they have been promoted, by a letter and their number."""
    return [
        Reached(trial_id=100 + int(name[1:]), trial_number=int(name[1:]), rung=rung, value=value, promoted=promoted)
        for name, places in trials.items()
        for rung, value, promoted in places
    ]


@pytest.mark.parametrize(
    ("trials", "promotable"),
    [
        ({}, []),
        # The best, however few there are.
        ({"t0": [(1, 0.9, False)]}, [(0, 1)]),
        ({"t0": [(1, 0.8, False)], "t1": [(1, 0.9, False)]}, [(1, 1)]),
        ({"t0": [(1, 0.9, True)], "t1": [(1, 0.8, False)]}, []),
        ({"t0": [(1, 0.9, True), (2, 0.6, False)], "t1": [(1, 0.8, False)]}, [(0, 2)]),
        ({"t0": [(1, 0.7, False)], "t1": [(1, 0.9, False)], "t2": [(1, 0.8, False)]}, [(1, 1)]),
        ({"t0": [(1, 0.7, False)], "t1": [(1, 0.9, True)], "t2": [(1, 0.8, False)]}, []),
        # Of equals, the older one.
        ({"t5": [(1, 0.9, False)], "t3": [(1, 0.9, False)], "t4": [(1, 0.9, False)]}, [(3, 1)]),
        # A trial that waits for long is promoted when enough worse ones have come.
        ({f"t{n}": [(1, 0.9 - n / 100, n < 1)] for n in range(5)}, []),
        ({f"t{n}": [(1, 0.9 - n / 100, n < 1)] for n in range(6)}, [(1, 1)]),
        # One that was promoted before it was surpassed takes no place from others.
        ({f"t{n}": [(1, 0.5 + n / 100, n < 1)] for n in range(6)}, [(5, 1), (4, 1)]),
        # The highest rung comes first, whatever the values.
        (
            {f"t{n}": [(1, 0.9 - n / 100, True), (2, 0.6 - n / 100, False)] for n in range(3)}
            | {f"t{n}": [(1, 0.95, False)] for n in range(3, 6)},
            [(0, 2), (3, 1), (4, 1)],
        ),
    ],
)
def test_the_best_third_of_each_rung_and_at_least_one_is_promoted(trials, promotable):
    reached = at_rungs(**trials)

    assert [(each.trial_number, each.rung) for each in list_promotable(reached)] == promotable
    assert list_promotable(reversed(reached)) == list_promotable(reached)


@pytest.mark.parametrize(
    ("boundaries", "values", "drop", "rungs"),
    [
        ((32_000, 48_000), (0.1, 0.01, 0.001), 32_000, (38_000,)),
        ((20_000, 34_000, 50_000), (0.1, 0.02, 0.005, 0.001), 20_000, (26_000, 40_000)),
        ((2_000, 32_000), (0.1, 0.1, 0.01), 32_000, (44_000,)),
        ((2_000, 32_000), (0.01, 0.1, 0.01), 32_000, (44_000,)),
        ((), (0.1,), 0, (22_000,)),
        ((32_000,), (0.01, 0.1), 0, (12_000,)),
        ((60_000,), (0.1, 0.01), 60_000, (62_000,)),
        ((62_000,), (0.1, 0.01), 62_000, ()),
    ],
    ids=[
        "two drops",
        "three drops",
        "equal phases",
        "a warm-up",
        "one phase",
        "a rate that rises",
        "a late drop",
        "a very late drop",
    ],
)
@pytest.mark.parametrize("iterations", [32, 640, 64_000])
def test_each_phase_since_the_first_drop_but_the_last_has_a_rung_at_its_third(
    iterations, boundaries, values, drop, rungs
):
    base = replace(BASE, boundaries=boundaries, values=values, iterations=iterations)

    assert first_drop(base) == drop * iterations // 64_000
    assert promotion_rungs(base) == tuple(rung * iterations // 64_000 for rung in rungs)
    assert set(promotion_rungs(base)) <= set(grid(iterations))


def curve(*accuracies):
    """Draw a curve with an evaluation at each fourth iteration of 32."""
    return [
        CurvePoint(iteration=4 * index, train_loss=1.0, val_loss=1.0, val_accuracy=accuracy)
        for index, accuracy in enumerate(accuracies, 1)
    ]


@pytest.mark.parametrize(
    ("accuracies", "value"),
    [
        ((), None),
        ((0.1, 0.2, 0.3), None),
        ((0.1, 0.2, 0.3, 0.3), None),
        ((0.1, 0.2, 0.3, 0.3, 0.75), 0.75),
        ((0.1, 0.2, 0.3, 0.3, 0.75, 0.25), 0.5),
        ((0.1, 0.2, 0.3, 0.3, 0.75, 0.25, 0.5, 0.0), 0.25),
    ],
)
def test_trials_are_compared_by_the_mean_of_their_last_evaluations_since_the_first_drop(accuracies, value):
    recipe = replace(BASE, boundaries=(32_000, 48_000), iterations=32)

    assert compared_value(curve(*accuracies), recipe) == value
