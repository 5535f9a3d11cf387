"""Confidence intervals of means over a few seeds, and the test of their difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from scipy import stats

from hpo.wording import counted

CONFIDENCE = 0.95
"""Confidence level of all intervals."""

ROUNDING = 1e-12
"""Standard deviation below which values count as equal: subtracting equal accuracies leaves rounding errors."""

P_LIMIT = 0.05
"""Significance level: only a difference with a smaller p-value counts."""

Judgement = Literal["better", "worse", "not shown to be better"]
"""The verdict on the first recipe."""

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A mean over seeds, with its interval.

    Attributes:
        mean: None if there are no values.
        ci95: Student's t interval; None where it is undefined: for fewer than two values, or equal ones.
    """

    mean: float | None
    ci95: Interval | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference(Estimate):
    """A mean of paired differences.

    Attributes:
        p_value: Two-sided p-value of the paired t-test; None where the interval is.
    """

    p_value: float | None


def estimate(values: Sequence[float]) -> Estimate:
    """Estimate the mean of independent values, with its interval."""
    if not values:
        return Estimate(mean=None, ci95=None)
    if not _vary(values):
        return Estimate(mean=fmean(values), ci95=None)
    low, high = stats.t.interval(CONFIDENCE, len(values) - 1, loc=fmean(values), scale=stats.sem(values))
    return Estimate(mean=fmean(values), ci95=(float(low), float(high)))


def paired_difference(differences: Sequence[float]) -> Difference:
    """Estimate the mean of differences on the same seeds, and test by a paired t-test whether it is zero."""
    average = estimate(differences)
    p_value = float(stats.ttest_1samp(differences, 0).pvalue) if _vary(differences) else None
    return Difference(mean=average.mean, ci95=average.ci95, p_value=p_value)


def judge(difference: Difference) -> Judgement:
    """Decide the verdict on a mean of paired differences."""
    if difference.mean is None or difference.p_value is None or difference.p_value >= P_LIMIT:
        return "not shown to be better"
    return "better" if difference.mean > 0 else "worse"


def show_difference(difference: Difference, seeds: int) -> str:
    """Write a mean difference with its uncertainty."""
    assert difference.mean is not None, "there is a seed"
    number = counted(seeds, "seed")
    if difference.ci95 is None or difference.p_value is None:
        return f"{difference.mean:+.4f} ({number})"
    low, high = difference.ci95
    return f"{difference.mean:+.4f} (95% interval {low:+.4f} to {high:+.4f}, {number}, p = {difference.p_value:.2g})"


def _vary(values: Sequence[float]) -> bool:
    return len(values) > 1 and stdev(values) > ROUNDING
