"""The distinct recipes of a search space: their keys, their number, and the untried ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from itertools import islice
from math import prod
from random import Random
from typing import Any

from hpo.recipes.recipe import Recipe
from hpo.recipes.space import Param, SearchSpace

MOST_LISTED = 2_000
"""The largest number of parameter settings that are listed to choose an untried one; of more, some are drawn."""

MOST_DRAWN = 10_000
"""How often parameters are drawn for an untried recipe, in a space whose recipes cannot be counted."""

_COUNTED_TOGETHER = (
    "head",
    "dropout",
    "momentum",
    "nesterov",
    "early_stopping",
    "patience",
    "boundary_",
    "learning_rate_",
)
"""Names, or beginnings of names, of parameters that apply only with values of others, or of a schedule."""

DIGITS = 12
"""Significant digits of numbers in a key, so that 0.1 + 0.2, as samplers compute it, is 0.3."""

Params = dict[str, Param]


def canonical(recipe: Recipe) -> Recipe:
    """Return the same training run in one form: neighbouring phases with the same learning rate are one phase."""
    boundaries: list[int] = []
    values = [recipe.values[0]]
    for boundary, value in zip(recipe.boundaries, recipe.values[1:], strict=True):
        if value != values[-1]:
            boundaries.append(boundary)
            values.append(value)
    return replace(recipe, boundaries=tuple(boundaries), values=tuple(values))


def recipe_key(recipe: Recipe) -> str:
    """Return a key that two recipes share exactly if they are the same training run.

    A field that has its default is left out, so that a field added by a later release changes no key.
    """
    form = canonical(recipe)
    given = {
        field.name: value for field in fields(form) if (value := _rounded(getattr(form, field.name))) != field.default
    }
    return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()


def _rounded(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_rounded, value))
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def count_recipes(space: SearchSpace) -> int | None:
    """Count the distinct recipes of a space without listing them; return None if a range has too many values."""
    allowed = _finite(space.allowed())
    return None if allowed is None else _count(allowed)


def count_every_recipe(space: SearchSpace) -> int:
    """Count the distinct recipes of a space, however many values its ranges have."""
    return _count(space.every_value())


def count_every_setting(space: SearchSpace) -> int:
    """Count the settings of a space's parameters that trials can have; several may give one recipe."""
    return _count_all_settings(space.every_value())


def draw_untried(
    space: SearchSpace, tried: Collection[str], key_of: Callable[[Params], str], random: Random
) -> Params | None:
    """Draw the parameters of a recipe that was not tried; return None if all were, or if of many draws none was new.

    Each untried recipe is equally likely. In a space of too many settings to list, each value of a parameter is.

    Args:
        tried: Keys of recipes of the space.
        key_of: Returns the key of the recipe that parameters describe.
    """
    possible = count_recipes(space)
    if possible is not None and len(tried) >= possible:
        return None
    if possible is not None and _count_settings(space) <= MOST_LISTED:
        untried = {key: params for params in list_params(space) if (key := key_of(params)) not in tried}
        return random.choice(list(untried.values()))
    draws = islice(_draw_forever(space, random), MOST_DRAWN if possible is None else None)
    return next((params for params in draws if key_of(params) not in tried), None)


def list_params(space: SearchSpace) -> list[Params]:
    """List all parameters that trials can have, in a space whose ranges can be listed; several may give one recipe."""
    allowed = _finite(space.allowed())
    assert allowed is not None, "counted before"
    listed: list[Params] = [{}]
    for name in space.distributions():
        listed = [
            params | chosen
            for params in listed
            for chosen in ([{name: value} for value in allowed[name]] if space.applies(name, params) else [{}])
        ]
    return listed


def _draw_forever(space: SearchSpace, random: Random) -> Iterator[Params]:
    while True:
        params: Params = {}
        for name in space.distributions():
            if space.applies(name, params):
                params[name] = space.draw(name, random)
        yield params


def _count_settings(space: SearchSpace) -> int:
    allowed = _finite(space.allowed())
    assert allowed is not None, "counted before"
    return _count_all_settings(allowed)


def _count(allowed: Mapping[str, Sequence[Any]]) -> int:
    boundaries, rates = _list_of(allowed, "boundary"), _list_of(allowed, "learning_rate")
    return _count_without_schedule(allowed) * _count_schedules(boundaries, rates)


def _count_all_settings(allowed: Mapping[str, Sequence[Any]]) -> int:
    schedule = (*_list_of(allowed, "boundary"), *_list_of(allowed, "learning_rate"))
    return _count_without_schedule(allowed) * prod(map(len, schedule))


def _finite(allowed: Mapping[str, Sequence[Any] | None]) -> dict[str, Sequence[Any]] | None:
    """Return the values of all parameters, or None if those of one are too many."""
    listed = {name: values for name, values in allowed.items() if values is not None}
    return listed if len(listed) == len(allowed) else None


def _list_of(allowed: Mapping[str, Sequence[Any]], kind: str) -> list[Sequence[Any]]:
    """List the values of the boundaries, or of the learning rates, of a schedule in their order."""
    return [values for name, values in allowed.items() if name.startswith(f"{kind}_")]


def _count_without_schedule(allowed: Mapping[str, Sequence[Any]]) -> int:
    networks = sum(1 if head == "linear" else len(allowed["dropout"]) for head in allowed["head"])
    momenta = sum(1 if momentum == 0 else len(allowed["nesterov"]) for momentum in allowed["momentum"])
    stops = sum(len(allowed["patience"]) if early else 1 for early in allowed["early_stopping"])
    others = (len(values) for name, values in allowed.items() if not name.startswith(_COUNTED_TOGETHER))
    return networks * momenta * stops * prod(others)


def _count_schedules(boundaries: Sequence[Sequence[int]], rates: Sequence[Sequence[float]]) -> int:
    """Count the schedules that differ once neighbouring phases with the same rate are one phase.

    Phase by phase, `ending` holds how many of them end with each rate. A further phase either has the rate of the last
    one, and its boundary makes no difference, or another rate, and each boundary gives another schedule.
    """
    ending = dict.fromkeys(rates[0], 1)
    for between, here in zip(boundaries, rates[1:], strict=True):
        every = sum(ending.values())
        ending = {rate: (same := ending.get(rate, 0)) + len(between) * (every - same) for rate in here}
    return sum(ending.values())
