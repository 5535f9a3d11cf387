"""Test that replays count what a search with the same decisions would train."""

from dataclasses import replace

import optuna
import pytest

from hpo.recipes.schedule import distinct_iterations, grid
from hpo.recipes.space_file import load_space, parse_space
from hpo.results.proposals import Search
from hpo.results.replay import Pace, replay_search

optuna.logging.set_verbosity(optuna.logging.WARNING)

SEARCH = Search(
    space=load_space("baseline"),
    iterations=320,
    seed=0,
    sampler="random",
    pruner="none",
    align="phase",
    trials=8,
    workers=1,
    images=144,
)
SMALL = parse_space("name: small\nbase: baseline\nsearch: {nesterov: [false, true], depth: [20, 32]}\n", "small.yaml")


def test_without_pruning_every_step_that_recipes_share_is_trained_once():
    replayed = replay_search(SEARCH, Pace(), 1)
    recipes = [SEARCH.space.recipe(params, iterations=320, seed=0) for params in replayed.params]

    assert replayed.params[0] == SEARCH.space.base_params()
    assert replayed.requested == 8 * 320
    assert replayed.steps == distinct_iterations((recipe, 320) for recipe in recipes) < replayed.requested
    assert replayed.seconds == replayed.steps
    assert replayed.attempts == 8
    assert replayed.checkpoints == replayed.steps / 320 * len(grid(320))


def test_without_reuse_every_step_of_every_trial_is_trained():
    replayed = replay_search(replace(SEARCH, reuse=False), Pace(), 1)

    assert replayed.steps == replayed.requested == 8 * 320


def test_more_workers_train_the_same_steps_in_less_time():
    alone = replay_search(SEARCH, Pace(), 1)
    together = [replay_search(replace(SEARCH, workers=workers), Pace(), 1, alone.params) for workers in (2, 4, 8)]

    assert {each.steps for each in together} == {alone.steps}
    assert [each.params for each in together] == [alone.params] * 3
    times = [alone.seconds, *(each.seconds for each in together)]
    assert times == sorted(times, reverse=True)
    assert alone.seconds / 2 <= together[0].seconds < alone.seconds
    assert together[-1].seconds >= 320


def test_what_a_worker_needs_besides_training_is_counted_for_each_attempt():
    pace = Pace(step_s=2.0, image_s=0.5, attempt_s=100.0)
    bare, whole = (replay_search(replace(SEARCH, trials=2), each, 1) for each in (Pace(), pace))

    images = (whole.seconds - 2 * bare.steps - 100 * whole.attempts) / 0.5

    assert images > 0
    assert images % 1 == 0


def test_the_steps_of_a_deeper_network_and_of_a_larger_batch_take_longer():
    space = parse_space(
        "name: small\nbase: baseline\nsearch: {depth: [20, 56], batch_size: [128, 256]}\n", "small.yaml"
    )
    base, deep, large = (
        replay_search(replace(SEARCH, space=space, trials=1), Pace(), 1, [{"depth": depth, "batch_size": size}]).seconds
        for depth, size in ((20, 128), (56, 128), (20, 256))
    )

    assert (base, deep, large) == (320, 320 * 3, 320 * 2)


@pytest.mark.parametrize("pruner", ["asha", "hyperband", "median"])
def test_pruners_save_steps(pruner):
    search = replace(SEARCH, trials=16)
    whole = replay_search(search, Pace(), 1)

    pruned = replay_search(replace(search, pruner=pruner), Pace(), 1, whole.params)

    assert pruned.params == whole.params
    assert pruned.requested < whole.requested
    assert pruned.steps < whole.steps


def test_a_third_of_the_trials_pass_a_rung_and_no_trial_is_left_that_may():
    replayed = replay_search(replace(SEARCH, trials=40, pruner="asha", reuse=False), Pace(), 1)

    assert 40 < replayed.attempts <= 40 + 13 + 1
    assert replayed.steps == replayed.requested


def test_a_space_of_few_recipes_has_no_more_trials():
    replayed = replay_search(replace(SEARCH, space=SMALL, trials=50, sampler="tpe"), Pace(), 1)

    assert len(replayed.params) == len({tuple(params.items()) for params in replayed.params}) == 4


@pytest.mark.parametrize("sampler", ["tpe", "qmc", "gp"])
def test_a_replay_is_the_same_every_time(sampler):
    search = replace(SEARCH, sampler=sampler, pruner="asha", workers=2, trials=12)

    assert replay_search(search, Pace(), 1) == replay_search(search, Pace(), 1)
    assert replay_search(search, Pace(), 1).params != replay_search(search, Pace(), 2).params


def test_a_search_ends_with_its_budget():
    replayed = replay_search(replace(SEARCH, budget=700), Pace(), 1)

    assert 700 <= replayed.steps < 700 + 20


def test_the_best_recipes_and_the_base_recipe_are_confirmed_on_each_seed():
    none, one, three = (
        replay_search(replace(SEARCH, confirmed=3, confirmation_seeds=seeds), Pace(), 1).confirmation
        for seeds in (0, 1, 3)
    )

    assert 320 < one < 4 * 320
    assert (none, three) == (0, 3 * one)


def test_a_base_recipe_that_is_the_best_needs_no_confirmation():
    search = replace(SEARCH, trials=1, confirmed=3, confirmation_seeds=3)

    assert replay_search(search, Pace(), 1).confirmation == 0
