"""The parameters with which a search space describes a recipe, if the recipe lies in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from hpo.errors import RecipeRefused, short
from hpo.recipes.distinct import canonical, recipe_key
from hpo.recipes.recipe import Recipe
from hpo.recipes.space import Param, SearchSpace


def find_params(space: SearchSpace, recipe: Recipe) -> dict[str, Param]:
    """Return the parameters with which a space describes a recipe, whatever its budget and seed are.

    Raises:
        RecipeRefused: The recipe does not lie in the space; the message names a value, and what is allowed.
    """
    values = _by_name(recipe)
    params: dict[str, Param] = {}
    for name in space.distributions():
        if space.applies(name, params) and name in values:
            params[name] = values[name]
    space.require(params, 0)
    params = {name: space.nearest(name, value) for name, value in params.items()}
    nearest = space.recipe(params, iterations=recipe.iterations, seed=recipe.seed)
    if recipe_key(nearest) != recipe_key(recipe):
        raise RecipeRefused(_first_difference(recipe, nearest))
    return params


def complete(space: SearchSpace, given: Mapping[str, Any]) -> dict[str, Param] | None:
    """Return the parameters of a trial if those that are given leave none open; None if some are left to be sampled.

    Raises:
        RecipeRefused: One is given that no trial with the others has.
    """
    params: dict[str, Param] = {}
    for name in space.distributions():
        if not space.applies(name, params):
            continue
        if name not in given:
            return None
        params[name] = space.nearest(name, given[name])
    if unused := given.keys() - params.keys():
        name = min(unused)
        raise RecipeRefused(f"{name} is {short(given[name])}, but has no effect on a recipe with the other values")
    return params


def _by_name(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe's values by the names of parameters; what it does not have is left out."""
    values = recipe.to_dict()
    early = values.pop("early_stopping")
    values |= {"early_stopping": early is not None} | ({} if early is None else {"patience": early})
    values |= {f"boundary_{index}": boundary for index, boundary in enumerate(recipe.boundaries, 1)}
    return values | {f"learning_rate_{index}": rate for index, rate in enumerate(recipe.values, 1)}


def _first_difference(recipe: Recipe, nearest: Recipe) -> str:
    """Name the first field in which a recipe differs from the nearest one of a space."""
    own, other = canonical(recipe), canonical(nearest)
    name = next(field.name for field in fields(own) if getattr(own, field.name) != getattr(other, field.name))
    return f"{name} is {short(own.to_dict()[name])}; allowed with its other values: {short(other.to_dict()[name])}"
