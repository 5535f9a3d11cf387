"""Test the pure functions over a recipe's schedule."""

import csv
from dataclasses import replace
from fractions import Fraction
from itertools import groupby
from math import floor
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.recipes.recipe import BOUNDARY_GRID, REFERENCE_ITERATIONS, documented_runs
from hpo.recipes.schedule import (
    CurvePoint,
    Evaluation,
    Phase,
    Report,
    best_point,
    distinct_iterations,
    evaluation,
    grid,
    iteration_at_phase_time,
    learning_rate,
    learning_rate_runs,
    phases,
    reports,
    rungs,
    scale,
    stops_early,
)

BASELINE = documented_runs()["baseline"].recipe
RATES = st.sampled_from([0.1, 0.01, 0.001])  # few, so that neighbours are equal now and then
ON_GRID = st.integers(1, REFERENCE_ITERATIONS // BOUNDARY_GRID - 1).map(lambda g: g * BOUNDARY_GRID)
COUNTS = st.integers(0, 4)
BUDGETS = st.integers(32, 400)
ANYWHERE = st.integers(1, REFERENCE_ITERATIONS - 1)


@st.composite
def schedules(draw, boundary=ON_GRID, count=COUNTS, iterations=BUDGETS):
    size = draw(count)
    boundaries = draw(st.sets(boundary, min_size=size, max_size=size))
    return replace(
        BASELINE,
        boundaries=tuple(sorted(boundaries)),
        values=draw(st.tuples(*[RATES] * (size + 1))),
        iterations=draw(iterations),
    )


def rate_of_each_step(recipe):
    """Look the rates up one step at a time, with the boundaries scaled in exact fractions."""
    scaled = [floor(Fraction(b * recipe.iterations, REFERENCE_ITERATIONS) + Fraction(1, 2)) for b in recipe.boundaries]
    return [recipe.values[sum(b <= step for b in scaled)] for step in range(recipe.iterations)]


def curve_of(*losses, every=1):
    return [
        CurvePoint(iteration=every * i, train_loss=1.0, val_loss=loss, val_accuracy=0.5)
        for i, loss in enumerate(losses, 1)
    ]


@pytest.mark.parametrize(
    ("reference", "iterations", "scaled"),
    [
        (32_000, 64_000, 32_000),
        (32_000, 640, 320),
        (3_510, 640, 35),
        (3_550, 640, 36),
        (1_000, 32, 1),
        (999, 32, 0),
        (2_000, 32, 1),
        (32_000, 128_000, 64_000),
        (64_000, 777, 777),
    ],
)
def test_reference_iterations_are_scaled_to_the_budget_and_rounded_half_up(reference, iterations, scaled):
    assert scale(reference, iterations) == scaled


@given(recipe=schedules() | schedules(boundary=ANYWHERE))
def test_the_learning_rate_is_that_of_a_step_by_step_reference(recipe):
    assert [learning_rate(recipe, step) for step in range(recipe.iterations)] == rate_of_each_step(recipe)


@given(recipe=schedules() | schedules(boundary=ANYWHERE))
def test_the_phases_lie_end_to_end_and_hold_the_rate_of_each_step(recipe):
    found = phases(recipe)

    assert [0, *(phase.end for phase in found)] == [*(phase.start for phase in found), recipe.iterations]
    assert [p.learning_rate for p in found for _ in range(p.start, p.end)] == rate_of_each_step(recipe)


def test_the_phases_of_the_smooth_schedule_keep_their_shape_at_a_hundredth_of_the_budget():
    assert phases(documented_runs()["smooth_lr"].recipe.at(iterations=640, seed=0)) == (
        Phase(start=0, end=200, learning_rate=0.1),
        Phase(start=200, end=320, learning_rate=0.02),
        Phase(start=320, end=560, learning_rate=0.005),
        Phase(start=560, end=640, learning_rate=0.001),
    )


def runs_of(rates):
    ends, found = 0, []
    for rate, run in groupby(rates):
        ends += len(list(run))
        found.append((ends, rate))
    return tuple(found)


@given(recipe=schedules(), data=st.data())
def test_the_runs_of_the_learning_rate_are_those_of_its_steps_with_equal_neighbours_merged(recipe, data):
    until = data.draw(st.integers(1, recipe.iterations))

    assert learning_rate_runs(recipe, until) == runs_of(rate_of_each_step(recipe)[:until])


@given(recipe=schedules(boundary=ANYWHERE, iterations=st.integers(32, 64)), data=st.data())
def test_a_phase_that_a_small_budget_leaves_no_step_makes_no_run(recipe, data):
    until = data.draw(st.integers(1, recipe.iterations))

    assert learning_rate_runs(recipe, until) == runs_of(rate_of_each_step(recipe)[:until])


def test_before_the_first_step_there_is_no_run_yet():
    assert learning_rate_runs(BASELINE, 0) == ()


@given(recipe=schedules(), other=schedules(), data=st.data())
def test_two_schedules_have_the_same_runs_exactly_as_long_as_their_steps_agree(recipe, other, data):
    other = other.at(iterations=recipe.iterations, seed=0)
    until = data.draw(st.integers(1, recipe.iterations))

    same = rate_of_each_step(recipe)[:until] == rate_of_each_step(other)[:until]

    assert (learning_rate_runs(recipe, until) == learning_rate_runs(other, until)) == same


@pytest.mark.parametrize(
    ("iterations", "batch_size", "validation_images", "plan"),
    [
        (64_000, 128, 5_000, Evaluation(iterations=tuple(range(250, 64_001, 250)), images=5_000)),
        (64_000, 128, 6_000, Evaluation(iterations=tuple(range(250, 64_001, 250)), images=6_000)),
        (640, 128, 144, Evaluation(iterations=tuple(range(5, 641, 5)), images=144)),
        (1_280, 128, 6_000, Evaluation(iterations=tuple(range(40, 1_281, 40)), images=1_280)),
        (32, 16, 144, Evaluation(iterations=tuple(range(1, 33)), images=4)),
    ],
)
def test_evaluations_are_as_frequent_as_their_cost_allows(iterations, batch_size, validation_images, plan):
    assert evaluation(iterations, batch_size, validation_images) == plan


@given(
    iterations=st.integers(32, 200_000),
    batch_size=st.integers(4, 1_024),  # under 4 not even one image an evaluation fits at the smallest budgets
    validation_images=st.integers(10, 10_000),
)
def test_evaluations_cost_at_most_a_twelfth_of_training_and_end_at_the_budget(
    iterations, batch_size, validation_images
):
    plan = evaluation(iterations, batch_size, validation_images)
    trained = 3 * iterations * batch_size  # forward passes: a backward pass costs about two

    assert 12 * (len(plan.iterations) - 1) * plan.images <= trained
    assert list(plan.iterations) == sorted(set(plan.iterations))
    assert plan.iterations[0] > 0
    assert plan.iterations[-1] == iterations
    assert 1 <= plan.images <= validation_images


@given(iterations=st.integers(32, 200_000), batch_size=st.integers(1, 512), images=st.integers(10, 10_000))
def test_a_pruner_never_finds_a_rung_that_no_evaluation_precedes(iterations, batch_size, images):
    first = evaluation(iterations, batch_size, images).iterations[0]

    assert first <= min(rungs(iterations))


@given(iterations=st.integers(32, 128_000))
def test_boundaries_may_lie_at_32_distinct_iterations_that_end_with_the_budget(iterations):
    found = grid(iterations)

    assert len(set(found)) == 32
    assert list(found) == sorted(found)
    assert found[0] > 0
    assert found[-1] == iterations


@given(base=schedules())
def test_phase_time_of_the_base_schedule_is_its_own_time(base):
    steps = range(1, base.iterations + 1)

    assert [iteration_at_phase_time(step, base, base) for step in steps] == list(steps)


@st.composite
def schedule_pairs(draw):
    size = draw(st.integers(0, 4))
    iterations = st.just(draw(st.integers(32, 400)))
    return tuple(draw(schedules(count=st.just(size), iterations=iterations)) for _ in range(2))


@given(pair=schedule_pairs())
def test_phase_time_never_runs_backwards_and_maps_each_phase_on_its_own(pair):
    recipe, base = pair
    found = [iteration_at_phase_time(step, recipe, base) for step in range(1, base.iterations + 1)]

    assert found == sorted(found)
    assert [found[phase.end - 1] for phase in phases(base)] == [phase.end for phase in phases(recipe)]
    assert all(0 <= iteration <= recipe.iterations for iteration in found)


@pytest.mark.parametrize(
    ("step", "iteration"), [(1, 0), (8, 4), (15, 7), (16, 8), (17, 9), (20, 14), (24, 20), (31, 30), (32, 32)]
)
def test_half_a_phase_of_the_base_is_half_a_phase_of_the_recipe_rounded_down(step, iteration):
    base = replace(BASELINE, boundaries=(32_000,), values=(0.1, 0.01), iterations=32)
    recipe = replace(base, boundaries=(16_000,))

    assert iteration_at_phase_time(step, recipe, base) == iteration


@pytest.mark.parametrize(
    ("step", "iteration"),
    [(16_000, 10_000), (32_000, 20_000), (40_000, 38_000), (48_000, 56_000), (56_000, 60_000), (64_000, 64_000)],
)
def test_the_smooth_schedule_counts_its_two_middle_phases_as_one_beside_a_schedule_of_three(step, iteration):
    smooth = documented_runs()["smooth_lr"].recipe  # the rate drops by a factor of 5, then 4, then 5

    assert iteration_at_phase_time(step, smooth, BASELINE) == iteration
    assert iteration_at_phase_time(iteration, BASELINE, smooth) == step


@given(recipe=schedules(), base=schedules())
def test_phase_time_never_runs_backwards_between_schedules_of_different_numbers_of_phases(recipe, base):
    recipe = recipe.at(iterations=base.iterations, seed=0)
    found = [iteration_at_phase_time(step, recipe, base) for step in range(1, base.iterations + 1)]

    assert found == sorted(found)
    assert found[-1] == recipe.iterations
    assert found[0] >= 0


def test_a_step_past_the_budget_has_no_phase_time():
    with pytest.raises(ValueError, match="step 641 is past the budget 640"):
        iteration_at_phase_time(641, BASELINE.at(iterations=640, seed=0), BASELINE.at(iterations=640, seed=0))


def test_at_equal_iterations_each_report_is_the_last_evaluation_before_its_step():
    base = BASELINE.at(iterations=64, seed=0)

    assert reports(base, base, range(3, 65, 3), "iteration") == tuple(
        Report(step=step, iteration=3 * (step // 3)) for step in range(4, 65, 2)
    )


def test_at_phase_time_each_report_is_the_last_evaluation_before_as_far_in_the_phase():
    base = replace(BASELINE, boundaries=(32_000,), values=(0.1, 0.01), iterations=32)
    recipe = replace(base, boundaries=(16_000,))
    as_far = {step: step // 2 if step <= 16 else 8 + (step - 16) * 24 // 16 for step in range(1, 33)}

    assert reports(recipe, base, range(4, 33, 4), "phase") == tuple(
        Report(step=step, iteration=4 * (iteration // 4)) for step, iteration in as_far.items() if iteration >= 4
    )


@given(pair=schedule_pairs(), align=st.sampled_from(["phase", "iteration"]), data=st.data())
def test_reports_have_the_steps_of_the_base_grid_and_look_at_no_later_evaluation(pair, align, data):
    recipe, base = pair
    inner = data.draw(st.sets(st.integers(1, recipe.iterations - 1)))
    evaluated = sorted(inner | {recipe.iterations})

    found = reports(recipe, base, evaluated, align)

    assert [r.step for r in found] == [s for s in grid(base.iterations) if s >= found[0].step]
    assert found[-1] == Report(step=base.iterations, iteration=recipe.iterations)
    assert [r.iteration for r in found] == sorted(r.iteration for r in found)
    for report in found:
        at = report.step if align == "iteration" else iteration_at_phase_time(report.step, recipe, base)
        assert report.iteration == max(e for e in evaluated if e <= at)


@given(iterations=st.integers(32, 128_000))
def test_a_pruner_is_asked_8_to_16_times_and_not_at_the_end(iterations):
    found = rungs(iterations)

    assert 8 <= len(found) <= 16
    assert found < set(grid(iterations)[:-1])


def test_the_rungs_of_a_digits_study_are_evenly_spaced():
    assert rungs(640) == frozenset(range(40, 640, 40))


@pytest.mark.parametrize(
    ("losses", "iteration"),
    [([3.0], 1), ([3.0, 2.0, 1.0], 3), ([1.0, 2.0, 3.0], 1), ([2.0, 1.0, 1.5, 1.0], 2), ([1.0, 1.0], 1)],
)
def test_the_best_point_has_the_lowest_loss_and_is_the_earliest_of_equals(losses, iteration):
    curve = curve_of(*losses)

    assert best_point(curve) == curve[iteration - 1]


@pytest.mark.parametrize(
    ("losses", "patience", "stops"),
    [
        ([], 4_000, False),
        ([1.0], 2_000, False),
        ([1.0, 2.0], 2_000, True),
        ([1.0, 1.0], 2_000, True),
        ([1.0, 2.0], 4_000, False),
        ([1.0, 2.0, 2.0], 4_000, True),
        ([1.0, 2.0, 0.5], 4_000, False),
        ([1.0, 2.0, 0.5, 0.6, 0.4], 4_000, False),
        ([1.0, 2.0, 0.5, 0.6, 0.7], 4_000, True),
        ([1.0, 2.0, 2.0, 2.0, 2.0], None, False),
    ],
)
def test_training_stops_when_the_loss_has_not_been_lower_for_as_long_as_the_patience(losses, patience, stops):
    recipe = replace(BASELINE, early_stopping=patience, iterations=32)  # 2,000 reference iterations are one step

    assert stops_early(curve_of(*losses), recipe) is stops


def test_patience_counts_iterations_and_not_evaluations():
    recipe = replace(BASELINE, early_stopping=4_000, iterations=320)  # 20 steps

    assert stops_early(curve_of(1.0, 2.0, 2.0, every=9), recipe) is False
    assert stops_early(curve_of(1.0, 2.0, 2.0, every=10), recipe) is True


def test_the_documented_curves_rank_as_they_end_at_phase_time_and_wrongly_at_equal_iterations(reference):
    with reference("documented_validation_curves.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    runs = {"baseline": "1_baseline", "dropout": "4_dropout", "smooth_lr": "5_adjusted_lr"}
    curves = {
        name: {int(row["iteration"]): float(row["val_accuracy"]) for row in rows if row["run"] == run}
        for name, run in runs.items()
    }

    def accuracy(name, iteration):
        """Average the five epochs before an iteration: single ones scatter by more than the runs differ."""
        return mean([found for at, found in curves[name].items() if at <= iteration][-5:])

    def ranking(iterations):
        return sorted(runs, key=lambda name: accuracy(name, iterations[name]), reverse=True)

    def at_the_end_of_phase(index):
        return {name: phases(documented_runs()[name].recipe)[index].end for name in runs}

    def at_phase_time(step):
        base = documented_runs()["baseline"].recipe
        return {name: iteration_at_phase_time(step, documented_runs()[name].recipe, base) for name in runs}

    epoch_80 = dict.fromkeys(runs, 80 * 351)
    assert ranking(epoch_80) == ["smooth_lr", "baseline", "dropout"]
    assert round(accuracy("smooth_lr", 80 * 351), 3) == 0.891
    assert round(accuracy("dropout", 80 * 351), 3) == 0.866

    final = ranking(at_the_end_of_phase(-1))
    documented = sorted(runs, key=lambda name: documented_runs()[name].test_accuracy, reverse=True)
    assert final == documented == ["dropout", "baseline", "smooth_lr"]
    assert ranking(at_the_end_of_phase(0)) == final
    assert ranking(at_the_end_of_phase(1)) == final
    assert ranking(at_phase_time(32_000)) == final
    assert ranking(at_phase_time(48_000)) == final


@given(
    trained=st.lists(
        schedules(iterations=st.just(64)).flatmap(lambda r: st.tuples(st.just(r), st.integers(0, 64))), max_size=6
    ),
    dropouts=st.lists(st.sampled_from([0.3, 0.5]), min_size=6, max_size=6),
)
def test_a_step_counts_once_for_all_recipes_of_a_network_with_the_same_rates_up_to_it(trained, dropouts):
    lengths = [
        (replace(recipe, head="dropout", dropout=dropout), length)
        for (recipe, length), dropout in zip(trained, dropouts, strict=False)
    ]
    states = {
        (recipe.dropout, *rate_of_each_step(recipe)[:step])
        for recipe, length in lengths
        for step in range(1, length + 1)
    }

    assert distinct_iterations(lengths) == len(states)


def test_early_stopping_is_no_part_of_what_is_shared():
    stopped = replace(BASELINE, early_stopping=3510)

    assert distinct_iterations([(BASELINE, 500), (stopped, 700), (BASELINE, 600)]) == 700
