"""Benchmark small studies on the digits, with real workers, crashes and both databases."""

from __future__ import annotations

from pathlib import Path

import torch

from hpo import benchmark, study
from hpo.artifacts import open_artifacts
from hpo.benchmark import load_test_split
from hpo.data import load_dataset
from hpo.objective import AtEnd
from hpo.recipe import Recipe
from hpo.schedule import evaluation, final_iteration
from hpo.storage import Storage
from hpo.train import Training
from hpo.trajectory import Checkpoints
from hpo.worker import StopSignal, work
from integration.support import claim, complete, make_study, suggest

DATA = Path("/nonexistent")
CPU = torch.device("cpu")


def search_with(storage: Storage, *values: float) -> study.Study:
    """Make the study `small` with trials that ended with such values, untrained."""
    made = make_study(storage, len(values))
    for value in values:
        attempt = claim(made)
        suggest(made, attempt)
        complete(made, attempt, value)
    return made


def train_all(companion: study.Study, checkpoints: Checkpoints | None = None, at_end: AtEnd | None = None) -> int:
    at_end = at_end or benchmark.end_of_run(companion, DATA)
    return work(companion, device=CPU, data_dir=DATA, stop=StopSignal(), checkpoints=checkpoints, at_end=at_end)


def measure_from_scratch(recipe: Recipe) -> tuple[float, float]:
    """Train a recipe without a study, and give loss and accuracy on the test split."""
    dataset = load_dataset("digits", DATA)
    training, curve = Training(recipe, dataset, "fp32"), []
    plan = evaluation(recipe.iterations, recipe.batch_size, len(dataset.validation))
    for iteration in plan.iterations:
        training.advance(iteration)
        curve.append(training.measure(plan.images))
    restored = Training(recipe, dataset, "fp32")
    restored.advance(final_iteration(curve, recipe))
    found = restored.evaluate(load_test_split("digits", DATA))
    return found.loss, found.accuracy


def test_candidate_and_baseline_are_trained_on_the_same_fresh_seeds(storage: Storage, tmp_path: Path) -> None:
    search = search_with(storage, 0.5, 0.9, 0.7)
    companion = benchmark.begin(search, 2, DATA)

    train_all(companion, Checkpoints(storage, open_artifacts(str(tmp_path / "artifacts"))))

    found = benchmark.find_result(search)
    assert found is not None
    best = study.best(search)
    assert (found.study, found.trial, found.missing, found.waiting) == ("small.benchmark", 1, (), 0)
    assert [(run.name, run.recipe) for run in found.runs] == [("candidate", best.recipe), ("baseline", search.base)]
    assert len({*found.seeds, search.settings.seed}) == 3
    for run in found.runs:
        again = [measure_from_scratch(run.recipe.at(iterations=32, seed=seed)) for seed in found.seeds]
        assert list(zip(run.test_loss, run.test_accuracy, strict=True)) == again
