"""The `search` section of a space: the fields that can be searched, and the values that each may have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, TypeVar, cast

from optuna.distributions import BaseDistribution, CategoricalDistribution
from pydantic import AfterValidator, Discriminator, Field, Tag, field_validator

from hpo.errors import RecipeError
from hpo.recipes.ranges import AnyForm, FloatRange, IntRange, Number, StrictModel
from hpo.recipes.recipe import (
    BOUNDARY_GRID,
    MAX_BATCH_SIZE,
    MAX_DEPTH,
    MIN_DEPTH,
    REFERENCE_ITERATIONS,
    Head,
    check_field,
)

ROUNDING = 1e-9
"""How much a number that another client computed may differ from a value of a range, relatively."""


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
        for member in ends(field):
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
        spans = [(min(ends(b)), max(ends(b))) for b in boundaries or []]
        for field in boundaries or []:
            off = [b for b in _probes(field) if b % BOUNDARY_GRID]
            if off:
                raise ValueError(f"boundary {off[0]} is not a multiple of {BOUNDARY_GRID}")
        for (_, high), (low, _) in pairwise(spans):
            if high >= low:
                raise ValueError(f"boundaries overlap: one reaches up to {high}, the next begins at {low}")
        return boundaries


def _probes(field: Any) -> Sequence[Any]:
    """List all choices, or values of a range that stand for all."""
    return field if isinstance(field, list) else cast(Sequence[Any], field.first_two_and_last())


def ends(field: Any) -> Sequence[Any]:
    """List all choices, or the ends of a range."""
    return field if isinstance(field, list) else (field.low, field.high)


def is_member(value: Any, field: Any) -> bool:
    """Return whether a value is one of the choices, or lies in the range and on its grid."""
    if isinstance(field, list):
        return value in field
    return field.low <= value <= field.high and (field.step is None or value == field.nearest(value))


def may_be(value: object, field: Any) -> bool:
    """Return whether a value of any kind is one that a field allows, up to rounding errors; switches are no numbers."""
    if isinstance(field, list):
        return any(value == member and isinstance(value, bool) == isinstance(member, bool) for member in field)
    if isinstance(value, bool) or not isinstance(value, int | float) or not field.low <= value <= field.high:
        return False
    return field.step is None or math.isclose(value, field.nearest(value), rel_tol=ROUNDING)


def describe_values(field: Any) -> str:
    """Write the allowed values for people."""
    return ", ".join(map(str, field)) if isinstance(field, list) else str(field)


def members(field: Any) -> Sequence[Any] | None:
    """List all choices, or the values of a range."""
    return field if isinstance(field, list) else cast("Sequence[Any] | None", field.values())


def is_searched(field: Any) -> bool:
    """Return whether a field has more than one allowed value; None has none."""
    return field is not None and len(set(ends(field))) > 1


def distribution_of(field: Any) -> BaseDistribution:
    """Return the allowed values as an Optuna distribution."""
    return CategoricalDistribution(field) if isinstance(field, list) else cast(BaseDistribution, field.distribution())
