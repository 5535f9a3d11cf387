from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hpo.errors import BadInput, HpoError
from hpo.recipes.recipe import documented_runs
from hpo.recipes.space_file import load_space

RECIPE = documented_runs()["smooth_lr"].recipe.at(iterations=32, seed=1)


def search(live: Any, title: str, seconds: float, *best_after: tuple[float, float], steps: int = 32) -> Any:
    return live.Search(
        title=title,
        seed=0,
        seconds=seconds,
        steps=steps,
        complete=2,
        ended_early=1,
        best_after=best_after,
        winner=RECIPE,
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([(12.0, 0.5), (14.0, 0.4), (16.0, 0.6)], [(2.0, 0.5), (6.0, 0.6)]),
        ([(16.0, 0.6), (12.0, 0.5)], [(2.0, 0.5), (6.0, 0.6)]),
        ([(12.0, None), (14.0, 0.4), (16.0, 0.4)], [(4.0, 0.4)]),
        ([(12.0, 0.0)], [(2.0, 0.0)]),
        ([], []),
    ],
)
def test_the_best_value_so_far_counts_when_the_trial_that_has_it_ends(
    live_searches: Any, values: list[Any], expected: list[Any]
) -> None:
    trials = [SimpleNamespace(at_s=at_s, value=value) for at_s, value in values]
    assert list(live_searches.best_so_far(trials, started_s=10.0)) == expected


def test_a_comparison_is_a_table_with_the_time_to_the_lowest_best(live_comparison: Any, live_searches: Any) -> None:
    searches = [
        search(live_searches, "hpo without confirmation", 20.0, (5.0, 0.7), (10.0, 0.8)),
        search(live_searches, "hpo", 30.0, (5.0, 0.7), (10.0, 0.8), steps=1064),
        search(live_searches, "Ray Tune", 60.0, (15.0, 0.6), (40.0, 0.75)),
    ]
    assert list(live_comparison.lines(searches, {searches[0].key: [0.5, 0.6]})) == [
        "| seed | search | s | s to the lowest best | steps | complete, ended early | best | test, 2 seeds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| 0 | hpo without confirmation | 20 | 10 (to 0.7500) | 32 | 2, 1 | 0.8000 | 0.5500 ± 0.0500 |",
        "| 0 | hpo | 30 | 10 (to 0.7500) | 1,064 | 2, 1 | 0.8000 | 0.5500 ± 0.0500 |",
        "| 0 | Ray Tune | 60 | 40 (to 0.7500) | 32 | 2, 1 | 0.7500 | 0.5500 ± 0.0500 |",
        "Ray Tune takes 2.00 times as long as hpo, 3.00 times as long as hpo without confirmation",
        "Ray Tune takes 4.00 times as long as hpo to the lowest best",
    ]


def test_a_search_that_has_ended_does_not_run_again(live_searches: Any, tmp_path: Path) -> None:
    ran = [search(live_searches, "hpo", 30.0, (5.0, 0.7))]
    file = tmp_path / "0-hpo.json"

    def fail(folder: Path) -> Any:
        (folder / "left").touch()
        raise HpoError("it failed")

    def run(folder: Path) -> Any:
        assert not list(folder.iterdir()), "it starts again"
        return ran

    with pytest.raises(HpoError):
        live_searches.run_once(file, fail)
    assert live_searches.run_once(file, run) == ran
    assert live_searches.run_once(file, fail) == ran


def test_a_training_on_a_fresh_seed_that_has_ended_is_not_repeated(fresh_seeds: Any, tmp_path: Path) -> None:
    key = fresh_seeds.recipe_key(RECIPE.at(iterations=32, seed=0))
    for seed, accuracy in zip(fresh_seeds.fresh_seeds(2), (0.5, 0.6), strict=True):
        (tmp_path / f"{key}-{seed}.json").write_text(json.dumps({"test accuracy": accuracy}))
    dataset = SimpleNamespace(name="digits", checksum="")
    recipes = [RECIPE, RECIPE.at(iterations=32, seed=2)]
    assert fresh_seeds.accuracies(recipes, 2, dataset, tmp_path, tmp_path, None) == {key: [0.5, 0.6]}


def test_a_folder_holds_one_comparison(live_comparison: Any, tmp_path: Path) -> None:
    dataset = SimpleNamespace(name="digits", checksum="1")
    given = argparse.Namespace(iterations=32, trials=3, enqueue=False)
    live_comparison.require_same(tmp_path / "live", given, dataset)
    live_comparison.require_same(tmp_path / "live", given, dataset)
    given.trials = 4
    with pytest.raises(BadInput, match=r"holds a comparison with trials 3 \(now 4\); choose another folder"):
        live_comparison.require_same(tmp_path / "live", given, dataset)


def test_a_plain_training_reports_every_epoch_and_stops_early(plain_training: Any, monkeypatch: Any) -> None:
    from hpo.training.datasets import load_dataset

    losses = iter([(0.5, 0.6), (0.4, 0.7), (0.6, 0.8), (0.7, 0.9)])
    monkeypatch.setattr(plain_training, "evaluate_plainly", lambda model, dataset: next(losses))
    monkeypatch.setattr(plain_training, "steps_per_epoch", lambda recipe, dataset: 1)
    params = load_space("smooth_lr").base_params() | {"early_stopping": True, "patience": 7020}
    recipe = load_space("smooth_lr").recipe(params, iterations=640, seed=0)
    monkeypatch.setattr(plain_training, "scale", lambda patience, iterations: 2)
    epochs = list(plain_training.train_plainly(recipe, load_dataset("digits", Path())))
    assert [(epoch.iteration, epoch.accuracy, epoch.is_last) for epoch in epochs] == [
        (1, 0.6, False),
        (2, 0.7, False),
        (3, 0.8, False),
        (4, 0.7, True),
    ]
