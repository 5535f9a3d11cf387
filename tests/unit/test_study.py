"""Test how a study is created, continued, sampled, pruned and described."""

import math
import shutil
from contextlib import contextmanager
from dataclasses import replace
from typing import get_args

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from hpo import sampling
from hpo.algorithms import make_pruner
from hpo.database import overview, queue
from hpo.database.attempt import Outcome, Progress, WorkerId
from hpo.database.storage import open_storage
from hpo.errors import StudyMismatch, StudyNotFound
from hpo.recipes.comparison import Comparison
from hpo.recipes.recipe import documented_runs
from hpo.recipes.schedule import CurvePoint, grid, rungs
from hpo.recipes.space_file import load_space
from hpo.settings import PrunerName, StudySettings
from hpo.study import Best, best, continue_or_create, find_best_trial, load, status

SPACE = load_space("smooth_lr")
SETTINGS = StudySettings(
    space=SPACE.model_dump(mode="json", exclude_none=True),
    dataset="digits",
    split="0f0e",
    image_shape=(8, 8, 1),
    classes=10,
    augment="crop",
    iterations=640,
    seed=7,
    precision="fp32",
    sampler="random",
    pruner="median",
    align="phase",
)
WORKER = WorkerId(name="here:1", host="here", device="cpu")


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    path = tmp_path_factory.mktemp("storage") / "empty.db"
    open_storage(f"sqlite:///{path}", "create").close()
    return path


@contextmanager
def opened(empty_database, folder, name="hpo.db"):
    path = folder / name
    shutil.copy(empty_database, path)
    found = open_storage(f"sqlite:///{path}")
    try:
        yield found
    finally:
        found.close()


@pytest.fixture
def storage(empty_database, tmp_path):
    with opened(empty_database, tmp_path) as found:
        yield found


@contextmanager
def reopened(folder):
    """Open the database again, as another process would."""
    found = open_storage(f"sqlite:///{folder / 'hpo.db'}")
    try:
        yield found
    finally:
        found.close()


def suggest(study):
    """Claim the next trial and sample its parameters, as a worker does."""
    attempt = queue.claim(study.storage, study.study_id, WORKER)
    params = sampling.sample(study, attempt, Progress(iteration=0, trained_iterations=0, val_accuracy=None)).params
    return attempt, params


def finish(study, attempt, value, loss=1.0, iterations=640, state="complete"):
    attrs = {"validation loss": loss, "standard error": 0.01, "iterations": iterations}
    progress = Progress(iteration=iterations, trained_iterations=iterations, val_accuracy=value)
    queue.finish(study.storage, attempt, progress, Outcome(state=state, value=value, attrs=attrs))


def everything(study):
    """Show all that a storage holds of a study."""
    found = optuna.load_study(study_name=study.name, storage=study.storage.optuna)
    return found.user_attrs, [(t.number, t.state, t.params, t.system_attrs, t.value) for t in found.trials]


# Creating and continuing


def test_a_new_study_waits_for_as_many_trials_as_were_asked_for(storage):
    study = continue_or_create(storage, "mine", SETTINGS, 5)

    assert status(study) == {
        "study": "mine",
        "space": "smooth_lr",
        "dataset": "digits",
        "iterations": 640,
        "target": 5,
        "state": "running",
        "ended_because": None,
        "ends": {"budget": None, "stop_after": None, "target_accuracy": None},
        "trials": {"complete": 0, "pruned": 0, "failed": 0, "running": 0, "waiting": 5},
        "waiting_at_rungs": {},
        "of_other_clients": {"lent": 0, "told": 0, "refused": 0},
        "best": None,
        "recipes": {"tried": 1, "possible": 22_680},
        "iterations_spent": {"naive": 0, "requested": 0, "trained": 0},
    }
    assert study.settings == SETTINGS
    assert study.space == SPACE
    assert study.base == documented_runs()["smooth_lr"].recipe.at(iterations=640, seed=7)


def test_the_first_trial_is_the_base_recipe(storage):
    study = continue_or_create(storage, "mine", SETTINGS, 2)

    _, params = suggest(study)

    assert params == SPACE.base_params()
    assert study.recipe_of(study.trials()[0]) == study.base


@pytest.mark.parametrize(("again", "trials"), [(5, 5), (9, 9), (3, 3), (1, 2)])
def test_a_study_that_is_continued_has_the_trials_asked_for_but_loses_none_that_began(storage, tmp_path, again, trials):
    study = continue_or_create(storage, "mine", SETTINGS, 5)
    finish(study, suggest(study)[0], 0.5)
    suggest(study)

    with reopened(tmp_path) as later:
        continue_or_create(later, "mine", SETTINGS, again)

    with reopened(tmp_path) as later:
        study = load(later, "mine")
        counts = {"complete": 1, "pruned": 0, "failed": 0, "running": 1, "waiting": trials - 2}
        assert (status(study)["trials"], status(study)["target"]) == (counts, trials)
        assert [trial.number for trial in study.trials()] == [0, 1], "others are added as they begin"


def test_a_study_grown_after_it_was_trimmed_has_no_memory_of_what_was_trimmed(storage):
    whole = continue_or_create(storage, "mine", SETTINGS, 6)
    before = everything(whole)
    continue_or_create(storage, "mine", SETTINGS, 2)

    assert everything(continue_or_create(storage, "mine", SETTINGS, 6)) == before


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"seed": 8}, "seed is 7 in the study and 8 here"),
        (
            {"dataset": "cifar10", "split": "aa"},
            "data set is digits in the study and cifar10 here; split checksum is 0f0e in the study and aa here",
        ),
        (
            {"space": load_space("dense").model_dump(mode="json", exclude_none=True)},
            "the search space differs in base, description, name, search",
        ),
    ],
)
def test_a_study_is_not_continued_with_other_settings_and_nothing_is_changed(storage, changed, problem):
    study = continue_or_create(storage, "mine", SETTINGS, 5)
    before = everything(study)

    with pytest.raises(StudyMismatch) as refused:
        continue_or_create(storage, "mine", replace(SETTINGS, **changed), 9)

    assert str(refused.value) == (
        f"study mine was created with other settings: {problem}. "
        "Use the study's settings, or another name with --study."
    )
    assert everything(study) == before


def test_trials_that_others_made_are_left_alone(storage):
    foreign = optuna.create_study(storage=storage.optuna, study_name="foreign")
    foreign.add_trial(create_trial(value=1.0))

    with pytest.raises(StudyMismatch) as refused:
        continue_or_create(storage, "foreign", SETTINGS, 5)

    assert str(refused.value) == ("study foreign has trials that hpo did not create; choose another name with --study")
    assert (foreign.user_attrs, len(foreign.trials)) == ({}, 1)


# Loading


def test_a_study_is_loaded_by_its_name_or_because_it_is_the_only_one(storage):
    made = continue_or_create(storage, "mine", SETTINGS, 1)
    optuna.create_study(storage=storage.optuna, study_name="foreign")

    assert load(storage, "mine") == made
    assert load(storage, None) == made


def test_one_of_several_studies_has_to_be_named(storage):
    continue_or_create(storage, "one", SETTINGS, 1)
    other = continue_or_create(storage, "other", replace(SETTINGS, seed=8), 1)

    with pytest.raises(StudyNotFound) as refused:
        load(storage, None)

    assert str(refused.value) == (
        f"storage {storage.url} holds 2 studies: one, other; name one with --study (`hpo studies` shows them)"
    )
    assert load(storage, "other") == other


def test_a_benchmark_does_not_make_its_search_need_a_name(storage):
    comparison = Comparison.of({"baseline": SPACE.base_recipe}, name="mine", searched_seed=7)
    described = replace(SETTINGS, space=comparison.model_dump(mode="json"), pruner="none")
    benchmark = continue_or_create(storage, "mine.benchmark", described, 2)
    assert load(storage, None) == benchmark

    search = continue_or_create(storage, "mine", SETTINGS, 1)

    assert load(storage, None) == search
    assert load(storage, "mine.benchmark") == benchmark
    assert (search.space, benchmark.space) == (SPACE, comparison)


def test_a_storage_without_a_study_says_how_to_make_one(storage):
    with pytest.raises(StudyNotFound) as refused:
        load(storage, None)

    assert str(refused.value) == f"storage {storage.url} holds 0 studies; `hpo run` makes one"


def test_a_name_that_no_study_has_is_refused_with_those_that_are_there(storage):
    continue_or_create(storage, "one", SETTINGS, 1)
    optuna.create_study(storage=storage.optuna, study_name="foreign")

    with pytest.raises(StudyNotFound) as refused:
        load(storage, "foreign")

    assert str(refused.value) == f"storage {storage.url} has no hpo study 'foreign'; it has: one"


# What came of it


def test_the_status_counts_what_was_asked_for_and_what_was_trained(storage):
    study = continue_or_create(storage, "mine", SETTINGS, 5)
    first, _ = suggest(study)
    finish(study, first, 0.9)
    handed_back, _ = suggest(study)
    queue.hand_back(storage, handed_back, Progress(iteration=100, trained_iterations=100, val_accuracy=0.2), "stopped")
    second, _ = suggest(study)
    finish(study, second, 0.3, iterations=40, state="pruned")
    third, _ = suggest(study)
    queue.renew(storage, third, Progress(iteration=60, trained_iterations=60, val_accuracy=None))

    assert status(study) == {
        "study": "mine",
        "space": "smooth_lr",
        "dataset": "digits",
        "iterations": 640,
        "target": 5,
        "state": "running",
        "ended_because": None,
        "ends": {"budget": None, "stop_after": None, "target_accuracy": None},
        "trials": {"complete": 1, "pruned": 1, "failed": 0, "running": 1, "waiting": 2},
        "waiting_at_rungs": {},
        "of_other_clients": {"lent": 0, "told": 0, "refused": 0},
        "best": {"trial": 0, "value": 0.9, "recipe": study.base.to_dict()},
        "recipes": {"tried": 3, "possible": 22_680},
        "iterations_spent": {"naive": 1_280, "requested": 680, "trained": 840},
    }


def test_the_best_trial_comes_with_its_recipe_and_curve(storage):
    study = continue_or_create(storage, "mine", SETTINGS, 3)
    curve = [
        CurvePoint(iteration=20 * i, train_loss=2.0 / i, val_loss=2.5 / i, val_accuracy=i / 10) for i in range(1, 4)
    ]
    finish(study, suggest(study)[0], 0.8)
    attempt, params = suggest(study)
    progress = Progress(iteration=60, trained_iterations=60, val_accuracy=0.3)
    queue.record(storage, attempt, progress, curve, {20: 0.1, 40: 0.2})
    finish(study, attempt, 0.9)
    finish(study, suggest(study)[0], 0.85)

    assert best(study) == Best(
        trial=1,
        value=0.9,
        standard_error=0.01,
        recipe=SPACE.recipe(params, iterations=640, seed=7),
        curve=tuple(curve),
    )


def test_a_study_without_a_completed_trial_has_no_best(storage):
    study = continue_or_create(storage, "mine", SETTINGS, 2)
    finish(study, suggest(study)[0], 0.9, state="pruned")

    with pytest.raises(StudyNotFound) as refused:
        best(study)

    assert str(refused.value) == "study mine has no completed trial yet"


@pytest.mark.parametrize(
    ("trials", "number"),
    [
        ([], None),
        ([("PRUNED", 0.9, 0.1)], None),
        ([("COMPLETE", 0.5, 0.1), ("COMPLETE", 0.7, 2.0), ("PRUNED", 0.9, 0.1)], 1),
        ([("COMPLETE", 0.5, 0.1), ("COMPLETE", 0.7, 0.3), ("COMPLETE", 0.7, 0.3)], 1),
        ([("COMPLETE", 0.7, 0.3), ("COMPLETE", 0.7, 0.2), ("COMPLETE", 0.5, 0.1)], 1),
        ([("COMPLETE", 0.7, None), ("COMPLETE", 0.7, 9.0)], 1),
        ([("COMPLETE", 0.0, 2.0)], 0),
    ],
)
def test_the_best_trial_has_the_highest_accuracy_then_the_lowest_loss_and_is_the_oldest_of_equals(trials, number):
    found = []
    for position, (state, value, loss) in enumerate(trials):
        attrs = {} if loss is None else {"validation loss": loss}
        found.append(create_trial(state=TrialState[state], value=value, user_attrs=attrs))
        found[-1].number = position

    best_trial = find_best_trial(found)

    assert (best_trial and best_trial.number) == number


def test_the_live_view_and_the_status_name_the_same_best_trial(storage):
    study = continue_or_create(storage, "mine", SETTINGS, 2)
    finish(study, suggest(study)[0], 0.9, loss=2.0)
    finish(study, suggest(study)[0], 0.9, loss=1.0)

    assert overview.find_best(storage, study.study_id) == (status(study)["best"]["trial"], 0.9) == (1, 0.9)


# Sampling


def sample(storage, name, settings, trials):
    """Let a sampler choose trials, whose values follow from their parameters."""
    study = continue_or_create(storage, name, settings, trials)
    found = []
    for _ in range(trials):
        attempt, params = suggest(study)
        finish(study, attempt, value_of(params))
        found.append(params)
    return found


def value_of(params):
    return 1 / (1 + abs(params["boundary_1"] - 16_000) / 16_000 + abs(math.log(params["learning_rate_2"] / 0.05)))


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "trials"), [("tpe", 13), ("random", 6), ("qmc", 6), ("gp", 12), ("cmaes", 8)])
def test_a_study_of_one_worker_is_a_function_of_its_settings(empty_database, tmp_path, sampler, trials):
    settings = replace(SETTINGS, sampler=sampler)
    with opened(empty_database, tmp_path, "one.db") as storage:
        one = sample(storage, "mine", settings, trials)
    with opened(empty_database, tmp_path, "other.db") as storage:
        continue_or_create(storage, "before", replace(SETTINGS, seed=1), 3)  # shifts all ids
        again = sample(storage, "mine", settings, trials)

    assert again == one
    assert one[0] == SPACE.base_params()
    assert len({tuple(params.items()) for params in one}) == trials


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc", "gp", "cmaes"])
def test_another_seed_gives_other_trials_after_the_first(storage, sampler):
    settings = replace(SETTINGS, sampler=sampler)

    one = sample(storage, "one", settings, 3)
    other = sample(storage, "other", replace(settings, seed=8), 3)

    assert one[0] == other[0]
    assert one[1:] != other[1:]


def test_a_trial_that_was_handed_back_keeps_its_parameters(storage):
    study = continue_or_create(storage, "mine", SETTINGS, 3)
    finish(study, suggest(study)[0], 0.5)
    attempt, params = suggest(study)
    queue.hand_back(storage, attempt, Progress(iteration=0, trained_iterations=0, val_accuracy=None), "stopped")

    again, params_again = suggest(study)

    assert (again.trial_number, again.number) == (1, 2)
    assert params_again == params


# Pruning


def play(study, accuracy):
    """Run a trial of the given accuracy by step, and return the step at which it was pruned."""
    trial = study.ask()
    for step in grid(640):
        trial.report(accuracy(step), step)
        if step in rungs(640) and trial.should_prune():
            study.tell(trial, state=TrialState.PRUNED)
            return step
    study.tell(trial, accuracy(640))
    return None


def played(pruner):
    study = optuna.create_study(direction="maximize", pruner=make_pruner(pruner, 640), study_name="mine")

    def curve(start, end, number):
        """Rise steadily, with a little noise of its own: equal differences cost Wilcoxon's test seconds."""
        return lambda step: start + (end - start) * step / 640 + 1e-4 * math.sin(step * (number + 1))

    good = [play(study, curve(0.5 + i / 1_000, 0.9 + i / 1_000, i)) for i in range(9)]
    hopeless = [play(study, curve(0.1, 0.2, 9 + i)) for i in range(4)]
    better = play(study, curve(0.6, 0.999, 13))
    return good, hopeless, better


@pytest.mark.parametrize(
    ("pruner", "hopeless"),
    [
        ("asha-stop", [80, 80, 80, 80]),
        ("median", [80, 80, 80, 80]),
        ("wilcoxon", [80, 80, 80, 80]),
        ("asha", [None, None, None, None]),  # its trials wait at rungs instead
        ("none", [None, None, None, None]),
    ],
)
def test_a_pruner_ends_hopeless_trials_at_its_first_rungs_and_lets_good_ones_go_on(pruner, hopeless):
    assert played(pruner) == ([None] * 9, hopeless, None)


def test_hyperband_ends_most_hopeless_trials_each_in_the_time_of_its_bracket():
    good, hopeless, better = played("hyperband")

    assert (good, better) == ([None] * 9, None)
    assert sum(step is not None for step in hopeless) >= 3
    assert {step for step in hopeless if step is not None} <= rungs(640)


@pytest.mark.parametrize("pruner", get_args(PrunerName))
@pytest.mark.parametrize("iterations", [32, 640, 64_000])
def test_every_pruner_can_be_made_for_every_budget(pruner, iterations):
    study = optuna.create_study(direction="maximize", pruner=make_pruner(pruner, iterations), study_name="mine")
    trial = study.ask()
    asked = []
    for step in grid(iterations):
        trial.report(0.5, step)
        if step in rungs(iterations):
            asked.append(trial.should_prune())

    assert asked == [False] * 15  # the first trial has nothing to be compared with
