"""Train recipes as trials of a study do, with and without sharing, and count the optimizer steps."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from optuna.trial import TrialState

from hpo import study
from hpo.database import overview, queue
from hpo.database.attempt import Attempt, Outcome
from hpo.database.storage import Storage
from hpo.recipes.recipe import Recipe
from hpo.recipes.schedule import CurvePoint
from hpo.training.data import Dataset
from hpo.training.datasets import load_dataset
from hpo.trial.checkpoints import Checkpoints, Sharing
from hpo.trial.objective import Task, run_trial
from tests.integration.support import NOTHING, SETTINGS, WORKER

BUDGET = 32
RECIPE = Recipe(
    head="dropout",
    dropout=0.5,
    shortcut_norm=True,
    boundaries=(20000, 40000),
    values=(0.05, 0.02, 0.005),
    batch_size=8,
    iterations=BUDGET,
)
BASE = replace(RECIPE, weight_decay=1e-4)
"""Another recipe with the schedule of `RECIPE`: the base recipe itself is never pruned."""

AT_RUNG = re.compile(r"(?<=at )rung \d+ \((?=iteration \d+\))|(?<=\d)\)$")
"""What a promoting pruner says more than another: "pruned at rung 1 (iteration 32)" for "pruned at iteration 32"."""

Alone = tuple[str, float | None, list[CurvePoint]]
"""How a trial ends that is disturbed by nothing, its value and its curve."""


@dataclass
class Watcher:
    """Count what is trained, keep what is measured, and stop or prune where it is told to."""

    stop_at: int | None = None
    prune_at: int | None = None
    steps: int = 0
    iteration: int = 0
    curve: list[CurvePoint] = field(default_factory=list)

    def stopped(self) -> bool:
        """Count the iterations by being asked before each."""
        self.asked = getattr(self, "asked", -1) + 1
        return self.stop_at is not None and self.asked >= self.stop_at

    def computing(self) -> AbstractContextManager[None]:
        return nullcontext()

    def advanced(self, iteration: int, steps: int) -> None:
        self.steps += steps
        self.iteration = iteration

    def record(self, point: CurvePoint, values: Mapping[int, float]) -> None:
        del values
        self.curve.append(point)

    def should_prune(self) -> bool:
        return self.prune_at is not None and self.curve[-1].iteration >= self.prune_at

    def reach_rung(self, rung: int, value: float, *, promoted: bool) -> bool:
        raise AssertionError(f"asked about rung {rung}, value {value}, promoted {promoted}")


def claim(storage: Storage, number: int = 1) -> list[Attempt]:
    """Claim trials of a new study, all for live workers."""
    made = study.continue_or_create(storage, "shared", SETTINGS, 100)
    claimed = [queue.claim(storage, made.study_id, WORKER) for _ in range(number)]
    assert None not in claimed
    return [attempt for attempt in claimed if attempt]


def train(recipe: Recipe, digits: Dataset, sharing: Sharing | None, **kwargs: Any) -> tuple[object, Watcher]:
    watcher = Watcher(**kwargs)
    task = Task(recipe=recipe, base=BASE, align="phase", precision="fp32")
    return run_trial(task, digits, watcher, sharing), watcher


_alone: dict[tuple[Recipe, str], tuple[object, Watcher]] = {}


def train_alone(recipe: Recipe, digits: Dataset) -> tuple[object, Watcher]:
    """Train a recipe without sharing; what that gives is compared with again and again, and trained once."""
    key = recipe, digits.checksum
    if key not in _alone:
        _alone[key] = train(recipe, digits, None)
    return _alone[key]


def train_and_finish(recipe: Recipe, digits: Dataset, checkpoints: Checkpoints) -> tuple[object, Watcher]:
    [attempt] = claim(checkpoints.storage)
    outcome, watcher = train(recipe, digits, Sharing(checkpoints, attempt))
    assert isinstance(outcome, Outcome)
    queue.finish(checkpoints.storage, attempt, NOTHING, outcome)
    return outcome, watcher


def require_undisturbed(made: study.Study, folder: Path, each: Callable[..., Iterable[Alone]] = map) -> None:
    """Train each trial's recipe alone, and see that end, value and curve are the same.

    Args:
        each: Calls a function with all arguments, as `map` does; that of an executor trains several at once.
    """
    trials = made.trials()
    curves = [overview.load_curve(made.storage, trial._trial_id) for trial in trials]
    tasks = [Task(recipe=made.recipe_of(trial), base=made.base, align="phase", precision="fp32") for trial in trials]
    ends = [c[-1].iteration if t.state == TrialState.PRUNED else None for t, c in zip(trials, curves, strict=True)]
    alone = each(_train_undisturbed, tasks, ends, [folder] * len(trials))
    outcomes = [AT_RUNG.sub("", trial.user_attrs["outcome"]) for trial in trials]
    found = [(outcome, t.value, curve) for outcome, t, curve in zip(outcomes, trials, curves, strict=True)]
    for one, other in zip(found, alone, strict=True):
        assert one == other


def _train_undisturbed(task: Task, prune_at: int | None, folder: Path) -> Alone:
    torch.set_num_threads(1)  # as workers do
    watcher = Watcher(prune_at=prune_at)
    outcome = run_trial(task, load_dataset("digits", folder), watcher)
    assert isinstance(outcome, Outcome)
    return outcome.attrs["outcome"], outcome.value, watcher.curve
