"""Train the best recipe and the documented baseline again on fresh seeds, and measure both on the test split.

The runs are trials of a companion study. This is the only module that can read a test split, which an architecture
test proves; it is opened once at the end of each run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from hpo import study as studies
from hpo.database.storage import Storage
from hpo.errors import BadInput, StudyMismatch, StudyNotFound
from hpo.recipes.comparison import BASELINE, CANDIDATE, Comparison
from hpo.recipes.recipe import REFERENCE_ITERATIONS, DocumentedRun, Recipe, documented_runs
from hpo.results.significance import Difference, Estimate, estimate, paired_difference
from hpo.results.test_split import TEST_ACCURACY, TEST_LOSS, load_test_split
from hpo.settings import DatasetName, StudySettings
from hpo.study import Study

DOCUMENTED_DATASET: DatasetName = "cifar10"
P_LIMIT = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """Be a recipe with what it reached on the test split, seed by seed.

    Attributes:
        documented: The documented experiment that has this recipe, or None.
    """

    name: str
    recipe: Recipe
    documented: DocumentedRun | None
    test_accuracy: tuple[float, ...]
    test_loss: tuple[float, ...]

    @property
    def accuracy(self) -> Estimate:
        """Give the mean test accuracy with its interval."""
        return estimate(self.test_accuracy)

    @property
    def loss(self) -> Estimate:
        """Give the mean test loss with its interval."""
        return estimate(self.test_loss)


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """Be what a companion study holds so far.

    Attributes:
        trial: Number of the search's trial that is the candidate, or None.
        seeds: Those on which every run is complete; the figures are theirs.
        missing: A line for each run that ended without figures.
        waiting: How many runs have not ended.
    """

    study: str
    dataset: DatasetName
    iterations: int
    trial: int | None
    seeds: tuple[int, ...]
    runs: tuple[Run, ...]
    missing: tuple[str, ...]
    waiting: int

    @property
    def baseline(self) -> Run:
        """Give the run of the documented base recipe."""
        return next(run for run in self.runs if run.name == BASELINE)

    @property
    def candidate(self) -> Run:
        """Give the run of the search's best recipe, which may be the baseline itself."""
        return next((run for run in self.runs if run.name == CANDIDATE), self.baseline)

    @property
    def differences(self) -> tuple[float, ...]:
        """Give by how much the candidate's test accuracy is higher, seed by seed."""
        pairs = zip(self.candidate.test_accuracy, self.baseline.test_accuracy, strict=True)
        return tuple(ours - other for ours, other in pairs)

    @property
    def difference(self) -> Difference:
        """Give the mean of the differences, with its interval and p-value."""
        return paired_difference(self.differences)

    @property
    def comparable(self) -> bool:
        """Tell whether data set and budget are those of the documented runs."""
        return self.dataset == DOCUMENTED_DATASET and self.iterations == REFERENCE_ITERATIONS


def begin(
    search: Study, seeds: int, data_dir: Path, *, name: str | None = None, iterations: int | None = None
) -> Study:
    """Make or continue the companion study of a search: its best trial and its baseline on fresh seeds.

    Args:
        name: Of the companion, or None for the usual one.
        iterations: Budget of a run, or None for the search's.

    Raises:
        BadInput: The study is not a search.
        DataDamaged: A file of the test split is cut short or altered.
        DataUnavailable: The test split is not there.
        StudyMismatch: The companion compares another trial, or has other settings; nothing is changed.
        StudyNotFound: No trial is complete yet.
    """
    if isinstance(search.space, Comparison):
        raise BadInput(f"--study {search.name}: it is a benchmark itself; name the study that it is of")
    best = studies.best(search)
    recipes = {BASELINE: search.base} if best.recipe == search.base else {CANDIDATE: best.recipe, BASELINE: search.base}
    comparison = Comparison.of(recipes, name=search.space.name, searched_seed=search.settings.seed, trial=best.trial)
    settings = _settings(search.settings, comparison, iterations or search.settings.iterations)
    companion = name or companion_name(search.name)
    _require_same_trial(search, companion, best.trial)
    load_test_split(settings.dataset, data_dir)  # so that what is not there is missed before hours of training
    return studies.continue_or_create(search.storage, companion, settings, seeds * len(recipes))


def begin_documented(
    storage: Storage, seeds: int, settings: StudySettings, data_dir: Path, *, name: str | None = None
) -> Study:
    """Make or continue the study of all documented experiments on fresh seeds.

    Args:
        settings: Data set, budget, precision and seed of the runs; its space is replaced.

    Raises:
        DataDamaged: A file of the test split is cut short or altered.
        DataUnavailable: The test split is not there.
        StudyMismatch: The study exists with other settings; nothing is changed.
    """
    load_test_split(settings.dataset, data_dir)
    recipes = {run.name: run.recipe for run in documented_runs().values()}
    comparison = Comparison.of(recipes, name="documented", searched_seed=settings.seed)
    found = _settings(settings, comparison, settings.iterations)
    return studies.continue_or_create(storage, name or documented_name(settings.dataset), found, seeds * len(recipes))


def companion_name(study: str) -> str:
    """Name the companion study of a search."""
    return f"{study}.benchmark"


def documented_name(dataset: DatasetName) -> str:
    """Name the study of all documented experiments."""
    return f"documented-{dataset}"


def find_result(search: Study) -> Result | None:
    """Find what the companion study of a search has on the test split; None where no seed is complete."""
    return _find(search.storage, companion_name(search.name))


def find_documented(storage: Storage, dataset: DatasetName) -> Result | None:
    """Find what the documented experiments reached on the test split; None where no seed is complete."""
    return _find(storage, documented_name(dataset))


def result(companion: Study) -> Result:
    """Collect what a companion study holds so far."""
    comparison, trials, settings = companion.space, companion.trials(), companion.settings
    assert isinstance(comparison, Comparison)
    size = len(comparison.runs)
    rows = [trials[start : start + size] for start in range(0, len(trials), size)]
    whole = [index for index, row in enumerate(rows) if len(row) == size and all(map(_is_measured, row))]
    return Result(
        study=companion.name,
        dataset=settings.dataset,
        iterations=settings.iterations,
        trial=comparison.trial,
        seeds=tuple(comparison.seed(index) for index in whole),
        runs=tuple(
            _run(name, _recipe(settings, comparison, name), [rows[index][column] for index in whole])
            for column, name in enumerate(comparison.runs)
        ),
        missing=tuple(_missing(comparison, t) for t in trials if t.state.is_finished() and not _is_measured(t)),
        waiting=sum(not trial.state.is_finished() for trial in trials),
    )


def to_dict(found: Result) -> dict[str, Any]:
    """Give a result in the form of `hpo benchmark --json`."""
    same = {
        "study": found.study,
        "dataset": found.dataset,
        "iterations": found.iterations,
        "seeds": list(found.seeds),
        "missing": list(found.missing),
        "waiting": found.waiting,
    }
    if found.trial is None:
        return same | {"comparable": found.comparable, "runs": [_named(run) for run in found.runs]}
    compared = {"candidate": _figures(found.candidate), "baseline": _figures(found.baseline)}
    judged = {"difference": asdict(found.difference), "verdict": verdict(found)}
    documented = _documented(found.baseline)
    return compared | judged | {"documented": documented, "comparable": found.comparable} | same


def verdict(found: Result) -> str:
    """Say in words whether the candidate is better than the baseline."""
    ours, difference = f"The best recipe (trial {found.trial})", found.difference
    if found.candidate is found.baseline:
        return f"{ours} is the documented baseline itself: there is nothing to compare."
    if found.missing:
        lost = f"{len(found.missing)} of its and the baseline's runs ended without a figure"
        return f"{ours} is not shown to be better than the baseline: {lost}."
    if len(found.seeds) < 2:
        return f"{ours} is not shown to be better than the baseline: that takes two seeds, and better five."
    if difference.mean is None or difference.ci95 is None or difference.p_value is None:
        return f"{ours} is not shown to be better than the baseline: the difference is the same on every seed."
    word = "not shown to be better" if difference.p_value >= P_LIMIT else "better" if difference.mean > 0 else "worse"
    low, high = difference.ci95
    return (
        f"{ours} is {word} than the baseline: its test accuracy differs by {difference.mean:+.4f} "
        f"({low:+.4f} to {high:+.4f}, {len(found.seeds)} seeds, p = {difference.p_value:.2g})."
    )


def find_sentence(search: Study, trial: int) -> str | None:
    """Find what the benchmark of a trial says, in a sentence or two; None where there is none."""
    found = find_result(search)
    if found is None or found.trial != trial:
        return None
    mean = f"{found.candidate.accuracy.mean:.4f}, the mean accuracy of {len(found.seeds)} networks of fresh seeds"
    return f"{mean}. {verdict(found).removesuffix('.')}"


def _settings(settings: StudySettings, comparison: Comparison, iterations: int) -> StudySettings:
    return replace(
        settings,
        space=comparison.model_dump(mode="json"),
        iterations=iterations,
        sampler="random",
        pruner="none",
        align="iteration",
    )


def _require_same_trial(search: Study, companion: str, trial: int) -> None:
    try:
        found = studies.load(search.storage, companion).space
    except StudyNotFound:
        return
    if isinstance(found, Comparison) and found.trial != trial:
        raise StudyMismatch(
            f"study {companion} is the benchmark of trial {found.trial}, but by now trial {trial} is the best of "
            f"{search.name}; --name begins another benchmark beside it"
        )


def _find(storage: Storage, name: str) -> Result | None:
    try:
        found = studies.load(storage, name)
    except StudyNotFound:
        return None
    collected = result(found) if isinstance(found.space, Comparison) else None
    return collected if collected and collected.seeds else None


def _is_measured(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.COMPLETE


def _recipe(settings: StudySettings, comparison: Comparison, name: str) -> Recipe:
    params = {"run": name, "seed": settings.seed}
    return comparison.recipe(params, iterations=settings.iterations, seed=settings.seed)


def _run(name: str, recipe: Recipe, trials: Sequence[FrozenTrial]) -> Run:
    plain = recipe.at(iterations=REFERENCE_ITERATIONS, seed=0)
    return Run(
        name=name,
        recipe=recipe,
        documented=next((run for run in documented_runs().values() if run.recipe == plain), None),
        test_accuracy=tuple(trial.user_attrs[TEST_ACCURACY] for trial in trials),
        test_loss=tuple(trial.user_attrs[TEST_LOSS] for trial in trials),
    )


def _missing(comparison: Comparison, trial: FrozenTrial) -> str:
    params = comparison.params_of(trial.number)
    return f"{params['run']} on seed {params['seed']}: {trial.user_attrs.get('outcome', 'failed')}"


def _figures(run: Run) -> dict[str, Any]:
    return {
        "recipe": run.recipe.to_dict(),
        "test_accuracy": list(run.test_accuracy),
        "test_loss": list(run.test_loss),
        **asdict(run.accuracy),
        "loss_mean": run.loss.mean,
        "loss_ci95": run.loss.ci95,
    }


def _named(run: Run) -> dict[str, Any]:
    return {"name": run.name} | _figures(run) | {"documented": _documented(run)}


def _documented(run: Run) -> dict[str, Any] | None:
    found = run.documented
    return None if found is None else {"accuracy": found.test_accuracy, "loss": found.test_loss}
