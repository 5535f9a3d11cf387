"""Test means, intervals and paired differences over seeds."""

import pytest
from scipy import stats

from hpo.results.significance import Difference, Estimate, estimate, judge, paired_difference, show_difference


def test_the_interval_is_students_t():
    # t of 4 degrees of freedom at 97.5 % is 2.776; the standard error is 0.01 * sqrt(2.5) / sqrt(5)
    found = estimate([0.90, 0.91, 0.92, 0.93, 0.94])

    assert found.mean == pytest.approx(0.92)
    assert found.ci95 == pytest.approx((0.92 - 2.7764 * 0.0070711, 0.92 + 2.7764 * 0.0070711), abs=1e-6)


@pytest.mark.parametrize(
    ("values", "mean"),
    [([], None), ([0.9], 0.9), ([0.9, 0.9, 0.9], 0.9), ([0.1 + 0.2, 0.3], 0.3)],
    ids=["none", "one", "equal", "equal but for rounding"],
)
def test_no_interval_is_given_where_none_is_defined(values, mean):
    found = (estimate(values), paired_difference(values))

    mean = mean and pytest.approx(mean)
    assert found == (Estimate(mean=mean, ci95=None), Difference(mean=mean, ci95=None, p_value=None))


def test_a_paired_difference_is_that_of_the_paired_t_test():
    ours, baseline = [0.91, 0.93, 0.90, 0.95], [0.90, 0.90, 0.91, 0.92]
    expected = stats.ttest_rel(ours, baseline)

    found = paired_difference([a - b for a, b in zip(ours, baseline, strict=True)])

    assert found.mean == pytest.approx(0.015)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.ci95 == pytest.approx(tuple(expected.confidence_interval(0.95)))


@pytest.mark.parametrize("differences", [[0.01, 0.02, 0.03], [-0.01, 0.02, 0.03, -0.02], [0.5, 0.5001]])
def test_the_p_value_is_under_a_twentieth_exactly_where_the_interval_leaves_out_zero(differences):
    found = paired_difference(differences)

    low, high = found.ci95
    assert (found.p_value < 0.05) == (low > 0 or high < 0)


@pytest.mark.parametrize(
    ("differences", "judgement", "shown"),
    [
        ((0.02, 0.03, 0.04), "better", "+0.0300 (95% interval +0.0052 to +0.0548, 3 seeds, p = 0.035)"),
        ((-0.02, -0.03, -0.04), "worse", "-0.0300 (95% interval -0.0548 to -0.0052, 3 seeds, p = 0.035)"),
        ((0.02, -0.01, 0.01), "not shown to be better", "+0.0067 (95% interval -0.0313 to +0.0446, 3 seeds, p = 0.53)"),
        ((0.02, 0.02), "not shown to be better", "+0.0200 (2 seeds)"),
        ((0.02,), "not shown to be better", "+0.0200 (1 seed)"),
    ],
)
def test_a_difference_is_judged_and_written_with_what_is_known_of_it(differences, judgement, shown):
    difference = paired_difference(differences)

    assert judge(difference) == judgement
    assert show_difference(difference, len(differences)) == shown


def test_of_no_seeds_nothing_is_shown():
    assert judge(paired_difference(())) == "not shown to be better"
