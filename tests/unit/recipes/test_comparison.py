"""Test what the trials of a benchmark train."""

import hashlib
import json
from dataclasses import replace

import optuna
import pytest
from optuna.samplers import RandomSampler

from hpo.algorithms import fixed_sampler
from hpo.recipes.comparison import BASELINE, CANDIDATE, SEEDS, Comparison
from hpo.recipes.recipe import MAX_BENCHMARK_SEEDS, documented_runs

RUNS = documented_runs()
RECIPES = {CANDIDATE: RUNS["smooth_lr"].recipe.at(iterations=640, seed=3), BASELINE: RUNS["baseline"].recipe}
PAIR = Comparison.of(RECIPES, name="pair", searched_seed=3, trial=7)


def test_trials_train_every_recipe_on_one_seed_and_then_on_the_next():
    first, second, third = (PAIR.seed(index) for index in range(3))

    assert [PAIR.params_of(number) for number in range(5)] == [
        {"run": "candidate", "seed": first},
        {"run": "baseline", "seed": first},
        {"run": "candidate", "seed": second},
        {"run": "baseline", "seed": second},
        {"run": "candidate", "seed": third},
    ]
    assert PAIR.base_params() == PAIR.params_of(0)


@pytest.mark.parametrize("searched", [0, 1, 2**31 - 1])
def test_seeds_are_fresh_distinct_and_small_enough_to_be_stored_exactly(searched):
    comparison = Comparison.of(RECIPES, name="pair", searched_seed=searched)
    seeds = [comparison.seed(index) for index in range(100)]

    assert len({searched, *seeds}) == 101
    assert all(0 <= seed < SEEDS for seed in seeds)


def test_a_search_of_the_seed_that_would_come_first_gets_another(monkeypatch):
    monkeypatch.setattr("hpo.recipes.comparison.derive_seed", lambda _purpose, _searched, index: (3, 3, 5, 5, 8)[index])

    assert [PAIR.seed(0), PAIR.seed(1)] == [5, 8]


def test_a_trial_trains_its_recipe_at_the_budget_of_the_study_on_its_own_seed():
    params = PAIR.params_of(2)

    assert PAIR.recipe(params, iterations=640, seed=3) == RECIPES[CANDIDATE].at(iterations=640, seed=PAIR.seed(1))
    assert PAIR.base_recipe == RECIPES[BASELINE]


def test_a_comparison_is_read_back_from_what_a_study_stores():
    assert Comparison.model_validate(PAIR.model_dump(mode="json")) == PAIR


def test_a_trial_is_given_the_parameters_of_its_number():
    for number in range(3):
        study = optuna.create_study(sampler=fixed_sampler(PAIR.params_of(number), RandomSampler()))
        trial = study.ask()

        assert PAIR.suggest(trial) == PAIR.params_of(number) == trial.params


def test_a_benchmark_is_written_as_those_of_earlier_releases_hold_it():
    recipes = {name: run.recipe for name, run in documented_runs().items()}
    written = Comparison.of(recipes, name="x", searched_seed=0).model_dump(mode="json", exclude_none=True)

    digest = hashlib.sha256(json.dumps(written, sort_keys=True).encode()).hexdigest()
    assert digest == "89ea8b3526423bfd4295dc21d5f69e9673d825e3f3bf81f6f6768fd909803929"


def test_a_benchmark_holds_what_earlier_releases_did_not_have_where_it_differs():
    changed = replace(RECIPES[CANDIDATE], depth=32, nesterov=True, label_smoothing=0.1)
    comparison = Comparison.of(RECIPES | {CANDIDATE: changed}, name="x", searched_seed=0)

    assert comparison.runs[CANDIDATE].items() >= {"depth": 32, "nesterov": True, "label_smoothing": 0.1}.items()
    assert comparison.runs[BASELINE].keys().isdisjoint({"depth", "nesterov", "label_smoothing"})
    params = {"run": CANDIDATE, "seed": 5}
    assert comparison.recipe(params, iterations=640, seed=3) == changed.at(iterations=640, seed=5)


def test_a_confirmation_and_a_benchmark_of_one_search_share_no_seed():
    confirmation = Comparison.of(RECIPES, name="pair", searched_seed=3, trials={CANDIDATE: 7, BASELINE: 0})
    confirmed = {confirmation.seed(index) for index in range(20)}

    assert PAIR.is_confirmation is False
    assert confirmation.is_confirmation is True
    assert len(confirmed) == 20
    assert confirmed.isdisjoint({3, *(PAIR.seed(index) for index in range(MAX_BENCHMARK_SEEDS))})


def test_a_benchmark_is_stored_as_benchmarks_were_before_there_were_confirmations():
    assert "trials" not in PAIR.model_dump(mode="json")
