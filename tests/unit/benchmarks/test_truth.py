from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from hpo.recipes.comparison import BASELINE
from hpo.recipes.space import SearchSpace
from hpo.recipes.space_file import load_space


def test_the_recipes_of_a_truth_are_distinct_and_hold_every_network(truth: Any) -> None:
    space = load_space("smooth_lr")
    drawn = truth.draw_recipes(space, 32, seed=0)
    assert len(set(drawn.values())) == 32
    assert drawn[BASELINE] == space.base_recipe
    networks = {(recipe.head, recipe.dropout) for recipe in drawn.values()}
    assert networks == {("linear", 0.0), *product(("dropout", "dense"), (0.3, 0.5, 0.7))}
    assert {recipe.values[1] for recipe in drawn.values()} == {0.01, 0.02, 0.05}
    assert {recipe.boundaries[0] for recipe in drawn.values()} == {16_000, 20_000, 24_000}
    assert truth.draw_recipes(space, 8, seed=0) == dict(list(drawn.items())[:8])


def test_a_space_with_too_few_recipes_is_refused(truth: Any) -> None:
    space = SearchSpace.model_validate({"name": "two", "base": "dropout", "search": {"dropout": [0.3, 0.5]}})
    with pytest.raises(SystemExit, match="--recipes 3: only 2 distinct ones of space two were found"):
        truth.draw_recipes(space, 3, seed=0)
