"""Test how a finding about a machine is written."""

import pytest

from hpo.cli.doctor import describe
from hpo.launch.doctor import Finding

FINDING = Finding(check="storage", status="failed", text="sqlite:///hpo.db cannot be written", remedy="change its mode")


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (None, ["failed  storage    sqlite:///hpo.db cannot be written; change its mode"]),
        (80, ["failed  storage    sqlite:///hpo.db cannot be written; change its mode"]),
        (
            50,
            [
                "failed  storage    sqlite:///hpo.db cannot be",
                "                   written; change its mode",
            ],
        ),
    ],
    ids=["not a terminal", "a wide terminal", "a terminal"],
)
def test_a_finding_keeps_to_its_column_on_a_terminal_and_is_a_line_elsewhere(width, lines):
    assert describe(FINDING, width) == "\n".join(lines)
