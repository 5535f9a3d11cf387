"""Studies: create or continue one, fill its queue, and summarise its state."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo.algorithms import NearestSampler, fixed_sampler, make_pruner, make_sampler
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
from hpo.settings import VALIDATION_LOSS, StudySettings

METRIC = "validation accuracy"
"""The name under which Optuna shows a trial's value."""

TARGET = "trials"
"""The study's user attribute that holds the number of trials it should have."""

HOPELESS_FAILURES = 5
"""The number of failed trials, with none succeeded, after which a study is abandoned."""

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """A study in a storage."""

    storage: Storage
    study_id: int
    name: str
    settings: StudySettings

    @property
    def space(self) -> SearchSpace | Comparison:
        """Return the search space that the study was created with, or the recipes that a benchmark compares."""
        kind = SearchSpace if is_search(self.settings.space) else Comparison
        return kind.model_validate(self.settings.space)

    @property
    def base(self) -> Recipe:
        """Return the base recipe at the study's budget and seed."""
        return self.space.base_recipe.at(iterations=self.settings.iterations, seed=self.settings.seed)

    def recipe_of(self, trial: FrozenTrial) -> Recipe:
        """Return the recipe that a trial's parameters describe."""
        return self.space.recipe(trial.params, iterations=self.settings.iterations, seed=self.settings.seed)

    def open_trial(self, attempt: Attempt) -> optuna.Trial:
        """Open a claimed trial for the study's sampler and pruner, seeded for this trial.

        Two workers with the same seed would repeat each other's draws, so it is derived from the trial's number.
        """
        sampler = make_sampler(self.settings.sampler, self.settings.seed, attempt.trial_number)
        space = self.space
        if isinstance(space, Comparison):
            sampler = fixed_sampler(space.params_of(attempt.trial_number), sampler)
        else:
            sampler = NearestSampler(sampler, space.nearest)
        with self.storage.translated():
            study = optuna.load_study(
                study_name=self.name,
                storage=self.storage.view,
                sampler=sampler,
                pruner=make_pruner(self.settings.pruner, self.settings.iterations),
            )
            return optuna.Trial(study, attempt.trial_id)

    def suggest(self, attempt: Attempt, trial: optuna.Trial) -> tuple[dict[str, Param], Draft]:
        """Let the sampler choose a trial's parameters, or return those that it already has.

        Args:
            trial: What `open_trial` returned for the attempt.

        Returns:
            The parameters, and what must be written for the trial.
        """
        with self.storage.translated():
            params = self.space.suggest(trial)
        return params, self.storage.view.take_draft(attempt.trial_id)

    def should_prune(self, attempt: Attempt, trial: optuna.Trial) -> tuple[bool, Draft]:
        """Ask the pruner about what has been reported for a trial so far.

        Args:
            trial: What `open_trial` returned for the attempt.

        Returns:
            The decision, and what must be written for the trial.
        """
        with self.storage.translated():
            decided = trial.should_prune()
        return decided, self.storage.view.take_draft(attempt.trial_id)

    def trials(self) -> list[FrozenTrial]:
        """List all trials in the order of their numbers."""
        with self.storage.translated():
            trials = self.storage.optuna.get_all_trials(self.study_id, deepcopy=False)
        total = overview.count(self.storage, self.study_id).total
        return trials[:total]  # Optuna's cache still lists waiting trials that were removed from the end


@dataclass(frozen=True, kw_only=True, slots=True)
class Best:
    """The best completed trial.

    Attributes:
        trial: Its number.
        value: Validation accuracy in [0, 1].
        standard_error: Of the value, binomial.
    """

    trial: int
    value: float
    standard_error: float
    recipe: Recipe
    curve: tuple[CurvePoint, ...]


def continue_or_create(storage: Storage, name: str, settings: StudySettings, total: int, note: str = "") -> Study:
    """Create a study of `total` trials, or continue one, and fill its queue; a stopped study is resumed.

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
    """Load a study by name, or the only one; a search takes precedence over its benchmarks.

    Raises:
        StudyNotFound: There is no such study, or there are several and no name is given.
    """
    with storage.translated():
        ours = {s.study_name: s for s in storage.optuna.get_all_studies() if "search space" in s.user_attrs}
    if name is None:
        ours = {title: s for title, s in ours.items() if is_search(s.user_attrs["search space"])} or ours
        if len(ours) != 1:
            hint = "; name one with --study" if ours else "; `hpo run` makes one"
            raise StudyNotFound(f"storage {storage.url} holds {len(ours)} studies{_listed(ours)}{hint}")
        name = next(iter(ours))
    study_id = _find_study_id(storage, name) if name in ours else None
    if study_id is None:
        raise StudyNotFound(
            f"storage {storage.url} holds no study {name!r} of hpo; it holds{_listed(ours.keys() - {name}) or ' none'}"
        )
    return Study(storage=storage, study_id=study_id, name=name, settings=_settings(ours[name].user_attrs, name))


def status(study: Study) -> dict[str, Any]:
    """Summarise the state of a study, in the form of `hpo status --json`."""
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
        "trials": {name: number for name, number in asdict(counts).items() if name != "at_rungs"},
        "waiting_at_rungs": dict(counts.at_rungs),
        "best": best and {"trial": best.number, "value": best.value, "recipe": study.recipe_of(best).to_dict()},
        "iterations_spent": {
            "naive": len(finished) * study.settings.iterations,
            "requested": sum(trial.user_attrs.get("iterations", 0) for trial in finished),
            "trained": overview.trained_iterations(study.storage, study.study_id),
        },
    }


def is_hopeless(now: Counts, before: Counts) -> bool:
    """Return whether no trial has ever succeeded, and too many have failed since `before`."""
    return now.complete + now.pruned == 0 and now.failed - before.failed >= HOPELESS_FAILURES


def is_search(space: dict[str, Any]) -> bool:
    """Return whether the stored space is a search space, rather than the recipes that a benchmark compares."""
    return "runs" not in space


def target(study: Study) -> int:
    """Return the number of trials that the study should have."""
    with study.storage.translated():
        return int(study.storage.optuna.get_study_user_attrs(study.study_id).get(TARGET, 0))


def best(study: Study) -> Best:
    """Load the best completed trial with its curve.

    Raises:
        StudyNotFound: No trial is complete yet.
    """
    trial = find_best_trial(study.trials())
    if trial is None:
        raise StudyNotFound(f"study {study.name} has no completed trial yet")
    assert trial.value is not None
    with study.storage.translated():
        trial_id = study.storage.optuna.get_trial_id_from_study_id_trial_number(study.study_id, trial.number)
    return Best(
        trial=trial.number,
        value=trial.value,
        standard_error=trial.user_attrs["standard error"],
        recipe=study.recipe_of(trial),
        curve=tuple(overview.load_curve(study.storage, trial_id)),
    )


def find_best_trial(trials: list[FrozenTrial]) -> FrozenTrial | None:
    """Find the best completed trial: the first of `ranking`."""
    return next(iter(ranking(trials)), None)


def ranking(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Sort the completed trials: the highest accuracy first, then the lowest validation loss, then the oldest."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    return sorted(complete, key=lambda t: (-(t.value or 0.0), t.user_attrs.get(VALIDATION_LOSS, math.inf), t.number))


def _find_study_id(storage: Storage, name: str) -> int | None:
    try:
        with storage.translated():
            return storage.optuna.get_study_id_from_name(name)
    except KeyError:  # deleted since it was listed
        return None


def _require_ours(storage: Storage, study_id: int, name: str) -> None:
    total = overview.count(storage, study_id).total  # before the description, which another driver writes first
    if total and "search space" not in storage.optuna.get_study_user_attrs(study_id):
        raise StudyMismatch(f"study {name} has trials that were not made by hpo; give another name with --study")


def _settings(attrs: dict[str, Any], name: str) -> StudySettings:
    try:
        return StudySettings.from_attrs(attrs)
    except KeyError as error:
        raise StudyNotFound(f"study {name} was not made by hpo: it has no attribute {error}") from error


def _listed(names: Collection[str]) -> str:
    return f": {', '.join(sorted(names))}" if names else ""
