"""Run small studies from end to end in this process, on both kinds of database."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from optuna.trial import TrialState

from hpo import study
from hpo.artifacts import open_artifacts
from hpo.database import overview, queue
from hpo.database.attempt import Attempt, Progress
from hpo.database.storage import Storage
from hpo.errors import StudyMismatch, StudyNotFound
from hpo.recipes.schedule import grid, rungs
from hpo.settings import PrunerName, SamplerName, StudySettings
from hpo.training.datasets import load_dataset
from hpo.trial.checkpoints import Checkpoints
from hpo.worker.stop import StopSignal
from hpo.worker.verify import verify
from hpo.worker.work import work
from tests.integration.support import (
    DIGITS_SPLIT,
    NOTHING,
    SETTINGS,
    SPACE,
    claim,
    complete,
    dump,
    make_study,
    suggest,
)

Open = Callable[..., Storage]
TRIALS = 6
HISTORY = 11  # more trials than any sampler draws at random before it looks at what was found
CPU = torch.device("cpu")


def train(made: study.Study, checkpoints: Checkpoints | None = None, stop: StopSignal | None = None) -> int:
    stop = StopSignal() if stop is None else stop
    return work(made, device=CPU, data_dir=Path("/nonexistent"), stop=stop, checkpoints=checkpoints)


def content(made: study.Study) -> list[dict[str, Any]]:
    """Give all that a study has found, apart from when and by whom."""
    return [
        {
            "number": trial.number,
            "state": trial.state.name,
            "params": trial.params,
            "value": trial.value,
            "reported": trial.intermediate_values,
            "user_attrs": trial.user_attrs,
            "curve": overview.load_curve(made.storage, trial._trial_id),
        }
        for trial in made.trials()
    ]


@pytest.fixture(scope="module", autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Run the study that others are compared with: one worker, SQLite, everything from scratch."""
    from hpo.database.storage import open_storage

    storage = open_storage(f"sqlite:///{tmp_path_factory.mktemp('undisturbed')}/hpo.db", "create")
    made = make_study(storage, TRIALS)
    assert train(made) == TRIALS
    found = content(made)
    storage.close()
    return found


def test_the_settings_that_these_tests_use_are_those_of_the_digits() -> None:
    assert load_dataset("digits", Path("/nonexistent")).checksum == DIGITS_SPLIT


def test_a_study_is_a_pure_function_of_its_settings(storage: Storage, undisturbed: list[dict[str, Any]]) -> None:
    made = make_study(storage, TRIALS)
    assert train(made) == TRIALS
    assert content(made) == undisturbed


def test_a_study_finds_the_same_with_reuse_and_trains_less(
    storage: Storage, undisturbed: list[dict[str, Any]], tmp_path: Path
) -> None:
    made = make_study(storage, TRIALS)
    assert train(made, Checkpoints(storage, open_artifacts(str(tmp_path / "artifacts")))) == TRIALS
    assert content(made) == undisturbed
    spent = study.status(made)["iterations_spent"]
    assert 0 < spent["trained"] < spent["requested"] <= spent["naive"] == TRIALS * SETTINGS.iterations


def test_a_study_that_is_extended_is_the_one_that_was_longer_at_once(
    storage_url: str, opened: Open, undisturbed: list[dict[str, Any]]
) -> None:
    first = make_study(opened(storage_url), 2)
    assert train(first) == 2
    assert content(first) == undisturbed[:2]
    again = make_study(opened(storage_url), TRIALS)
    assert train(again) == TRIALS - 2
    assert content(again) == undisturbed


def test_another_seed_gives_another_study(storage: Storage, undisturbed: list[dict[str, Any]]) -> None:
    made = make_study(storage, 2, replace(SETTINGS, seed=1))
    train(made)
    found = content(made)
    assert found[0]["params"] == undisturbed[0]["params"]
    assert found[0]["curve"] != undisturbed[0]["curve"]
    assert found[1]["params"] != undisturbed[1]["params"]


def test_the_base_recipe_is_trial_0(undisturbed: list[dict[str, Any]], storage: Storage) -> None:
    made = make_study(storage, 1)
    attempt = claim(made)
    params = suggest(made, attempt)
    assert params == made.space.base_params() == undisturbed[0]["params"]
    assert made.recipe_of(made.trials()[0]) == made.base
    assert asdict(made.base) | {"boundaries": [20000, 40000], "values": [0.05, 0.02, 0.005]} == SPACE["base"] | {
        "depth": 20,
        "early_stopping": None,
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 0.0,
        "label_smoothing": 0.0,
        "iterations": 32,
        "seed": 0,
    }


def test_status_and_best_say_what_the_trials_hold(storage: Storage) -> None:
    made = make_study(storage, 3)
    assert train(made) == 3
    trials = content(made)

    best = study.best(made)
    top = max(trials, key=lambda t: (t["value"], -t["number"]))
    assert best == study.Best(
        trial=top["number"],
        value=top["value"],
        standard_error=top["user_attrs"]["standard error"],
        recipe=made.recipe_of(made.trials()[top["number"]]),
        curve=tuple(top["curve"]),
    )
    assert study.status(made) == {
        "study": "small",
        "space": "small",
        "dataset": "digits",
        "iterations": 32,
        "target": 3,
        "state": "done",
        "ended_because": None,
        "ends": {"budget": None, "stop_after": None, "target_accuracy": None},
        "trials": {"complete": 3, "pruned": 0, "failed": 0, "running": 0, "waiting": 0},
        "waiting_at_rungs": {},
        "of_other_clients": {"lent": 0, "told": 0, "refused": 0},
        "best": {"trial": best.trial, "value": best.value, "recipe": best.recipe.to_dict()},
        "recipes": {"tried": 3, "possible": 8_190},
        "iterations_spent": {
            "naive": 96,
            "requested": sum(trial["user_attrs"]["iterations"] for trial in trials),
            "trained": sum(trial["curve"][-1].iteration for trial in trials),
        },
    }


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (replace(SETTINGS, iterations=64), "iterations is 32 in the study and 64 here"),
        (
            replace(SETTINGS, seed=7, sampler="gp", pruner="none", align="iteration"),
            "seed is 0 in the study and 7 here; sampler is tpe in the study and gp here; "
            "pruner is median in the study and none here; align is phase in the study and iteration here",
        ),
        (
            replace(SETTINGS, dataset="cifar10", split="0" * 64, precision="bf16"),
            f"data set is digits in the study and cifar10 here; split checksum is {DIGITS_SPLIT} in the study and "
            f"{'0' * 64} here; precision is fp32 in the study and bf16 here",
        ),
        (
            replace(SETTINGS, space=SPACE | {"name": "other", "search": {}}),
            "the search space differs in name, search",
        ),
    ],
)
def test_a_study_of_other_settings_is_refused_with_each_difference_and_left_alone(
    storage: Storage, other: StudySettings, difference: str
) -> None:
    make_study(storage, 3)
    before = dump(storage)

    with pytest.raises(StudyMismatch) as refused:
        make_study(storage, 5, other)

    assert str(refused.value) == (
        f"study small was created with other settings: {difference}. "
        "Use the study's settings, or another name with --study."
    )
    assert dump(storage) == before


def test_a_study_of_optuna_is_not_taken_over(storage: Storage) -> None:
    import optuna

    optuna.create_study(study_name="small", storage=storage.optuna, direction="minimize").ask()
    before = dump(storage)
    with pytest.raises((StudyMismatch, StudyNotFound)):
        make_study(storage, 3)
    assert dump(storage) == before


def test_a_study_that_is_not_there_is_named_with_those_that_are(storage: Storage) -> None:
    with pytest.raises(StudyNotFound) as refused:
        study.load(storage, None)
    assert str(refused.value) == f"storage {storage.url} holds 0 studies; `hpo run` makes one"

    for name in ("b", "a"):
        study.continue_or_create(storage, name, SETTINGS, 1)
    with pytest.raises(StudyNotFound) as refused:
        study.load(storage, None)
    assert str(refused.value) == (
        f"storage {storage.url} holds 2 studies: a, b; name one with --study (`hpo studies` shows them)"
    )
    with pytest.raises(StudyNotFound) as refused:
        study.load(storage, "c")
    assert str(refused.value) == f"storage {storage.url} has no hpo study 'c'; it has: a, b"


@pytest.mark.parametrize("sampler", get_args(SamplerName))
def test_every_sampler_goes_on_from_what_was_found(storage: Storage, sampler: SamplerName) -> None:
    made = make_study(storage, HISTORY + 1, replace(SETTINGS, sampler=sampler, pruner="none"))
    for index in range(HISTORY):
        _finish_without_training(made, value=index / HISTORY)

    assert train(made) == 1

    found = content(made)
    assert [trial["state"] for trial in found] == ["COMPLETE"] * (HISTORY + 1)
    assert found[0]["params"] == made.space.base_params()
    assert len({str(trial["params"]) for trial in found}) > HISTORY / 2
    last = found[-1]
    assert set(last["params"]) >= {"head", "early_stopping", "boundary_1", "boundary_2", "learning_rate_1"}
    assert [point.iteration for point in last["curve"]][-1] == last["user_attrs"]["iterations"]
    assert 0 < last["value"] < 1


@pytest.mark.parametrize(
    ("pruner", "state"),
    [
        ("none", "COMPLETE"),
        ("median", "PRUNED"),
        ("asha-stop", "PRUNED"),
        ("hyperband", "PRUNED"),
        ("wilcoxon", "PRUNED"),
    ],
)
def test_every_pruner_ends_a_trial_that_falls_far_behind(storage: Storage, pruner: PrunerName, state: str) -> None:
    made = make_study(storage, HISTORY + 1, replace(SETTINGS, sampler="random", pruner=pruner))
    for _ in range(HISTORY):
        _finish_without_training(made, value=0.999)

    assert train(made) == 1

    found = content(made)
    assert [trial["state"] for trial in found] == ["COMPLETE"] * HISTORY + [state]
    trial = found[-1]
    last = trial["curve"][-1]
    assert trial["user_attrs"]["iterations"] == last.iteration
    if state == "PRUNED":
        assert last.iteration < SETTINGS.iterations
        assert trial["value"] == trial["reported"][max(trial["reported"])]
        assert trial["user_attrs"]["outcome"] == f"pruned at iteration {last.iteration}"


@pytest.mark.parametrize("pruner", ["asha-stop", "hyperband"])
def test_a_trial_that_is_handed_back_shows_no_pruner_its_future(storage: Storage, pruner: PrunerName) -> None:
    made = make_study(storage, 1, replace(SETTINGS, pruner=pruner))
    attempt = claim(made)
    suggest(made, attempt)
    fresh = made.trials()[0].system_attrs
    _report(made, attempt, 0.5)
    assert made.trials()[0].system_attrs != fresh

    queue.hand_back(storage, attempt, NOTHING, "stopped")

    trial = made.trials()[0]
    assert (trial.state, trial.intermediate_values, trial.system_attrs) == (TrialState.WAITING, {}, fresh)


def _finish_without_training(made: study.Study, value: float) -> None:
    attempt = claim(made)
    suggest(made, attempt)
    _report(made, attempt, value)
    complete(made, attempt, value)


def _report(made: study.Study, attempt: Attempt, value: float) -> None:
    """Record a value at each step, and at each rung ask a pruner that takes notes of what it sees."""
    iterations = made.settings.iterations
    progress = Progress(iteration=iterations, trained_iterations=0, val_accuracy=value)
    if made.settings.pruner not in ("asha-stop", "hyperband"):
        queue.record(made.storage, attempt, progress, [], dict.fromkeys(grid(iterations), value))
        return
    trial = made.open_trial(attempt)
    for step in grid(iterations):
        trial.report(value, step)
        queue.record(made.storage, attempt, progress, [], {step: value})
        if step in rungs(iterations):
            _, draft = made.should_prune(attempt, trial)
            queue.write_draft(made.storage, attempt, progress, draft)


# With a batch of one image, the BatchNorm of the dense head has nothing to take a mean over.
FAILING: dict[str, Any] = {
    "name": "failing",
    "base": SPACE["base"] | {"head": "dense", "batch_size": 1},
    "search": {"head": ["dense", "linear"], "values": [[0.05, 0.1], [0.02, 0.01], [0.005]]},
}


def test_a_trial_whose_training_raises_fails_with_the_reason_and_the_worker_goes_on(storage: Storage) -> None:
    made = make_study(storage, 5, replace(SETTINGS, space=FAILING, sampler="random"))

    assert train(made) == 5

    found = content(made)
    by_head = {
        head: {trial["state"] for trial in found if trial["params"]["head"] == head} for head in ("dense", "linear")
    }
    assert by_head == {"dense": {"FAIL"}, "linear": {"COMPLETE"}}
    first = found[0]
    assert first["value"] is None
    assert (
        first["user_attrs"]
        .pop("outcome")
        .startswith("failed: ValueError: Expected more than 1 value per channel when training, got input size")
    )
    assert first["user_attrs"] == {"iterations": 0}
    counts = study.status(made)["trials"]
    assert counts["failed"] + counts["complete"] == 5


MODERN: dict[str, Any] = {
    "name": "modern",
    "base": SPACE["base"] | {"depth": 8, "weight_decay": 0.001},
    "search": {
        "depth": [8, 14],
        "batch_size": {"low": 8, "high": 24, "step": 8, "log": True},
        "momentum": {"low": 0.5, "high": 0.9, "step": 0.4},
        "nesterov": [False, True],
        "weight_decay": {"low": 0.0001, "high": 0.01, "log": True},
        "label_smoothing": {"low": 0.0, "high": 0.3, "step": 0.1},
        "values": [{"low": 0.05, "high": 0.35, "step": 0.1}, [0.02], [0.005]],
    },
}


def test_trials_of_all_that_can_be_searched_are_verified_and_hold_decimal_numbers(
    storage: Storage, tmp_path: Path
) -> None:
    made = make_study(storage, 4, replace(SETTINGS, space=MODERN, sampler="random", pruner="none"))
    checkpoints = Checkpoints(storage, open_artifacts(str(tmp_path / "artifacts")))

    assert train(made, checkpoints) == 4

    for number in range(4):
        said = verify(made, number, tmp_path, checkpoints, print)
        assert said.endswith("bit for bit, and so are weights, momentum and BatchNorm statistics at its end")
    drawn = [trial["params"] for trial in content(made)]
    assert all(len({params[name] for params in drawn}) > 1 for name in drawn[0]), drawn
    assert {params["label_smoothing"] for params in drawn} <= {0.0, 0.1, 0.2, 0.3}
    assert {params["learning_rate_1"] for params in drawn} <= {0.05, 0.15, 0.25, 0.35}
    assert all(params["weight_decay"] == float(f"{params['weight_decay']:.3g}") for params in drawn)
    assert {params["batch_size"] for params in drawn} <= {8, 16, 24}


def test_a_trial_whose_loss_is_not_finite_is_pruned_with_the_reason(storage: Storage) -> None:
    space = {"name": "diverging", "base": SPACE["base"] | {"values": [1e9, 0.02, 0.005]}}
    made = make_study(storage, 1, replace(SETTINGS, space=space))

    assert train(made) == 1

    [trial] = content(made)
    assert trial["state"] == "PRUNED"
    assert trial["user_attrs"]["outcome"].startswith("diverged: the loss was not finite at iteration ")
    assert trial["value"] is None or math.isfinite(trial["value"])
    assert all(math.isfinite(point.val_loss) for point in trial["curve"])
    assert study.status(made)["best"] is None
    with pytest.raises(StudyNotFound, match="study small has no completed trial yet"):
        study.best(made)


@pytest.mark.parametrize(("losses", "number"), [((0.1, 0.5, 0.4, 10.0, 0.4), 2), ((0.1, 0.5, 0.5, 0.5, 0.5), 1)])
def test_of_equally_accurate_trials_that_of_the_lowest_loss_is_best_and_of_equals_the_oldest(
    storage: Storage, losses: tuple[float, ...], number: int
) -> None:
    made = make_study(storage, 5)
    for value, loss in zip((0.5, 0.75, 0.75, 0.75, 0.75), losses, strict=True):
        attempt = claim(made)
        suggest(made, attempt)
        complete(made, attempt, value, loss)

    assert study.best(made).trial == number
    best = study.status(made)["best"]
    assert (best["trial"], best["value"]) == (number, 0.75) == overview.find_best(storage, made.study_id)
