"""The promotion of trials: where their rungs are, what is compared there, and which trials may train beyond.

This is the asynchronous successive halving of Li et al. 2020 (§3, algorithm 2): a trial that is not in the best third
of those that have reached its rung waits there, and continues once it is. So an early decision can be corrected later.
The best of a rung trains on even where it is of fewer than three, so that a short search has more than one full trial.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from statistics import fmean

from hpo.recipes.recipe import Recipe
from hpo.recipes.schedule import CurvePoint, grid, learning_rate_runs

FACTOR = 3
"""One of this many trials is promoted at each rung. Chosen with the rungs, by `benchmarks/true_regret.py`."""

PHASE_SHARE = 3
"""A rung lies at one of this many parts of its phase."""

COMPARED_EVALUATIONS = 3
"""Trials are compared by the mean accuracy of this many evaluations up to a rung: a single one is noisy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reached:
    """A rung that a trial has reached.

    Attributes:
        rung: Rungs count from 1.
        value: What trials are compared by.
        promoted: Whether the trial has been allowed to train beyond the rung.
    """

    trial_id: int
    trial_number: int
    rung: int
    value: float
    promoted: bool


def list_promotable(reached: Iterable[Reached]) -> list[Reached]:
    """List the trials that wait at a rung and may train on: those of the highest rung first, the best of each first."""
    by_rung = groupby(sorted(reached, key=lambda each: (-each.rung, -each.value, each.trial_number)), _rung)
    return [each for _, ranked in by_rung for each in _best(list(ranked)) if not each.promoted]


def promotion_rungs(base: Recipe) -> tuple[int, ...]:
    """List the steps at which trials are compared, on the schedule of the base recipe.

    Trials share what they train before their rate first drops, so ending one there would save nothing, and as long as
    the rate is high their accuracies say little. Each later drop changes the order of the trials again, and soon after
    it they can be compared. So each later phase has one rung, at its third, except the last phase: there is little left
    to save. If it is the only one, it has the rung.
    """
    start, steps = first_drop(base), grid(base.iterations)
    edges = [start, *(end for end, _ in learning_rate_runs(base, base.iterations) if end > start)]
    later = list(pairwise(edges))
    compared = later[:-1] or later
    reached = (next(step for step in steps if PHASE_SHARE * (step - begin) >= end - begin) for begin, end in compared)
    return tuple(sorted({step for step, (_, end) in zip(reached, compared, strict=True) if step < end}))


def first_drop(recipe: Recipe) -> int:
    """Return the iteration at which the learning rate first drops; 0 if it never does."""
    runs = learning_rate_runs(recipe, recipe.iterations)
    for (end, rate), (_, later) in pairwise(runs):
        if later < rate:
            return end
    return 0


def compared_value(curve: Sequence[CurvePoint], recipe: Recipe) -> float | None:
    """Return what a trial is compared by at the end of a curve; None if its learning rate has not dropped yet."""
    drop = first_drop(recipe)
    known = [point.val_accuracy for point in curve if point.iteration > drop]
    return fmean(known[-COMPARED_EVALUATIONS:]) if known else None


def _best(ranked: Sequence[Reached]) -> Sequence[Reached]:
    return ranked[: max(1, len(ranked) // FACTOR)]


def _rung(reached: Reached) -> int:
    return reached.rung
