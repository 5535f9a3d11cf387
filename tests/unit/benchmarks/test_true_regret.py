from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hpo.recipes.comparison import BASELINE
from tests.unit.benchmarks.test_replay import make_truth

HEADER = "run,epoch,iteration,val_loss,val_accuracy\n"


def outcome(true_regret: Any, seed: int, regret: float, gain: float) -> Any:
    return true_regret.Outcome(seed=seed, regret=regret, gain=gain, steps=0.5, complete=3)


def test_standard_errors_are_over_the_means_of_seeds_and_equal_winners_are_not_worse(true_regret: Any) -> None:
    search = true_regret.Search(name="no pruning", pruner=None)
    pairs = [(0, 0.1, -0.1), (0, 0.3, 0.0), (1, 0.4, 0.1), (1, 0.4, -1e-12)]
    row = true_regret.summarise(search, true_regret.UNCONFIRMED, [outcome(true_regret, *pair) for pair in pairs])
    assert row.regret == pytest.approx(0.3)
    assert row.error == pytest.approx(0.1)
    assert (row.replays, row.worse, row.steps, row.complete) == (4, 0.25, 0.5, 3)


def test_a_winner_is_judged_on_the_seeds_that_the_search_did_not_use(true_regret: Any, truth_table: Any) -> None:
    # On seed 0 the recipe `lucky` is the best; elsewhere `good` is, by 20 points, and `lucky` is 10 below the base.
    truth = make_truth(truth_table, {BASELINE: [0.5, 0.5, 0.5], "lucky": [0.9, 0.4, 0.4], "good": [0.7, 0.7, 0.7]})
    search = true_regret.Search(name="no pruning", pruner=true_regret.train_all)
    found = true_regret.replay(truth, search, true_regret.UNCONFIRMED, true_regret.Orders(count=2))
    assert [(each.seed, round(each.regret, 9), round(each.gain, 9)) for each in found] == [
        *[(0, 0.3, -0.1)] * 2,
        *[(1, 0.0, 0.2)] * 2,
        *[(2, 0.0, 0.2)] * 2,
    ]


def test_a_short_search_is_judged_by_the_best_of_its_own_recipes(true_regret: Any, truth_table: Any) -> None:
    truth = make_truth(truth_table, {BASELINE: [0.5] * 3, "good": [0.7] * 3, "better": [0.8] * 3})
    search = true_regret.Search(name="no pruning", pruner=true_regret.train_all)
    found = true_regret.replay(truth, search, true_regret.UNCONFIRMED, true_regret.Orders(count=9, trials=2))
    assert {(round(each.regret, 9), each.complete) for each in found} == {(0.0, 2)}
    assert {round(each.gain, 9) for each in found} == {0.2, 0.3}


def test_confirmation_corrects_a_lucky_search_and_is_paid_for(true_regret: Any, truth_table: Any) -> None:
    truth = make_truth(truth_table, {BASELINE: [0.5, 0.5, 0.5], "lucky": [0.9, 0.4, 0.4], "good": [0.7, 0.7, 0.7]})
    search = true_regret.Search(name="no pruning", pruner=true_regret.train_all, reuse=False)
    choice = true_regret.Choice(top=2, seeds=1)
    lucky = true_regret.replay(truth, search, choice, true_regret.Orders(count=3))[:3]
    assert [each.gain for each in lucky] == pytest.approx([0.2] * 3)
    assert {each.steps for each in lucky} == {(3 + 3) / 3}


def test_too_few_seeds_for_a_choice_leave_it_out(true_regret: Any, truth_table: Any) -> None:
    truth = make_truth(truth_table, {BASELINE: [0.5, 0.5, 0.5], "good": [0.7, 0.7, 0.7]})
    search = true_regret.Search(name="no pruning", pruner=true_regret.train_all)
    choices = [true_regret.Choice(top=1, seeds=number) for number in (1, 2, 3)]
    rows = true_regret.measure(truth, search, choices, true_regret.Orders(count=1))
    assert [row.choice.seeds for row in rows] == [1]


def test_a_documented_run_is_lost_where_another_leads_at_its_rung(true_regret: Any, tmp_path: Path) -> None:
    accuracies = {"1_baseline": 0.5, "3_dense": 0.6, "4_dropout": 0.7, "5_adjusted_lr": 0.8, "2_other": 0.9}
    lines = [
        f"{run},{epoch},{351 * epoch},{1 - accuracy},{accuracy}\n"
        for run, accuracy in accuracies.items()
        for epoch in range(1, 183)
    ]
    path = tmp_path / "curves.csv"
    path.write_text(HEADER + "".join(lines))
    truth = true_regret.read_documented(path)
    assert list(truth.recipes) == [BASELINE, "dense", "dropout", "smooth_lr"]
    one_of_three = true_regret.promotion(truth.base, 1, 3, true_regret.LAST)
    # dropout is promoted where it comes before smooth_lr
    assert true_regret.lose(truth, one_of_three, "smooth_lr")[0] == 0
    assert true_regret.lose(truth, one_of_three, "dropout")[0] == 0.5
