"""Test which parameters of a space give one training run, and that untried recipes are found until none is left."""

from collections import Counter
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpo.recipes import distinct
from hpo.recipes.distinct import (
    canonical,
    count_every_recipe,
    count_every_setting,
    count_recipes,
    draw_untried,
    list_params,
    recipe_key,
)
from hpo.recipes.recipe import Recipe
from hpo.recipes.space import SearchSpace
from hpo.recipes.space_file import load_space, parse_space

RECIPE = Recipe(
    head="dropout", dropout=0.3, shortcut_norm=False, boundaries=(20_000, 40_000), values=(0.1, 0.01, 0.001)
)
DECAYED = (
    "{head: dropout, dropout: 0.3, shortcut_norm: false, boundaries: [20000], values: [0.1, 0.01], weight_decay: 0.001}"
)
EQUAL_RATES = "{head: linear, dropout: 0, shortcut_norm: false, boundaries: [20000, 30000], values: [0.1, 0.1, 0.1]}"


def space_of(search, base="dropout"):
    return parse_space(f"name: mine\nbase: {base}\nsearch: {search}\n", "mine.yaml")


def key_in(space):
    return lambda params: recipe_key(space.recipe(params, iterations=640, seed=7))


@pytest.mark.parametrize(
    ("values", "boundaries", "merged"),
    [
        ((0.1, 0.01, 0.001), (20_000, 40_000), ((20_000, 40_000), (0.1, 0.01, 0.001))),
        ((0.1, 0.1, 0.001), (20_000, 40_000), ((40_000,), (0.1, 0.001))),
        ((0.1, 0.01, 0.01), (20_000, 40_000), ((20_000,), (0.1, 0.01))),
        ((0.1, 0.1, 0.1), (20_000, 40_000), ((), (0.1,))),
        ((0.1, 0.01, 0.1), (20_000, 40_000), ((20_000, 40_000), (0.1, 0.01, 0.1))),
    ],
)
def test_neighbouring_phases_of_one_rate_are_one_phase_in_canonical_form(values, boundaries, merged):
    form = canonical(replace(RECIPE, boundaries=boundaries, values=values))

    assert (form.boundaries, form.values) == merged
    assert canonical(form) == form
    assert replace(form, boundaries=RECIPE.boundaries, values=RECIPE.values) == RECIPE


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({}, True),
        ({"head": "linear"}, False),
        ({"dropout": 0.5}, False),
        ({"head": "dense"}, False),
        ({"early_stopping": 7_020}, False),
        ({"boundaries": (20_000, 42_000)}, False),
        ({"values": (0.1, 0.01, 0.002)}, False),
        ({"seed": 1}, False),
        ({"iterations": 640}, False),
        ({"shortcut_norm": True}, False),
        ({"batch_size": 64}, False),
    ],
)
def test_recipes_share_a_key_if_they_are_the_same_run(change, same):
    assert (recipe_key(replace(RECIPE, **change)) == recipe_key(RECIPE)) is same


def test_recipes_that_differ_in_a_boundary_between_equal_rates_share_a_key():
    one, other = (replace(RECIPE, boundaries=(b, 40_000), values=(0.1, 0.1, 0.01)) for b in (10_000, 30_000))

    assert one != other
    assert recipe_key(one) == recipe_key(other)


def test_a_key_is_the_same_in_every_release():
    assert recipe_key(RECIPE) == "62b270678e48c8392473e55b9a0b7e54bba42a31fc9aa3eee4418799324b6f94"


def test_a_number_and_the_same_one_with_the_rounding_errors_of_its_computation_share_a_key():
    space = space_of("{dropout: {low: 0.1, high: 0.7, step: 0.1}}")

    assert space.allowed()["dropout"] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    assert 0.1 + 0.2 != 0.3
    assert key_in(space)({"dropout": 0.1 + 0.2}) == key_in(space)({"dropout": 0.3})


@pytest.mark.parametrize(
    ("space", "number"),
    [
        (load_space("baseline"), None),
        (load_space("dropout"), None),
        (space_of("{}"), 1),
        (space_of("{head: [linear, dropout]}"), 2),
        (space_of("{head: [linear, dropout, dense], dropout: [0.3, 0.5]}"), 5),
        (space_of("{head: [linear, dropout], dropout: [0.3]}", base="baseline"), 2),
        (space_of("{early_stopping: [true, false], patience: [3510, 7020]}"), 3),
        (space_of("{early_stopping: [true, false], patience: [7020]}"), 2),
        (space_of("{shortcut_norm: [true, false]}"), 2),
        (space_of("{dropout: {low: 0.1, high: 0.5, step: 0.1}, shortcut_norm: [true, false]}"), 10),
        (space_of("{depth: {low: 8, high: 26, step: 6}, batch_size: [64, 128]}", base=DECAYED), 8),
        (space_of("{momentum: [0, 0.9], nesterov: [true, false]}"), 3),
        (space_of("{momentum: {low: 0, high: 0.9, step: 0.3}, nesterov: [true, false]}"), 7),
        (space_of("{nesterov: [true, false]}"), 2),
        (space_of("{nesterov: [false], weight_decay: [0, 0.0001], label_smoothing: [0, 0.1]}"), 4),
        (space_of("{batch_size: {low: 64, high: 256, step: 64, log: true}}"), 4),
    ],
    ids=lambda value: value.name if isinstance(value, SearchSpace) else None,
)
def test_the_number_of_recipes_is_that_of_the_different_ones_among_all_parameters(space, number):
    listed = list_params(space)

    assert len({key_in(space)(params) for params in listed}) == count_recipes(space)
    assert number in (None, count_recipes(space))
    for params in listed[:200]:
        assert all(name in params for name in space.distributions() if space.applies(name, params))


@pytest.mark.parametrize(
    "search",
    [
        "{momentum: {low: 0.5, high: 0.99, log: true}}",
        "{weight_decay: {low: 0.00001, high: 0.1, step: 0.00001, log: true}}",
        "{dropout: [0.3, 0.5], weight_decay: {low: 0.00001, high: 0.01, log: true}}",
    ],
    ids=["no step", "very many steps", "one of two"],
)
def test_recipes_without_number_are_not_counted_but_drawn(search):
    space = space_of(search, base=DECAYED)
    tried = set()

    for seed in range(20):
        params = draw_untried(space, tried, key_in(space), Random(seed))
        assert params == {name: space.nearest(name, value) for name, value in params.items()}
        assert key_in(space)(params) not in tried
        tried.add(key_in(space)(params))

    assert count_recipes(space) is None


def test_recipes_that_are_not_counted_are_used_up_when_of_many_draws_none_is_new(monkeypatch):
    monkeypatch.setattr(distinct, "MOST_DRAWN", 300)
    space = space_of("{weight_decay: {low: 0.001, high: 0.00101, log: true}}", base=DECAYED)
    tried = set()

    while (params := draw_untried(space, tried, key_in(space), Random(len(tried)))) is not None:
        tried.add(key_in(space)(params))

    assert len(tried) == 2


def test_a_field_of_one_value_has_it_where_the_base_recipe_has_none():
    space = space_of("{head: [linear, dropout], dropout: [0.3]}", base="baseline")

    heads = {head: space.recipe({"head": head}, iterations=640, seed=7) for head in ("linear", "dropout")}

    assert {head: (recipe.head, recipe.dropout) for head, recipe in heads.items()} == {
        "linear": ("linear", 0.0),
        "dropout": ("dropout", 0.3),
    }


fields_of_rates = st.lists(st.sampled_from([0.1, 0.05, 0.01]), min_size=1, max_size=3, unique=True)


@settings(max_examples=40)
@given(st.lists(st.tuples(fields_of_rates, st.integers(1, 3)), min_size=1, max_size=4))
def test_schedules_are_counted_once_however_their_equal_phases_are_cut(phases):
    rates = [choices for choices, _ in phases]
    boundaries = [[2_000 * (10 * i + k + 1) for k in range(n)] for i, (_, n) in enumerate(phases[1:])]
    base = replace(RECIPE, boundaries=tuple(b[0] for b in boundaries), values=tuple(r[0] for r in rates))
    described = base.to_dict()
    space = SearchSpace.model_validate(
        {"name": "mine", "base": described, "search": {"boundaries": boundaries, "values": rates}}
    )

    assert count_recipes(space) == len({key_in(space)(params) for params in list_params(space)})


def test_the_recipes_of_a_space_of_any_size_are_counted_at_once():
    rates = ", ".join(["{low: 0.001, high: 1.0, step: 0.001}"] * 3)
    space = space_of(f"{{values: [{rates}], dropout: {{low: 0.001, high: 0.999, step: 0.001}}}}", base="dropout")

    assert count_recipes(space) == 999 * (1000 * 999 * 999 + 1000 * 999 + 1000 * 999 + 1000)


@pytest.mark.parametrize("most_listed", [distinct.MOST_LISTED, 0], ids=["listed", "drawn"])
def test_untried_recipes_are_drawn_until_each_was_tried_once(monkeypatch, most_listed):
    monkeypatch.setattr(distinct, "MOST_LISTED", most_listed)
    space = space_of(
        "{head: [linear, dropout], dropout: [0.1, 0.3, 0.5], boundaries: [[30000, 32000], [48000]],"
        " values: [[0.1], [0.1, 0.01], [0.001]]}"
    )
    total = count_recipes(space)
    tried = set()

    for _ in range(total):
        params = draw_untried(space, tried, key_in(space), Random(len(tried)))
        assert key_in(space)(params) not in tried
        tried.add(key_in(space)(params))

    assert total == len(tried) == 4 * 3


def test_of_a_space_that_is_used_up_nothing_is_drawn():
    space = space_of("{dropout: [0.1, 0.3, 0.5]}")

    assert draw_untried(space, {key_in(space)(p) for p in list_params(space)}, key_in(space), Random(0)) is None


def test_each_untried_recipe_is_as_likely_as_another():
    space = space_of("{head: [linear, dropout], dropout: [0.1, 0.3, 0.5]}")
    tried = {key_in(space)({"head": "dropout", "dropout": 0.3})}

    drawn = Counter(draw_untried(space, tried, key_in(space), Random(seed)).get("dropout") for seed in range(600))

    assert drawn.keys() == {None, 0.1, 0.5}
    assert all(150 < number < 250 for number in drawn.values())


def test_the_same_generator_draws_the_same():
    space = load_space("smooth_lr")

    assert [draw_untried(space, set(), key_in(space), Random(3)) for _ in range(2)] == [
        draw_untried(space, set(), key_in(space), Random(3))
    ] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "search",
    [
        "{weight_decay: {low: 0.0985, high: 0.102, log: true}}",
        "{weight_decay: {low: 0.00099, high: 0.00101, log: true}, nesterov: [true, false]}",
        "{values: [[0.1], {low: 0.0985, high: 0.1, log: true}]}",
        "{weight_decay: {low: 0.001, high: 0.0015, step: 0.0001, log: true}}",
    ],
)
def test_recipes_of_ranges_without_a_step_are_counted_as_they_are_drawn(search):
    base = "{head: linear, dropout: 0, shortcut_norm: false, boundaries: [20000], values: [0.1, 0.1], weight_decay: %s}"
    space = space_of(search, base % ("0.1" if "0.102" in search else "0.001"))
    random, key_of = Random(3), key_in(space)

    drawn = {key_of({name: space.draw(name, random) for name in space.distributions()}) for _ in range(3_000)}

    assert len(drawn) == count_every_recipe(space)


def test_settings_that_give_one_recipe_are_counted_each():
    space = space_of(
        "{boundaries: [[20000, 22000], [30000, 32000]], values: [[0.1], [0.1, 0.2], [0.1, 0.2]]}", EQUAL_RATES
    )

    settings_of_all = list_params(space)

    assert count_every_setting(space) == len(settings_of_all) == 16
    assert count_every_recipe(space) == len({key_in(space)(params) for params in settings_of_all}) < 16
