"""Studies: create or continue one, fill its queue, and summarise its state."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, check_distribution_compatibility, distribution_to_json
from optuna.exceptions import DuplicatedStudyError
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError

from hpo.algorithms import NearestSampler, fixed_sampler, make_pruner, make_sampler
from hpo.database import overview, recipe_index, studies, study_note, study_state
from hpo.database.attempt import Attempt, ended_message
from hpo.database.ends import find_ends, set_ends
from hpo.database.optuna_tables import FIXED_PARAMS
from hpo.database.optuna_view import Draft, DraftParam
from hpo.database.overview import Counts
from hpo.database.storage import Storage
from hpo.errors import BadInput, LeaseLost, RecipeError, RecipeRefused, StudyMismatch, StudyNotFound
from hpo.recipes.comparison import Comparison
from hpo.recipes.distinct import count_recipes, recipe_key
from hpo.recipes.recipe import Recipe
from hpo.recipes.schedule import CurvePoint
from hpo.recipes.space import Param, SearchSpace
from hpo.settings import SPACE, STANDARD_ERROR, VALIDATION_LOSS, StudySettings

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
        return _kind(self.settings.space).model_validate(self.settings.space)

    @property
    def base(self) -> Recipe:
        """Return the base recipe at the study's budget and seed."""
        return self.space.base_recipe.at(iterations=self.settings.iterations, seed=self.settings.seed)

    def recipe_of(self, trial: FrozenTrial) -> Recipe:
        """Return the recipe that the parameters of a trial describe; it was trained here."""
        return self.space.recipe(trial.params, iterations=self.settings.iterations, seed=self.settings.seed)

    def find_recipe(self, trial: FrozenTrial) -> Recipe | None:
        """Return the recipe that the parameters of a trial describe; None if they are not of the search space.

        A trial may fail before it has parameters, and other clients may give it any.
        """
        if not trial.params and trial.state == TrialState.FAIL:
            return None
        try:
            self.space.require(trial.params, trial.number)
        except RecipeRefused:
            return None
        return self.recipe_of(trial)

    def key_of(self, params: Mapping[str, Any]) -> str:
        """Return the key of the recipe that parameters describe; it is empty if another client made them invalid."""
        try:
            recipe = self.space.recipe(params, iterations=self.settings.iterations, seed=self.settings.seed)
        except RecipeError:
            return ""
        return recipe_key(recipe)

    def open_trial(
        self, attempt: Attempt, redraw: int = 0, fixed: Mapping[str, Any] = MappingProxyType({})
    ) -> optuna.Trial:
        """Open a claimed trial for the study's sampler and pruner, seeded for this trial.

        Two workers with the same seed would repeat each other's draws, so it is derived from the trial's number.

        Args:
            redraw: How often parameters were drawn for the trial before, and not taken.
            fixed: Parameters that are not left to the sampler.

        Raises:
            LeaseLost: The trial was deleted.
        """
        sampler = make_sampler(self.settings.sampler, self.settings.seed, attempt.trial_number, redraw)
        space = self.space
        if isinstance(space, Comparison):
            fixed = space.params_of(attempt.trial_number)
        else:
            sampler = NearestSampler(sampler, space.nearest)
        if fixed:
            sampler = fixed_sampler(dict(fixed), sampler)
        pruner = make_pruner(self.settings.pruner, self.settings.iterations)
        try:
            with self.storage.translated():
                study = optuna.load_study(
                    study_name=self.name, storage=self.storage.view, sampler=sampler, pruner=pruner
                )
                return optuna.Trial(study, attempt.trial_id)
        except KeyError as error:  # the trial was deleted, or its study
            raise LeaseLost(ended_message(attempt)) from error

    def suggest(self, attempt: Attempt, trial: optuna.Trial) -> tuple[dict[str, Param], Draft]:
        """Let the sampler choose a trial's parameters, unless it has some already or was enqueued with some.

        Args:
            trial: What `open_trial` returned for the attempt.

        Returns:
            The parameters, and what must be written for the trial: all of them, whatever others have written.

        Raises:
            RecipeRefused: The search space does not allow what another client has chosen.
        """
        self._require_given(attempt)
        with self.storage.translated():
            params = self.space.suggest(trial)
        draft = self.storage.view.take_draft(attempt.trial_id)
        return params, replace(draft, params=as_rows(params, trial.distributions))

    def _require_given(self, attempt: Attempt) -> None:
        """Refuse what another client has chosen for a trial, if the space does not allow it.

        Of the parameters that the trial already has, those that the space does not know are left alone.
        """
        with self.storage.translated():
            trial = self.storage.view.get_trial(attempt.trial_id)
        known = self.space.distributions()
        given = {name: value for name, value in trial.params.items() if name in known}
        for params in (given, trial.system_attrs.get(FIXED_PARAMS, {})):
            self.space.require(params, trial.number)
        for name in given:
            try:
                check_distribution_compatibility(trial.distributions[name], known[name])
            except ValueError as error:
                raise RecipeRefused(
                    f"{name} was drawn from {trial.distributions[name]}; allowed: {known[name]}"
                ) from error

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
        try:
            with self.storage.translated():
                return self.storage.optuna.get_all_trials(self.study_id, deepcopy=False)
        except KeyError as error:
            raise StudyNotFound(f"study {self.name} no longer exists: it was deleted or renamed") from error

    def trained_trials(self) -> list[FrozenTrial]:
        """List the finished trials that were trained by our workers, in the order of their numbers."""
        trained = overview.list_trained(self.storage, self.study_id)
        return [trial for trial in self.trials() if trial._trial_id in trained]


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


def continue_or_create(
    storage: Storage,
    name: str,
    settings: StudySettings,
    total: int,
    note: str = "",
    prepare: Callable[[Study], None] | None = None,
    ends: Mapping[str, float | None] = MappingProxyType({}),
) -> Study:
    """Create a study of `total` trials, or continue one; a study that was stopped, or has ended, is resumed.

    A study has no more trials than its search space has distinct recipes, apart from those that may repeat one.

    Args:
        note: Shown by optuna-dashboard next to the study, in Markdown.
        prepare: What to do with the study before its queue is filled.
        ends: Values of fields of `hpo.database.ends.Ends`; 0 removes an end, None leaves it as it is.

    Raises:
        BadInput: The study exists, and an attribute of its settings was edited; nothing is changed.
        StudyMismatch: The study exists with other settings; nothing is changed.
        StorageUnavailable: The database did not answer within its deadline.
    """
    with storage.translated():
        try:
            study_id = storage.optuna.create_new_study([StudyDirection.MAXIMIZE], name)
        except DuplicatedStudyError:
            study_id = storage.optuna.get_study_id_from_name(name)
            _require_ours(storage, study_id, name)
    stored = studies.describe_study(storage, study_id, settings.to_attrs())
    settings.require(_settings(stored, name), name)
    if note:
        study_note.add_note(storage, study_id, note)
    study = Study(storage=storage, study_id=study_id, name=name, settings=settings)
    if prepare is not None:
        prepare(study)
    base_key = recipe_key(study.base) if isinstance(study.space, SearchSpace) else None
    first = study.space.base_params()
    studies.set_target(storage, study_id, limit_trials(study, total), first, base_key)
    set_ends(storage, study_id, ends)
    study_state.reopen(storage, study_id)
    return study


def load(storage: Storage, name: str | None) -> Study:
    """Load a study by name, or the only one; a search takes precedence over its benchmarks.

    Raises:
        BadInput: An attribute of its settings was edited.
        StudyNotFound: There is no such study, or there are several and no name is given.
    """
    with storage.translated():
        present = {each.study_name: each.user_attrs for each in storage.optuna.get_all_studies()}
    ours = {title: attrs for title, attrs in present.items() if SPACE in attrs}
    if name is None:
        ours = {title: attrs for title, attrs in ours.items() if is_search(attrs[SPACE])} or ours
        if len(ours) != 1:
            hint = "; name one with --study (`hpo studies` shows them)" if ours else "; `hpo run` makes one"
            raise StudyNotFound(f"storage {storage.url} holds {len(ours)} studies{_listed(ours)}{hint}")
        name = next(iter(ours))
    study_id = _find_study_id(storage, name) if name in ours else None
    if study_id is None:
        raise StudyNotFound(
            f"storage {storage.url} has no hpo study {name!r}; it has{_listed(ours.keys() - {name}) or ' none'}"
        )
    made_with = studies.find_settings(storage, study_id)
    if made_with is None:
        with storage.opened_to_write() as writable:
            made_with = studies.adopt_copy(writable, study_id, name)
    settings = _settings(made_with, name)
    return Study(storage=storage, study_id=study_id, name=name, settings=settings)


def status(study: Study) -> dict[str, Any]:
    """Summarise the state of a study, in the form of `hpo status --json`."""
    trained = study.trained_trials()
    counts = overview.count(study.storage, study.study_id)
    best = find_best_trial(trained)
    ends, reason = find_ends(study.storage, study.study_id)
    return {
        "study": study.name,
        "space": study.settings.space["name"],
        "dataset": study.settings.dataset,
        "iterations": study.settings.iterations,
        "target": counts.total,
        "state": study_state.shown_state(study_state.find_state(study.storage, study.study_id), counts),
        "ended_because": reason,
        "ends": asdict(ends),
        "trials": {state: getattr(counts, state) for state in ("complete", "pruned", "failed", "running", "waiting")},
        "waiting_at_rungs": dict(counts.at_rungs),
        "of_other_clients": {"lent": counts.lent, "told": counts.told, "refused": counts.refused},
        "best": best and {"trial": best.number, "value": best.value, "recipe": study.recipe_of(best).to_dict()},
        "recipes": tried_recipes(study),
        "iterations_spent": {
            "naive": len(trained) * study.settings.iterations,
            "requested": sum(trial.user_attrs.get("iterations", 0) for trial in trained),
            "trained": overview.trained_iterations(study.storage, study.study_id),
        },
    }


def companion_settings(settings: StudySettings, comparison: Comparison, iterations: int) -> StudySettings:
    """Return the settings of a study that trains a comparison's recipes to their ends, in place of a search."""
    return replace(
        settings,
        space=comparison.model_dump(mode="json"),
        iterations=iterations,
        sampler="random",
        pruner="none",
        align="iteration",
    )


def limit_trials(study: Study, total: int) -> int:
    """Return how many of `total` trials a study can have, each with a recipe of its own unless it may repeat one."""
    if not isinstance(study.space, SearchSpace):
        return total
    settled, tried = recipe_index.count_settled(study.storage, study.study_id, study.key_of)
    possible = count_recipes(study.space)
    return total if possible is None else min(total, settled + max(0, possible - tried))


def tried_recipes(study: Study) -> dict[str, int] | None:
    """Count the distinct recipes that a search's trials have, and those of its space.

    Returns:
        None for a benchmark, and where the space has too many recipes to count.
    """
    space = study.space
    possible = count_recipes(space) if isinstance(space, SearchSpace) else None
    if possible is None:
        return None
    return {"tried": recipe_index.count_keys(study.storage, study.study_id), "possible": possible}


def find_used_up(study: Study) -> str | None:
    """State that every recipe of a study's search space has been tried; return None if it is not so."""
    recipes = tried_recipes(study)
    if recipes is None or recipes["tried"] < recipes["possible"]:
        return None
    number = "its only recipe has" if recipes["possible"] == 1 else f"all {recipes['possible']} recipes have"
    return f"the search space of study {study.name} is used up: {number} been tried"


def is_hopeless(now: Counts, before: Counts) -> bool:
    """Return whether no trial has ever succeeded here, and too many have failed since `before`."""
    succeeded = now.complete + now.pruned - now.told
    return succeeded == 0 and now.failed - now.refused - before.failed + before.refused >= HOPELESS_FAILURES


def is_search(space: object) -> bool:
    """Return whether the stored space is a search space, rather than the recipes that a benchmark compares."""
    return isinstance(space, dict) and "runs" not in space


def best(study: Study, number: int | None = None) -> Best:
    """Load the best completed trial with its curve; what other clients tell is not compared with what was trained.

    Args:
        number: The completed trial that is best for other reasons than its value; None for the one with the best value.

    Raises:
        StudyNotFound: No trial is complete yet.
    """
    trained = study.trained_trials()
    trial = find_best_trial(trained if number is None else [each for each in trained if each.number == number])
    if trial is None:
        raise StudyNotFound(f"study {study.name} has no completed trial yet")
    assert trial.value is not None
    with study.storage.translated():
        trial_id = study.storage.optuna.get_trial_id_from_study_id_trial_number(study.study_id, trial.number)
    return Best(
        trial=trial.number,
        value=trial.value,
        standard_error=trial.user_attrs[STANDARD_ERROR],
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
    if total and SPACE not in storage.optuna.get_study_user_attrs(study_id):
        raise StudyMismatch(f"study {name} has trials that hpo did not create; choose another name with --study")


def _settings(attrs: Mapping[str, Any], name: str) -> StudySettings:
    """Read a study's settings from its attributes; whoever copied it may have edited them.

    Raises:
        BadInput: One is missing, or not what it may be.
    """
    try:
        settings = StudySettings.from_attrs(attrs)
        _kind(settings.space).model_validate(settings.space)
    except BadInput as error:
        raise type(error)(f"study {name}: {error}") from error
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise BadInput(
            f"study {name}: its attribute {SPACE!r} is not a search space, at {place or 'its top'}: "
            f"{error.errors()[0]['msg']}"
        ) from error
    return settings


def as_rows(params: Mapping[str, Param], distributions: Mapping[str, BaseDistribution]) -> dict[str, DraftParam]:
    """Return parameters as they are written."""
    return {
        name: DraftParam(
            value=distributions[name].to_internal_repr(value), distribution=distribution_to_json(distributions[name])
        )
        for name, value in params.items()
    }


def _kind(space: object) -> type[SearchSpace | Comparison]:
    return SearchSpace if is_search(space) else Comparison


def _listed(names: Collection[str]) -> str:
    return f": {', '.join(sorted(names))}" if names else ""
