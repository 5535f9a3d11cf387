from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hpo.recipes.comparison import BASELINE
from hpo.recipes.recipe import documented_runs
from hpo.recipes.schedule import CurvePoint

SOURCE = {"space": "smooth_lr", "dataset": "digits", "split": "ab", "iterations": 640}
BASE = documented_runs()["smooth_lr"].recipe.at(iterations=640, seed=0)
POINTS = tuple(
    CurvePoint(iteration=5 * n, train_loss=1 / 2**n, val_loss=0.125 * n, val_accuracy=n / 4) for n in (1, 2, 3)
)


def make(truth_table: Any, seeds: Sequence[int], accuracy: float = 0.75, **changes: Any) -> Any:
    runs = {
        (BASELINE, seed): truth_table.Run(recipe=BASELINE, seed=seed, accuracy=accuracy, loss=0.375, curve=POINTS)
        for seed in seeds
    }
    return truth_table.Truth(source=SOURCE | {"seeds": list(seeds)} | changes, recipes={BASELINE: BASE}, runs=runs)


def test_a_truth_is_read_as_it_was_written_and_written_the_same_again(truth_table: Any, tmp_path: Path) -> None:
    truth = make(truth_table, (7, 3))
    for name in ("one", "two"):
        truth_table.save(truth, tmp_path / name)
    read = truth_table.load(tmp_path / "one")
    assert read == truth
    assert (read.seeds, read.base, read.runs[BASELINE, 3].length) == ((7, 3), BASE, 15)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_seeds_that_were_trained_separately_are_put_together_and_none_counts_twice(truth_table: Any) -> None:
    first, second = make(truth_table, (7,), command="a"), make(truth_table, (3,), command="b")
    both = truth_table.merge(first, second)
    assert both.seeds == (7, 3)
    assert (both.source["command"], [other["command"] for other in both.source["others"]]) == ("b", ["a"])

    longer = truth_table.merge(both, make(truth_table, (3, 5), accuracy=0.5, command="b again"))

    assert longer.seeds == (7, 3, 5)
    assert [longer.accuracy(BASELINE, seed) for seed in longer.seeds] == [0.75, 0.5, 0.5]
    assert [other["command"] for other in longer.source["others"]] == ["a"]


@pytest.mark.parametrize("change", [{"split": "cd"}, {"iterations": 320}, {"dataset": "cifar10"}, {"space": "full"}])
def test_truths_of_different_things_are_not_put_together(truth_table: Any, change: dict[str, Any]) -> None:
    [name] = change
    with pytest.raises(ValueError, match=f"{name} is {SOURCE[name]} there, and {change[name]} here"):
        truth_table.merge(make(truth_table, (7,)), make(truth_table, (3,), **change))
