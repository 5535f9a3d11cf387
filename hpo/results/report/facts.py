"""The facts that a report states about a study, as records."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, TrialState

from hpo.database import overview
from hpo.errors import StudyNotFound
from hpo.recipes.comparison import Comparison
from hpo.recipes.recipe import DocumentedRun, Recipe, documented_runs, find_documented_run
from hpo.recipes.schedule import CurvePoint
from hpo.results import benchmark, confirmation
from hpo.results.benchmark import DOCUMENTED_DATASET
from hpo.results.report.tree import Branch, grow
from hpo.results.test_split import TEST_ACCURACY, TEST_LOSS
from hpo.settings import StudySettings
from hpo.study import Study
from hpo.trial.segments import cut_path

MIN_COMPLETE = 4
"""How many completed trials it takes for importances to mean anything at all."""

State = Literal["complete", "pruned", "failed"]
_STATES: Mapping[TrialState, State] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A finished trial.

    Attributes:
        value: Validation accuracy in [0, 1]; for a pruned trial, the last one reported.
        attrs: User attributes.
    """

    number: int
    state: State
    value: float | None
    params: Mapping[str, Any]
    attrs: Mapping[str, Any]
    recipe: Recipe
    curve: tuple[CurvePoint, ...]

    @property
    def end(self) -> int:
        """Return the iteration that the trial reached."""
        return self.curve[-1].iteration if self.curve else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmarked:
    """The result of one run of the final benchmark on the test split.

    Attributes:
        loss: Mean cross-entropy in nats.
        accuracy: In [0, 1].
    """

    seed: int
    loss: float
    accuracy: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """A run that a report describes in full.

    Attributes:
        name: Of the recipe, where recipes are compared; else empty.
        documented: The documented run with this recipe, or None.
        test: Results of the final benchmark, by seed; empty while there are none.
    """

    name: str = ""
    trial: Trial
    documented: DocumentedRun | None
    test: tuple[Benchmarked, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """The recipes that a benchmark or a confirmation trains side by side.

    Attributes:
        runs: The finished trials of each recipe by its name, one for each seed.
        verdict: What follows from them, in a sentence; None where nothing is judged.
    """

    runs: Mapping[str, tuple[Trial, ...]]
    verdict: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """Everything that a report states.

    Attributes:
        status: As in `hpo status --json`.
        compared: What a study that compares recipes is about; None for a search.
        confirmed: How far the best trial is confirmed on further seeds, in a sentence.
        trials: The finished trials that were trained here, in the order of their numbers.
        importances: Importance of each parameter, the highest first; empty while too few trials are complete.
        branches: The tree of the trials' paths, from its top row down.
        shown: The best trial of a search, and the documented runs that it trained; or of a comparison, each recipe on
            its first seed.
        documented: The documented runs on the same data set that the study did not train.
    """

    name: str
    settings: StudySettings
    status: Mapping[str, Any]
    compared: Compared | None
    confirmed: str
    trials: tuple[Trial, ...]
    best: Trial | None
    importances: Mapping[str, float]
    branches: tuple[Branch, ...]
    shown: tuple[Shown, ...]
    documented: tuple[DocumentedRun, ...]

    @property
    def complete(self) -> tuple[Trial, ...]:
        """List the trials that reached their end."""
        return tuple(trial for trial in self.trials if trial.state == "complete")

    @property
    def pruned(self) -> tuple[Trial, ...]:
        """List the trials that were pruned."""
        return tuple(trial for trial in self.trials if trial.state == "pruned")

    @property
    def comparable(self) -> bool:
        """Return whether the study has the data set and the budget of the documented runs."""
        return benchmark.is_comparable(self.settings.dataset, self.settings.iterations)


def load_facts(study: Study) -> Facts:
    """Load everything that a report states about a study.

    Raises:
        StudyNotFound: No trial is finished yet.
    """
    recipes = [(trial, study.find_recipe(trial)) for trial in study.trained_trials()]
    frozen = [trial for trial, recipe in recipes if recipe is not None]
    if not frozen:
        raise StudyNotFound(f"study {study.name} has no finished trial yet")
    trials = tuple(_trial(study, trial, recipe) for trial, recipe in recipes if recipe is not None)
    status = confirmation.status(study)
    compared = _compare(study, study.space, trials) if isinstance(study.space, Comparison) else None
    best = None if compared else _find_best(trials, status)
    shown = _shown_runs(compared) if compared else _shown(study, trials, best)
    seen = {run.documented.name for run in shown if run.documented}
    same_data = study.settings.dataset == DOCUMENTED_DATASET
    walked = {trial.number: trial for trial in trials if trial.curve}
    return Facts(
        name=study.name,
        settings=study.settings,
        status=status,
        compared=compared,
        confirmed=confirmation.explain(study),
        trials=trials,
        best=best,
        importances=_importances(frozen),
        branches=tuple(
            grow({n: cut_path(t.recipe, {}) for n, t in walked.items()}, {n: t.end for n, t in walked.items()})
        ),
        shown=shown,
        documented=tuple(run for name, run in documented_runs().items() if same_data and name not in seen),
    )


def find_test_results(study: Study, recipe: Recipe) -> tuple[Benchmarked, ...]:
    """Find the results of a study's final benchmark for a recipe.

    Returns:
        One result for each seed on which the benchmark is complete; nothing if the recipe was not benchmarked.
    """
    result = benchmark.find_result(study)
    if result is None:
        return ()
    return tuple(
        Benchmarked(seed=seed, loss=loss, accuracy=accuracy)
        for run in result.runs
        if _at(run.recipe, study.settings) == recipe
        for seed, loss, accuracy in zip(result.seeds, run.test_loss, run.test_accuracy, strict=True)
    )


def _find_best(trials: tuple[Trial, ...], status: Mapping[str, Any]) -> Trial | None:
    return next((trial for trial in trials if status["best"] and trial.number == status["best"]["trial"]), None)


def _compare(study: Study, comparison: Comparison, trials: tuple[Trial, ...]) -> Compared:
    runs = {name: tuple(trial for trial in trials if trial.params.get("run") == name) for name in comparison.runs}
    return Compared(runs=runs, verdict=_judge(study, comparison))


def _judge(study: Study, comparison: Comparison) -> str | None:
    if comparison.is_confirmation:
        return confirmation.verdict(confirmation.result(study))
    if comparison.trial is None:
        return None
    result = benchmark.result(study)
    return benchmark.verdict(result) if result.seeds else None


def _shown_runs(compared: Compared) -> tuple[Shown, ...]:
    first = {name: next((t for t in trials if t.curve), None) for name, trials in compared.runs.items()}
    return tuple(
        Shown(name=name, trial=trial, documented=find_documented_run(trial.recipe), test=_tested(compared.runs[name]))
        for name, trial in first.items()
        if trial is not None
    )


def _tested(trials: tuple[Trial, ...]) -> tuple[Benchmarked, ...]:
    return tuple(
        Benchmarked(seed=trial.recipe.seed, loss=trial.attrs[TEST_LOSS], accuracy=trial.attrs[TEST_ACCURACY])
        for trial in trials
        if trial.state == "complete" and TEST_ACCURACY in trial.attrs
    )


def _shown(study: Study, trials: tuple[Trial, ...], best: Trial | None) -> tuple[Shown, ...]:
    documented = [trial for trial in trials if trial.curve and find_documented_run(trial.recipe)]
    first = {trial.recipe: trial for trial in reversed(documented)}
    chosen = ([best] if best else []) + [t for t in sorted(first.values(), key=lambda t: t.number) if t != best]
    return tuple(
        Shown(trial=t, documented=find_documented_run(t.recipe), test=find_test_results(study, t.recipe))
        for t in chosen
    )


def _trial(study: Study, trial: FrozenTrial, recipe: Recipe) -> Trial:
    return Trial(
        number=trial.number,
        state=_STATES[trial.state],
        value=trial.value,
        params=trial.params,
        attrs=trial.user_attrs,
        recipe=recipe,
        curve=tuple(overview.load_curve(study.storage, trial._trial_id)),
    )


def _at(recipe: Recipe, settings: StudySettings) -> Recipe:
    return recipe.at(iterations=settings.iterations, seed=settings.seed)


def _importances(trials: list[FrozenTrial]) -> dict[str, float]:
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    varied = {name for trial in complete for name in trial.params}
    if len(complete) < MIN_COMPLETE or not varied or len({trial.value for trial in complete}) == 1:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.simplefilter("ignore", UserWarning)  # that there are few trials, which the report says itself
        compared = optuna.create_study(direction="maximize")
        compared.add_trials(complete)
        return optuna.importance.get_param_importances(compared)
