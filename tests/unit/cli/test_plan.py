"""Test what a plan says of the options that it cannot take into account."""

import pytest

from hpo.cli.plan import left_out

IMAGINED = "is not part of the forecast, as the accuracies are imagined; the study may end earlier"


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        (("tpe", None, None), []),
        (("random", 0, 0.0), []),
        (("gp", None, None), ["--sampler gp: the forecast replays tpe in its place, which is quicker"]),
        (("qmc", 5, 0.95), [f"--stop-after 5: {IMAGINED}", f"--target 0.95: {IMAGINED}"]),
        (("tpe", 100_000, None), [f"--stop-after 100000: {IMAGINED}"]),
    ],
)
def test_a_plan_says_which_options_its_forecast_leaves_out(options, lines):
    assert list(left_out(*options)) == lines
