"""Load what a report says of a study, as records."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, TrialState

from hpo import study as studies
from hpo.database import overview
from hpo.errors import StudyNotFound
from hpo.recipes.recipe import DocumentedRun, Recipe, documented_runs
from hpo.recipes.schedule import CurvePoint
from hpo.results.report.tree import Branch, grow
from hpo.settings import DEFAULT_ITERATIONS, DatasetName, StudySettings
from hpo.study import Study
from hpo.trial.segments import cut_path

DOCUMENTED_DATASET: DatasetName = "cifar10"
MIN_COMPLETE = 4
"""How many completed trials there must be before importances mean anything at all."""

State = Literal["complete", "pruned", "failed"]
_STATES: Mapping[TrialState, State] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """Be a finished trial.

    Attributes:
        value: Validation accuracy in [0, 1]; of a pruned trial, the last that was reported.
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
        """Give the iteration that the trial reached."""
        return self.curve[-1].iteration if self.curve else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmarked:
    """Be what one run of the final benchmark reached on the test split."""

    seed: int
    loss: float
    accuracy: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """Be a run that a report describes in full.

    Attributes:
        documented: The documented run that has this recipe, or None.
        test: Results of the final benchmark, by seed; empty where there are none yet.
    """

    trial: Trial
    documented: DocumentedRun | None
    test: tuple[Benchmarked, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """Be all that a report says.

    Attributes:
        trials: The finished ones, in the order of their numbers.
        importances: Of the parameters, the highest first; empty while too few trials are complete.
        shown: The best trial, and the documented runs that the study trained.
        documented: The documented runs that it did not train and that are of the same data set.
    """

    name: str
    settings: StudySettings
    status: Mapping[str, Any]
    trials: tuple[Trial, ...]
    best: Trial | None
    importances: Mapping[str, float]
    branches: tuple[Branch, ...]
    shown: tuple[Shown, ...]
    documented: tuple[DocumentedRun, ...]

    @property
    def complete(self) -> tuple[Trial, ...]:
        """Give the trials that reached their end."""
        return tuple(trial for trial in self.trials if trial.state == "complete")

    @property
    def pruned(self) -> tuple[Trial, ...]:
        """Give the trials that were ended before."""
        return tuple(trial for trial in self.trials if trial.state == "pruned")


def load_facts(study: Study) -> Facts:
    """Load all that a report says of a study.

    Raises:
        StudyNotFound: No trial is finished yet.
    """
    frozen = [trial for trial in study.trials() if trial.state.is_finished() and _has_recipe(trial)]
    if not frozen:
        raise StudyNotFound(f"study {study.name} has no finished trial yet")
    trials = tuple(_trial(study, trial) for trial in frozen)
    found = studies.find_best_trial(frozen)
    best = None if found is None else next(trial for trial in trials if trial.number == found.number)
    shown = _shown(study, trials, best)
    seen = {run.documented.name for run in shown if run.documented}
    same_data = study.settings.dataset == DOCUMENTED_DATASET
    walked = {trial.number: trial for trial in trials if trial.curve}
    return Facts(
        name=study.name,
        settings=study.settings,
        status=studies.status(study),
        trials=trials,
        best=best,
        importances=_importances(study, frozen),
        branches=tuple(
            grow({n: cut_path(t.recipe, {}) for n, t in walked.items()}, {n: t.end for n, t in walked.items()})
        ),
        shown=shown,
        documented=tuple(run for name, run in documented_runs().items() if same_data and name not in seen),
    )


def is_comparable(settings: StudySettings) -> bool:
    """Tell whether a study has the data set and the budget of the documented runs."""
    dataset = settings.dataset
    return dataset == DOCUMENTED_DATASET and settings.iterations == DEFAULT_ITERATIONS[dataset]


def find_test_results(study: Study, recipe: Recipe) -> tuple[Benchmarked, ...]:
    """Find what the final benchmark, a study beside this one, measured of a recipe.

    Returns:
        One result for each seed, or nothing where the recipe was not benchmarked.
    """
    storage = study.storage
    with storage.translated():
        beside = {s.study_name: s for s in storage.optuna.get_all_studies()}.get(f"{study.name}.benchmark")
        if beside is None:
            return ()
        trials = storage.optuna.get_all_trials(beside._study_id, deepcopy=False)
    runs = beside.user_attrs["search space"]["runs"]
    same = {name for name, fields in runs.items() if _at(Recipe.from_dict(fields), study.settings) == recipe}
    return tuple(
        Benchmarked(
            seed=trial.params["seed"], loss=trial.user_attrs["test loss"], accuracy=trial.user_attrs["test accuracy"]
        )
        for trial in trials
        if trial.state == TrialState.COMPLETE and trial.params["run"] in same
    )


def _shown(study: Study, trials: tuple[Trial, ...], best: Trial | None) -> tuple[Shown, ...]:
    by_recipe = {_at(run.recipe, study.settings): run for run in documented_runs().values()}
    documented = [trial for trial in trials if trial.recipe in by_recipe and trial.curve]
    first = {trial.recipe: trial for trial in reversed(documented)}
    chosen = ([best] if best else []) + [t for t in sorted(first.values(), key=lambda t: t.number) if t != best]
    return tuple(
        Shown(trial=t, documented=by_recipe.get(t.recipe), test=find_test_results(study, t.recipe)) for t in chosen
    )


def _trial(study: Study, trial: FrozenTrial) -> Trial:
    return Trial(
        number=trial.number,
        state=_STATES[trial.state],
        value=trial.value,
        params=trial.params,
        attrs=trial.user_attrs,
        recipe=study.recipe_of(trial),
        curve=tuple(overview.load_curve(study.storage, trial._trial_id)),
    )


def _has_recipe(trial: FrozenTrial) -> bool:
    """Tell whether a trial came as far as to have its parameters; one may fail before."""
    return bool(trial.params) or trial.state != TrialState.FAIL


def _at(recipe: Recipe, settings: StudySettings) -> Recipe:
    return recipe.at(iterations=settings.iterations, seed=settings.seed)


def _importances(study: Study, trials: list[FrozenTrial]) -> dict[str, float]:
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    varied = {name for trial in complete for name in trial.params}
    if len(complete) < MIN_COMPLETE or not varied or len({trial.value for trial in complete}) == 1:
        return {}
    with study.storage.translated(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.simplefilter("ignore", UserWarning)  # that trials are few, which the report says itself
        loaded = optuna.load_study(study_name=study.name, storage=study.storage.optuna)
        return optuna.importance.get_param_importances(loaded)
