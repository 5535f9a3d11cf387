"""A recipe's schedule: learning rate, phases, phase time, evaluations, reports to Optuna and early stopping."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import Literal

from hpo.recipes.recipe import BOUNDARY_GRID, REFERENCE_ITERATIONS, Recipe

Align = Literal["phase", "iteration"]
"""What trials are compared at: equal phase time, or equal iterations."""

RUNGS = 16
"""Number of prune decisions in a full trial; each reads every running trial, so there are fewer than reports."""

REPORTS = REFERENCE_ITERATIONS // BOUNDARY_GRID
"""Number of values that a full trial reports to Optuna: one for each possible boundary of a schedule, and the last."""

_EVALUATION_SPACINGS = (250, 500, 1_000, 2_000)
"""Reference iterations between two evaluations, the finest spacing first."""

_EVALUATION_SHARE = Fraction(1, 12)
"""The largest cost of the evaluations, as a fraction of the cost of training."""

_FORWARD_PASSES_PER_STEP = 3  # a backward pass costs about two forward passes


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """A range [start, end) of iterations with one learning rate."""

    start: int
    end: int
    learning_rate: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """The iterations at which a run is evaluated, and the number of validation images.

    Attributes:
        iterations: Ascending; the last is the budget.
        images: Size of the fixed subset for all but the last evaluation, which uses the whole split.
    """

    iterations: tuple[int, ...]
    images: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CurvePoint:
    """One evaluation of a run.

    Attributes:
        train_loss: Mean cross-entropy of the training batches since the previous evaluation, label smoothing included.
        train_accuracy: Accuracy on the same batches, augmented and in training mode, in [0, 1]; None in curves of
            releases that did not measure it.
        val_loss: Mean cross-entropy on the validation images.
        val_accuracy: In [0, 1].
    """

    iteration: int
    train_loss: float
    train_accuracy: float | None = None
    val_loss: float
    val_accuracy: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """A value for Optuna: measured at `iteration`, reported as `step`."""

    step: int
    iteration: int


def scale(reference: int, iterations: int) -> int:
    """Convert reference iterations to iterations of a budget, rounded half up."""
    return (2 * reference * iterations + REFERENCE_ITERATIONS) // (2 * REFERENCE_ITERATIONS)


def phases(recipe: Recipe) -> tuple[Phase, ...]:
    """List the phases of a recipe in iterations of its own budget."""
    edges = [0, *(scale(b, recipe.iterations) for b in recipe.boundaries), recipe.iterations]
    return tuple(
        Phase(start=start, end=end, learning_rate=value)
        for (start, end), value in zip(pairwise(edges), recipe.values, strict=True)
    )


def learning_rate(recipe: Recipe, iteration: int) -> float:
    """Return the learning rate of the optimizer step from `iteration` to the next."""
    starts = [phase.start for phase in phases(recipe)]
    return recipe.values[bisect_right(starts, iteration) - 1]


def learning_rate_runs(recipe: Recipe, until: int) -> tuple[tuple[int, float], ...]:
    """List the learning rates over [0, until) as (end, rate), with equal neighbours merged and no empty phases."""
    runs: list[tuple[int, float]] = []
    for phase in phases(recipe):
        end = min(phase.end, until)
        if phase.start >= end:
            continue
        if runs and runs[-1][1] == phase.learning_rate:
            runs.pop()
        runs.append((end, phase.learning_rate))
    return tuple(runs)


def distinct_iterations(lengths: Iterable[tuple[Recipe, int]]) -> int:
    """Count the optimizer steps of recipes, each trained up to an iteration; shared steps count once."""
    reached: dict[tuple[object, ...], int] = {}
    for recipe, length in lengths:
        same = replace(recipe, boundaries=(), values=(1.0,), early_stopping=None)
        runs = learning_rate_runs(recipe, length)
        for index, (end, rate) in enumerate(runs):
            before = runs[:index]
            steps = end - (before[-1][0] if before else 0)
            key = (same, before, rate)
            reached[key] = max(reached.get(key, 0), steps)
    return sum(reached.values())


def evaluation(iterations: int, batch_size: int, validation_images: int) -> Evaluation:
    """Place the evaluations of a run so that they cost at most a twelfth of its time.

    The spacing is the finest of 250, 500, 1,000 and 2,000 reference iterations that fits (250 at the full CIFAR-10
    budget: more than once per epoch of 351). If none fits, a fixed subset of the validation split is used, except at
    the end. Cost is counted in forward passes, a training step as three.
    """
    for spacing in _EVALUATION_SPACINGS:
        trained = Fraction(spacing * iterations, REFERENCE_ITERATIONS) * batch_size * _FORWARD_PASSES_PER_STEP
        if validation_images <= trained * _EVALUATION_SHARE and spacing * iterations >= REFERENCE_ITERATIONS:
            break
    images = min(validation_images, max(1, int(trained * _EVALUATION_SHARE)))
    points = range(spacing, REFERENCE_ITERATIONS + 1, spacing)
    return Evaluation(iterations=tuple(scale(p, iterations) for p in points), images=images)


def grid(iterations: int) -> tuple[int, ...]:
    """List the iterations at which a boundary may lie, and the budget."""
    return tuple(scale(g, iterations) for g in range(BOUNDARY_GRID, REFERENCE_ITERATIONS + 1, BOUNDARY_GRID))


def iteration_at_phase_time(step: int, recipe: Recipe, base: Recipe) -> int:
    """Compute the iteration at which a recipe is as far as `base` is at iteration `step`.

    As far means: in the same phase, and past the same fraction of it, rounded down. If one schedule has more phases,
    its neighbouring phases with the smallest drop of the rate between them are merged until both have equally many: a
    small drop affects the accuracy least.

    Raises:
        ValueError: The step is past the budget of `base`.
    """
    count = min(len(recipe.values), len(base.values))
    for own, reference in zip(_merged(phases(recipe), count), _merged(phases(base), count), strict=True):
        if step <= reference.end:
            done = Fraction(step - reference.start, reference.end - reference.start)
            return own.start + int(done * (own.end - own.start))
    raise ValueError(f"step {step} is past the budget {base.iterations}")


def _merged(original: Sequence[Phase], count: int) -> list[Phase]:
    merged = list(original)
    while len(merged) > count:
        drops = [abs(math.log(a.learning_rate / b.learning_rate)) for a, b in pairwise(merged)]
        first = drops.index(min(drops))
        merged[first : first + 2] = [replace(merged[first + 1], start=merged[first].start)]
    return merged


def reports(recipe: Recipe, base: Recipe, evaluated: Sequence[int], align: Align) -> tuple[Report, ...]:
    """List which measurement is reported to Optuna as which step.

    The steps are the same for all trials of a study: the grid of the base schedule. The value of a step is that of
    the last evaluation at or before the iteration that corresponds to it.

    Args:
        evaluated: The iterations of the evaluations, ascending.
    """
    planned = []
    for step in grid(base.iterations):
        iteration = iteration_at_phase_time(step, recipe, base) if align == "phase" else step
        at = bisect_right(evaluated, iteration)
        if at:
            planned.append(Report(step=step, iteration=evaluated[at - 1]))
    return tuple(planned)


def rungs(iterations: int, count: int = RUNGS) -> frozenset[int]:
    """List the steps at which the pruner is asked; not the last, when there is nothing left to save."""
    steps = grid(iterations)
    return frozenset(steps[REPORTS // count - 1 : -1 : REPORTS // count])


def best_point(curve: Sequence[CurvePoint]) -> CurvePoint:
    """Return the point with the lowest validation loss; of equals, the earliest."""
    return min(curve, key=lambda point: point.val_loss)


def final_iteration(curve: Sequence[CurvePoint], recipe: Recipe) -> int:
    """Return the iteration of a run's final weights: the last, or with early stopping, that of the lowest loss."""
    return curve[-1].iteration if recipe.early_stopping is None else best_point(curve).iteration


def stops_early(curve: Sequence[CurvePoint], recipe: Recipe) -> bool:
    """Return whether the patience of a recipe has run out at the end of a curve."""
    if recipe.early_stopping is None or not curve:
        return False
    patience = scale(recipe.early_stopping, recipe.iterations)
    return curve[-1].iteration - best_point(curve).iteration >= patience
