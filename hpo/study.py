"""Create or continue a study, fill its queue, and say how it stands."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo.algorithms import fixed_sampler, make_pruner, make_sampler
from hpo.database import overview, studies, study_state
from hpo.database.attempt import Attempt
from hpo.database.optuna_tables import METRIC_NAMES
from hpo.database.optuna_view import Draft
from hpo.database.overview import Counts
from hpo.database.storage import Storage
from hpo.errors import StudyMismatch, StudyNotFound
from hpo.recipes.comparison import Comparison
from hpo.recipes.recipe import Recipe
from hpo.recipes.schedule import CurvePoint
from hpo.recipes.space import Param, SearchSpace
from hpo.settings import StudySettings

METRIC = "validation accuracy"
TARGET = "trials"
HOPELESS_FAILURES = 5
"""How many trials may fail while none succeeds before the study is given up."""


optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """Be a study in a storage."""

    storage: Storage
    study_id: int
    name: str
    settings: StudySettings

    @property
    def space(self) -> SearchSpace | Comparison:
        """Give the search space that the study was made with, or the recipes that a benchmark compares."""
        kind = SearchSpace if is_search(self.settings.space) else Comparison
        return kind.model_validate(self.settings.space)

    @property
    def base(self) -> Recipe:
        """Give the base recipe at the study's budget and seed."""
        return self.space.base_recipe.at(iterations=self.settings.iterations, seed=self.settings.seed)

    def recipe_of(self, trial: FrozenTrial) -> Recipe:
        """Give the recipe that a trial's parameters stand for."""
        return self.space.recipe(trial.params, iterations=self.settings.iterations, seed=self.settings.seed)

    def open_trial(self, attempt: Attempt) -> optuna.Trial:
        """Open a claimed trial for the study's sampler and pruner, seeded for this trial.

        Two workers with one seed would repeat each other's draws, so it is derived from the trial's number.
        """
        sampler = make_sampler(self.settings.sampler, self.settings.seed, attempt.trial_number)
        if isinstance(self.space, Comparison):
            sampler = fixed_sampler(self.space.params_of(attempt.trial_number), sampler)
        with self.storage.translated():
            study = optuna.load_study(
                study_name=self.name,
                storage=self.storage.view,
                sampler=sampler,
                pruner=make_pruner(self.settings.pruner, self.settings.iterations),
            )
            return optuna.Trial(study, attempt.trial_id)

    def suggest(self, trial: optuna.Trial) -> tuple[dict[str, Param], Draft]:
        """Let the sampler choose a trial's parameters, or give those that it has.

        Returns:
            The parameters, and what is to be written for the trial.
        """
        with self.storage.translated():
            params = self.space.suggest(trial)
        return params, self.storage.view.take_draft(trial._trial_id)

    def should_prune(self, trial: optuna.Trial) -> tuple[bool, Draft]:
        """Ask the pruner about what was reported for a trial so far.

        Returns:
            The decision, and what is to be written for the trial.
        """
        with self.storage.translated():
            decided = trial.should_prune()
        return decided, self.storage.view.take_draft(trial._trial_id)

    def trials(self) -> list[FrozenTrial]:
        """List all trials in the order of their numbers."""
        with self.storage.translated():
            found = self.storage.optuna.get_all_trials(self.study_id, deepcopy=False)
        total = overview.count(self.storage, self.study_id).total
        return found[:total]  # Optuna's cache goes on listing waiting trials that were taken away at the end


@dataclass(frozen=True, kw_only=True, slots=True)
class Best:
    """Be the best completed trial.

    Attributes:
        value: Validation accuracy in [0, 1].
        standard_error: Of the value, binomial.
    """

    trial: int
    value: float
    standard_error: float
    recipe: Recipe
    curve: tuple[CurvePoint, ...]


def continue_or_create(storage: Storage, name: str, settings: StudySettings, total: int, note: str = "") -> Study:
    """Make a study of `total` trials, or continue one, and fill its queue; one that was stopped goes on.

    Args:
        note: Shown by optuna-dashboard beside the study, in Markdown.

    Raises:
        StudyMismatch: The study exists with other settings; nothing is changed.
        StorageUnavailable: The database did not answer within its deadline.
    """
    with storage.translated():
        try:
            study_id = storage.optuna.create_new_study([StudyDirection.MAXIMIZE], name)
            storage.optuna.set_study_system_attr(study_id, METRIC_NAMES, [METRIC])
        except DuplicatedStudyError:
            study_id = storage.optuna.get_study_id_from_name(name)
            _require_ours(storage, study_id, name)
    stored = studies.describe_study(storage, study_id, settings.to_attrs())
    settings.require(_settings(stored, name), name)
    if note:
        studies.add_note(storage, study_id, note)
    study = Study(storage=storage, study_id=study_id, name=name, settings=settings)
    studies.fill(storage, study_id, total, first=study.space.base_params())
    study_state.reopen(storage, study_id)
    with storage.translated():
        storage.optuna.set_study_user_attr(study_id, TARGET, overview.count(storage, study_id).total)
    return study


def load(storage: Storage, name: str | None) -> Study:
    """Load a study by name, or the only one; a search goes before the benchmarks beside it.

    Raises:
        StudyNotFound: There is no such study, or several and no name.
    """
    with storage.translated():
        ours = {s.study_name: s for s in storage.optuna.get_all_studies() if "search space" in s.user_attrs}
    if name is None:
        ours = {title: s for title, s in ours.items() if is_search(s.user_attrs["search space"])} or ours
        if len(ours) != 1:
            hint = "; name one with --study" if ours else "; `hpo run` makes one"
            raise StudyNotFound(f"storage {storage.url} holds {len(ours)} studies{_listed(ours)}{hint}")
        name = next(iter(ours))
    found = ours.get(name)
    if found is None:
        raise StudyNotFound(f"storage {storage.url} holds no study {name!r} of hpo; it holds{_listed(ours) or ' none'}")
    return Study(
        storage=storage,
        study_id=found._study_id,
        name=found.study_name,
        settings=_settings(found.user_attrs, found.study_name),
    )


def status(study: Study) -> dict[str, Any]:
    """Say how a study stands, in the form of `hpo status --json`."""
    trials = study.trials()
    finished = [trial for trial in trials if trial.state.is_finished()]
    counts = overview.count(study.storage, study.study_id)
    best = find_best_trial(trials)
    return {
        "study": study.name,
        "space": study.settings.space["name"],
        "dataset": study.settings.dataset,
        "iterations": study.settings.iterations,
        "target": target(study),
        "state": study_state.shown_state(study_state.find_state(study.storage, study.study_id), counts),
        "trials": asdict(counts),
        "best": best and {"trial": best.number, "value": best.value, "recipe": study.recipe_of(best).to_dict()},
        "iterations_spent": {
            "naive": len(finished) * study.settings.iterations,
            "requested": sum(trial.user_attrs.get("iterations", 0) for trial in finished),
            "trained": overview.trained_iterations(study.storage, study.study_id),
        },
    }


def is_hopeless(now: Counts, before: Counts) -> bool:
    """Tell whether no trial has ever succeeded, and too many have failed since `before`."""
    return now.complete + now.pruned == 0 and now.failed - before.failed >= HOPELESS_FAILURES


def is_search(space: dict[str, Any]) -> bool:
    """Tell a search space from the recipes that a benchmark compares."""
    return "runs" not in space


def target(study: Study) -> int:
    """Give the number of trials that the study is to have."""
    with study.storage.translated():
        return int(study.storage.optuna.get_study_user_attrs(study.study_id).get(TARGET, 0))


def best(study: Study) -> Best:
    """Load the best completed trial with its curve.

    Raises:
        StudyNotFound: No trial is complete yet.
    """
    found = find_best_trial(study.trials())
    if found is None:
        raise StudyNotFound(f"study {study.name} has no completed trial yet")
    assert found.value is not None
    return Best(
        trial=found.number,
        value=found.value,
        standard_error=found.user_attrs["standard error"],
        recipe=study.recipe_of(found),
        curve=tuple(overview.load_curve(study.storage, found._trial_id)),
    )


def find_best_trial(trials: list[FrozenTrial]) -> FrozenTrial | None:
    """Find the completed trial of the highest accuracy, the oldest of equals, as optuna-dashboard does."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    return max(complete, key=lambda trial: (trial.value or 0.0, -trial.number), default=None)


def _require_ours(storage: Storage, study_id: int, name: str) -> None:
    total = overview.count(storage, study_id).total  # before the description, which another driver writes first
    if total and "search space" not in storage.optuna.get_study_user_attrs(study_id):
        raise StudyMismatch(f"study {name} has trials that were not made by hpo; give another name with --study")


def _settings(attrs: dict[str, Any], name: str) -> StudySettings:
    try:
        return StudySettings.from_attrs(attrs)
    except KeyError as error:
        raise StudyNotFound(f"study {name} was not made by hpo: it has no attribute {error}") from error


def _listed(studies: dict[str, Any]) -> str:
    return f": {', '.join(sorted(studies))}" if studies else ""
