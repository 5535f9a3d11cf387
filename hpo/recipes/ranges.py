"""Ranges of a search space: their values are the decimal numbers that were written."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from decimal import Decimal
from random import Random
from typing import Annotated, Self

from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from hpo.recipes.recipe import as_whole

MAX_STEPS, MAX_LOG_STEPS = 1_000, 1_000_000
"""The largest number of steps in a range, and in a logarithmic one."""

DIGITS = 3
"""Significant digits of the values of a logarithmic range without a step, so that they can be read and typed."""


class StrictModel(BaseModel):
    """A part of a space that has no unknown keys and does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Number = Annotated[float, Field(strict=True)]
"""A number, but no text and no truth value."""

AnyForm = BeforeValidator(as_whole)  # after the limits, or the JSON Schema has them under other names
Whole = Annotated[int, Field(strict=True), AnyForm]
"""A whole number, also as 2e4 or 2.0."""

Logarithmic = Annotated[bool, Field(exclude_if=operator.not_)]  # spaces of earlier studies do not have it
"""Whether equal ratios of values are equally likely, instead of equal differences."""


class IntRange(StrictModel):
    """A range of whole numbers: low, low + step, ... up to high."""

    low: Whole
    high: Whole
    step: Annotated[int, Field(strict=True, gt=0), AnyForm] = 1
    log: Logarithmic = False

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _check_range(self, self.step)
        return self

    def first_two_and_last(self) -> tuple[int, int, int]:
        """List three values that stand for all: between them lie equal steps."""
        return self.low, min(self.low + self.step, self.high), self.high

    def nearest(self, value: float) -> int:
        """Return the value that is closest to a number."""
        index = round((value - self.low) / self.step)
        return min(self.high, max(self.low, self.low + index * self.step))

    def values(self) -> Sequence[int]:
        """List all values."""
        return range(self.low, self.high + 1, self.step)

    def draw(self, random: Random) -> int:
        """Draw a value; each is as likely as another, or in a logarithmic range equal ratios are."""
        return self.nearest(_draw_ratio(self, random)) if self.log else random.choice(self.values())

    def distribution(self) -> BaseDistribution:
        """Return Optuna's distribution, which knows no step of a logarithmic range."""
        return IntDistribution(self.low, self.high, log=self.log, step=1 if self.log else self.step)

    def __str__(self) -> str:
        return f"{self.low} to {self.high} in steps of {self.step}"


class FloatRange(StrictModel):
    """A range of fractional numbers: low, low + step, ... up to high; a logarithmic one may have no step."""

    low: Number
    high: Number
    step: Annotated[Number, Field(gt=0)] | None = None
    log: Logarithmic = False

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.step is None and not self.log:
            raise ValueError("needs a step, or log: true")
        _check_range(self, self.step)
        return self

    def first_two_and_last(self) -> tuple[float, float, float]:
        """List three values that stand for all: between them lie equal steps, or anything."""
        return self.low, self.nearest(self.low + (self.step or 0)), self.high

    def nearest(self, value: float) -> float:
        """Return the value that is closest to a number, as the decimal number that it is."""
        if self.step is None:
            closest = float(f"{value:.{DIGITS}g}")
        else:
            index = round((value - self.low) / self.step)
            closest = float(_decimal(self.low) + index * _decimal(self.step))
        return min(self.high, max(self.low, closest))

    def values(self) -> Sequence[float] | None:
        """List all values; return None if there is no step, or over `MAX_STEPS` of them."""
        if self.step is None or self.high - self.low > (MAX_STEPS + 0.5) * self.step:
            return None
        return [self.nearest(self.low + i * self.step) for i in range(round((self.high - self.low) / self.step) + 1)]

    def every_value(self) -> Sequence[float]:
        """List all values, however many: without a step, the numbers of `DIGITS` significant digits."""
        if self.step is not None:
            steps = round((self.high - self.low) / self.step)
            return [self.nearest(self.low + index * self.step) for index in range(steps + 1)]
        powers = range(math.floor(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
        numbers = (
            float(f"{digits}e{power - DIGITS + 1}")
            for power in powers
            for digits in range(10 ** (DIGITS - 1), 10**DIGITS)
        )
        return sorted({self.low, self.high, *(number for number in numbers if self.low < number < self.high)})

    def draw(self, random: Random) -> float:
        """Draw a value; each is as likely as another, or in a logarithmic range equal ratios are."""
        return self.nearest(_draw_ratio(self, random)) if self.log else random.choice(self.values() or ())

    def distribution(self) -> BaseDistribution:
        """Return Optuna's distribution, which knows no step of a logarithmic range."""
        return FloatDistribution(self.low, self.high, log=self.log, step=None if self.log else self.step)

    def __str__(self) -> str:
        return f"{self.low} to {self.high}" + ("" if self.step is None else f" in steps of {self.step}")


def _draw_ratio(span: IntRange | FloatRange, random: Random) -> float:
    return math.exp(random.uniform(math.log(span.low), math.log(span.high)))


def _check_range(span: IntRange | FloatRange, step: float | None) -> None:
    if span.high < span.low:
        raise ValueError(f"high {span.high} is less than low {span.low}")
    if span.log and span.low <= 0:
        raise ValueError(f"low {span.low} of a logarithmic range must be positive")
    if step is None:
        return
    width, most = _decimal(span.high) - _decimal(span.low), MAX_LOG_STEPS if span.log else MAX_STEPS
    if width > most * _decimal(step):
        raise ValueError(f"low {span.low} to high {span.high} in steps of {step} are more than {most} values")
    if width % _decimal(step):
        raise ValueError(f"high {span.high} is not low {span.low} plus a multiple of step {step}")


def _decimal(value: float) -> Decimal:
    """Return the decimal number that was written, of which a float is the nearest binary one."""
    return Decimal(repr(value))
