"""Test `hpo plan`: the real cost of a study lies in the range that it says, and nothing is written."""

from __future__ import annotations

import pytest

from tests.acceptance.conftest import SMALL, files_in
from tests.acceptance.support import Shell, check_document


def test_the_real_steps_lie_in_the_range_that_was_planned(finished: Shell) -> None:
    planned = finished.hpo("plan", *SMALL, "--trials", "6", "--json").json
    trained = finished.hpo("status", "--json").json["iterations_spent"]["trained"]

    check_document(planned, "plan")
    assert (planned["trials"], planned["recipes"]) == (6, 22_680)
    assert planned["asked"]["steps"]["low"] <= trained <= planned["asked"]["steps"]["high"]
    assert [each["iterations"] for each in planned["alternatives"]] == [32]  # half would be less than the least
    assert planned["speed"]["step_s"] > 0


def test_a_plan_writes_nothing_and_reads_like_this(shell: Shell) -> None:
    planned = shell.hpo("plan", *SMALL, "--trials", "2")

    assert (planned.code, planned.err) == (0, "")
    for words in ("2 trials of 32 iterations", "22,680 distinct recipes", "ms per optimizer step", "database reads"):
        assert words in planned.out
    assert files_in(shell.folder) == set()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--space", "none", "--trials", "2"), "space 'none' is neither a file nor a shipped space"),
        ((*SMALL, "--trials", "0"), "Invalid value for '--trials': Input should"),
        ((*SMALL, "--trials", "2", "--study", "a b"), "study name 'a b': allowed"),
        ((*SMALL, "--trials", "2", "--address", "auto"), "--address auto: only valid with --launcher ray"),
    ],
    ids=["space", "trials", "study", "address"],
)
def test_a_plan_refuses_what_run_would_refuse(shell: Shell, options: tuple[str, ...], message: str) -> None:
    refused = shell.hpo("plan", *options)

    assert (refused.code, refused.out, refused.err.count("\n")) == (2, "", 1)
    assert refused.err.startswith(f"error: {message}")
