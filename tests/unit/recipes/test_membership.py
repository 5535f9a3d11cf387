"""Test which recipes lie in a space, and when parameters make a whole recipe."""

from dataclasses import replace

import pytest

from hpo.errors import RecipeRefused
from hpo.recipes.distinct import list_params, recipe_key
from hpo.recipes.membership import complete, find_params
from hpo.recipes.space import SearchSpace

BASE = {"head": "dropout", "dropout": 0.5, "shortcut_norm": True, "boundaries": [20000], "values": [0.1, 0.01]}
SPACE = SearchSpace.model_validate(
    {
        "name": "small",
        "base": BASE,
        "search": {
            "head": ["linear", "dropout"],
            "dropout": {"low": 0.3, "high": 0.5, "step": 0.2},
            "early_stopping": [False, True],
            "patience": [6000],
            "boundaries": [[16000, 20000]],
            "values": [[0.1], [0.01, 0.02]],
        },
    }
)
RECIPE = SPACE.base_recipe


def test_every_recipe_of_a_space_is_found_in_it():
    for params in list_params(SPACE):
        recipe = SPACE.recipe(params, iterations=640, seed=3)

        assert find_params(SPACE, recipe) == params
        assert recipe_key(SPACE.recipe(params, iterations=640, seed=3)) == recipe_key(recipe)
        assert complete(SPACE, params) == params


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (replace(RECIPE, head="dense"), "head is 'dense'; allowed: linear, dropout"),
        (replace(RECIPE, dropout=0.4), "dropout is 0.4; allowed: 0.3 to 0.5 in steps of 0.2"),
        (replace(RECIPE, boundaries=(24000,)), "boundary_1 is 24000; allowed: 16000, 20000"),
        (replace(RECIPE, momentum=0.5), "momentum is 0.5; allowed with its other values: 0.9"),
        (replace(RECIPE, early_stopping=9000), "early_stopping is 9000; allowed with its other values: 6000"),
        (replace(RECIPE, boundaries=(), values=(0.1,)), "boundaries is []; allowed with its other values: [20000]"),
        (
            replace(RECIPE, boundaries=(20000, 40000), values=(0.1, 0.01, 0.001)),
            "boundaries is [20000, 40000]; allowed with its other values: [20000]",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_another_recipe_is_refused_with_what_differs(recipe, message):
    with pytest.raises(RecipeRefused) as refused:
        find_params(SPACE, recipe)

    assert str(refused.value) == message


@pytest.mark.parametrize("given", [{}, {"head": "linear"}, {"head": "dropout", "early_stopping": False}])
def test_some_parameters_make_no_whole_recipe(given):
    assert complete(SPACE, given) is None


def test_a_parameter_that_has_no_effect_is_refused():
    given = {"head": "linear", "early_stopping": False, "boundary_1": 20000, "learning_rate_2": 0.01, "dropout": 0.5}

    with pytest.raises(RecipeRefused, match=r"^dropout is 0.5, but has no effect on a recipe with the other values$"):
        complete(SPACE, given)
