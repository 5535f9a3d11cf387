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
    batch_size=st.integers(1, 1_024),
    momentum=st.floats(0, 1, exclude_max=True),
    weight_decay=st.floats(0, 1),
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


@given(recipe=recipes)
def test_a_recipe_comes_back_from_its_json_unchanged(recipe):
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_a_recipe_is_written_as_plain_json_values():
    assert PLAIN.to_dict() == {
        "head": "dropout",
        "dropout": 0.5,
        "shortcut_norm": True,
        "boundaries": [20_000, 40_000],
        "values": [0.1, 0.01, 0.001],
        "early_stopping": 7_020,
        "batch_size": 128,
        "momentum": 0.9,
        "weight_decay": 0.0,
        "iterations": 64_000,
        "seed": 0,
    }


def test_a_recipe_for_another_budget_and_seed_keeps_everything_else():
    assert PLAIN.at(iterations=640, seed=3) == replace(PLAIN, iterations=640, seed=3)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"head": "softmax"}, "head is 'softmax'; allowed: one of linear, dropout, dense"),
        ({"dropout": -0.1}, "dropout is -0.1; allowed: at least 0 and under 1"),
        ({"dropout": 1.0}, "dropout is 1.0; allowed: at least 0 and under 1"),
        ({"dropout": float("nan")}, "dropout is nan; allowed: at least 0 and under 1"),
        (
            {"boundaries": (40_000, 20_000)},
            "boundaries is (40000, 20000); allowed: ascending, over 0 and under 64000",
        ),
        (
            {"boundaries": (20_000, 20_000)},
            "boundaries is (20000, 20000); allowed: ascending, over 0 and under 64000",
        ),
        ({"boundaries": (0, 20_000)}, "boundaries is (0, 20000); allowed: ascending, over 0 and under 64000"),
        ({"boundaries": (20_000, 64_000)}, "boundaries is (20000, 64000); allowed: ascending, over 0 and under 64000"),
        ({"values": (0.1, 0.01)}, "values is (0.1, 0.01); allowed: one more than boundaries"),
        ({"values": (0.1, 0.01, 0.0)}, "values is (0.1, 0.01, 0.0); allowed: positive and finite"),
        ({"values": (0.1, -0.01, 0.1)}, "values is (0.1, -0.01, 0.1); allowed: positive and finite"),
        ({"values": (float("inf"), 0.01, 0.1)}, "values is (inf, 0.01, 0.1); allowed: positive and finite"),
        ({"values": (float("nan"), 0.01, 0.1)}, "values is (nan, 0.01, 0.1); allowed: positive and finite"),
        ({"early_stopping": 0}, "early_stopping is 0; allowed: positive, or none"),
        ({"early_stopping": -1}, "early_stopping is -1; allowed: positive, or none"),
        ({"batch_size": 0}, "batch_size is 0; allowed: positive"),
        ({"momentum": -0.1}, "momentum is -0.1; allowed: at least 0 and under 1"),
        ({"momentum": 1.0}, "momentum is 1.0; allowed: at least 0 and under 1"),
        ({"weight_decay": -1e-4}, "weight_decay is -0.0001; allowed: at least 0"),
        ({"iterations": 31}, "iterations is 31; allowed: at least 32"),
        ({"seed": -1}, "seed is -1; allowed: at least 0"),
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
        (PLAIN.to_dict() | {"depth": 20}, "unexpected keyword argument 'depth'"),
        ({k: v for k, v in PLAIN.to_dict().items() if k != "values"}, "missing 1 required keyword-only argument"),
        (PLAIN.to_dict() | {"boundaries": None}, "must be an iterable, not NoneType"),
        (PLAIN.to_dict() | {"dropout": "half"}, "not supported between instances of 'int' and 'str'"),
    ],
)
def test_fields_that_make_no_recipe_are_bad_input_and_not_a_crash(fields, problem):
    with pytest.raises(BadInput, match=problem):
        Recipe.from_dict(fields)


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
