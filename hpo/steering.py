"""The steering of studies by people: try a recipe of their own next, begin with what another study found."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from optuna.trial import FrozenTrial, TrialState

from hpo import study as studies
from hpo.database import enqueueing
from hpo.database.enqueueing import Enqueued
from hpo.database.storage import Storage
from hpo.database.studies import first_attrs
from hpo.database.takeover import ORIGIN, Taken, take_over
from hpo.errors import BadInput, RecipeRefused, StudyMismatch, StudyNotFound, short
from hpo.recipes.distinct import recipe_key
from hpo.recipes.membership import complete, find_params
from hpo.recipes.recipe import Recipe
from hpo.recipes.space import Param, SearchSpace
from hpo.recipes.yaml_numbers import load_yaml
from hpo.results.notes import trial_note
from hpo.settings import MAX_TRIALS, StudySettings
from hpo.study import Study

_TRIAL = re.compile(r"(?P<study>[^:]+):(?P<number>[0-9]{1,10})")


@dataclass(frozen=True, kw_only=True, slots=True)
class Takeover:
    """The finished trials of a study with which another begins.

    Attributes:
        taken: How many lie in the space of the other.
        left: How many do not.
    """

    source: str
    taken: int
    left: int


def parse_params(words: Sequence[str]) -> dict[str, Any]:
    """Read parameters from words such as `dropout=0.5`, with values as in the YAML of a space.

    Raises:
        BadInput: A word has no name or no value, or a name stands twice.
    """
    params: dict[str, Any] = {}
    for word in words:
        name, sign, text = word.partition("=")
        if not (name and sign and text):
            raise BadInput(f"{short(word)}: allowed: NAME=VALUE, such as head=dense or dropout=0.5")
        if name in params:
            raise BadInput(f"{short(word)}: {name} is given twice")
        try:
            params[name] = load_yaml(text)
        except yaml.YAMLError as error:
            raise BadInput(f"{short(word)}: {short(text)} is not a value") from error
    return params


def load_recipe(storage: Storage, place: str) -> Recipe:
    """Load the recipe of a trial that is named as STUDY:NUMBER.

    Raises:
        BadInput: It is named otherwise, or has no recipe.
        StudyNotFound: There is no such study or trial.
    """
    named = _TRIAL.fullmatch(place)
    if named is None or (number := int(named["number"])) >= MAX_TRIALS:
        raise BadInput(f"--trial {short(place)}: allowed: STUDY:N, such as smooth_lr-digits:7")
    study = studies.load(storage, named["study"])
    trial = next((each for each in study.trials() if each.number == number), None)
    if trial is None:
        raise StudyNotFound(f"--trial {place}: study {study.name} has no trial with that number yet")
    recipe = study.find_recipe(trial) if trial.params else None
    if recipe is None:
        raise BadInput(f"--trial {place}: the trial has no recipe")
    return recipe


def enqueue(study: Study, given: Mapping[str, Any] | Recipe, *, add: bool) -> tuple[Enqueued, dict[str, Any]]:
    """Let a study train a recipe next, in the place of a trial that has not begun, or as one more.

    Args:
        given: The recipe, or some of its parameters; the sampler chooses the others.
        add: Whether the study is to have one trial more.

    Returns:
        The trial, and the parameters that it was given.

    Raises:
        BadInput: The study is not a search, its space does not allow the recipe, a trial has it, or every trial has
            begun; nothing is changed.
    """
    space = study.space
    if not isinstance(space, SearchSpace):
        raise BadInput(f"study {study.name} is not a search: it trains the recipes that it was made for")
    try:
        if isinstance(given, Recipe):
            params = find_params(space, given)
        else:
            space.require(given, 0)
            params = {name: space.nearest(name, value) for name, value in given.items()}
        whole = complete(space, params)
    except RecipeRefused as error:
        raise RecipeRefused(f"search space {space.name}: {error}") from error
    key = None if whole is None else study.key_of(whole)
    try:
        return enqueueing.enqueue(study.storage, study.study_id, params, key, study.key_of, add=add), params
    except StudyNotFound:
        raise
    except BadInput as error:
        raise BadInput(f"study {study.name}: {error}") from error


def begin_from(
    storage: Storage, name: str, settings: StudySettings, source_name: str
) -> tuple[Callable[[Study], None], Takeover] | None:
    """Prepare that a study begins with the finished trials of another that lie in its space.

    Args:
        name: Of the study that is to begin.

    Returns:
        What copies them into the study, and which they are; None if the study was begun from that one before.

    Raises:
        BadInput: The source is the study itself or no search, or another setting than space and sampler differs.
        StudyNotFound: There is no such source.
    """
    if source_name == name:
        raise BadInput(f"--from {source_name}: is the study itself; choose another name with --study")
    with storage.translated():
        present = {each.study_name: each.user_attrs for each in storage.optuna.get_all_studies()}
    if present.get(name, {}).get(ORIGIN) == source_name:
        return None
    source = studies.load(storage, source_name)
    _require_comparable(settings, source)
    finished = [trial for trial in source.trained_trials() if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    space = SearchSpace.model_validate(settings.space)
    inside = {trial.number: params for trial in finished if (params := _params_in(space, source, trial)) is not None}
    takeover = Takeover(source=source_name, taken=len(inside), left=len(finished) - len(inside))
    trials = [trial for trial in finished if trial.number in inside]
    return lambda study: _take_over(study, source, trials, inside), takeover


def describe(takeover: Takeover) -> str:
    """Say in a line what a study begins with."""
    finished = takeover.taken + takeover.left
    left = f"; {takeover.left} do not lie in its space" if takeover.left else ""
    return f"begins with {takeover.taken} of the {finished} finished trials of {takeover.source}{left}"


def _require_comparable(settings: StudySettings, source: Study) -> None:
    """Refuse a source whose trials would have been trained, measured or pruned otherwise."""
    if not isinstance(source.space, SearchSpace):
        raise BadInput(f"--from {source.name}: is not a search")
    differ = settings.differences(source.settings, besides=("space", "sampler"))
    here, there = SearchSpace.model_validate(settings.space).base_recipe.to_dict(), source.space.base_recipe.to_dict()
    differ += [
        f"{name} of the base recipe is {there[name]} in the study and {here[name]} here"
        for name in here
        if here[name] != there[name]
    ]
    if differ:
        raise StudyMismatch(f"--from {source.name}: the study has other settings: {'; '.join(differ)}")


def _params_in(space: SearchSpace, source: Study, trial: FrozenTrial) -> dict[str, Param] | None:
    """Return a trial's parameters in another space; None if its recipe does not lie there."""
    recipe = source.find_recipe(trial)
    try:
        return None if recipe is None else find_params(space, recipe)
    except RecipeRefused:
        return None


def _take_over(
    study: Study, source: Study, trials: Sequence[FrozenTrial], params: Mapping[int, dict[str, Param]]
) -> None:
    """Copy trials of a source into a study, that with the base recipe first."""
    distributions, base_key = study.space.distributions(), recipe_key(study.base)
    taken = [
        Taken(
            trial_id=trial._trial_id,
            origin=f"{source.name}:{trial.number}",
            params=studies.as_rows(params[trial.number], distributions),
            key=study.key_of(params[trial.number]),
            note=trial_note(source.recipe_of(trial), study.base, trial.user_attrs, study.settings.pruner),
        )
        for trial in trials
    ]
    taken.sort(key=lambda each: each.key != base_key)
    has_base = bool(taken) and taken[0].key == base_key
    first = None if has_base else first_attrs(study.space.base_params(), base_key)
    take_over(study.storage, study.study_id, source.name, taken, first)
