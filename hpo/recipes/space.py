"""Search spaces: check their fields, and turn them into Optuna distributions and recipes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from random import Random
from typing import Annotated, Any, Self, cast

from optuna import Trial
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import (
    Field,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from hpo.errors import RecipeError, RecipeRefused, short
from hpo.recipes.ranges import StrictModel
from hpo.recipes.recipe import (
    Recipe,
    documented_runs,
)
from hpo.recipes.search_fields import (
    Search,
    describe_values,
    distribution_of,
    ends,
    is_member,
    is_searched,
    may_be,
    members,
)

_SAME_NAME = (
    "head",
    "dropout",
    "shortcut_norm",
    "depth",
    "batch_size",
    "momentum",
    "nesterov",
    "weight_decay",
    "label_smoothing",
)
"""Fields that a search and a recipe have under one name."""

Param = bool | int | float | str
"""The value of a trial's parameter."""

Place = tuple[str | int, ...]
"""The keys and list indices that lead to a value in a space's YAML."""


class SearchSpace(StrictModel):
    """A base recipe, and the values that are searched around it."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,49}$")]
    description: str = ""
    base: str | dict[str, Any]
    search: Search = Search()

    @field_validator("base")
    @classmethod
    def _base_is_a_recipe(cls, base: str | dict[str, Any]) -> str | dict[str, Any]:
        try:
            _base_recipe(base)
        except RecipeError as error:
            raise _refusal(("base", error.field), error.problem) from error
        return base

    @model_validator(mode="after")
    def _base_lies_in_the_space(self) -> Self:
        base = self.base_recipe
        for name, fields, wanted in (
            ("boundaries", self.search.boundaries, len(base.boundaries)),
            ("values", self.search.values, len(base.values)),
        ):
            if fields is not None and len(fields) != wanted:
                raise _refusal(("search", name), f"has {len(fields)} entries; the base recipe has {wanted}")
        heads = self.search.head or [base.head]
        if self.search.dropout is not None and heads == ["linear"]:
            raise _refusal(("search", "dropout"), "needs a head that has one: dropout or dense")
        if self.search.dropout is None and not base.dropout and "dropout" in heads:
            raise _refusal(("search", "head"), "needs search.dropout: the base recipe has no dropout rate")
        if True in (self.search.nesterov or []) and not self._may_have_momentum():
            raise _refusal(("search", "nesterov"), "needs momentum, in the base recipe or in the search")
        if self.search.patience is not None and not self._may_stop_early():
            raise _refusal(("search", "patience"), "needs early stopping, in the base recipe or in the search")
        if self.search.early_stopping and True in self.search.early_stopping and self._patience_is_open():
            raise _refusal(("search", "early_stopping"), "needs search.patience: the base recipe has no patience")
        for place, value, field in self._base_values():
            if field is not None and value is not None and not is_member(value, field):
                raise _refusal(place, f"leaves out the base recipe's {value!r}; allowed there: {field}")
        return self

    @property
    def base_recipe(self) -> Recipe:
        """Return the recipe of the first trial, at the reference budget."""
        return _base_recipe(self.base)

    @property
    def base_title(self) -> str:
        """Return the name of the base recipe's documented run, or words for a recipe that is written out."""
        return self.base if isinstance(self.base, str) else "a recipe of its own"

    def base_params(self) -> dict[str, Param]:
        """Return the base recipe as values of the searched parameters."""
        return {
            _param_name(place): value
            for place, value, field in self._base_values()
            if value is not None and is_searched(field)
        }

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return the distribution of every parameter that a trial can have, in the order of sampling."""
        return {name: distribution_of(field) for name, field in self._searched().items()}

    def suggest(self, trial: Trial) -> dict[str, Param]:
        """Sample all parameters that apply to a trial; before training, so that a pruned trial has them all."""
        params: dict[str, Param] = {}
        for name, distribution in self.distributions().items():
            if self.applies(name, params):
                params[name] = self.nearest(name, _suggest(trial, name, distribution))
        return params

    def nearest(self, name: str, value: Param) -> Param:
        """Return the value of a searched parameter that is closest to the one that was drawn or enqueued."""
        field = self._searched()[name]
        return value if isinstance(field, list) else cast(Param, field.nearest(value))

    def require(self, params: object, trial_number: int) -> None:
        """Refuse parameters that the space does not allow; some of them may be left out.

        Args:
            params: Whatever another client has written.
            trial_number: Any; the parameters of a comparison depend on it.

        Raises:
            RecipeRefused: One is unknown, or has a value that it may not have; the message names it.
        """
        del trial_number
        if not isinstance(params, Mapping):
            raise RecipeRefused(f"parameters are {short(params)}; allowed: values by name")
        fields = self._searched()
        for name, value in params.items():
            if name not in fields:
                raise RecipeRefused(f"parameter {short(name)} is unknown; allowed: {', '.join(fields)}")
            if not may_be(value, fields[name]):
                raise RecipeRefused(f"{name} is {short(value)}; allowed: {describe_values(fields[name])}")

    def draw(self, name: str, random: Random) -> Param:
        """Draw a value of a searched parameter."""
        field = self._searched()[name]
        return cast(Param, random.choice(field) if isinstance(field, list) else field.draw(random))

    def allowed(self) -> dict[str, Sequence[Any] | None]:
        """Return the values of each parameter, searched or not, in the order of sampling; None if they are too many."""
        return {
            _param_name(place): [value] if field is None else members(field)
            for place, value, field in self._base_values()
        }

    def every_value(self) -> dict[str, Sequence[Any]]:
        """Return all values of each parameter, searched or not, in the order of sampling, however many they are."""
        return {
            _param_name(place): [value] if field is None else (members(field) or field.every_value())
            for place, value, field in self._base_values()
        }

    def unsearched(self) -> dict[str, Param]:
        """Return the parameters that the search names but leaves no room: the only value of each."""
        return self._only_values()

    def applies(self, name: str, params: Mapping[str, Param]) -> bool:
        """Return whether a trial has a parameter, given the values of those sampled before it."""
        if name == "dropout":
            return params.get("head", self.base_recipe.head) != "linear"
        if name == "nesterov":
            return params.get("momentum", self.base_recipe.momentum) != 0
        if name == "patience":
            return bool(params.get("early_stopping", self.base_recipe.early_stopping is not None))
        return True

    def recipe(self, params: Mapping[str, Param], *, iterations: int, seed: int) -> Recipe:
        """Apply parameters to the base recipe, for a budget and a seed."""
        base = self.base_recipe.to_dict()
        given: dict[str, Any] = {**self._only_values(), **params}
        early = given.get("early_stopping", base["early_stopping"] is not None)
        changed = {
            **{name: given[name] for name in _SAME_NAME if name in given},
            "early_stopping": given.get("patience", base["early_stopping"]) if early else None,
            "boundaries": [given.get(f"boundary_{i}", b) for i, b in enumerate(base["boundaries"], 1)],
            "values": [given.get(f"learning_rate_{i}", v) for i, v in enumerate(base["values"], 1)],
        }
        return Recipe.from_dict(base | changed | {"iterations": iterations, "seed": seed})

    def _searched(self) -> dict[str, Any]:
        """Return the allowed values of every parameter that a trial can have, in the order of sampling."""
        return {_param_name(place): field for place, _, field in self._base_values() if is_searched(field)}

    def _only_values(self) -> dict[str, Param]:
        """Return the parameters for which the search allows one value, which the base recipe may not have."""
        return {
            _param_name(place): ends(field)[0]
            for place, _, field in self._base_values()
            if field is not None and not is_searched(field)
        }

    def _base_values(self) -> Iterator[tuple[Place, Param | None, Any]]:
        """Yield each field that can be searched: its place in the YAML, the base recipe's value, the allowed values."""
        base, search = self.base_recipe, self.search
        for name in _SAME_NAME:
            value = getattr(base, name)
            yield ("search", name), (value or None) if name == "dropout" else value, getattr(search, name)
        yield ("search", "early_stopping"), base.early_stopping is not None, search.early_stopping
        yield ("search", "patience"), base.early_stopping, search.patience
        for index, (boundary, field) in enumerate(zip_longest(base.boundaries, search.boundaries or [])):
            yield ("search", "boundaries", index), boundary, field
        for index, (value, rates) in enumerate(zip_longest(base.values, search.values or [])):
            yield ("search", "values", index), value, rates

    def _may_stop_early(self) -> bool:
        return self.base_recipe.early_stopping is not None or True in (self.search.early_stopping or [])

    def _may_have_momentum(self) -> bool:
        return any(ends([self.base_recipe.momentum] if self.search.momentum is None else self.search.momentum))

    def _patience_is_open(self) -> bool:
        return self.base_recipe.early_stopping is None and self.search.patience is None


def _base_recipe(base: str | dict[str, Any]) -> Recipe:
    runs = documented_runs()
    if isinstance(base, str):
        if base not in runs:
            raise ValueError(f"unknown base recipe {base!r}; allowed: {', '.join(runs)}, or a recipe's fields")
        return runs[base].recipe
    return Recipe.from_dict(base)


def _param_name(place: Place) -> str:
    names = {"boundaries": "boundary", "values": "learning_rate"}
    _, name, *index = place
    return f"{names[str(name)]}_{int(index[0]) + 1}" if index else str(name)


def _refusal(place: Place, message: str) -> PydanticCustomError:
    return PydanticCustomError("space", "{message}", {"message": message, "place": place})


def _suggest(trial: Trial, name: str, distribution: BaseDistribution) -> Param:
    match distribution:
        case IntDistribution():
            return trial.suggest_int(
                name, distribution.low, distribution.high, step=distribution.step, log=distribution.log
            )
        case FloatDistribution():
            return trial.suggest_float(
                name, distribution.low, distribution.high, step=distribution.step, log=distribution.log
            )
        case CategoricalDistribution():
            value = trial.suggest_categorical(name, distribution.choices)
            # What was enqueued comes back as it was written, such as 20000.0 for 20000.
            return cast(Param, distribution.to_external_repr(distribution.to_internal_repr(value)))
    raise AssertionError(distribution)
