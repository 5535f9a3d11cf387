"""Test how values are written for people."""

import pytest

from hpo.results.formatting import show_measured, show_value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "none"),
        (True, "yes"),
        (False, "no"),
        (0, "0"),
        (999, "999"),
        (64_000, "64,000"),
        (0.0, "0"),
        (0.1, "0.1"),
        (1e-05, "1e-05"),
        (0.123456789, "0.123457"),
        ("dense", "dense"),
        ([], ""),
        ([0.1, 0.02], "0.1, 0.02"),
        ((20_000, 32_000), "20,000, 32,000"),
        ((True, None, "x", 1), "yes, none, x, 1"),
    ],
)
def test_a_value_is_written_for_people(value, text):
    assert show_value(value) == text


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.75, 0.05, "0.7500 ± 0.0500 (standard error)"),
        (1.0, 0.0, "1.0000 ± 0.0000 (standard error)"),
        (0.91236, 0.00287, "0.9124 ± 0.0029 (standard error)"),
    ],
)
def test_a_measured_accuracy_has_its_standard_error(value, error, text):
    assert show_measured(value, error) == text
