from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import optuna
import pytest
from optuna.pruners import BasePruner, MedianPruner, SuccessiveHalvingPruner
from optuna.trial import TrialState

from hpo.recipes.comparison import BASELINE
from hpo.recipes.recipe import documented_runs
from hpo.recipes.schedule import CurvePoint

RECIPE = documented_runs()["smooth_lr"].recipe.at(iterations=640, seed=1)
"""Its rate drops at iterations 200, 320 and 560."""


def curve(*accuracies: float, every: int = 10) -> tuple[CurvePoint, ...]:
    """Give a curve whose loss is one minus its accuracy."""
    return tuple(
        CurvePoint(iteration=every * number, train_loss=1.0, val_loss=1 - accuracy, val_accuracy=accuracy)
        for number, accuracy in enumerate(accuracies, 1)
    )


def trial(replay: Any, *values: float, name: str = "recipe", length: int = 100) -> Any:
    """Give a trial with a decision every ten iterations."""
    decisions = tuple(
        replay.Decision(step=10 * number, iteration=10 * number, value=value) for number, value in enumerate(values, 1)
    )
    return replay.Trial(name=name, recipe=RECIPE, length=length, decisions=decisions)


@pytest.mark.parametrize(
    ("figure", "over", "after", "expected"),
    [
        ("accuracy", "last", 0, 0.6),
        ("accuracy", "mean", 0, 0.7),
        ("accuracy", "best", 0, 0.9),
        ("accuracy", "mean", 20, 0.6),
        ("accuracy", "best", 30, 0.6),
        ("loss", "last", 0, -0.4),
        ("loss", "mean", 0, -0.3),
        ("loss", "best", 0, -0.1),
    ],
)
def test_evaluations_up_to_a_decision_are_compared(
    replay: Any, figure: str, over: str, after: int, expected: float
) -> None:
    compared = replay.Compared(figure=figure, over=over, count=3)
    found = replay.compared_value(curve(0.9, 0.6, 0.6, 0.1), 30, compared, after)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("count", "factor", "expected"),
    [(1, 3, (360,)), (2, 3, (260, 360)), (3, 3, (220, 260, 360)), (9, 3, (220, 260, 360)), (2, 2, (320, 420))],
)
def test_rungs_lie_at_fractions_of_the_distance_from_the_first_drop(
    replay: Any, count: int, factor: int, expected: tuple[int, ...]
) -> None:
    assert replay.rungs_after_drop(RECIPE, count, factor) == expected


def stops_in_optuna(pruner: BasePruner, trials: Sequence[Any]) -> list[int | None]:
    study = optuna.create_study(direction="maximize", pruner=pruner, sampler=optuna.samplers.RandomSampler(seed=0))
    stops: list[int | None] = []
    for shown in trials:
        asked = study.ask()
        for index, decision in enumerate(shown.decisions):
            asked.report(decision.value, decision.step)
            if asked.should_prune():
                stops.append(index)
                study.tell(asked, state=TrialState.PRUNED)
                break
        else:
            stops.append(None)
            study.tell(asked, 0.0)
    return stops


@pytest.mark.parametrize("seed", range(5))
def test_optunas_pruners_are_replayed_as_they_decide(replay: Any, seed: int) -> None:
    drawn = random.Random(seed)
    levels = [drawn.choice((1, 2, 3)) for _ in range(30)]
    trials = [trial(replay, *(level + drawn.choice((0, 1, 2)) for _ in range(9))) for level in levels]
    asked = frozenset(range(30, 100, 10))
    pairs = (
        (replay.MedianStopper(), MedianPruner()),
        (replay.MedianStopper(asked, startup=3), MedianPruner(n_startup_trials=3, n_warmup_steps=30)),
        (replay.HalvingStopper(20, 3), SuccessiveHalvingPruner(min_resource=20, reduction_factor=3)),
        (replay.HalvingStopper(10, 2), SuccessiveHalvingPruner(min_resource=10, reduction_factor=2)),
    )
    for stopper, pruner in pairs:
        found = [stopper.find_stop(shown.decisions) for shown in trials]
        assert found == stops_in_optuna(pruner, trials)
        assert len(set(found)) > 1  # some stop, and some do not


def test_ray_tune_stops_below_the_upper_quarter_of_those_before(replay: Any) -> None:
    stopper = replay.QuantileStopper((10, 40), 4)
    shown = [(0.5, 0, 0, 0.5), (0.4, 0, 0, 0.9), (0.5, 0, 0, 0.4), (0.6, 0, 0, 0.6), (0.5, 0, 0, 0.9), (0.6, 0, 0, 0.9)]
    stops = [stopper.find_stop(trial(replay, *values).decisions) for values in shown]
    assert stops == [None, 0, 3, None, 0, None]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # of fewer than three, the best
        ([(0.1,)], [100]),
        ([(0.2,), (0.1,)], [100, 10]),
        # a later and better trial goes on as well as the one that went on before it
        ([(0.1,), (0.3,), (0.2,)], [100, 100, 10]),
        ([(0.3,), (0.1,), (0.2,), (0.9,)], [100, 10, 10, 100]),
        # two of six; the third trial waits until a sixth has come
        ([(0.9,), (0.1,), (0.8,), (0.2,), (0.3,)], [100, 10, 10, 10, 10]),
        ([(0.9,), (0.1,), (0.8,), (0.2,), (0.3,), (0.4,)], [100, 10, 100, 10, 10, 10]),
        # of equals the first
        ([(0.5,), (0.5,), (0.5,)], [100, 10, 10]),
        # a second rung, to which only those come that the first one promotes
        ([(0.3, 0.3), (0.2, 0.9), (0.1, 0.1)], [100, 10, 10]),
        ([(0.3, 0.3), (0.4, 0.2), (0.1, 0.1)], [100, 20, 10]),
        # one that stops early has fewer decisions
        ([(0.3,), (0.2, 0.9), (0.1, 0.1)], [100, 10, 10]),
    ],
)
def test_trials_among_the_best_at_their_rung_are_promoted(
    replay: Any, values: list[tuple[float, ...]], expected: list[int]
) -> None:
    trained = replay.promote_by(3)([trial(replay, *each) for each in values])
    assert [each.iterations for each in trained] == expected
    assert [each.complete for each in trained] == [iterations == 100 for iterations in expected]


def test_the_base_recipe_never_waits_but_takes_its_place_among_the_best(replay: Any) -> None:
    trials = [trial(replay, 0.9, name=BASELINE), trial(replay, 0.8), trial(replay, 0.1)]
    assert [each.iterations for each in replay.promote_by(3)(trials)] == [100, 10, 10]
    trials = [trial(replay, 0.1, name=BASELINE), trial(replay, 0.8), trial(replay, 0.7)]
    assert [each.iterations for each in replay.promote_by(3)(trials)] == [100, 100, 10]
    assert [each.iterations for each in replay.promote_by(4, at_least=0)(trials)] == [100, 10, 10]


def make_truth(truth_table: Any, accuracies: dict[str, list[float]], losses: dict[str, float] | None = None) -> Any:
    """Give recipes that differ in their last rate, with a final accuracy for each of the seeds 0, 1, ..."""
    recipes = {
        name: documented_runs()["smooth_lr"].recipe.at(iterations=640, seed=0)
        if name == BASELINE
        else type(RECIPE).from_dict(RECIPE.to_dict() | {"values": [0.1, 0.02, 0.005, 0.0001 * number]})
        for number, name in enumerate(accuracies, 1)
    }
    runs = {
        (name, seed): truth_table.Run(
            recipe=name,
            seed=seed,
            accuracy=accuracy,
            loss=(losses or {}).get(name, 1.0),
            curve=curve(*[accuracy] * 64),
        )
        for name, values in accuracies.items()
        for seed, accuracy in enumerate(values)
    }
    return truth_table.Truth(source={"iterations per epoch": 10.0}, recipes=recipes, runs=runs)


ACCURACIES = {BASELINE: [0.7, 0.8, 0.8], "a": [0.9, 0.5, 0.6], "b": [0.9, 0.7, 0.7], "c": [0.8, 0.9, 0.9]}
LOSSES = {BASELINE: 0.4, "a": 0.5, "b": 0.3, "c": 0.2}


@pytest.mark.parametrize(
    ("choice", "recipe", "confirmed"),
    [
        ({"ties": "first"}, "a", []),
        ({"ties": "loss"}, "b", []),
        ({"ties": "loss alone"}, "c", []),
        # a and b are worse than the base recipe on the other seeds
        ({"top": 2, "seeds": 1}, BASELINE, [("b", 1), ("a", 1), (BASELINE, 1)]),
        ({"top": 3, "seeds": 1}, "c", [("b", 1), ("a", 1), ("c", 1), (BASELINE, 1)]),
        ({"top": 1, "seeds": 2}, BASELINE, [("b", 1), ("b", 2), (BASELINE, 1), (BASELINE, 2)]),
    ],
)
def test_a_winner_is_named(
    replay: Any, truth_table: Any, choice: dict[str, Any], recipe: str, confirmed: list[tuple[str, int]]
) -> None:
    truth = make_truth(truth_table, ACCURACIES, LOSSES)
    complete = [truth.runs[name, 0] for name in ACCURACIES]
    named = replay.name_winner(truth, complete, [1, 2], replay.Choice(**choice))
    assert (named.recipe, [(run.recipe, run.seed) for run in named.confirmed]) == (recipe, confirmed)


def test_shared_beginnings_are_counted_once_for_each_seed(replay: Any, truth_table: Any) -> None:
    truth = make_truth(truth_table, ACCURACIES)
    trained = [
        replay.Trained(trial=replay.as_trial(truth, truth.runs[name, 0], (), "phase", replay.Compared()), iterations=n)
        for name, n in (("a", 640), ("b", 600), ("c", 300))
    ]
    confirmed = [truth.runs["a", 1]]
    # the rates differ from iteration 560 on
    assert replay.count_steps(truth, trained, confirmed, reuse=True) == 640 + 40 + 640
    assert replay.count_steps(truth, trained, confirmed, reuse=False) == 640 + 600 + 300 + 640


def test_the_best_recipe_for_a_seed_is_chosen_by_the_other_seeds(replay: Any, truth_table: Any) -> None:
    truth = make_truth(truth_table, {BASELINE: [0.5, 0.5, 0.5], "a": [1.0, 0.3, 0.3], "b": [0.1, 0.6, 0.6]})
    assert replay.best_elsewhere(truth, ["a", BASELINE, "b"]) == {0: "b", 1: "a", 2: "a"}
    assert replay.best_elsewhere(truth, [BASELINE, "b"]) == {0: "b", 1: BASELINE, 2: BASELINE}


def test_a_run_is_compared_as_far_as_the_base_recipe_is_at_each_step(replay: Any, truth_table: Any) -> None:
    truth = make_truth(truth_table, {BASELINE: [0.5]})
    early = type(RECIPE).from_dict(RECIPE.to_dict() | {"boundaries": [16_000, 32_000, 56_000]})
    rising = curve(*(number / 100 for number in range(1, 65)))
    run = truth_table.Run(recipe="early", seed=0, accuracy=0.64, loss=0.36, curve=rising[:30])
    truth = truth_table.Truth(source={}, recipes=truth.recipes | {"early": early}, runs={("early", 0): run})
    shown = replay.as_trial(truth, run, (100, 200, 260, 320), "phase", replay.Compared(over="mean"), after_drop=True)
    # its rate drops at iteration 160; it ends at 300, so that it is not compared at 320
    assert shown.length == 300
    assert [(decision.step, decision.iteration) for decision in shown.decisions] == [(100, 80), (200, 160), (260, 240)]
    # before the drop its last evaluation counts, after it the mean of three
    assert [decision.value for decision in shown.decisions] == pytest.approx([0.08, 0.16, 0.23])
