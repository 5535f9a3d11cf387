"""Benchmark small studies on the digits, with real workers, crashes and both databases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from sqlalchemy import update

from hpo import study
from hpo.artifacts import open_artifacts
from hpo.database import overview, queue
from hpo.database.attempt import Outcome
from hpo.database.storage import Storage
from hpo.database.tables import AttemptRow
from hpo.errors import BadInput, DataUnavailable, StorageUnavailable, StudyMismatch, StudyNotFound
from hpo.recipes.comparison import Comparison
from hpo.recipes.recipe import Recipe, documented_runs
from hpo.recipes.schedule import evaluation, final_iteration
from hpo.results import benchmark, export, test_split
from hpo.results.test_split import load_test_split
from hpo.settings import StudySettings
from hpo.training.datasets import load_dataset
from hpo.training.train import Training
from hpo.trial.checkpoints import Checkpoints
from hpo.trial.objective import AtEnd
from hpo.worker.stop import StopSignal
from hpo.worker.work import work
from tests.integration.support import NOTHING, SETTINGS, claim, complete, dump, make_study, suggest

DATA = Path("/nonexistent")
CPU = torch.device("cpu")

sqlite_only = pytest.mark.parametrize("kind", ["sqlite"], indirect=True)


@pytest.fixture
def checkpoints(storage: Storage, tmp_path: Path) -> Checkpoints:
    return Checkpoints(storage, open_artifacts(str(tmp_path / "artifacts")))


def search_with(storage: Storage, *values: float, settings: StudySettings = SETTINGS) -> study.Study:
    """Make the study `small` with trials that ended with such values, untrained."""
    made = make_study(storage, len(values), settings)
    end_all(made, iter(values).__next__)
    return made


def end_all(made: study.Study, value: Callable[[], float]) -> None:
    """Complete all waiting trials, untrained."""
    for _ in range(overview.count(made.storage, made.study_id).waiting):
        attempt = claim(made)
        suggest(made, attempt)
        complete(made, attempt, value())


def train_all(companion: study.Study, checkpoints: Checkpoints | None = None, at_end: AtEnd | None = None) -> int:
    at_end = at_end or test_split.end_of_run(companion, DATA)
    return work(companion, device=CPU, data_dir=DATA, stop=StopSignal(), checkpoints=checkpoints, at_end=at_end)


def measure_from_scratch(recipe: Recipe) -> tuple[float, float]:
    """Train a recipe without a study, and give loss and accuracy on the test split."""
    dataset = load_dataset("digits", DATA)
    training, curve = Training(recipe, dataset, "fp32"), []
    plan = evaluation(recipe.iterations, recipe.batch_size, len(dataset.validation))
    for iteration in plan.iterations:
        training.advance(iteration)
        curve.append(training.measure(plan.images))
    if final_iteration(curve, recipe) != recipe.iterations:
        training = Training(recipe, dataset, "fp32")
        training.advance(final_iteration(curve, recipe))
    found = training.evaluate(load_test_split("digits", DATA))
    return found.loss, found.accuracy


def test_candidate_and_baseline_are_trained_and_tested_on_the_same_fresh_seeds(
    storage: Storage, checkpoints: Checkpoints
) -> None:
    search = search_with(storage, 0.5, 0.9, 0.7)
    assert benchmark.find_result(search) is None
    companion = benchmark.begin(search, 1, DATA)
    assert benchmark.find_result(search) is None

    train_all(companion, checkpoints)

    found = benchmark.find_result(search)
    assert found is not None
    assert (found.study, found.trial, found.missing, found.waiting) == ("small.benchmark", 1, (), 0)
    best = study.best(search).recipe
    assert [(run.name, run.recipe) for run in found.runs] == [("candidate", best), ("baseline", search.base)]
    assert len({*found.seeds, search.settings.seed}) == 2
    for run in found.runs:
        again = [measure_from_scratch(run.recipe.at(iterations=32, seed=seed)) for seed in found.seeds]
        assert list(zip(run.test_loss, run.test_accuracy, strict=True)) == again


@sqlite_only
def test_the_same_command_continues_and_more_seeds_are_added_to_those_that_are_there(storage: Storage) -> None:
    search = search_with(storage, 0.5, 0.9)
    train_all(benchmark.begin(search, 1, DATA))
    first = benchmark.result(benchmark.begin(search, 1, DATA))

    companion = benchmark.begin(search, 2, DATA)
    train_all(companion)
    second = benchmark.result(companion)

    assert (len(first.seeds), first.waiting, len(second.seeds), second.waiting) == (1, 0, 2, 0)
    assert second.seeds[:1] == first.seeds
    assert [run.test_loss[:1] for run in second.runs] == [run.test_loss for run in first.runs]


@sqlite_only
def test_a_worker_that_dies_between_the_test_and_the_end_of_a_run_changes_no_figure(
    storage: Storage, checkpoints: Checkpoints
) -> None:
    companion = benchmark.begin(search_with(storage, 0.5, 0.9), 1, DATA)
    measure = test_split.end_of_run(companion, DATA)
    assert measure is not None
    seen: list[dict[str, Any]] = []

    def measure_and_die(training: Training) -> dict[str, Any]:
        seen.append(measure(training))
        if len(seen) == 1:
            raise StorageUnavailable("gone")
        return seen[-1]

    with pytest.raises(StorageUnavailable):
        train_all(companion, checkpoints, measure_and_die)
    assert benchmark.result(companion).waiting == 2
    with storage.transaction() as session:
        session.execute(update(AttemptRow).values(lease_until_s=0))
    train_all(companion, checkpoints, measure_and_die)

    found = benchmark.result(companion)
    assert seen[0] == seen[1]
    assert [run.test_loss for run in found.runs] == [(figures["test loss"],) for figures in seen[1:]]
    assert len(companion.trials()) == 2


@sqlite_only
def test_the_test_split_is_opened_once_per_run_and_never_by_a_search(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def load(name: Any, *where: Any) -> Any:
        opened.append(name)
        return load_test_split(name, *where)

    monkeypatch.setattr(test_split, "load_test_split", load)
    search = make_study(storage, 2)
    train_all(search)
    assert opened == []
    companion = benchmark.begin(search, 1, DATA)
    runs = overview.count(storage, companion.study_id).total
    at_end = test_split.end_of_run(companion, DATA)
    opened.clear()  # of the looks whether it is there

    train_all(companion, None, at_end)

    assert (runs, opened) == (len(companion.trials()), ["digits"] * runs)


@sqlite_only
def test_a_best_trial_that_is_the_baseline_is_not_trained_twice(storage: Storage) -> None:
    search = search_with(storage, 0.9, 0.5)

    companion = benchmark.begin(search, 3, DATA)

    assert isinstance(companion.space, Comparison)
    assert companion.space.runs.keys() == {"baseline"}
    assert overview.count(storage, companion.study_id).total == 3
    assert benchmark.verdict(benchmark.result(companion)).endswith(
        "is the base recipe itself, so there is nothing to compare."
    )


@sqlite_only
def test_the_benchmark_of_an_earlier_best_trial_is_not_continued_with_another(storage: Storage) -> None:
    search = search_with(storage, 0.5, 0.8)
    benchmark.begin(search, 1, DATA)
    end_all(make_study(storage, 3), lambda: 0.9)
    before = dump(storage)

    with pytest.raises(StudyMismatch) as refused:
        benchmark.begin(search, 1, DATA)

    assert str(refused.value) == (
        "study small.benchmark is the benchmark of trial 1, but trial 2 is now the best of small; "
        "start another benchmark with --name"
    )
    assert dump(storage) == before
    assert benchmark.begin(search, 1, DATA, name="again").name == "again"


@sqlite_only
def test_a_benchmark_at_another_budget_is_not_mixed_with_the_first(storage: Storage) -> None:
    search = search_with(storage, 0.5, 0.8)
    assert benchmark.begin(search, 1, DATA, iterations=64).settings.iterations == 64

    with pytest.raises(StudyMismatch, match="iterations is 64 in the study and 32 here"):
        benchmark.begin(search, 1, DATA)


@sqlite_only
def test_what_cannot_be_benchmarked_is_refused(storage: Storage, tmp_path: Path) -> None:
    empty = make_study(storage, 1)
    with pytest.raises(StudyNotFound, match="study small has no completed trial yet"):
        benchmark.begin(empty, 1, DATA)
    end_all(empty, lambda: 0.5)
    companion = benchmark.begin(empty, 1, DATA)
    with pytest.raises(
        BadInput, match=r"--study small\.benchmark: this is a benchmark; give the study that it belongs to"
    ):
        benchmark.begin(companion, 1, DATA)
    with pytest.raises(BadInput, match=r"study small\.benchmark is a benchmark: only .* its runs need the test split"):
        work(companion, device=CPU, data_dir=DATA, stop=StopSignal())


@sqlite_only
def test_a_search_with_the_name_of_the_benchmark_is_left_alone(storage: Storage) -> None:
    search = search_with(storage, 0.5, 0.8)
    study.continue_or_create(storage, "small.benchmark", SETTINGS, 1)
    before = dump(storage)

    assert benchmark.find_result(search) is None
    assert benchmark.find_sentence(search, 1) is None
    assert study.best(search).trial == 1
    with pytest.raises(StudyMismatch) as refused:
        benchmark.begin(search, 1, DATA)

    assert str(refused.value) == ("study small.benchmark is a search, not a benchmark; choose another name with --name")
    assert dump(storage) == before
    assert benchmark.begin(search, 1, DATA, name="again").name == "again"


@sqlite_only
def test_a_study_of_another_tool_with_the_name_of_the_benchmark_is_left_alone(storage: Storage) -> None:
    search = search_with(storage, 0.5, 0.8)
    foreign = optuna.create_study(storage=storage.url, study_name="small.benchmark")
    foreign.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    before = dump(storage)

    assert benchmark.find_result(search) is None
    assert benchmark.find_sentence(search, 1) is None
    assert study.best(search).trial == 1
    with pytest.raises(StudyMismatch, match=r"study small\.benchmark has trials that hpo did not create"):
        benchmark.begin(search, 1, DATA)

    assert dump(storage) == before
    assert benchmark.begin(search, 1, DATA, name="again").name == "again"


@sqlite_only
def test_without_the_test_split_no_run_is_begun(storage: Storage, tmp_path: Path) -> None:
    search = search_with(storage, 0.5, settings=replace(SETTINGS, dataset="cifar10"))
    before = dump(storage)

    with pytest.raises(DataUnavailable, match="cifar10 is not in"):
        benchmark.begin(search, 1, tmp_path)

    assert dump(storage) == before


@sqlite_only
def test_a_run_without_a_figure_is_named_and_its_seed_left_out(storage: Storage) -> None:
    companion = benchmark.begin(search_with(storage, 0.5, 0.9), 2, DATA)
    for number in range(4):
        attempt = claim(companion)
        params = suggest(companion, attempt)
        figures = {"test accuracy": 0.5 + number / 10, "test loss": 1.0}
        ended = Outcome(state="complete", value=0.5, attrs=figures)
        if number == 2:
            ended = Outcome(state="pruned", value=0.1, attrs={"outcome": "diverged: so it was"})
            lost = params
        queue.finish(storage, attempt, NOTHING, ended)

    found = benchmark.result(companion)

    assert found.missing == (f"candidate on seed {lost['seed']}: diverged: so it was",)
    assert [run.test_accuracy for run in found.runs] == [(0.5,), (0.6,)]
    assert len(found.seeds) == 1
    assert lost["seed"] not in found.seeds


@sqlite_only
def test_all_documented_experiments_are_trained_on_the_same_seeds(storage: Storage) -> None:
    made = benchmark.begin_documented(storage, 2, replace(SETTINGS, space={}), DATA)
    assert benchmark.find_documented(storage, "digits") is None
    end_all_with_figures(made)

    found = benchmark.find_documented(storage, "digits")

    assert found is not None
    assert (made.name, len(found.seeds), found.trial) == ("documented-digits", 2, None)
    for run, documented in zip(found.runs, documented_runs().values(), strict=True):
        assert (run.name, run.documented) == (documented.name, documented)
        assert run.recipe == documented.recipe.at(iterations=32, seed=0)
        assert len(run.test_accuracy) == 2


def end_all_with_figures(made: study.Study) -> None:
    for number in range(overview.count(made.storage, made.study_id).total):
        attempt = claim(made)
        suggest(made, attempt)
        figures = {"test accuracy": number / 100, "test loss": 1.0}
        queue.finish(made.storage, attempt, NOTHING, Outcome(state="complete", value=0.5, attrs=figures))


@sqlite_only
@pytest.mark.parametrize("kept", [True, False], ids=["from its checkpoint", "trained again"])
def test_exported_weights_are_those_that_the_best_trial_was_measured_with(
    storage: Storage, checkpoints: Checkpoints, tmp_path: Path, kept: bool
) -> None:
    search = make_study(storage, 2)
    train_all(search, checkpoints)
    best, dataset = study.best(search), load_dataset("digits", DATA)
    store = checkpoints if kept else Checkpoints(storage, open_artifacts(str(tmp_path / "elsewhere")))

    said: list[str] = []
    exported = export.load(search, best, dataset, store, "Not confirmed.", None, said.append)

    assert [line.partition(" is ")[0] for line in said] == ([] if kept else [f"the checkpoint of trial {best.trial}"])
    assert exported.val_accuracy == best.value
    assert exported.training.iteration == final_iteration(best.curve, best.recipe)
    assert export.files(exported).keys() == {
        "weights.safetensors",
        "recipe.yaml",
        "metrics.csv",
        "environment.json",
        "README.md",
        "classify.py",
    }
