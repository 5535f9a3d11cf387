"""Test that no recipe of a search is tried twice, and what happens when all have been tried."""

import json
from dataclasses import replace

import optuna
import pytest
from sqlalchemy import delete

from hpo import sampling
from hpo import study as studies
from hpo.algorithms import fixed_sampler
from hpo.database import overview, queue
from hpo.database import studies as study_rows
from hpo.database.attempt import Outcome, Progress, WorkerId
from hpo.database.optuna_tables import TrialSystemAttributeModel
from hpo.database.recipe_index import RECIPE_KEY
from hpo.database.storage import open_storage
from hpo.errors import LeaseLost, SpaceUsedUp
from hpo.recipes import distinct
from hpo.recipes.comparison import Comparison
from hpo.recipes.distinct import count_recipes
from hpo.recipes.space import SearchSpace
from hpo.settings import StudySettings

SPACE = {
    "name": "tiny",
    "base": "dropout",
    "search": {
        "head": ["linear", "dropout"],
        "dropout": {"low": 0.1, "high": 0.5, "step": 0.2},
        "values": [[0.1], [0.01, 0.1], [0.001]],
    },
}
RECIPES = 8
SETTINGS = StudySettings(
    space=SPACE,
    dataset="digits",
    split="0f0e",
    image_shape=(8, 8, 1),
    classes=10,
    augment="crop",
    iterations=640,
    seed=7,
    precision="fp32",
    sampler="random",
    pruner="none",
    align="phase",
)
WORKER = WorkerId(name="here:1", host="here", device="cpu")
NOTHING = Progress(iteration=0, trained_iterations=0, val_accuracy=None)


@pytest.fixture
def storage(tmp_path):
    opened = open_storage(f"sqlite:///{tmp_path}/hpo.db", "create")
    yield opened
    opened.close()


def claim(study):
    return queue.claim(study.storage, study.study_id, WORKER)


def sample(study, attempt):
    return sampling.sample(study, attempt, NOTHING).params


def finish(study, attempt, state="complete"):
    value = 1 / (1 + attempt.trial_number) if state == "complete" else None
    attrs = {"outcome": state, "iterations": 640, "validation loss": 1.0, "standard error": 0.01}
    queue.finish(study.storage, attempt, NOTHING, Outcome(state=state, value=value, attrs=attrs))


def try_one(study, state="complete"):
    """Sample the next trial and finish it."""
    attempt = claim(study)
    params = sample(study, attempt)
    finish(study, attempt, state)
    return params


def keys_of(study):
    return [study.key_of(trial.params) for trial in study.trials() if trial.params]


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "qmc", "gp"])
def test_every_recipe_of_a_space_is_tried_once_in_the_same_order_each_time(storage, sampler):
    orders = []
    for name in ("one", "other"):
        study = studies.continue_or_create(storage, name, replace(SETTINGS, sampler=sampler), RECIPES)
        orders.append([try_one(study) for _ in range(RECIPES)])

        assert len(set(keys_of(study))) == RECIPES == count_recipes(study.space)
    assert orders[0] == orders[1]
    assert orders[0][0] == study.space.base_params()


def test_a_study_has_no_more_trials_than_its_space_has_recipes(storage):
    study = studies.continue_or_create(storage, "tiny", SETTINGS, 50)

    assert (studies.status(study)["target"], overview.count(storage, study.study_id).waiting) == (RECIPES, RECIPES)
    assert studies.find_used_up(study) is None
    for _ in range(RECIPES):
        try_one(study)
    assert claim(study) is None
    assert studies.status(study)["recipes"] == {"tried": RECIPES, "possible": RECIPES}
    assert studies.find_used_up(study) == "the search space of study tiny is used up: all 8 recipes have been tried"
    again = studies.continue_or_create(storage, "tiny", SETTINGS, 50)
    assert (studies.status(again)["target"], overview.count(storage, study.study_id).waiting) == (RECIPES, 0)


def test_a_study_of_one_recipe_has_one_trial(storage):
    study = studies.continue_or_create(storage, "one", replace(SETTINGS, space=SPACE | {"search": {}}), 3)

    assert studies.status(study)["target"] == 1
    assert studies.find_used_up(study) == "the search space of study one is used up: its only recipe has been tried"


def test_the_sampler_is_asked_again_with_other_seeds_before_an_untried_recipe_is_drawn(storage, monkeypatch):
    study = studies.continue_or_create(storage, "tiny", SETTINGS, RECIPES)
    base = try_one(study)
    asked = []

    def stubborn(name, seed, trial_number, redraw=0):
        asked.append((trial_number, redraw))
        return fixed_sampler(base, optuna.samplers.RandomSampler(seed=1))

    monkeypatch.setattr(studies, "make_sampler", stubborn)
    params = try_one(study)

    assert asked == [(1, redraw) for redraw in range(sampling.REDRAWS + 2)]
    assert study.key_of(params) != study.key_of(base)


def test_the_draw_that_is_taken_depends_on_nothing_but_the_settings(storage):
    without = studies.continue_or_create(storage, "mine", replace(SETTINGS, sampler="random"), 2)
    base = try_one(without)
    attempt = claim(without)

    params = sample(without, attempt)

    redraw = 0
    while without.key_of(drawn := draw(without, attempt.trial_number, redraw)) == without.key_of(base):
        redraw += 1
    assert params == drawn


def draw(study, trial_number, redraw):
    sampler = studies.make_sampler(study.settings.sampler, study.settings.seed, trial_number, redraw)
    trial = optuna.create_study(sampler=sampler).ask()
    return study.space.suggest(trial)


def test_enqueued_parameters_may_repeat_a_recipe(storage):
    study = studies.continue_or_create(storage, "tiny", SETTINGS, 3)
    base = try_one(study)
    optuna.load_study(study_name=study.name, storage=storage.optuna).enqueue_trial(base)

    assert try_one(study) == base
    assert study.key_of(try_one(study)) != study.key_of(base)
    assert studies.status(study)["recipes"]["tried"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("state", ["pruned", "failed"])
def test_the_recipe_of_a_trial_that_was_pruned_or_failed_is_not_tried_again(storage, state):
    study = studies.continue_or_create(storage, "tiny", SETTINGS, RECIPES)

    for _ in range(RECIPES):
        try_one(study, state)

    assert len(set(keys_of(study))) == RECIPES


def test_a_trial_that_was_handed_back_keeps_its_recipe(storage):
    study = studies.continue_or_create(storage, "tiny", SETTINGS, RECIPES)
    try_one(study)
    attempt = claim(study)
    params = sample(study, attempt)
    queue.hand_back(storage, attempt, NOTHING, "stopped")

    again = claim(study)

    assert (again.trial_number, sample(study, again)) == (attempt.trial_number, params)
    assert len(set(keys_of(study))) == 2


def forget_keys(storage):
    """Make all trials those of a release that kept no keys."""
    with storage.transaction() as session:
        session.execute(delete(TrialSystemAttributeModel).where(TrialSystemAttributeModel.key == RECIPE_KEY))


def test_a_study_of_a_release_that_kept_no_keys_repeats_no_recipe_from_now_on(storage):
    study = studies.continue_or_create(storage, "tiny", SETTINGS, RECIPES)
    for _ in range(RECIPES - 2):
        try_one(study)
    forget_keys(storage)

    try_one(study)
    try_one(study)

    assert len(set(keys_of(study))) == RECIPES
    assert studies.status(study)["recipes"] == {"tried": RECIPES, "possible": RECIPES}


def test_trials_for_which_no_recipe_is_left_are_removed(storage):
    study = studies.continue_or_create(storage, "tiny", SETTINGS, RECIPES)
    study_rows.set_target(storage, study.study_id, RECIPES + 5, {})
    for _ in range(RECIPES):
        try_one(study)
    attempt, other = claim(study), claim(study)

    with pytest.raises(SpaceUsedUp) as ended:
        sample(study, attempt)

    assert str(ended.value) == "study tiny: no untried recipe was found in search space tiny for trial 8"
    assert [trial.number for trial in study.trials()] == list(range(RECIPES))
    assert (studies.status(study)["target"], claim(study)) == (RECIPES, None)
    with pytest.raises(LeaseLost):
        sample(study, other)


def test_a_trial_without_a_recipe_fails_where_a_later_one_has_been_given_one(storage):
    study = studies.continue_or_create(storage, "tiny", SETTINGS, RECIPES)
    study_rows.set_target(storage, study.study_id, RECIPES + 3, {})
    for _ in range(RECIPES - 1):
        try_one(study)
    first, second = claim(study), claim(study)
    sample(study, second)

    with pytest.raises(SpaceUsedUp):
        sample(study, first)

    assert overview.count(storage, study.study_id) == overview.Counts(complete=RECIPES - 1, failed=1, running=1)
    assert studies.status(study)["target"] == RECIPES + 1
    failed = study.trials()[first.trial_number]
    assert failed.user_attrs["outcome"] == "failed: no untried recipe was found in search space tiny"


def test_a_space_that_cannot_be_counted_has_no_limit_until_no_draw_is_new(storage, monkeypatch):
    monkeypatch.setattr(distinct, "MOST_DRAWN", 300)
    base = SearchSpace.model_validate(SPACE).base_recipe.to_dict() | {"weight_decay": 0.001}
    space = {"name": "tiny", "base": base, "search": {"weight_decay": {"low": 0.001, "high": 0.00101, "log": True}}}
    study = studies.continue_or_create(storage, "tiny", replace(SETTINGS, space=space), 4)

    assert (studies.status(study)["target"], studies.status(study)["recipes"]) == (4, None)
    assert [try_one(study)["weight_decay"] for _ in range(2)] == [0.001, 0.00101]
    with pytest.raises(SpaceUsedUp):
        try_one(study)
    assert (studies.status(study)["target"], claim(study), studies.find_used_up(study)) == (2, None, None)


def test_enqueued_trials_are_not_removed(storage):
    study = studies.continue_or_create(storage, "tiny", SETTINGS, RECIPES)
    study_rows.set_target(storage, study.study_id, RECIPES + 3, {})
    for _ in range(RECIPES):
        base = try_one(study)
    optuna.load_study(study_name=study.name, storage=storage.optuna).enqueue_trial(base)
    assert try_one(study) == base

    with pytest.raises(SpaceUsedUp):
        sample(study, claim(study))

    assert claim(study) is None
    assert studies.status(study)["target"] == RECIPES + 1


def test_a_benchmark_repeats_what_it_compares(storage):
    comparison = Comparison.of(
        {"baseline": SearchSpace.model_validate(SPACE).base_recipe}, name="tiny", searched_seed=7
    )
    settings = replace(SETTINGS, space=comparison.model_dump(mode="json"))
    study = studies.continue_or_create(storage, "tiny.benchmark", settings, 3)

    assert [try_one(study)["seed"] for _ in range(3)] == [comparison.seed(index) for index in range(3)]
    assert studies.status(study)["recipes"] is None
    assert studies.find_used_up(study) is None
    assert all(RECIPE_KEY not in trial.system_attrs for trial in study.trials())


def test_the_key_of_a_trial_is_kept_with_it(storage):
    study = studies.continue_or_create(storage, "tiny", SETTINGS, 2)
    try_one(study)
    params = try_one(study)

    kept = [trial.system_attrs[RECIPE_KEY] for trial in study.trials()]
    assert kept == [study.key_of(study.space.base_params()), study.key_of(params)]
    assert json.loads(json.dumps(kept)) == kept
