"""Test the recipe, its rules and the documented runs."""

import json
from dataclasses import replace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hpo.errors import BadInput
from hpo.recipes.recipe import BOUNDARY_GRID, HEADS, ParameterCounts, Recipe, derive_seed, documented_runs

PLAIN = Recipe(
    head="dropout",
    dropout=0.5,
    shortcut_norm=True,
    boundaries=(20_000, 40_000),
    values=(0.1, 0.01, 0.001),
    early_stopping=7_020,
)

BOUNDARIES = "allowed: a list of whole numbers, ascending, over 0 and under 64000"
DEPTHS = "allowed: 6n + 2 from 8 to 1202, such as 20, 32, 44, 56 or 110"
FIELDS = (
    "head, dropout, shortcut_norm, depth, boundaries, values, early_stopping, batch_size, momentum, nesterov, "
    "weight_decay, label_smoothing, iterations, seed"
)

recipes = st.builds(
    Recipe,
    head=st.sampled_from(HEADS),
    dropout=st.floats(0, 1, exclude_max=True),
    shortcut_norm=st.booleans(),
    boundaries=st.sets(st.integers(1, 31), min_size=2, max_size=2).map(
        lambda grid: tuple(BOUNDARY_GRID * g for g in sorted(grid))
    ),
    values=st.tuples(*[st.floats(1e-6, 10)] * 3),
    early_stopping=st.none() | st.integers(1, 64_000),
    depth=st.integers(1, 200).map(lambda n: 6 * n + 2),
    batch_size=st.integers(1, 1_024),
    momentum=st.floats(0, 1, exclude_max=True),
    nesterov=st.booleans(),
    weight_decay=st.floats(0, 1),
    label_smoothing=st.floats(0, 1, exclude_max=True),
    iterations=st.integers(32, 128_000),
    seed=st.integers(0, 2**63 - 1),
)


def test_dropout_at_rate_0_is_the_linear_head():
    linear = replace(PLAIN, head="linear")

    assert replace(PLAIN, head="dropout", dropout=0.0) == linear
    assert hash(replace(PLAIN, head="dropout", dropout=0.0)) == hash(linear)


def test_a_linear_head_has_no_dropout():
    assert replace(PLAIN, head="linear", dropout=0.7) == replace(PLAIN, head="linear", dropout=0.0)
    assert replace(PLAIN, head="linear", dropout=0.7).dropout == 0.0


def test_a_dense_head_without_dropout_stays_dense():
    recipe = replace(PLAIN, head="dense", dropout=0.0)

    assert (recipe.head, recipe.dropout) == ("dense", 0.0)


@pytest.mark.parametrize(
    "spelling",
    [
        {"momentum": 0, "nesterov": True},
        {"momentum": 0.0},
        {"momentum": -0.0, "weight_decay": 0, "label_smoothing": -0.0},
        {"momentum": 0, "values": [1e-1, 0.010, 0.001], "boundaries": [2e4, 40_000.0], "seed": 0.0, "depth": 20.0},
    ],
)
def test_a_recipe_has_one_form_however_its_numbers_are_written(spelling):
    plain = replace(PLAIN, momentum=0.0)

    recipe = Recipe.from_dict(PLAIN.to_dict() | spelling)

    assert recipe == plain
    assert json.dumps(recipe.to_dict()) == json.dumps(plain.to_dict())


@given(recipe=recipes)
def test_a_recipe_comes_back_from_its_json_unchanged(recipe):
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_a_recipe_is_written_as_plain_json_values():
    assert PLAIN.to_dict() == {
        "head": "dropout",
        "dropout": 0.5,
        "shortcut_norm": True,
        "depth": 20,
        "boundaries": [20_000, 40_000],
        "values": [0.1, 0.01, 0.001],
        "early_stopping": 7_020,
        "batch_size": 128,
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 0.0,
        "label_smoothing": 0.0,
        "iterations": 64_000,
        "seed": 0,
    }


def test_a_recipe_for_another_budget_and_seed_keeps_everything_else():
    assert PLAIN.at(iterations=640, seed=3) == replace(PLAIN, iterations=640, seed=3)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"head": "softmax"}, "head is 'softmax'; allowed: one of linear, dropout, dense"),
        ({"dropout": -0.1}, "dropout is -0.1; allowed: a number of at least 0 and under 1"),
        ({"dropout": 1.0}, "dropout is 1.0; allowed: a number of at least 0 and under 1"),
        ({"dropout": float("nan")}, "dropout is nan; allowed: a number of at least 0 and under 1"),
        (
            {"boundaries": (40_000, 20_000)},
            f"boundaries is [40000, 20000]; {BOUNDARIES}",
        ),
        (
            {"boundaries": (20_000, 20_000)},
            f"boundaries is [20000, 20000]; {BOUNDARIES}",
        ),
        ({"boundaries": (0, 20_000)}, f"boundaries is [0, 20000]; {BOUNDARIES}"),
        ({"boundaries": (20_000, 64_000)}, f"boundaries is [20000, 64000]; {BOUNDARIES}"),
        ({"values": (0.1, 0.01)}, "values has 2 numbers; allowed: one more than boundaries"),
        ({"values": (0.1, 0.01, 0.0)}, "values is [0.1, 0.01, 0.0]; allowed: a list of numbers over 0"),
        ({"values": (0.1, -0.01, 0.1)}, "values is [0.1, -0.01, 0.1]; allowed: a list of numbers over 0"),
        ({"values": (float("inf"), 0.01, 0.1)}, "values is [inf, 0.01, 0.1]; allowed: a list of numbers over 0"),
        ({"values": (float("nan"), 0.01, 0.1)}, "values is [nan, 0.01, 0.1]; allowed: a list of numbers over 0"),
        ({"early_stopping": 0}, "early_stopping is 0; allowed: a whole number over 0, or none"),
        ({"early_stopping": -1}, "early_stopping is -1; allowed: a whole number over 0, or none"),
        ({"batch_size": 0}, "batch_size is 0; allowed: a whole number from 1 to 65536"),
        ({"momentum": -0.1}, "momentum is -0.1; allowed: a number of at least 0 and under 1"),
        ({"momentum": 1.0}, "momentum is 1.0; allowed: a number of at least 0 and under 1"),
        ({"weight_decay": -1e-4}, "weight_decay is -0.0001; allowed: a number of at least 0"),
        ({"weight_decay": float("inf")}, "weight_decay is inf; allowed: a number of at least 0"),
        ({"weight_decay": "1e-4"}, "weight_decay is '1e-4'; allowed: a number of at least 0"),
        ({"weight_decay": True}, "weight_decay is True; allowed: a number of at least 0"),
        ({"weight_decay": 10**400}, f"weight_decay is 1{'0' * 56}...; allowed: a number of at least 0"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0; allowed: a number of at least 0 and under 1"),
        ({"nesterov": 1}, "nesterov is 1; allowed: true or false"),
        ({"shortcut_norm": "yes"}, "shortcut_norm is 'yes'; allowed: true or false"),
        ({"depth": 2}, f"depth is 2; {DEPTHS}"),
        ({"depth": 21}, f"depth is 21; {DEPTHS}"),
        ({"depth": 1_208}, f"depth is 1208; {DEPTHS}"),
        ({"values": "high"}, "values is 'high'; allowed: a list of numbers over 0"),
        ({"values": (0.1, "0.01", 0.1)}, "values is [0.1, '0.01', 0.1]; allowed: a list of numbers over 0"),
        ({"boundaries": None}, f"boundaries is None; {BOUNDARIES}"),
        ({"iterations": 31}, "iterations is 31; allowed: a whole number of at least 32"),
        ({"seed": -1}, "seed is -1; allowed: a whole number of at least 0"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_with_what_is(changed, problem):
    with pytest.raises(BadInput) as refused:
        replace(PLAIN, **changed)

    assert str(refused.value) == f"recipe: {problem}"


@pytest.mark.parametrize(
    ("field", "value"),
    [("batch_size", 12.5), ("early_stopping", 100.5), ("iterations", 640.5), ("seed", 0.5), ("boundaries", [0.5, 9.5])],
)
def test_a_fraction_is_refused_where_only_a_whole_number_makes_sense(field, value):
    with pytest.raises(BadInput, match=f"recipe: {field} is"):
        Recipe.from_dict(PLAIN.to_dict() | {field: value})


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        (PLAIN.to_dict() | {"width": 16}, f"width is unknown; allowed: {FIELDS}"),
        (PLAIN.to_dict() | {1: 16}, f"1 is unknown; allowed: {FIELDS}"),
        ({k: v for k, v in PLAIN.to_dict().items() if k != "values"}, f"values is missing; a recipe has {FIELDS}"),
        (PLAIN.to_dict() | {"dropout": "half"}, "dropout is 'half'; allowed: a number of at least 0 and under 1"),
    ],
)
def test_fields_that_make_no_recipe_are_bad_input_and_not_a_crash(fields, problem):
    with pytest.raises(BadInput) as refused:
        Recipe.from_dict(fields)

    assert str(refused.value) == f"recipe: {problem}"


def test_the_documented_runs_are_those_of_the_reference(reference):
    content = yaml.safe_load(reference("documented_runs.yaml").read_text())
    common = content["common"]
    patience = common["early_stopping"]["patience_epochs"] * 351  # steps in an epoch, by the split and the batch

    found = {
        name: (run.name, run.section, run.recipe, run.params, run.test_loss, run.test_accuracy)
        for name, run in documented_runs().items()
    }

    assert list(found.items()) == [
        (
            run["name"],
            (
                run["name"],
                section,
                Recipe(
                    head=run["head"],
                    dropout=run["dropout"],
                    shortcut_norm=run["shortcut_norm"],
                    boundaries=tuple(run["boundaries"]),
                    values=tuple(run["values"]),
                    early_stopping=patience if run["early_stopping"] else None,
                    batch_size=common["batch_size"],
                    momentum=0.9,
                    weight_decay=0.0,
                    iterations=common["iterations"],
                    seed=0,
                ),
                ParameterCounts(**run["params"]),
                run["test"] and run["test"]["loss"],
                run["test"] and run["test"]["accuracy"],
            ),
        )
        for section, run in enumerate(content["runs"], 1)
    ]


def test_a_derived_seed_is_the_same_on_every_machine_and_release():
    assert [derive_seed("order", 0, 1), derive_seed("weights", 7), derive_seed("")] == [
        224_518_690_161_945_571,
        4_982_824_372_656_017_420,
        8_203_414_616_412_130_826,
    ]


@given(purposes=st.lists(st.sampled_from(["order", "iteration", "weights"]), min_size=2, max_size=2), data=st.data())
def test_derived_seeds_differ_in_every_counter_and_fit_63_bits(purposes, data):
    counters = data.draw(st.lists(st.lists(st.integers(0, 10**6), max_size=3), min_size=2, max_size=2))
    calls = [(purpose, *found) for purpose, found in zip(purposes, counters, strict=True)]
    seeds = [derive_seed(*call) for call in calls]

    assert (seeds[0] == seeds[1]) == (calls[0] == calls[1])
    assert all(0 <= seed < 2**63 for seed in seeds)
