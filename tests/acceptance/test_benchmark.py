"""Benchmark and export a finished study as a user would."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.acceptance.conftest import RECIPE, SMALL
from tests.acceptance.support import Shell, check_document


@pytest.fixture(scope="module")
def searched(finished: Shell, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """Give a copy of the folder of the finished study, for a benchmark to be written beside it."""
    return finished.copy_to(tmp_path_factory.mktemp("searched") / "folder")


@pytest.mark.slow
def test_a_benchmark_that_is_interrupted_is_continued_and_says_what_the_contract_names(searched: Shell) -> None:
    best = searched.hpo("best", "--json").json
    # Which trial wins differs between processors; where it is the documented recipe, there is one run, and no rival.
    waiting, verdict = (
        (1, "is the base recipe itself") if best["recipe"] == RECIPE else (2, "this needs at least two seeds")
    )
    begun = searched.hpo("benchmark", "--seeds", "1", "--workers", "1", "--timeout", "1", "--json")
    assert (begun.code, begun.json["waiting"]) == (0, waiting), begun.err
    check_document(begun.json, "benchmark")

    done = searched.hpo("benchmark", "--seeds", "1", "--workers", "1")

    assert done.code == 0, done.err
    assert "not comparable" in done.out
    assert verdict in " ".join(done.out.split())
    found = searched.hpo("benchmark", "--seeds", "1", "--json").json
    check_document(found, "benchmark")
    assert found["candidate"]["recipe"] == best["recipe"]
    for run in ("candidate", "baseline"):
        assert found[run].keys() >= {"recipe", "test_accuracy", "test_loss", "mean", "ci95"}
        assert found[run]["mean"] == found[run]["test_accuracy"][0]
    assert found["difference"].keys() == {"mean", "ci95", "p_value"}
    assert found["documented"] == {"accuracy": 0.8934999704360962, "loss": 0.6009443402290344}
    assert (found["comparable"], found["waiting"], found["missing"]) == (False, 0, [])


@pytest.mark.slow
def test_all_documented_experiments_are_one_command(shell: Shell) -> None:
    done = shell.hpo(
        "benchmark", "--all-documented", "--dataset", "digits", "--iterations", "32", "--seeds", "1", "--json"
    )

    assert done.code == 0, done.err
    found = done.json
    check_document(found, "benchmark_all_documented")
    assert [(run["name"], run["documented"]["accuracy"]) for run in found["runs"]] == [
        ("baseline", 0.8963000178337097),
        ("dense_early_stopping", None),
        ("dense", 0.8770999908447266),
        ("dropout", 0.8998000025749207),
        ("smooth_lr", 0.8934999704360962),
    ]
    assert [len(run["test_accuracy"]) for run in found["runs"]] == [1] * 5


def test_an_export_classifies_an_image_and_its_recipe_trains_the_same_again(searched: Shell) -> None:
    done = searched.hpo("best", "--export", "model", "--json")
    assert done.code == 0, done.err
    image, label = (array[0] for array in load_digits(return_X_y=True))
    Image.fromarray(np.rint(image.reshape(8, 8) * (255 / 16)).astype(np.uint8)).save(searched.folder / "zero.png")

    classified = searched.run(sys.executable, "model/classify.py", "zero.png")
    space = ("--space", "model/recipe.yaml", *SMALL[2:])
    again = searched.hpo("run", *space, "--trials", "1", "--study", "again", "--submit")
    trained = searched.hpo("worker", "--study", "again")
    found = searched.hpo("best", "--study", "again", "--json").json

    assert (classified.code, classified.out) == (0, f"{label}\n"), classified.err
    assert (again.code, trained.code) == (0, 0), again.err + trained.err
    assert found == done.json | {"trial": 0}
    lines = [line for line in (searched.folder / "model/classify.py").read_text().splitlines() if line]
    assert len(lines) == 1 + 10
    assert json.loads((searched.folder / "model/environment.json").read_text())["device"] == "cpu"


def test_an_export_does_not_write_over_what_is_there(finished: Shell, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")

    refused = finished.hpo("best", "--export", tmp_path)

    assert (refused.code, refused.out) == (2, "")
    assert refused.err == f"error: folder {tmp_path}: already exists and is not empty\n"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_benchmark_of_a_study_that_is_not_there_is_refused_in_a_line(finished: Shell) -> None:
    refused = finished.hpo("benchmark", "--study", "other")

    assert (refused.code, refused.out) == (2, "")
    assert refused.err.endswith("has no hpo study 'other'; it has: smooth_lr-digits\n")
    assert len(refused.err.splitlines()) == 1
