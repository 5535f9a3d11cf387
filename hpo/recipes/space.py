"""Search spaces: check their fields, and turn them into Optuna distributions and recipes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Annotated, Any, Self, cast

from optuna import Trial
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from hpo.errors import BadInput
from hpo.recipes.recipe import BOUNDARY_GRID, REFERENCE_ITERATIONS, Head, Recipe, documented_runs

MAX_MEMBERS = 1_000
"""The largest number of values in a range."""

Param = bool | int | float | str
"""The value of a trial's parameter."""

Place = tuple[str | int, ...]
"""The keys and list indices that lead to a value in a space's YAML."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class IntRange(_Strict):
    """A range of whole numbers: low, low + step, ... up to high."""

    low: int
    high: int
    step: Annotated[int, Field(gt=0)] = 1

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _check_range(self)
        return self


class FloatRange(_Strict):
    """A range of fractional numbers: low, low + step, ... up to high."""

    low: float
    high: float
    step: Annotated[float, Field(gt=0)]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _check_range(self)
        return self


def _check_range(span: IntRange | FloatRange) -> None:
    if span.high < span.low:
        raise ValueError(f"high {span.high} is under low {span.low}")
    steps = (span.high - span.low) / span.step
    if steps > MAX_MEMBERS:
        raise ValueError(f"low {span.low} to high {span.high} in steps of {span.step} are over {MAX_MEMBERS} values")
    if abs(steps - round(steps)) > 1e-9:
        raise ValueError(f"high {span.high} is not low {span.low} plus a multiple of step {span.step}")


def _form(value: object) -> str:
    return "range" if isinstance(value, dict | IntRange | FloatRange) else "choices"


def _distinct(field: Any) -> Any:
    if isinstance(field, list) and len(set(field)) < len(field):
        raise ValueError("a choice stands twice")
    return field


def _between(low: float, high: float) -> AfterValidator:
    def check(field: Any) -> Any:
        """Refuse a field with a value outside the bounds."""
        for member in _members(field):
            if not low < member < high:
                raise ValueError(f"{member} is not over {low} and under {high}")
        return field

    return AfterValidator(check)


_Choices = Field(min_length=1)
IntField = Annotated[
    Annotated[IntRange, Tag("range")]
    | Annotated[list[Annotated[int, Field(gt=0, lt=REFERENCE_ITERATIONS)]], _Choices, Tag("choices")],
    Discriminator(_form),
    AfterValidator(_distinct),
    _between(0, REFERENCE_ITERATIONS),
]
FractionField = Annotated[
    Annotated[FloatRange, Tag("range")]
    | Annotated[list[Annotated[float, Field(gt=0, lt=1)]], _Choices, Tag("choices")],
    Discriminator(_form),
    AfterValidator(_distinct),
    _between(0, 1),
]
RateField = Annotated[
    Annotated[FloatRange, Tag("range")]
    | Annotated[list[Annotated[float, Field(gt=0, lt=10)]], _Choices, Tag("choices")],
    Discriminator(_form),
    AfterValidator(_distinct),
    _between(0, 10),
]
HeadField = Annotated[list[Head], Field(min_length=1), AfterValidator(_distinct)]
SwitchField = Annotated[list[bool], Field(min_length=1), AfterValidator(_distinct)]


class Search(_Strict):
    """The searched fields of the base recipe with their allowed values; the other fields keep the base recipe's value.

    Boundaries and patience are reference iterations (of 64,000). `dropout` is searched only with a head that has
    dropout, `patience` only with early stopping.
    """

    head: HeadField | None = None
    dropout: FractionField | None = None
    shortcut_norm: SwitchField | None = None
    early_stopping: SwitchField | None = None
    patience: IntField | None = None
    boundaries: list[IntField] | None = None
    values: list[RateField] | None = None

    @field_validator("boundaries")
    @classmethod
    def _boundaries_are_apart(cls, boundaries: list[IntRange | list[int]] | None) -> Any:
        spans = [_span(b) for b in boundaries or []]
        for field in boundaries or []:
            off = [b for b in _members(field) if b % BOUNDARY_GRID]
            if off:
                raise ValueError(f"boundary {off[0]} is not a multiple of {BOUNDARY_GRID}")
        for (_, high), (low, _) in pairwise(spans):
            if high >= low:
                raise ValueError(f"boundaries overlap: one reaches up to {high}, the next begins at {low}")
        return boundaries


class SearchSpace(_Strict):
    """A base recipe, and the values that are searched around it."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,49}$")]
    description: str = ""
    base: str | dict[str, Any]
    search: Search = Search()

    @field_validator("base")
    @classmethod
    def _base_is_a_recipe(cls, base: str | dict[str, Any]) -> str | dict[str, Any]:
        _base_recipe(base)
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
        if self.search.patience is not None and not self._may_stop_early():
            raise _refusal(("search", "patience"), "needs early stopping, in the base recipe or in the search")
        if self.search.early_stopping and True in self.search.early_stopping and self._patience_is_open():
            raise _refusal(("search", "early_stopping"), "needs search.patience: the base recipe has no patience")
        for place, value, field in self._base_values():
            if field is not None and value is not None and not _is_member(value, field):
                raise _refusal(place, f"leaves out the base recipe's {value!r}; allowed there: {_members(field)}")
        return self

    @property
    def base_recipe(self) -> Recipe:
        """Return the recipe of the first trial, at the reference budget."""
        return _base_recipe(self.base)

    def base_params(self) -> dict[str, Param]:
        """Return the base recipe as values of the searched parameters."""
        return {
            _param_name(place): value
            for place, value, field in self._base_values()
            if value is not None and _is_searched(field)
        }

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return the distribution of every parameter that a trial can have, in the order of sampling."""
        return {
            _param_name(place): _distribution(field) for place, _, field in self._base_values() if _is_searched(field)
        }

    def suggest(self, trial: Trial) -> dict[str, Param]:
        """Sample all parameters that apply to a trial; before training, so that a pruned trial has them all."""
        params: dict[str, Param] = {}
        for name, distribution in self.distributions().items():
            if self._applies(name, params):
                params[name] = _suggest(trial, name, distribution)
        return params

    def recipe(self, params: Mapping[str, Param], *, iterations: int, seed: int) -> Recipe:
        """Apply parameters to the base recipe, for a budget and a seed."""
        base = self.base_recipe.to_dict()
        early = params.get("early_stopping", base["early_stopping"] is not None)
        changed = {
            "head": params.get("head", base["head"]),
            "dropout": params.get("dropout", base["dropout"]),
            "shortcut_norm": params.get("shortcut_norm", base["shortcut_norm"]),
            "early_stopping": params.get("patience", base["early_stopping"]) if early else None,
            "boundaries": [params.get(f"boundary_{i}", b) for i, b in enumerate(base["boundaries"], 1)],
            "values": [params.get(f"learning_rate_{i}", v) for i, v in enumerate(base["values"], 1)],
        }
        return Recipe.from_dict(base | changed | {"iterations": iterations, "seed": seed})

    def _base_values(self) -> Iterator[tuple[Place, Param | None, Any]]:
        """Yield each field that can be searched: its place in the YAML, the base recipe's value, the allowed values."""
        base, search = self.base_recipe, self.search
        yield ("search", "head"), base.head, search.head
        yield ("search", "dropout"), base.dropout or None, search.dropout
        yield ("search", "shortcut_norm"), base.shortcut_norm, search.shortcut_norm
        yield ("search", "early_stopping"), base.early_stopping is not None, search.early_stopping
        yield ("search", "patience"), base.early_stopping, search.patience
        for index, (boundary, field) in enumerate(zip(base.boundaries, search.boundaries or [], strict=False)):
            yield ("search", "boundaries", index), boundary, field
        for index, (value, rates) in enumerate(zip(base.values, search.values or [], strict=False)):
            yield ("search", "values", index), value, rates

    def _applies(self, name: str, params: Mapping[str, Param]) -> bool:
        if name == "dropout":
            return params.get("head", self.base_recipe.head) != "linear"
        if name == "patience":
            return bool(params.get("early_stopping", self.base_recipe.early_stopping is not None))
        return True

    def _may_stop_early(self) -> bool:
        return self.base_recipe.early_stopping is not None or True in (self.search.early_stopping or [])

    def _patience_is_open(self) -> bool:
        return self.base_recipe.early_stopping is None and self.search.patience is None


def _base_recipe(base: str | dict[str, Any]) -> Recipe:
    runs = documented_runs()
    if isinstance(base, str):
        if base not in runs:
            raise ValueError(f"unknown base recipe {base!r}; allowed: {', '.join(runs)}, or a recipe's fields")
        return runs[base].recipe
    try:
        return Recipe.from_dict(base)
    except BadInput as error:
        raise ValueError(str(error)) from error


def _span(field: IntRange | list[int]) -> tuple[int, int]:
    return (field.low, field.high) if isinstance(field, IntRange) else (min(field), max(field))


def _members(field: Any) -> list[Any]:
    if isinstance(field, list):
        return field
    count = round((field.high - field.low) / field.step) + 1
    return [field.low + i * field.step for i in range(count)]


def _is_member(value: Param, field: Any) -> bool:
    return any(value == m or (isinstance(m, float) and abs(m - float(value)) < 1e-9) for m in _members(field))


def _is_searched(field: Any) -> bool:
    return field is not None and len(_members(field)) > 1


def _param_name(place: Place) -> str:
    names = {"boundaries": "boundary", "values": "learning_rate"}
    _, name, *index = place
    return f"{names[str(name)]}_{int(index[0]) + 1}" if index else str(name)


def _refusal(place: Place, message: str) -> PydanticCustomError:
    return PydanticCustomError("space", "{message}", {"message": message, "place": place})


def _distribution(field: Any) -> BaseDistribution:
    if isinstance(field, IntRange):
        return IntDistribution(field.low, field.high, step=field.step)
    if isinstance(field, FloatRange):
        return FloatDistribution(field.low, field.high, step=field.step)
    return CategoricalDistribution(field)


def _suggest(trial: Trial, name: str, distribution: BaseDistribution) -> Param:
    match distribution:
        case IntDistribution():
            return trial.suggest_int(name, distribution.low, distribution.high, step=distribution.step)
        case FloatDistribution():
            return trial.suggest_float(name, distribution.low, distribution.high, step=distribution.step)
        case CategoricalDistribution():
            return cast(Param, trial.suggest_categorical(name, distribution.choices))
    raise AssertionError(distribution)
