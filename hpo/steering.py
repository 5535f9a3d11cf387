"""The steering of a study by people: try a recipe of their own next."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from hpo import study as studies
from hpo.database import enqueueing
from hpo.database.enqueueing import Enqueued
from hpo.database.storage import Storage
from hpo.errors import BadInput, RecipeRefused, StudyNotFound, short
from hpo.recipes.membership import complete, find_params
from hpo.recipes.recipe import Recipe
from hpo.recipes.space import SearchSpace
from hpo.recipes.yaml_numbers import load_yaml
from hpo.settings import MAX_TRIALS
from hpo.study import Study

_TRIAL = re.compile(r"(?P<study>[^:]+):(?P<number>[0-9]{1,10})")


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
