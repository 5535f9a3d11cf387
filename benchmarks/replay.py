"""Replays of searches on full learning curves: who is stopped when, what it costs, and which recipe is named.

Nothing is trained. Trials come one after the other, as one worker trains them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Literal, Protocol

import numpy as np
from truth_table import Run, Truth

from hpo.recipes.comparison import BASELINE
from hpo.recipes.promotion import first_drop
from hpo.recipes.recipe import Recipe
from hpo.recipes.schedule import Align, CurvePoint, distinct_iterations, grid, iteration_at_phase_time
from hpo.results.race import Score, race


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """What trials are compared by.

    Attributes:
        over: The last evaluation, the mean of the last `count`, or the best so far.
    """

    figure: Literal["accuracy", "loss"] = "accuracy"
    over: Literal["last", "mean", "best"] = "last"
    count: int = 3

    def __str__(self) -> str:
        over = {"last": "last", "mean": f"mean of {self.count}", "best": "best so far"}[self.over]
        return f"{self.figure}, {over}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """A point at which a trial is compared with others, which have the same steps.

    Attributes:
        value: The higher the better.
    """

    step: int
    iteration: int
    value: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A run as a pruner sees it.

    Attributes:
        recipe: With the budget and the seed of the run.
        length: Optimizer steps to its end, early stopping included.
    """

    name: str
    recipe: Recipe
    length: int
    decisions: tuple[Decision, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """How far a trial was trained in a search."""

    trial: Trial
    iterations: int

    @property
    def complete(self) -> bool:
        """Tell whether the trial reached its end."""
        return self.iterations == self.trial.length


Pruner = Callable[[Sequence[Trial]], list[Trained]]
"""A function from the trials of a search, in their order, to how far each is trained."""


class Stopper(Protocol):
    """A pruner that only stops: it sees every trial once, and remembers what it compares the next ones with."""

    def find_stop(self, decisions: Sequence[Decision]) -> int | None:
        """Find the index of the decision at which the next trial is stopped; None if it trains to its end."""


def compared_value(curve: Sequence[CurvePoint], iteration: int, compared: Compared, after: int = 0) -> float:
    """Return what a trial is compared by at an iteration.

    Args:
        after: Evaluations up to here count only if there is none later.
    """
    sign, figure = (1, "val_accuracy") if compared.figure == "accuracy" else (-1, "val_loss")
    measured = [point for point in curve if point.iteration <= iteration]
    later = [point for point in measured if point.iteration > after] or measured[-1:]
    known = [sign * float(getattr(point, figure)) for point in later]
    match compared.over:
        case "last":
            return known[-1]
        case "mean":
            return fmean(known[-compared.count :])
        case "best":
            return max(known)


def rungs_after_drop(base: Recipe, count: int, factor: int) -> tuple[int, ...]:
    """List steps at which trials are compared, by their distance from the first drop of the base recipe's rate.

    The last lies at a `factor`-th of the distance to the end, the one before at a `factor`-th of that, and so on.
    """
    start = first_drop(base)
    wanted = [start + (base.iterations - start) / factor**power for power in range(count, 0, -1)]
    return tuple(dict.fromkeys(next(step for step in grid(base.iterations) if step >= at) for at in wanted))


def as_trial(
    truth: Truth, run: Run, steps: Sequence[int], align: Align, compared: Compared, *, after_drop: bool = False
) -> Trial:
    """Show a run as a trial with decisions at some steps of the base schedule.

    Args:
        after_drop: Whether evaluations count only after the first drop of the trial's own rate.
    """
    recipe = truth.recipes[run.recipe].at(iterations=truth.base.iterations, seed=run.seed)
    evaluated = [point.iteration for point in run.curve]
    after = first_drop(recipe) if after_drop else 0
    decisions = []
    for step in steps:
        reached = iteration_at_phase_time(step, recipe, truth.base) if align == "phase" else step
        at = bisect_right(evaluated, reached)
        if at and reached < run.length:
            value = compared_value(run.curve, evaluated[at - 1], compared, after)
            decisions.append(Decision(step=step, iteration=evaluated[at - 1], value=value))
    return Trial(name=run.recipe, recipe=recipe, length=run.length, decisions=tuple(decisions))


def train_all(trials: Sequence[Trial]) -> list[Trained]:
    """Train all trials to their ends."""
    return [Trained(trial=trial, iterations=trial.length) for trial in trials]


def stop_by(make_stopper: Callable[[], Stopper]) -> Pruner:
    """Make a pruner that shows each trial to a stopper, a new one for each search."""

    def prune(trials: Sequence[Trial]) -> list[Trained]:
        """Train each trial until it is stopped."""
        stopper = make_stopper()
        return [_trained(trial, stopper.find_stop(trial.decisions)) for trial in trials]

    return prune


def _trained(trial: Trial, stop: int | None) -> Trained:
    return Trained(trial=trial, iterations=trial.length if stop is None else trial.decisions[stop].iteration)


class MedianStopper:
    """Optuna's MedianPruner: a trial stops when its best value is below the median of the completed ones at that step.

    Args:
        asked: The steps at which it decides, or None for all.
        startup: The number of completed trials before it decides.
    """

    def __init__(self, asked: frozenset[int] | None = None, startup: int = 5) -> None:
        self._asked = asked
        self._startup = startup
        self._complete: list[dict[int, float]] = []

    def find_stop(self, decisions: Sequence[Decision]) -> int | None:
        """Find the first decision at which the best value so far is too low."""
        best = float("-inf")
        for index, decision in enumerate(decisions):
            best = max(best, decision.value)
            if (self._asked is None or decision.step in self._asked) and self._is_low(best, decision.step):
                return index
        self._complete.append({decision.step: decision.value for decision in decisions})
        return None

    def _is_low(self, best: float, step: int) -> bool:
        others = [values[step] for values in self._complete if step in values]
        return len(self._complete) >= self._startup and bool(others) and best < median(others)


class HalvingStopper:
    """Optuna's SuccessiveHalvingPruner: a trial stops at a rung unless it is among the best `1 / factor` there so far.

    Args:
        first: The first rung's step; the next lies at `factor` times that, and so on.
    """

    def __init__(self, first: int, factor: int) -> None:
        self._first = first
        self._factor = factor
        self._rungs: dict[int, list[float]] = {}

    def find_stop(self, decisions: Sequence[Decision]) -> int | None:
        """Find the first rung at which the trial is not among the best."""
        rung = 0
        for index, decision in enumerate(decisions):
            while decision.step >= self._first * self._factor**rung:
                if not self._passes(rung, decision.value):
                    return index
                rung += 1
        return None

    def _passes(self, rung: int, value: float) -> bool:
        values = self._rungs.setdefault(rung, [])
        values.append(value)
        return value >= sorted(values, reverse=True)[max(len(values) // self._factor - 1, 0)]


class QuantileStopper:
    """Ray Tune's ASHAScheduler: a trial stops at a rung when it is below the upper `1 / factor` quantile of the others.

    Args:
        rungs: The steps of the rungs.
    """

    def __init__(self, rungs: Sequence[int], factor: int) -> None:
        self._factor = factor
        self._rungs: dict[int, list[float]] = {step: [] for step in rungs}

    def find_stop(self, decisions: Sequence[Decision]) -> int | None:
        """Find the first rung at which the value is below the quantile of those before."""
        for index, decision in enumerate(decisions):
            if decision.step in self._rungs:
                before = self._rungs[decision.step]
                cutoff = np.quantile(before, 1 - 1 / self._factor) if before else float("-inf")
                before.append(decision.value)
                if decision.value < cutoff:
                    return index
        return None


def promote_by(factor: int, at_least: int = 1) -> Pruner:
    """Make a pruner that promotes (Li et al. 2020, §3, algorithm 2).

    A trial waits at its rung until it is among the best `1 / factor` of those that have reached it; a trial that may go
    on comes before a new one. The base recipe is never kept waiting.

    Args:
        at_least: How many go on from a rung, even if it is a larger share of those that have reached it.
    """

    def prune(trials: Sequence[Trial]) -> list[Trained]:
        """Train until no trial is new and none may go on."""
        at = [NEW] * len(trials)
        while (chosen := _next_trial(trials, at, factor, at_least)) is not None:
            at[chosen] = len(trials[chosen].decisions) if trials[chosen].name == BASELINE else at[chosen] + 1
        return [
            _trained(trial, rung if rung < len(trial.decisions) else None)
            for trial, rung in zip(trials, at, strict=True)
        ]

    return prune


NEW = -1
"""In place of the index of the decision at which a trial waits."""


def _next_trial(trials: Sequence[Trial], at: Sequence[int], factor: int, at_least: int) -> int | None:
    """Choose the trial that trains next: the best of the highest rung that may go on, else the first new one."""
    for rung in reversed(range(max(len(trial.decisions) for trial in trials))):
        there = _rank_at(trials, at, rung)
        for trial in there[: max(at_least, len(there) // factor)]:
            if at[trial] == rung:
                return trial
    return at.index(NEW) if NEW in at else None


def _rank_at(trials: Sequence[Trial], at: Sequence[int], rung: int) -> list[int]:
    """List the trials that have reached a rung, the best first."""
    there = [i for i, trial in enumerate(trials) if rung <= at[i] and rung < len(trial.decisions)]
    return sorted(there, key=lambda i: (-trials[i].decisions[rung].value, i))


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """How a search names its winner.

    Attributes:
        ties: Of trials with the same accuracy, the first or the one with the lowest loss; or the lowest loss at once.
        top: How many of the best are trained on further seeds, with the base recipe; 0 for no confirmation.
        seeds: How many further seeds.
    """

    ties: Literal["first", "loss", "loss alone"] = "loss"
    top: int = 0
    seeds: int = 0

    def __str__(self) -> str:
        ties = {"first": "first of the best", "loss": "ties by loss", "loss alone": "lowest loss"}[self.ties]
        return f"confirmed, K = {self.top}, R = {self.seeds}" if self.top else ties


@dataclass(frozen=True, kw_only=True, slots=True)
class Named:
    """The recipe that a search names, and the runs on further seeds by which it was chosen."""

    recipe: str
    confirmed: tuple[Run, ...]


def name_winner(truth: Truth, complete: Sequence[Run], further: Sequence[int], choice: Choice) -> Named:
    """Choose the recipe that a search names.

    Args:
        complete: The runs that reached their ends on the search's seed, in the order of their trials.
        further: Seeds for confirmation, as many as the choice takes.
    """
    ranked = sorted(complete, key=lambda run: _rank(run.accuracy, run.loss, choice))
    if not choice.top:
        return Named(recipe=ranked[0].recipe, confirmed=())
    names = dict.fromkeys([*(run.recipe for run in ranked[: choice.top]), BASELINE])
    runs = {name: [truth.runs[name, seed] for seed in further[: choice.seeds]] for name in names}
    scores = {name: [Score(accuracy=run.accuracy, loss=run.loss) for run in own] for name, own in runs.items()}
    ended = race(scores, BASELINE)
    confirmed = [run for name, own in runs.items() for run in own[: ended.dropped.get(name)]]
    return Named(recipe=ended.ranking[0], confirmed=tuple(confirmed))


def _rank(accuracy: float, loss: float, choice: Choice) -> tuple[float, ...]:
    return {"first": (-accuracy,), "loss": (-accuracy, loss), "loss alone": (loss,)}[choice.ties]


def count_steps(truth: Truth, trained: Sequence[Trained], confirmed: Sequence[Run], *, reuse: bool) -> int:
    """Count the optimizer steps of a search and its confirmation; with reuse, shared ones once."""
    lengths = [(each.trial.recipe, each.iterations) for each in trained]
    budget = truth.base.iterations
    lengths += [(truth.recipes[run.recipe].at(iterations=budget, seed=run.seed), run.length) for run in confirmed]
    return distinct_iterations(lengths) if reuse else sum(length for _, length in lengths)


def best_elsewhere(truth: Truth, names: Sequence[str]) -> dict[int, str]:
    """Name the best of some recipes for each seed: by its mean over the others; of equals the first in the table."""
    listed = [name for name in truth.recipes if name in names]
    return {
        seed: max(listed, key=lambda name: fmean(truth.accuracy(name, s) for s in truth.seeds if s != seed))
        for seed in truth.seeds
    }
