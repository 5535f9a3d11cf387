"""Confirm a search as a user would."""

from __future__ import annotations

import optuna
import optuna_dashboard
import pytest

from tests.acceptance.support import Shell, check_document

SPACE = """
name: two
base:
  {head: linear, dropout: 0, shortcut_norm: false, boundaries: [32000], values: [0.05, 0.01], batch_size: 8}
search: {values: [[0.05, 0.1], [0.01]]}
"""


def note_of(shell: Shell, name: str) -> list[str]:
    """Return the lines of a study's note, as optuna-dashboard shows it."""
    storage = f"sqlite:///{shell.folder / 'hpo.db'}"
    return optuna_dashboard.get_note(optuna.load_study(study_name=name, storage=storage)).splitlines()


@pytest.mark.slow
def test_a_run_is_confirmed_and_every_command_names_the_same_winner(shell: Shell) -> None:
    shell.folder.joinpath("two.yaml").write_text(SPACE)
    command = (
        "run",
        "--space",
        "two.yaml",
        "--dataset",
        "digits",
        "--iterations",
        "32",
        "--workers",
        "1",
        "--pruner",
        "none",
    )

    done = shell.hpo(*command, "--trials", "2", "--json")  # the default confirms
    assert done.code == 0, done.err
    check_document(done.json, "status")
    confirmation = done.json["confirmation"]
    assert (confirmation["study"], len(confirmation["seeds"]), confirmation["waiting"]) == ("two-digits.confirm", 3, 0)
    assert {each["name"] for each in confirmation["recipes"]} == {"baseline", "trial 1"}
    assert done.json["best"]["trial"] == confirmation["winner"] == confirmation["recipes"][0]["trial"]

    assert f"**Best trial.** {confirmation['verdict']}" in note_of(shell, "two-digits")
    best = shell.hpo("best", "--json").json
    check_document(best, "best")
    check_document(shell.hpo("confirm", "--json").json, "confirm")
    assert (best["trial"], best["confirmation"]) == (confirmation["winner"], confirmation)
    again = shell.hpo("confirm")
    assert (again.code, again.err) == (0, "")
    assert confirmation["verdict"] in " ".join(again.out.split())


def test_only_a_run_that_trains_is_confirmed(shell: Shell) -> None:
    shell.folder.joinpath("two.yaml").write_text(SPACE)

    refused = shell.hpo("run", "--space", "two.yaml", "--trials", "1", "--submit", "--confirm")

    assert (refused.code, refused.out) == (2, "")
    assert refused.err == (
        "error: --confirm: only valid without --submit; run `hpo confirm` when the trials have finished\n"
    )
    assert {path.name for path in shell.folder.iterdir()} == {"two.yaml"}
