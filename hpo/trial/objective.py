"""The run of one trial: train its recipe, report on the way, and stop early, prune or finish."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from hpo.database.attempt import FinalState, Outcome
from hpo.recipes.promotion import compared_value, promotion_rungs
from hpo.recipes.recipe import Recipe
from hpo.recipes.schedule import Align, CurvePoint, best_point, evaluation, final_iteration, reports, rungs, stops_early
from hpo.settings import STANDARD_ERROR, VALIDATION_LOSS, Precision
from hpo.training.data import Dataset
from hpo.training.train import Measurement, Training
from hpo.trial.checkpoints import Sharing
from hpo.trial.trajectory import Blocked, Trajectory

NUMERICS = "numerics"
"""The user attribute that says how a finished trial was computed: the fields of `Numerics`."""

AtEnd = Callable[[Training], dict[str, Any]]
"""A function from a completed run, with its final weights, to attributes for its trial."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """The task of a trial: its recipe, and how it is compared with others.

    Attributes:
        base: The base recipe of the space at the same budget.
        align: Whether trials are compared at equal phase time or at equal iterations.
        promoting: Whether trials wait at rungs until they are promoted, rather than being pruned.
    """

    recipe: Recipe
    base: Recipe
    align: Align
    precision: Precision
    at_end: AtEnd | None = None
    promoting: bool = False


class Supervisor(Protocol):
    """A recipient of a trial's progress that decides whether it continues."""

    def stopped(self) -> bool:
        """Return whether training must stop now; asked before each iteration, so it must be quick."""

    def computing(self) -> AbstractContextManager[object]:
        """Return a context to enter for as long as something keeps the device busy."""

    def advanced(self, iteration: int, steps: int) -> None:
        """Note that `steps` optimizer steps led to `iteration`."""

    def record(self, point: CurvePoint, values: Mapping[int, float]) -> None:
        """Record a measurement, and the values reported to Optuna, by step."""

    def should_prune(self) -> bool:
        """Ask the study's pruner about what has been recorded so far."""

    def reach_rung(self, rung: int, value: float, *, promoted: bool) -> bool:
        """Note what the trial is compared by at a rung, and return whether it trains on; if `promoted`, it does."""


def run_trial(
    task: Task, dataset: Dataset, supervisor: Supervisor, sharing: Sharing | None = None
) -> Outcome | Blocked:
    """Train a trial's recipe to its end, from the deepest checkpoint on its path.

    Measurements from before that checkpoint are reported and judged as if they had been made here. The base recipe is
    never pruned, as every other recipe is compared with it.

    Args:
        sharing: None to train everything from scratch.

    Returns:
        How the trial ended, or where it waits; `stopped` if the supervisor stopped it; `parked` if a live worker trains
        what it needs.
    """
    budget = task.recipe.iterations
    plan = evaluation(budget, task.recipe.batch_size, len(dataset.validation))
    to_report = reports(task.recipe, task.base, plan.iterations, task.align)
    trajectory = Trajectory(
        task.recipe,
        dataset,
        task.precision,
        plan,
        sharing=sharing,
        stop=supervisor.stopped,
        computing=supervisor.computing,
        advanced=supervisor.advanced,
    )
    curve: list[CurvePoint] = []
    reported: dict[int, float] = {}

    for iteration in plan.iterations:
        point = trajectory.measure_at(iteration)
        if not isinstance(point, CurvePoint):
            return point
        if not (math.isfinite(point.train_loss) and math.isfinite(point.val_loss)):
            why = f"diverged: the loss was not finite at iteration {iteration}"
            return _ended("pruned", why, trajectory, curve, reported)
        curve.append(point)
        values = {report.step: point.val_accuracy for report in to_report if report.iteration == iteration}
        reported |= values
        supervisor.record(point, values)

        if task.recipe.early_stopping is not None and best_point(curve) is point:
            trajectory.keep()
        if stops_early(curve, task.recipe):
            break
        rung = _find_last_rung(task, supervisor, curve, values)
        if rung is not None:
            trajectory.save()
            return _waiting(rung, trajectory, curve)
        # The pruner is asked about the base recipe too, so that it can compare the others with it.
        if rungs(budget) & values.keys() and supervisor.should_prune() and task.recipe != task.base:
            trajectory.save()
            return _ended("pruned", f"pruned at iteration {iteration}", trajectory, curve, reported)

    trajectory.save()
    return _completed(trajectory, task, curve)


def _find_last_rung(
    task: Task, supervisor: Supervisor, curve: Sequence[CurvePoint], values: Mapping[int, float]
) -> int | None:
    """Find the rung at the end of a curve at which a trial has to wait; None if it trains on."""
    value = compared_value(curve, task.recipe)
    if not task.promoting or value is None:
        return None
    for rung, step in enumerate(promotion_rungs(task.base), start=1):
        if step in values and not supervisor.reach_rung(rung, value, promoted=task.recipe == task.base):
            return rung
    return None


def _waiting(rung: int, trajectory: Trajectory, curve: list[CurvePoint]) -> Outcome:
    """Describe a trial that waits at a rung."""
    end = curve[-1].iteration
    attrs = {"outcome": f"waiting at rung {rung} (iteration {end})", "iterations": end}
    return Outcome(state="waiting", value=None, attrs=attrs | {NUMERICS: trajectory.numerics.to_dict()})


def _ended(
    state: FinalState, why: str, trajectory: Trajectory, curve: list[CurvePoint], reported: dict[int, float]
) -> Outcome:
    """Describe a trial that did not reach its end; its value is the last one reported to Optuna."""
    value = reported[max(reported)] if reported else None
    length = curve[-1].iteration if curve else 0
    attrs = {"outcome": why, "iterations": length, NUMERICS: trajectory.numerics.to_dict()}
    return Outcome(state=state, value=value, attrs=attrs)


def _completed(trajectory: Trajectory, task: Task, curve: list[CurvePoint]) -> Outcome | Blocked:
    """Describe a trial that reached its end; with early stopping, its weights are those with the lowest loss."""
    end, restored = curve[-1].iteration, final_iteration(curve, task.recipe)
    measurement = trajectory.evaluate_at(restored)
    if not isinstance(measurement, Measurement):
        return measurement
    sentence = "complete" if end == task.recipe.iterations else f"stopped early at iteration {end}"
    if restored != end:
        sentence += f", weights of iteration {restored}"
    attrs: dict[str, Any] = {
        "outcome": sentence,
        "iterations": end,
        VALIDATION_LOSS: measurement.loss,
        STANDARD_ERROR: standard_error(measurement.accuracy, measurement.images),
        NUMERICS: trajectory.numerics.to_dict(),
    }
    trajectory.save_kept(restored)
    if task.at_end is not None:
        training = trajectory.training_at(restored)
        if not isinstance(training, Training):
            return training
        attrs |= task.at_end(training)
    return Outcome(state="complete", value=measurement.accuracy, attrs=attrs)


def standard_error(accuracy: float, images: int) -> float:
    """Return the standard error of an accuracy measured on independent images (binomial)."""
    return math.sqrt(accuracy * (1 - accuracy) / images)
