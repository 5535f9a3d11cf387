"""Say how sure a mean over a few seeds is, and a difference of two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy import stats

CONFIDENCE = 0.95
ROUNDING = 1e-12  # what accuracies that are equal may differ by once they are subtracted

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """Be a mean over seeds.

    Attributes:
        mean: None where there are no values.
        ci95: Student's t interval; None where it is not defined: for fewer than two values, or equal ones.
    """

    mean: float | None
    ci95: Interval | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference(Estimate):
    """Be a mean of paired differences.

    Attributes:
        p_value: Of the paired t-test, two-sided; None where the interval is.
    """

    p_value: float | None


def estimate(values: Sequence[float]) -> Estimate:
    """Give mean and interval of independent values."""
    if not values:
        return Estimate(mean=None, ci95=None)
    if not _vary(values):
        return Estimate(mean=fmean(values), ci95=None)
    low, high = stats.t.interval(CONFIDENCE, len(values) - 1, loc=fmean(values), scale=stats.sem(values))
    return Estimate(mean=fmean(values), ci95=(float(low), float(high)))


def paired_difference(differences: Sequence[float]) -> Difference:
    """Judge differences of two figures on the same seeds by a paired t-test."""
    found = estimate(differences)
    p_value = float(stats.ttest_1samp(differences, 0).pvalue) if _vary(differences) else None
    return Difference(mean=found.mean, ci95=found.ci95, p_value=p_value)


def _vary(values: Sequence[float]) -> bool:
    return len(values) > 1 and stdev(values) > ROUNDING
