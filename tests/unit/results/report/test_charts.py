"""Test what the figures of a report decide: their scales and their labels."""

import pytest

from hpo.results.report.charts import end_range, rows_with_room


@pytest.mark.parametrize(
    ("ends", "shown"),
    [
        ([0.9, 0.94], (0.86, 0.952)),
        ([0.9] * 4, (0.88, 0.907)),
        ([0.0, 1.0], (0.0, 1.002)),
        ([0.1, *[0.9] * 6, 0.94], (0.86, 0.952)),
        ([0.1, 0.9], (0.0, 1.002)),
    ],
)
def test_a_scale_of_accuracies_stays_within_0_and_1_and_ignores_few_poor_trials(ends, shown):
    assert end_range(ends) == pytest.approx(shown)


@pytest.mark.parametrize(
    ("rows", "least", "labelled"),
    [([], 1.0, []), ([0, 1, 2, 7], 1.0, [0, 1, 2, 7]), ([0, 1, 2, 7], 1.5, [0, 2, 7]), ([3, 4, 5, 6], 2.5, [3, 6])],
)
def test_rows_without_room_for_a_label_have_none(rows, least, labelled):
    assert rows_with_room(rows, least) == labelled
