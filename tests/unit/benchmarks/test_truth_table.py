from __future__ import annotations

from pathlib import Path
from typing import Any

from hpo.recipes.comparison import BASELINE
from hpo.recipes.recipe import documented_runs
from hpo.recipes.schedule import CurvePoint


def test_a_truth_is_read_as_it_was_written_and_written_the_same_again(truth_table: Any, tmp_path: Path) -> None:
    points = tuple(
        CurvePoint(iteration=5 * n, train_loss=1 / 2**n, val_loss=0.125 * n, val_accuracy=n / 4) for n in (1, 2, 3)
    )
    recipes = {BASELINE: documented_runs()["smooth_lr"].recipe.at(iterations=640, seed=0)}
    runs = {
        (BASELINE, seed): truth_table.Run(recipe=BASELINE, seed=seed, accuracy=0.75, loss=0.375, curve=points)
        for seed in (7, 3)
    }
    truth = truth_table.Truth(source={"dataset": "digits"}, recipes=recipes, runs=runs)
    for name in ("one", "two"):
        truth_table.save(truth, tmp_path / name)
    read = truth_table.load(tmp_path / "one")
    assert read == truth
    assert (read.seeds, read.base, read.runs[BASELINE, 3].length) == ((7, 3), recipes[BASELINE], 15)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
