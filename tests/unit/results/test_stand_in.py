"""Test the curves that stand in for real ones, also against the curves by which they were made."""

import importlib
import math
from pathlib import Path
from statistics import fmean

import pytest
from scipy.stats import spearmanr

from hpo.recipes.promotion import compared_value, promotion_rungs
from hpo.recipes.schedule import evaluation, final_iteration, iteration_at_phase_time
from hpo.recipes.space_file import load_space, parse_space
from hpo.results.stand_in import StandIn
from hpo.trial.segments import cut_path

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
ITERATIONS = 640
EVALUATED = evaluation(ITERATIONS, 128, 144).iterations
REPLAYS = range(5)


def imagine(space, seed, **params):
    recipe = space.recipe(space.base_params() | params, iterations=ITERATIONS, seed=0)
    stand_in = StandIn(distributions=space.distributions(), seed=seed)
    return recipe, stand_in.curve(recipe, space.base_params() | params, cut_path(recipe, {}), EVALUATED)


def test_recipes_share_their_curves_up_to_where_they_part():
    space = load_space("smooth_lr")

    _, early = imagine(space, 1, learning_rate_3=0.002)
    recipe, late = imagine(space, 1, learning_rate_3=0.01)
    _, elsewhere = imagine(space, 2, learning_rate_3=0.01)

    part = recipe.boundaries[1] * ITERATIONS // 64_000
    same = [one == other for one, other in zip(early, late, strict=True)]
    shared = [point.val_loss == other.val_loss for point, other in zip(early, late, strict=True)]
    assert same[: part // 5 // 2] == [True] * (part // 5 // 2)
    assert shared == [point.iteration <= part for point in late]
    assert elsewhere != late


def test_a_recipe_has_the_same_curve_every_time():
    assert imagine(load_space("full"), 3) == imagine(load_space("full"), 3)


def test_early_stopping_ends_a_curve():
    space = load_space("smooth_lr")

    lengths = {
        patience: fmean(
            imagine(space, seed, early_stopping=True, patience=patience)[1][-1].iteration for seed in REPLAYS
        )
        for patience in (7_020, 14_040)
    }

    assert lengths[7_020] < lengths[14_040] < imagine(space, 0)[1][-1].iteration == ITERATIONS


@pytest.mark.parametrize(
    "search",
    [
        "{nesterov: [false, true]}",
        "{boundaries: [{low: 20000, high: 44000, step: 2000}, [48000]]}",
        "{values: [{low: 0.01, high: 1.0, log: true}, [0.01], [0.001]]}",
    ],
)
def test_what_a_parameter_is_worth_is_the_same_for_a_value_and_differs_between_replays(search):
    space = parse_space(f"name: mine\nbase: baseline\nsearch: {search}\n", "mine.yaml")
    worth = [
        StandIn(distributions=space.distributions(), seed=seed).quality(space.base_params()) for seed in range(200)
    ]

    assert worth[0] == StandIn(distributions=space.distributions(), seed=0).quality(space.base_params())
    assert abs(fmean(worth)) < 0.4
    assert 0.6 < math.sqrt(fmean(each**2 for each in worth)) < 1.8


@pytest.fixture
def truth(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("truth_table").load(BENCHMARKS / "truth" / "digits-640.json.gz")


def params_of(recipe):
    params = {"head": recipe.head, "early_stopping": recipe.early_stopping is not None}
    params |= {"dropout": recipe.dropout} if recipe.head != "linear" else {}
    params |= {"patience": recipe.early_stopping} if recipe.early_stopping else {}
    params |= {f"boundary_{number}": boundary for number, boundary in enumerate(recipe.boundaries, 1)}
    return params | {f"learning_rate_{number}": rate for number, rate in enumerate(recipe.values, 1) if number > 1}


def mean_length(curves, recipes, patience):
    """Return how far recipes with a patience train on average."""
    return fmean(
        curve[-1].iteration for curve, recipe in zip(curves, recipes, strict=True) if recipe.early_stopping == patience
    )


def rank_correlation(curves, recipes, base, step):
    """Correlate what trials are compared by at a step with their final accuracies."""
    pairs = []
    for curve, recipe in zip(curves, recipes, strict=True):
        reached = iteration_at_phase_time(step, recipe, base)
        value = compared_value([point for point in curve if point.iteration <= reached], recipe)
        if reached < curve[-1].iteration and value is not None:
            final = final_iteration(curve, recipe)
            pairs.append((value, next(point.val_accuracy for point in curve if point.iteration == final)))
    return spearmanr(pairs).statistic


def test_stand_ins_are_stopped_and_ranked_as_the_real_curves_are(truth):
    space = load_space("smooth_lr")
    recipes = [recipe.at(iterations=ITERATIONS, seed=0) for recipe in truth.recipes.values()]
    real = [[truth.runs[name, seed].curve for name in truth.recipes] for seed in truth.seeds]
    imagined = [
        [
            StandIn(distributions=space.distributions(), seed=seed).curve(
                recipe, params_of(recipe), cut_path(recipe, {}), EVALUATED
            )
            for recipe in recipes
        ]
        for seed in REPLAYS
    ]

    for patience in (7_020, 14_040):
        lengths = [fmean(mean_length(curves, recipes, patience) for curves in each) for each in (real, imagined)]
        assert lengths[1] == pytest.approx(lengths[0], rel=0.2), patience
    for step in promotion_rungs(recipes[0]):
        known, stand_in = (
            fmean(rank_correlation(curves, recipes, recipes[0], step) for curves in each) for each in (real, imagined)
        )
        assert stand_in == pytest.approx(known, abs=0.2), step
