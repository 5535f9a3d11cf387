"""Search spaces: check their fields, and turn them into Optuna distributions and recipes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise, zip_longest
from random import Random
from typing import Annotated, Any, Self, TypeVar, cast

from optuna import Trial
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from hpo.errors import RecipeError, RecipeRefused, short
from hpo.recipes.ranges import AnyForm, FloatRange, IntRange, Number, StrictModel
from hpo.recipes.recipe import (
    BOUNDARY_GRID,
    MAX_BATCH_SIZE,
    MAX_DEPTH,
    MIN_DEPTH,
    REFERENCE_ITERATIONS,
    Head,
    Recipe,
    check_field,
    documented_runs,
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

ROUNDING = 1e-9
"""How much a number that another client computed may differ from a value of a range, relatively."""

Param = bool | int | float | str
"""The value of a trial's parameter."""

Place = tuple[str | int, ...]
"""The keys and list indices that lead to a value in a space's YAML."""


def _form(value: object) -> str | None:
    if isinstance(value, list):
        return "choices"
    return "range" if isinstance(value, dict | IntRange | FloatRange) else None


def _distinct(field: Any) -> Any:
    if isinstance(field, list) and len(set(field)) < len(field):
        raise ValueError("duplicate choice")
    return field


def _between(low: float, high: float) -> AfterValidator:
    def check(field: Any) -> Any:
        """Refuse a field with a value outside the bounds."""
        for member in _ends(field):
            if not low < member < high:
                raise ValueError(f"{member} is not greater than {low} and less than {high}")
        return field

    return AfterValidator(check)


def _as_in_recipe(name: str) -> AfterValidator:
    def check(field: Any) -> Any:
        """Refuse a field with a value that a recipe could not have."""
        for member in _probes(field):
            try:
                check_field(name, member)
            except RecipeError as error:
                raise ValueError(error.problem) from error
        return field

    return AfterValidator(check)


_T = TypeVar("_T")
_Choices = Annotated[list[_T], Field(min_length=1), AfterValidator(_distinct)]
_EitherForm = Discriminator(
    _form,
    custom_error_type="form",
    custom_error_message="allowed: a list of choices, or a range such as {low: 0.1, high: 0.5, step: 0.2}",
)
_Wholes = Annotated[
    Annotated[IntRange, Tag("range")] | Annotated[_Choices[_T], Tag("choices")],
    _EitherForm,
]
_Numbers = Annotated[
    Annotated[FloatRange, Tag("range")] | Annotated[_Choices[_T], Tag("choices")],
    _EitherForm,
]
IterationField = Annotated[
    _Wholes[Annotated[int, Field(strict=True, gt=0, lt=REFERENCE_ITERATIONS), AnyForm]],
    _between(0, REFERENCE_ITERATIONS),
]
DepthField = Annotated[
    _Wholes[Annotated[int, Field(strict=True, ge=MIN_DEPTH, le=MAX_DEPTH), AnyForm]], _as_in_recipe("depth")
]
BatchField = Annotated[
    _Wholes[Annotated[int, Field(strict=True, gt=0, le=MAX_BATCH_SIZE), AnyForm]], _as_in_recipe("batch_size")
]
DropoutField = Annotated[_Numbers[Annotated[Number, Field(gt=0, lt=1)]], _between(0, 1)]
RateField = Annotated[_Numbers[Annotated[Number, Field(gt=0, lt=10)]], _between(0, 10)]
MomentumField = Annotated[_Numbers[Annotated[Number, Field(ge=0, lt=1)]], _as_in_recipe("momentum")]
DecayField = Annotated[_Numbers[Annotated[Number, Field(ge=0)]], _as_in_recipe("weight_decay")]
SmoothingField = Annotated[_Numbers[Annotated[Number, Field(ge=0, lt=1)]], _as_in_recipe("label_smoothing")]
HeadField = _Choices[Head]
SwitchField = _Choices[bool]


class Search(StrictModel):
    """The searched fields of the base recipe with their allowed values; the other fields keep the base recipe's value.

    Boundaries and patience are reference iterations (of 64,000). `dropout` is searched only with a head that has
    dropout, `patience` only with early stopping, `nesterov` only with momentum.
    """

    head: HeadField | None = None
    dropout: DropoutField | None = None
    shortcut_norm: SwitchField | None = None
    depth: DepthField | None = None
    batch_size: BatchField | None = None
    momentum: MomentumField | None = None
    nesterov: SwitchField | None = None
    weight_decay: DecayField | None = None
    label_smoothing: SmoothingField | None = None
    early_stopping: SwitchField | None = None
    patience: IterationField | None = None
    boundaries: list[IterationField] | None = None
    values: list[RateField] | None = None

    @field_validator("boundaries")
    @classmethod
    def _boundaries_are_apart(cls, boundaries: list[IntRange | list[int]] | None) -> Any:
        spans = [(min(_ends(b)), max(_ends(b))) for b in boundaries or []]
        for field in boundaries or []:
            off = [b for b in _probes(field) if b % BOUNDARY_GRID]
            if off:
                raise ValueError(f"boundary {off[0]} is not a multiple of {BOUNDARY_GRID}")
        for (_, high), (low, _) in pairwise(spans):
            if high >= low:
                raise ValueError(f"boundaries overlap: one reaches up to {high}, the next begins at {low}")
        return boundaries


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
            if field is not None and value is not None and not _is_member(value, field):
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
            if value is not None and _is_searched(field)
        }

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return the distribution of every parameter that a trial can have, in the order of sampling."""
        return {name: _distribution(field) for name, field in self._searched().items()}

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
            if not _may_be(value, fields[name]):
                raise RecipeRefused(f"{name} is {short(value)}; allowed: {_allowed(fields[name])}")

    def draw(self, name: str, random: Random) -> Param:
        """Draw a value of a searched parameter."""
        field = self._searched()[name]
        return cast(Param, random.choice(field) if isinstance(field, list) else field.draw(random))

    def allowed(self) -> dict[str, Sequence[Any] | None]:
        """Return the values of each parameter, searched or not, in the order of sampling; None if they are too many."""
        return {
            _param_name(place): [value] if field is None else _members(field)
            for place, value, field in self._base_values()
        }

    def every_value(self) -> dict[str, Sequence[Any]]:
        """Return all values of each parameter, searched or not, in the order of sampling, however many they are."""
        return {
            _param_name(place): [value] if field is None else (_members(field) or field.every_value())
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
        return {_param_name(place): field for place, _, field in self._base_values() if _is_searched(field)}

    def _only_values(self) -> dict[str, Param]:
        """Return the parameters for which the search allows one value, which the base recipe may not have."""
        return {
            _param_name(place): _ends(field)[0]
            for place, _, field in self._base_values()
            if field is not None and not _is_searched(field)
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
        return any(_ends([self.base_recipe.momentum] if self.search.momentum is None else self.search.momentum))

    def _patience_is_open(self) -> bool:
        return self.base_recipe.early_stopping is None and self.search.patience is None


def _base_recipe(base: str | dict[str, Any]) -> Recipe:
    runs = documented_runs()
    if isinstance(base, str):
        if base not in runs:
            raise ValueError(f"unknown base recipe {base!r}; allowed: {', '.join(runs)}, or a recipe's fields")
        return runs[base].recipe
    return Recipe.from_dict(base)


def _probes(field: Any) -> Sequence[Any]:
    """List all choices, or values of a range that stand for all."""
    return field if isinstance(field, list) else cast(Sequence[Any], field.first_two_and_last())


def _ends(field: Any) -> Sequence[Any]:
    """List all choices, or the ends of a range."""
    return field if isinstance(field, list) else (field.low, field.high)


def _is_member(value: Any, field: Any) -> bool:
    if isinstance(field, list):
        return value in field
    return field.low <= value <= field.high and (field.step is None or value == field.nearest(value))


def _may_be(value: object, field: Any) -> bool:
    """Return whether a value of any kind is one that a field allows, up to rounding errors; switches are no numbers."""
    if isinstance(field, list):
        return any(value == member and isinstance(value, bool) == isinstance(member, bool) for member in field)
    if isinstance(value, bool) or not isinstance(value, int | float) or not field.low <= value <= field.high:
        return False
    return field.step is None or math.isclose(value, field.nearest(value), rel_tol=ROUNDING)


def _allowed(field: Any) -> str:
    return ", ".join(map(str, field)) if isinstance(field, list) else str(field)


def _members(field: Any) -> Sequence[Any] | None:
    """List all choices, or the values of a range."""
    return field if isinstance(field, list) else cast("Sequence[Any] | None", field.values())


def _is_searched(field: Any) -> bool:
    return field is not None and len(set(_ends(field))) > 1


def _param_name(place: Place) -> str:
    names = {"boundaries": "boundary", "values": "learning_rate"}
    _, name, *index = place
    return f"{names[str(name)]}_{int(index[0]) + 1}" if index else str(name)


def _refusal(place: Place, message: str) -> PydanticCustomError:
    return PydanticCustomError("space", "{message}", {"message": message, "place": place})


def _distribution(field: Any) -> BaseDistribution:
    return CategoricalDistribution(field) if isinstance(field, list) else cast(BaseDistribution, field.distribution())


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
