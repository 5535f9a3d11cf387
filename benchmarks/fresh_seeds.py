"""Train recipes on seeds that no search has used, each to its end with `hpo`, and measure them on the test split.

All are trained in the same way, whoever found them: several at a time, each in a process of one thread.
"""

from __future__ import annotations

import json
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from hpo.artifacts import write_whole
from hpo.launch.cores import count_cores
from hpo.recipes.comparison import SEEDS
from hpo.recipes.distinct import recipe_key
from hpo.recipes.recipe import Recipe, derive_seed
from hpo.recipes.schedule import CurvePoint
from hpo.results.test_split import TEST_ACCURACY, TEST_LOSS, load_test_split
from hpo.training.data import Dataset
from hpo.training.datasets import load_dataset
from hpo.training.numerics import native_precision, prepare_torch
from hpo.training.train import Training
from hpo.trial.objective import Task, run_trial


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A training on a fresh seed, and where its result is kept."""

    recipe: Recipe
    dataset: str
    checksum: str
    data_dir: Path
    file: Path


class Unsupervised:
    """A supervisor that lets every trial train to its end."""

    def stopped(self) -> bool:
        return False

    def computing(self) -> AbstractContextManager[object]:
        return nullcontext()

    def advanced(self, iteration: int, steps: int) -> None: ...

    def record(self, point: CurvePoint, values: Mapping[int, float]) -> None: ...

    def should_prune(self) -> bool:
        return False

    def reach_rung(self, rung: int, value: float, *, promoted: bool) -> bool:
        return True


def fresh_seeds(count: int) -> list[int]:
    """Return the same seeds for all recipes, which neither searches nor confirmations use."""
    return [derive_seed("live comparison", index) % SEEDS for index in range(count)]


def accuracies(
    recipes: Iterable[Recipe],
    seeds: int,
    dataset: Dataset,
    data_dir: Path,
    folder: Path,
    announce: Callable[[int, int], None],
) -> dict[str, list[float]]:
    """Train each distinct recipe on each seed, apart from what the folder holds, and return test accuracies by key.

    Args:
        announce: Told how many trainings are done, and of how many.
    """
    distinct = {recipe_key(recipe.at(iterations=recipe.iterations, seed=0)): recipe for recipe in recipes}
    runs = {
        key: [
            Run(
                recipe=recipe.at(iterations=recipe.iterations, seed=seed),
                dataset=dataset.name,
                checksum=dataset.checksum,
                data_dir=data_dir,
                file=folder / f"{key}-{seed}.json",
            )
            for seed in fresh_seeds(seeds)
        ]
        for key, recipe in distinct.items()
    }
    everything = [run for each in runs.values() for run in each]
    missing = [run for run in everything if not run.file.exists()]
    for done, _ in enumerate(_train_all(missing), start=1):
        announce(len(everything) - len(missing) + done, len(everything))
    return {key: [json.loads(run.file.read_bytes())[TEST_ACCURACY] for run in each] for key, each in runs.items()}


def _train_all(runs: list[Run]) -> Iterator[None]:
    """Train on all cores; the processes end with this one's context."""
    if not runs:
        return
    with multiprocessing.get_context("spawn").Pool(min(count_cores(), len(runs)), _ignore_interrupts) as pool:
        yield from pool.imap_unordered(train, runs)


def _ignore_interrupts() -> None:
    """Leave Ctrl-C to the process that started this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def train(run: Run) -> None:
    """Train a recipe to its end and write the accuracy; one that diverges is worth as much as guessing."""
    precision = native_precision(torch.device("cpu"))
    prepare_torch(precision)
    dataset = _load(run.dataset, run.data_dir, run.checksum)

    def measure(training: Training) -> dict[str, Any]:
        measured = training.evaluate(load_test_split(run.dataset, run.data_dir, run.checksum))
        return {TEST_ACCURACY: measured.accuracy, TEST_LOSS: measured.loss}

    task = Task(recipe=run.recipe, base=run.recipe, align="iteration", precision=precision, at_end=measure)
    outcome = run_trial(task, dataset, Unsupervised())
    assert not isinstance(outcome, str), "nothing stops it or makes it wait"
    content = {TEST_ACCURACY: 1 / len(dataset.classes)} | outcome.attrs | {"recipe": run.recipe.to_dict()}
    write_whole(run.file, json.dumps(content, indent=2).encode())


@cache
def _load(name: str, data_dir: Path, checksum: str) -> Dataset:
    return load_dataset(name, data_dir, checksum=checksum)
