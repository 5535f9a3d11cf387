"""The final benchmark: train the best recipe and the base recipe on fresh seeds, and test both on the test split.

The runs are trials of a companion study, whose space is a `Comparison`. Only this module and `test_split` can read a
test split, which an architecture test proves; it is opened once, at the end of each run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from hpo import study as studies
from hpo.database import overview
from hpo.database.storage import Storage
from hpo.errors import StudyMismatch, StudyNotFound
from hpo.recipes.comparison import BASELINE, CANDIDATE, Comparison
from hpo.recipes.recipe import REFERENCE_ITERATIONS, DocumentedRun, Recipe, documented_runs, find_documented_run
from hpo.results import confirmation
from hpo.results.significance import Difference, Estimate, estimate, judge, paired_difference, show_difference
from hpo.results.test_split import TEST_ACCURACY, TEST_LOSS, load_test_split
from hpo.settings import StudySettings
from hpo.study import Study

DOCUMENTED_DATASET = "cifar10"
"""The data set of all documented experiments."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A recipe with its results on the test split, one for each seed.

    Attributes:
        documented: The documented experiment with this recipe, or None.
        test_accuracy: In [0, 1].
        test_loss: Mean cross-entropy in nats.
    """

    name: str
    recipe: Recipe
    documented: DocumentedRun | None
    test_accuracy: tuple[float, ...]
    test_loss: tuple[float, ...]

    @property
    def accuracy(self) -> Estimate:
        """Return the mean test accuracy with its interval."""
        return estimate(self.test_accuracy)

    @property
    def loss(self) -> Estimate:
        """Return the mean test loss with its interval."""
        return estimate(self.test_loss)


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """The results of a companion study so far.

    Attributes:
        trial: Number of the search's trial that is the candidate, or None.
        seeds: The seeds on which every run is complete; only these count.
        missing: A line for each run that ended without a result.
        waiting: How many runs have not ended.
    """

    study: str
    dataset: str
    iterations: int
    trial: int | None
    seeds: tuple[int, ...]
    runs: tuple[Run, ...]
    missing: tuple[str, ...]
    waiting: int

    @property
    def baseline(self) -> Run:
        """Return the run of the documented base recipe."""
        return next(run for run in self.runs if run.name == BASELINE)

    @property
    def candidate(self) -> Run:
        """Return the run of the search's best recipe, which may be the base recipe itself."""
        return next((run for run in self.runs if run.name == CANDIDATE), self.baseline)

    @property
    def differences(self) -> tuple[float, ...]:
        """Return the candidate's test accuracy minus the base recipe's, for each seed."""
        pairs = zip(self.candidate.test_accuracy, self.baseline.test_accuracy, strict=True)
        return tuple(ours - other for ours, other in pairs)

    @property
    def difference(self) -> Difference:
        """Return the mean of the differences, with its interval and p-value."""
        return paired_difference(self.differences)

    @property
    def comparable(self) -> bool:
        """Return whether data set and budget are those of the documented runs."""
        return is_comparable(self.dataset, self.iterations)


def is_comparable(dataset: str, iterations: int) -> bool:
    """Return whether a data set and a budget are those of the documented runs."""
    return dataset == DOCUMENTED_DATASET and iterations == REFERENCE_ITERATIONS


def begin(
    search: Study, seeds: int, data_dir: Path, *, name: str | None = None, iterations: int | None = None
) -> Study:
    """Create or continue the companion study of a search: its best and its base recipe on fresh seeds.

    Args:
        name: Name of the companion, or None for the usual one.
        iterations: Budget of a run, or None for the search's.

    Raises:
        BadInput: The study is not a search.
        DataDamaged: A file of the test split is cut short or altered.
        DataUnavailable: The test split is not on this machine.
        StudyMismatch: The companion is no benchmark, compares another trial or has other settings; nothing is changed.
        StudyNotFound: No trial is complete yet.
    """
    confirmation.require_search(search)
    best = confirmation.load_best(search)
    recipes = {BASELINE: search.base} if best.recipe == search.base else {CANDIDATE: best.recipe, BASELINE: search.base}
    comparison = Comparison.of(recipes, name=search.space.name, searched_seed=search.settings.seed, trial=best.trial)
    settings = studies.companion_settings(search.settings, comparison, iterations or search.settings.iterations)
    companion = name or companion_name(search.name)
    _require_benchmark_of(search, companion, best.trial)
    load_test_split(
        settings.dataset, data_dir, settings.split
    )  # so that a missing file is noticed before hours of training
    return studies.continue_or_create(search.storage, companion, settings, seeds * len(recipes))


def begin_documented(
    storage: Storage, seeds: int, settings: StudySettings, data_dir: Path, *, name: str | None = None
) -> Study:
    """Create or continue the study of all documented experiments on fresh seeds.

    Args:
        settings: Data set, budget, precision and seed of the runs; the space is replaced.

    Raises:
        DataDamaged: A file of the test split is cut short or altered.
        DataUnavailable: The test split is not on this machine.
        StudyMismatch: The study exists with other settings; nothing is changed.
    """
    load_test_split(settings.dataset, data_dir, settings.split)
    recipes = {run.name: run.recipe for run in documented_runs().values()}
    comparison = Comparison.of(recipes, name="documented", searched_seed=settings.seed)
    settings = studies.companion_settings(settings, comparison, settings.iterations)
    companion = name or documented_name(settings.dataset)
    return studies.continue_or_create(storage, companion, settings, seeds * len(recipes))


def companion_name(study: str) -> str:
    """Return the usual name of a search's companion study."""
    return f"{study}.benchmark"


def documented_name(dataset: str) -> str:
    """Return the usual name of the study of all documented experiments."""
    return f"documented-{dataset}"


def find_result(search: Study) -> Result | None:
    """Find a search's results on the test split; None if no seed is complete, or no benchmark has the usual name."""
    return _find(search.storage, companion_name(search.name))


def find_documented(storage: Storage, dataset: str) -> Result | None:
    """Find the results of the documented experiments on the test split; None if no seed is complete."""
    return _find(storage, documented_name(dataset))


def result(companion: Study) -> Result:
    """Collect the results of a companion study so far."""
    comparison, trials, settings = companion.space, companion.trials(), companion.settings
    counts = overview.count(companion.storage, companion.study_id)
    assert isinstance(comparison, Comparison)
    size = len(comparison.runs)
    measured = {trial.number for trial in companion.trained_trials() if trial.state == TrialState.COMPLETE}
    rows = [trials[start : start + size] for start in range(0, len(trials), size)]
    complete = [
        index
        for index, row in enumerate(rows)
        if len(row) == size and measured.issuperset(trial.number for trial in row)
    ]
    return Result(
        study=companion.name,
        dataset=settings.dataset,
        iterations=settings.iterations,
        trial=comparison.trial,
        seeds=tuple(comparison.seed(index) for index in complete),
        runs=tuple(
            _run(name, _recipe(settings, comparison, name), [rows[index][column] for index in complete])
            for column, name in enumerate(comparison.runs)
        ),
        missing=tuple(_missing(comparison, t) for t in trials if t.state.is_finished() and t.number not in measured),
        waiting=counts.waiting + counts.running,
    )


def to_dict(result: Result) -> dict[str, Any]:
    """Convert a result to the form of `hpo benchmark --json`."""
    same = {
        "study": result.study,
        "dataset": result.dataset,
        "iterations": result.iterations,
        "seeds": list(result.seeds),
        "missing": list(result.missing),
        "waiting": result.waiting,
    }
    if result.trial is None:
        return same | {"comparable": result.comparable, "runs": [_named(run) for run in result.runs]}
    compared = {"candidate": _figures(result.candidate), "baseline": _figures(result.baseline)}
    judged = {"difference": asdict(result.difference), "verdict": verdict(result)}
    documented = _documented(result.baseline)
    return compared | judged | {"documented": documented, "comparable": result.comparable} | same


def verdict(result: Result) -> str:
    """State in a sentence whether the candidate is better than the base recipe."""
    ours, difference = f"The best recipe (trial {result.trial})", result.difference
    if result.candidate is result.baseline:
        return f"{ours} is the base recipe itself, so there is nothing to compare."
    if result.missing:
        lost = f"{len(result.missing)} of its and the base recipe's runs have no result"
        return f"{ours} is not shown to be better than the base recipe: {lost}."
    if len(result.seeds) < 2:
        return f"{ours} is not shown to be better than the base recipe: this needs at least two seeds, or better five."
    if difference.p_value is None:
        return f"{ours} is not shown to be better than the base recipe: the difference is the same on every seed."
    return (
        f"{ours} is {judge(difference)} than the base recipe: its test accuracy differs by "
        f"{show_difference(difference, len(result.seeds))}."
    )


def find_sentence(search: Study, trial: int) -> str | None:
    """Summarise the benchmark of a trial in a sentence or two; None if it has not been benchmarked."""
    result = find_result(search)
    if result is None or result.trial != trial:
        return None
    accuracy, seeds = result.candidate.accuracy.mean, len(result.seeds)
    mean = f"{accuracy:.4f}, the mean accuracy of networks trained on {seeds} fresh seeds"
    return f"{mean}. {verdict(result).removesuffix('.')}"


def _require_benchmark_of(search: Study, companion: str, trial: int) -> None:
    """Refuse to put the runs into a study that is anything but the benchmark of this trial."""
    try:
        comparison = studies.load(search.storage, companion).space
    except StudyNotFound:  # no such study, or one of another tool, which `continue_or_create` refuses
        return
    if not isinstance(comparison, Comparison):
        raise StudyMismatch(f"study {companion} is a search, not a benchmark; choose another name with --name")
    if comparison.trial != trial:
        raise StudyMismatch(
            f"study {companion} is the benchmark of trial {comparison.trial}, but trial {trial} is now the best of "
            f"{search.name}; start another benchmark with --name"
        )


def _find(storage: Storage, name: str) -> Result | None:
    try:
        companion = studies.load(storage, name)
    except StudyNotFound:  # no such study, or one of another tool
        return None
    if not isinstance(companion.space, Comparison):
        return None
    collected = result(companion)
    return collected if collected.seeds else None


def _recipe(settings: StudySettings, comparison: Comparison, name: str) -> Recipe:
    params = {"run": name, "seed": settings.seed}
    return comparison.recipe(params, iterations=settings.iterations, seed=settings.seed)


def _run(name: str, recipe: Recipe, trials: Sequence[FrozenTrial]) -> Run:
    return Run(
        name=name,
        recipe=recipe,
        documented=find_documented_run(recipe),
        test_accuracy=tuple(trial.user_attrs[TEST_ACCURACY] for trial in trials),
        test_loss=tuple(trial.user_attrs[TEST_LOSS] for trial in trials),
    )


def _missing(comparison: Comparison, trial: FrozenTrial) -> str:
    params = comparison.params_of(trial.number)
    return f"{params['run']} on seed {params['seed']}: {trial.user_attrs.get('outcome', 'ended by another client')}"


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
    documented = run.documented
    return None if documented is None else {"accuracy": documented.test_accuracy, "loss": documented.test_loss}
