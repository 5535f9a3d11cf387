"""Test how search spaces are read, refused, sampled and turned into recipes."""

import hashlib
import json
from dataclasses import replace

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FixedTrial

from hpo.errors import SpaceError
from hpo.recipes.recipe import BOUNDARY_GRID, Recipe, documented_runs
from hpo.recipes.shipped import list_shipped, shipped_dir
from hpo.recipes.space import SearchSpace
from hpo.recipes.space_file import json_schema, load_space, parse_space

SHIPPED = ["baseline", "dense", "dense_early_stopping", "dropout", "full", "modern", "smooth_lr"]
SPACES = {name: load_space(name) for name in SHIPPED}


def space_of(search, base="dropout"):
    return parse_space(f"name: mine\nbase: {base}\nsearch: {search}\n", "mine.yaml")


def drawn(data, distribution):
    """Draw one of the values that a distribution allows."""
    if isinstance(distribution, CategoricalDistribution):
        return data.draw(st.sampled_from(distribution.choices))
    count = round((distribution.high - distribution.low) / distribution.step)
    return min(distribution.high, distribution.low + data.draw(st.integers(0, count)) * distribution.step)


def test_the_shipped_spaces_are_those_of_the_documented_runs_and_a_full_one():
    assert list_shipped() == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_space_has_the_name_of_its_file_and_says_what_it_is_for(name):
    space = load_space(name)

    assert space.name == name
    assert space.description != ""


@pytest.mark.parametrize("name", SHIPPED)
def test_the_base_parameters_stand_for_the_base_recipe(name):
    space = load_space(name)
    run = documented_runs()[{"full": "smooth_lr", "modern": "baseline"}.get(name, name)].recipe
    # The warm-up of `modern` has the rate of what follows in the base recipe, so that it is none.
    documented = (
        replace(run, boundaries=(2_000, 32_000, 48_000), values=(0.1, *run.values)) if name == "modern" else run
    )

    assert space.base_recipe == documented
    assert space.recipe(space.base_params(), iterations=640, seed=7) == documented.at(iterations=640, seed=7)


@pytest.mark.parametrize("name", SHIPPED)
@settings(max_examples=25)
@given(data=st.data())
def test_whatever_a_shipped_space_suggests_is_a_recipe_of_the_base_recipes_form(name, data):
    space = SPACES[name]
    values = {param: drawn(data, distribution) for param, distribution in space.distributions().items()}
    trial = FixedTrial(values)

    params = space.suggest(trial)
    recipe = space.recipe(params, iterations=640, seed=7)

    base = space.base_recipe
    assert params == {param: space.nearest(param, values[param]) for param in trial.distributions}
    assert trial.distributions == {p: d for p, d in space.distributions().items() if p in params}
    assert (recipe.iterations, recipe.seed) == (640, 7)
    assert len(recipe.boundaries) == len(base.boundaries)
    assert all(boundary % BOUNDARY_GRID == 0 for boundary in recipe.boundaries)
    assert replace(recipe, iterations=base.iterations, seed=base.seed) == replace(
        base,
        head=params.get("head", base.head),
        dropout=params.get("dropout", base.dropout),
        shortcut_norm=params.get("shortcut_norm", base.shortcut_norm),
        early_stopping=params.get("patience") if params.get("early_stopping", base.early_stopping) else None,
        nesterov=params.get("nesterov", base.nesterov),
        weight_decay=params.get("weight_decay", base.weight_decay),
        label_smoothing=params.get("label_smoothing", base.label_smoothing),
        boundaries=tuple(params.get(f"boundary_{i}", boundary) for i, boundary in enumerate(base.boundaries, 1)),
        values=tuple(params.get(f"learning_rate_{i}", value) for i, value in enumerate(base.values, 1)),
    )


@pytest.mark.parametrize("name", SHIPPED)
def test_optuna_takes_the_base_parameters_as_those_of_a_first_trial(name):
    space = load_space(name)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial(space.base_params())

    assert space.suggest(study.ask()) == space.base_params()


def test_the_smooth_space_searches_head_dropout_early_stopping_boundaries_and_rates_around_run_5():
    space = load_space("smooth_lr")

    assert space.distributions() == {
        "head": CategoricalDistribution(("linear", "dropout", "dense")),
        "dropout": FloatDistribution(0.3, 0.7, step=0.2),
        "early_stopping": CategoricalDistribution((False, True)),
        "patience": CategoricalDistribution((7_020, 14_040)),
        "boundary_1": IntDistribution(16_000, 24_000, step=4_000),
        "boundary_2": IntDistribution(28_000, 40_000, step=4_000),
        "boundary_3": IntDistribution(44_000, 56_000, step=4_000),
        "learning_rate_2": CategoricalDistribution((0.01, 0.02, 0.05)),
        "learning_rate_3": CategoricalDistribution((0.002, 0.005, 0.01)),
        "learning_rate_4": CategoricalDistribution((0.0005, 0.001, 0.002)),
    }
    assert space.base_params() == {
        "head": "dropout",
        "dropout": 0.5,
        "early_stopping": False,
        "boundary_1": 20_000,
        "boundary_2": 32_000,
        "boundary_3": 56_000,
        "learning_rate_2": 0.02,
        "learning_rate_3": 0.005,
        "learning_rate_4": 0.001,
    }


SPACES_OF_EARLIER_RELEASES = {  # SHA-256 of what studies hold
    "baseline": "c99efbb1e4d3ec335bf533329ccc221e819bd4d92e0c46a9d816c0bf52ada57c",
    "dense": "47f093185900fb995ccc1e11a25dc4cba18ee51c3e30bc83caa9f06ff1ac31e8",
    "dense_early_stopping": "7d17444b90b03a2fa2e5c1f26cf998be05cdd439ea6015dc525ec14413cb0a14",
    "dropout": "0e5497821cd7df6840e3ce6dde6b0708b950519074a6a69f800429d304929273",
    "full": "a4ca3cd5f0a63d8d8a20a90114fdbebceac25412b3e44c030e1754a97e6e937d",
    "smooth_lr": "11cc7f97ff33d8cc52ef3a8a326b1027804194d3bc9a72edca84ca36d701c0ea",
}


@pytest.mark.parametrize("name", SPACES_OF_EARLIER_RELEASES)
def test_a_shipped_space_is_written_as_the_studies_of_earlier_releases_hold_it(name):
    written = json.dumps(load_space(name).model_dump(mode="json", exclude_none=True), sort_keys=True)

    assert hashlib.sha256(written.encode()).hexdigest() == SPACES_OF_EARLIER_RELEASES[name]


def test_a_value_that_an_earlier_release_drew_stays_as_it_was_trained():
    space = space_of("{dropout: {low: 0.1, high: 0.5, step: 0.1}}")

    assert space.recipe({"dropout": 0.30000000000000004}, iterations=640, seed=7).dropout == 0.30000000000000004


def test_the_optimizer_the_batch_and_the_depth_are_searched_like_any_other_field():
    space = space_of(
        "{depth: {low: 20, high: 56, step: 12}, batch_size: {low: 32, high: 512, log: true}, momentum: [0, 0.9],"
        " nesterov: [false, true], weight_decay: [0, 1e-4, 5E-4], label_smoothing: {low: 0, high: 0.2, step: 0.1}}"
    )

    assert space.distributions() == {
        "depth": IntDistribution(20, 56, step=12),
        "batch_size": IntDistribution(32, 512, log=True),
        "momentum": CategoricalDistribution((0.0, 0.9)),
        "nesterov": CategoricalDistribution((False, True)),
        "weight_decay": CategoricalDistribution((0.0, 1e-4, 5e-4)),
        "label_smoothing": FloatDistribution(0.0, 0.2, step=0.1),
    }
    params = {
        "depth": 44,
        "batch_size": 64,
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 5e-4,
        "label_smoothing": 0.1,
    }
    assert space.suggest(FixedTrial(params)) == params
    assert space.recipe(params, iterations=640, seed=7) == replace(space.base_recipe, **params, iterations=640, seed=7)


def test_nesterov_is_sampled_only_where_there_is_momentum():
    space = space_of("{momentum: [0, 0.9], nesterov: [false, true]}")

    assert list(space.suggest(FixedTrial({"momentum": 0.0, "nesterov": True}))) == ["momentum"]
    assert list(space.suggest(FixedTrial({"momentum": 0.9, "nesterov": True}))) == ["momentum", "nesterov"]


def test_nesterov_is_refused_where_no_recipe_of_the_space_has_momentum():
    own = "{head: linear, dropout: 0, shortcut_norm: false, boundaries: [], values: [1e-1], momentum: 0}"

    with pytest.raises(SpaceError) as refused:
        space_of("{nesterov: [false, true]}", base=own)

    assert str(refused.value) == (
        "mine.yaml: line 3: search.nesterov: needs momentum, in the base recipe or in the search"
    )


@pytest.mark.parametrize(
    ("search", "name", "distribution", "drawn", "value"),
    [
        (
            "dropout: {low: 0.1, high: 0.7, step: 0.1}",
            "dropout",
            FloatDistribution(0.1, 0.7, step=0.1),
            0.1 + 2 * 0.1,
            0.3,
        ),
        ("dropout: {low: 0.1, high: 0.7, step: 0.1}", "dropout", FloatDistribution(0.1, 0.7, step=0.1), 0.71, 0.7),
        (
            "dropout: {low: 0.1, high: 0.7, step: 0.1, log: true}",
            "dropout",
            FloatDistribution(0.1, 0.7, log=True),
            0.26,
            0.3,
        ),
        ("dropout: {low: 0.1, high: 0.7, log: true}", "dropout", FloatDistribution(0.1, 0.7, log=True), 0.12345, 0.123),
        (
            "dropout: {low: 0.1234, high: 0.7, log: true}",
            "dropout",
            FloatDistribution(0.1234, 0.7, log=True),
            0.12345,
            0.1234,
        ),
        (
            "batch_size: {low: 32, high: 512, step: 32, log: true}",
            "batch_size",
            IntDistribution(32, 512, log=True),
            90,
            96,
        ),
        ("batch_size: {low: 32, high: 512, log: true}", "batch_size", IntDistribution(32, 512, log=True), 90, 90),
        ("batch_size: [64, 128]", "batch_size", CategoricalDistribution((64, 128)), 64, 64),
    ],
)
def test_what_a_sampler_draws_becomes_the_nearest_value_of_the_space(search, name, distribution, drawn, value):
    space = space_of("{" + search + "}")

    assert space.distributions() == {name: distribution}
    assert space.nearest(name, drawn) == value


@pytest.mark.parametrize(
    ("given", "same"),
    [
        ("weight_decay: [0, 1e-4, 1E-3]", "weight_decay: [0.0, 0.0001, 0.001]"),
        ("batch_size: [128, 2e2]", "batch_size: [128, 200]"),
        (
            "boundaries: [{low: 2e4, high: 36.0e+3, step: 4e3}, [4.8e4]]",
            "boundaries: [{low: 20000, high: 36000, step: 4000}, [48000]]",
        ),
        ("values: [[1e-1], [.1e-1, 2e-2], [1e-3]]", "values: [[0.1], [0.01, 0.02], [0.001]]"),
        ("dropout: {low: 1e-1, high: 5e-1, step: 1e-1}", "dropout: {low: 0.1, high: 0.5, step: 0.1}"),
    ],
)
def test_numbers_may_be_written_as_people_write_them(given, same):
    assert space_of("{" + given + "}") == space_of("{" + same + "}")


def test_the_numbers_of_a_base_recipe_may_be_written_as_people_write_them():
    space = space_of(
        "{}",
        "{head: linear, dropout: 0, shortcut_norm: no, boundaries: [2e4], values: [1e-1, 1e-2], weight_decay: 1e-4}",
    )

    assert space.base_recipe == Recipe(
        head="linear", dropout=0.0, shortcut_norm=False, boundaries=(20_000,), values=(0.1, 0.01), weight_decay=0.0001
    )


@pytest.mark.parametrize(
    ("head", "early_stopping", "suggested"),
    [
        ("linear", False, ["head", "early_stopping"]),
        ("dense", False, ["head", "dropout", "early_stopping"]),
        ("linear", True, ["head", "early_stopping", "patience"]),
        ("dropout", True, ["head", "dropout", "early_stopping", "patience"]),
    ],
)
def test_dropout_and_patience_are_sampled_only_where_they_mean_something(head, early_stopping, suggested):
    space = space_of(
        "{head: [linear, dropout, dense], dropout: [0.3, 0.5], early_stopping: [true, false], patience: [3510, 7020]}"
    )
    values = {"head": head, "dropout": 0.3, "early_stopping": early_stopping, "patience": 7_020}

    assert list(space.suggest(FixedTrial(values))) == suggested


@pytest.mark.parametrize(("base", "suggested"), [("dense_early_stopping", {"patience": 7_020}), ("dense", {})])
def test_patience_alone_is_searched_under_a_base_recipe_that_stops_early(base, suggested):
    search = "{patience: [3510, 7020]}" if suggested else "{}"

    assert space_of(search, base).suggest(FixedTrial({"patience": 7_020})) == suggested


def test_a_field_of_one_choice_is_not_searched():
    space = space_of("{head: [dropout], values: [[0.1], [0.01, 0.02], [0.001]]}")

    assert space.distributions() == {"learning_rate_2": CategoricalDistribution((0.01, 0.02))}
    assert space.base_params() == {"learning_rate_2": 0.01}


def test_a_base_recipe_may_be_written_out():
    space = parse_space(
        "name: own\nbase: {head: dense, dropout: 0.3, shortcut_norm: false, boundaries: [8000], values: [0.2, 0.02]}\n",
        "own.yaml",
    )

    assert space.base_recipe == Recipe(
        head="dense", dropout=0.3, shortcut_norm=False, boundaries=(8_000,), values=(0.2, 0.02)
    )
    assert (space.description, space.distributions(), space.base_params()) == ("", {}, {})


def test_a_space_is_read_from_a_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text((shipped_dir() / "dense.yaml").read_text())

    assert load_space(str(path)) == load_space("dense")


def test_a_space_that_is_neither_shipped_nor_a_file_is_refused_with_those_that_are(tmp_path):
    with pytest.raises(SpaceError) as refused:
        load_space(str(tmp_path / "none.yaml"))

    assert str(refused.value) == (
        f"space '{tmp_path}/none.yaml' is neither a file nor a shipped space; shipped: {', '.join(SHIPPED)}"
    )


def test_a_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"name: \xff\n")

    with pytest.raises(SpaceError) as refused:
        load_space(str(path))

    assert str(refused.value).startswith(f"{path}: cannot be read as UTF-8 text: ")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_space_comes_back_from_the_json_that_a_study_keeps(name):
    space = load_space(name)

    assert SearchSpace.model_validate(json.loads(json.dumps(space.model_dump(mode="json")))) == space


@pytest.mark.parametrize(
    ("search", "problem"),
    [
        ("{head: [softmax]}", "search.head.0 is 'softmax': Input should be 'linear', 'dropout' or 'dense'"),
        ("{dropout: [0.3, 1.0, 0.5]}", "search.dropout.1 is 1.0: Input should be less than 1"),
        (
            "{dropout: {low: 0.1, high: 0.75, step: 0.1}}",
            "search.dropout: high 0.75 is not low 0.1 plus a multiple of step 0.1",
        ),
        ("{dropout: {low: 0.7, high: 0.1, step: 0.1}}", "search.dropout: high 0.1 is less than low 0.7"),
        ("{dropout: {low: 0.1, high: 0.7, step: 0}}", "search.dropout.step is 0: Input should be greater than 0"),
        ("{dropout: {low: .nan, high: 0.7, step: 0.1}}", "search.dropout.low is nan: Input should be a finite number"),
        ("{dropout: {low: 0.1, high: 0.7}}", "search.dropout: needs a step, or log: true"),
        (
            "{dropout: {low: 0.0, high: 0.7, step: 0.1, log: true}}",
            "search.dropout: low 0.0 of a logarithmic range must be positive",
        ),
        (
            "{values: [{low: 0.001, high: 2.001, step: 0.001}, [0.01], [0.001]]}",
            "search.values.0: low 0.001 to high 2.001 in steps of 0.001 are more than 1000 values",
        ),
        (
            "{dropout: {low: 1e-40, high: 0.5, step: 1e-40, log: true}}",
            "search.dropout: low 1e-40 to high 0.5 in steps of 1e-40 are more than 1000000 values",
        ),
        (
            "{weight_decay: 1e-4}",
            "search.weight_decay is 0.0001: allowed: a list of choices, or a range such as "
            "{low: 0.1, high: 0.5, step: 0.2}",
        ),
        ("{weight_decay: [1e-4, tiny]}", "search.weight_decay.1 is 'tiny': Input should be a valid number"),
        ("{weight_decay: ['1e-4']}", "search.weight_decay.0 is '1e-4': Input should be a valid number"),
        ("{weight_decay: [true]}", "search.weight_decay.0 is True: Input should be a valid number"),
        ("{weight_decay: [0, -1e-4]}", "search.weight_decay.1 is -0.0001: Input should be greater than or equal to 0"),
        (
            "{weight_decay: {low: -1e-4, high: 1e-4, step: 1e-4}}",
            "search.weight_decay: is -0.0001; allowed: a number of at least 0",
        ),
        (
            "{weight_decay: {low: 1e-4, high: 1e-3, log: 2}}",
            "search.weight_decay.log is 2: Input should be a valid boolean, unable to interpret input",
        ),
        (
            "{momentum: {low: 0.8, high: 1, step: 0.1}}",
            "search.momentum: is 1.0; allowed: a number of at least 0 and under 1",
        ),
        ("{label_smoothing: [0, 1]}", "search.label_smoothing.1 is 1: Input should be less than 1"),
        ("{batch_size: [128, 0.5e3, 12.5]}", "search.batch_size.2 is 12.5: Input should be a valid integer"),
        ("{batch_size: [128, 0]}", "search.batch_size.1 is 0: Input should be greater than 0"),
        (
            "{batch_size: {low: 0, high: 128, step: 64}}",
            "search.batch_size: is 0; allowed: a whole number from 1 to 65536",
        ),
        ("{batch_size: [64, 256]}", "search.batch_size: leaves out the base recipe's 128; allowed there: [64, 256]"),
        (
            "{batch_size: {low: 32, high: 96, step: 32}}",
            "search.batch_size: leaves out the base recipe's 128; allowed there: 32 to 96 in steps of 32",
        ),
        ("{depth: [20, 34]}", "search.depth: is 34; allowed: 6n + 2 from 8 to 1202, such as 20, 32, 44, 56 or 110"),
        (
            "{depth: {low: 20, high: 32, step: 4}}",
            "search.depth: is 24; allowed: 6n + 2 from 8 to 1202, such as 20, 32, 44, 56 or 110",
        ),
        ("{depth: [2, 20]}", "search.depth.0 is 2: Input should be greater than or equal to 8"),
        ("{dropout: [0.3, 0.4]}", "search.dropout: leaves out the base recipe's 0.5; allowed there: [0.3, 0.4]"),
        ("{shortcut_norm: [true, true]}", "search.shortcut_norm: duplicate choice"),
        (
            "{early_stopping: [true, false]}",
            "search.early_stopping: needs search.patience: the base recipe has no patience",
        ),
        ("{patience: [3510, 7020]}", "search.patience: needs early stopping, in the base recipe or in the search"),
        ("{boundaries: [[32000]]}", "search.boundaries: has 1 entries; the base recipe has 2"),
        ("{values: [[0.1], [0.01]]}", "search.values: has 2 entries; the base recipe has 3"),
        (
            "{boundaries: [[20000, 24000], [48000]]}",
            "search.boundaries.0: leaves out the base recipe's 32000; allowed there: [20000, 24000]",
        ),
        (
            "{boundaries: [{low: 20000, high: 36000, step: 4000}, {low: 36000, high: 56000, step: 4000}]}",
            "search.boundaries: boundaries overlap: one reaches up to 36000, the next begins at 36000",
        ),
        (
            "{boundaries: [[31000, 32000], [48000]]}",
            "search.boundaries: boundary 31000 is not a multiple of 2000",
        ),
        (
            "{boundaries: [{low: 0, high: 32000, step: 4000}, [48000]]}",
            "search.boundaries.0: 0 is not greater than 0 and less than 64000",
        ),
        ("{values: [[20.0], [0.01], [0.001]]}", "search.values.0.0 is 20.0: Input should be less than 10"),
        (
            "{heads: [linear]}",
            "search.heads is ['linear']: unknown key; allowed: head, dropout, shortcut_norm, depth, batch_size, "
            "momentum, nesterov, weight_decay, label_smoothing, early_stopping, patience, boundaries, values",
        ),
    ],
)
def test_what_a_search_cannot_mean_is_refused_with_its_line_key_and_what_is_allowed(search, problem):
    with pytest.raises(SpaceError) as refused:
        space_of(search)

    assert str(refused.value) == f"mine.yaml: line 3: {problem}"


@pytest.mark.parametrize(
    ("search", "place"),
    [
        ("{dropout: {low: 0.0, high: 1.0, step: 0.1}}", "search.dropout"),
        ("{dropout: {low: -0.5, high: 0.5, step: 0.1}}", "search.dropout"),
        ("{values: [{low: -0.1, high: 0.3, step: 0.1}, [0.01], [0.001]]}", "search.values.0"),
        ("{values: [{low: 0.0, high: 0.3, step: 0.1}, [0.01], [0.001]]}", "search.values.0"),
        ("{values: [{low: 0.1, high: 20.1, step: 1.0}, [0.01], [0.001]]}", "search.values.0"),
        ("{early_stopping: [true, false], patience: {low: 0, high: 8000, step: 2000}}", "search.patience"),
        ("{early_stopping: [true, false], patience: {low: 2000, high: 66000, step: 2000}}", "search.patience"),
    ],
)
def test_the_ends_of_a_range_are_held_to_the_same_limits_as_choices(search, place):
    with pytest.raises(SpaceError, match=rf"^mine\.yaml: line 3: {place}"):
        space_of(search)


@pytest.mark.parametrize(
    ("search", "place"),
    [
        ("{values: [[0.1, 0.1], [0.01], [0.001]]}", "search.values"),
        ("{boundaries: [[32000], [48000, 48000]]}", "search.boundaries"),
    ],
)
def test_a_boundary_or_rate_that_stands_twice_is_refused(search, place):
    with pytest.raises(SpaceError, match=rf"^mine\.yaml: line 3: {place}.*: duplicate choice$"):
        space_of(search)


@pytest.mark.parametrize("search", ["{dropout: [0.3, 0.5]}", "{head: [linear], dropout: [0.3, 0.5]}"])
def test_dropout_is_refused_where_no_head_of_the_space_has_any(search):
    with pytest.raises(SpaceError, match=r"^mine\.yaml: line 3: search\.dropout: needs "):
        space_of(search, base="baseline")


def test_a_dropout_head_without_a_rate_is_refused_because_it_is_the_linear_head_again():
    with pytest.raises(SpaceError, match=r"^mine\.yaml: line 3: search\.head: needs search\.dropout"):
        space_of("{head: [linear, dropout]}", base="baseline")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "line 1: a space is a mapping with the keys name, description, base, search"),
        ("- baseline\n", "line 1: a space is a mapping with the keys name, description, base, search"),
        ("name: x\n", "line 1: base: Field required"),
        ("name: x\nbase: dropout\nbase: dense\n", "line 3: duplicate key 'base'"),
        ("name: x\nbase: dropout\nsearch: {head: [linear], head: [dense]}\n", "line 3: duplicate key 'head'"),
        ("name: x\nbase: dropout\n---\nname: y\n", "line 3, column 1: not YAML: but found another document"),
        ("name: x\nbase: [\n", "line 3, column 1: not YAML: expected the node content, but found '<stream end>'"),
        ("name: x\nbase: dropout\nsince: 2001-99-99\n", "not YAML: month must be in 1..12"),
        (
            "name: x\nbase: resnet\n",
            "line 2: base: unknown base recipe 'resnet'; allowed: baseline, dense_early_stopping, dense, dropout, "
            "smooth_lr, or a recipe's fields",
        ),
        (
            "name: x\nbase: {head: dropout, dropout: 2, shortcut_norm: true, boundaries: [], values: [0.1]}\n",
            "line 2: base.dropout: is 2.0; allowed: a number of at least 0 and under 1",
        ),
        (
            "name: x\nbase:\n  head: linear\n  weight_decay: 1e-x\n  dropout: 0\n  shortcut_norm: no\n"
            "  boundaries: []\n  values: [1e-1]\n",
            "line 4: base.weight_decay: is '1e-x'; allowed: a number of at least 0",
        ),
        (
            "name: x\nbase:\n  head: linear\n  width: 32\n",
            "line 4: base.width: is unknown; allowed: head, dropout, shortcut_norm, depth, boundaries, values, "
            "early_stopping, batch_size, momentum, nesterov, weight_decay, label_smoothing, iterations, seed",
        ),
        (
            "name: x\nbase:\n  head: linear\n  dropout: 0\n",
            "line 2: base.shortcut_norm: is missing; a recipe has head, dropout, shortcut_norm, depth, boundaries, "
            "values, early_stopping, batch_size, momentum, nesterov, weight_decay, label_smoothing, iterations, seed",
        ),
        (
            "name: x\nbase: dropout\nsearch:\n",
            "line 3: search is None: Input should be a valid dictionary or instance of Search",
        ),
        (
            "name: x\nbase: dropout\nsize: 3\n",
            "line 3: size is 3: unknown key; allowed: name, description, base, search",
        ),
        (
            "name: a b\nbase: dropout\n",
            "line 1: name is 'a b': String should match pattern '^[A-Za-z0-9][A-Za-z0-9_.-]{0,49}$'",
        ),
    ],
)
def test_a_malformed_file_is_refused_with_the_line_and_what_is_allowed(text, problem):
    with pytest.raises(SpaceError) as refused:
        parse_space(text, "mine.yaml")

    assert str(refused.value) == f"mine.yaml: {problem}"


def test_every_problem_of_a_file_is_named_at_once():
    with pytest.raises(SpaceError) as refused:
        parse_space("name: x\nbase: dropout\nsearch:\n  heads: [linear]\n  dropout: [0.3, 0.5, 2.0]\n", "mine.yaml")

    assert str(refused.value) == (
        "mine.yaml: line 5: search.dropout.2 is 2.0: Input should be less than 1; "
        "mine.yaml: line 4: search.heads is ['linear']: unknown key; allowed: head, dropout, shortcut_norm, "
        "depth, batch_size, momentum, nesterov, weight_decay, label_smoothing, early_stopping, patience, boundaries, "
        "values"
    )


def test_a_file_that_holds_itself_is_refused_and_does_not_crash():
    with pytest.raises(SpaceError, match=r"^mine\.yaml: "):
        space_of("&here {head: *here}")


def test_the_schema_for_editors_knows_the_keys_of_a_space_and_refuses_others():
    schema = json_schema()

    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert list(schema["properties"]) == ["name", "description", "base", "search"]
    assert schema["required"] == ["name", "base"]
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["IntRange"]["properties"]["step"]["exclusiveMinimum"] == 0
    batch_size = schema["$defs"]["Search"]["properties"]["batch_size"]["anyOf"][0]["oneOf"]
    assert batch_size[0] == {"$ref": "#/$defs/IntRange"}
    assert batch_size[1]["items"] == {"exclusiveMinimum": 0, "maximum": 65_536, "type": "integer"}
    assert list(schema["$defs"]["Search"]["properties"]) == [
        "head",
        "dropout",
        "shortcut_norm",
        "depth",
        "batch_size",
        "momentum",
        "nesterov",
        "weight_decay",
        "label_smoothing",
        "early_stopping",
        "patience",
        "boundaries",
        "values",
    ]
