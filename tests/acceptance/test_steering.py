"""Steer studies with the installed program: enqueue recipes, and retry failed trials."""

from __future__ import annotations

import pytest

from tests.acceptance.support import Shell, check_document

STUDY = "smooth_lr-digits"


def test_a_recipe_is_enqueued_in_a_study_that_has_ended(copied: Shell) -> None:
    done = copied.hpo("enqueue", "head=dense", "--add", "--json")

    assert done.code == 0, done.err
    check_document(done.json, "enqueue")
    assert done.json == {"study": STUDY, "trial": 6, "target": 7, "params": {"head": "dense"}}
    assert done.err == ""
    again = copied.hpo("enqueue", "early_stopping=true", "--add")
    assert again.out == f"study {STUDY}: trial 7 of 8 is next: early_stopping=true\n"
    assert f"`hpo worker --study {STUDY}`" in again.err
    assert copied.hpo("status", "--json").json["trials"]["waiting"] >= 2


def test_a_study_without_failed_trials_has_nothing_to_retry(finished: Shell) -> None:
    done = finished.hpo("retry")
    assert (done.code, done.out, done.err) == (
        0,
        f"study {STUDY}: no trial has failed; there is nothing to retry\n",
        "",
    )
    document = finished.hpo("retry", "--json").json
    check_document(document, "retry")
    assert document == {"study": STUDY, "trials": []}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["enqueue"], "give parameters such as dropout=0.5, or --recipe, or --trial, and only one of them"),
        (["enqueue", "head=dense", "--trial", f"{STUDY}:1"], "give parameters such as dropout=0.5, or --recipe, or"),
        (["enqueue", "dropout"], "'dropout': allowed: NAME=VALUE, such as head=dense or dropout=0.5"),
        (["enqueue", "dropout=9"], "search space smooth_lr: dropout is 9; allowed: 0.3 to 0.7 in steps of 0.2"),
        (["enqueue", "head=dense"], f"study {STUDY}: all 6 trials of the study have begun; --add makes it one more"),
        (["enqueue", "--trial", "7"], "--trial '7': allowed: STUDY:N, such as smooth_lr-digits:7"),
        (["enqueue", "--trial", f"{STUDY}:9"], f"--trial {STUDY}:9: study {STUDY} has no trial with that number yet"),
        (["enqueue", "--trial", f"{STUDY}:2"], f"study {STUDY}: trial 2 of the study has this recipe already"),
        (["enqueue", "--recipe", "smooth_lr"], f"study {STUDY}: trial 0 of the study has this recipe already"),
        (["retry", "--trial", "2"], "--trial 2: it has not failed: it is "),
        (["retry", "--trial", "9"], "--trial 9: the study has no trial with that number yet"),
        (["enqueue", "--recipe", "none.yaml"], "space 'none.yaml' is neither a file nor a shipped space; shipped: "),
    ],
)
def test_bad_input_gets_one_line(finished: Shell, arguments: list[str], message: str) -> None:
    refused = finished.hpo(*arguments)
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.startswith(f"error: {message}")
    assert refused.err.count("\n") == 1
