"""Enqueue recipes of a person's own, while workers claim trials and without them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from hpo import steering, study
from hpo.database import overview
from hpo.database.storage import Storage, open_storage
from hpo.errors import BadInput
from hpo.recipes.comparison import Comparison
from tests.integration.support import SETTINGS, claim, complete, in_processes, make_study, suggest

TRIALS = 3
RANDOM = replace(SETTINGS, sampler="random", pruner="none")
WHOLE: dict[str, Any] = {
    "head": "dense",
    "dropout": 0.3,
    "early_stopping": False,
    "boundary_1": 12_000,
    "boundary_2": 48_000,
    "learning_rate_1": 0.1,
    "learning_rate_2": 0.05,
    "learning_rate_3": 0.001,
}


@pytest.fixture
def made(storage: Storage) -> study.Study:
    return make_study(storage, TRIALS, RANDOM)


def enqueue(made: study.Study, given: Any, *, add: bool = False) -> int:
    return steering.enqueue(made, given, add=add)[0].trial


@pytest.mark.parametrize("given", [{"head": "dense", "dropout": 0.5}, WHOLE], ids=["a part", "the whole"])
def test_what_is_enqueued_is_the_next_trial_and_takes_the_place_of_one(
    made: study.Study, given: dict[str, Any]
) -> None:
    complete(made, claim(made), 0.5)

    assert enqueue(made, given) == 1

    attempt = claim(made)
    params = suggest(made, attempt)
    assert (attempt.trial_number, params | given) == (1, params)
    assert made.space.distributions().keys() - params.keys() <= {"patience", "dropout"}
    assert overview.count(made.storage, made.study_id).total == TRIALS


def test_a_recipe_that_a_trial_has_is_refused_and_nothing_changes(made: study.Study) -> None:
    base = steering.enqueue(made, made.space.recipe(WHOLE, iterations=640, seed=7), add=False)
    assert (base[0].trial, base[1]) == (1, WHOLE)

    for given, holder in ((WHOLE, 1), (made.base, 0)):
        with pytest.raises(BadInput, match=f"^study small: trial {holder} of the study has this recipe already"):
            enqueue(made, given, add=True)

    assert overview.count(made.storage, made.study_id).total == TRIALS


def test_a_part_that_is_enqueued_becomes_a_recipe_that_no_trial_has(storage: Storage) -> None:
    made = make_study(storage, 2, replace(RANDOM, space=RANDOM.space | {"search": {"head": ["linear", "dropout"]}}))
    complete(made, claim(made), 0.5)

    assert enqueue(made, {}) == 1

    assert suggest(made, claim(made)) == {"head": "linear"}, "the base recipe has the other"


def test_a_study_whose_trials_have_all_begun_takes_one_only_with_add(made: study.Study) -> None:
    for _ in range(TRIALS):
        attempt = claim(made)
        suggest(made, attempt)
        complete(made, attempt, 0.5)
    with pytest.raises(BadInput, match=r"^study small: all 3 trials of the study have begun; --add makes it one more$"):
        enqueue(made, {"head": "dense"})

    assert enqueue(made, {"head": "dense"}, add=True) == TRIALS

    counts = overview.count(made.storage, made.study_id)
    assert (counts.total, counts.waiting) == (TRIALS + 1, 1)
    make_study(made.storage, TRIALS, RANDOM)
    assert claim(made).trial_number == TRIALS


@pytest.mark.parametrize("begun", [0, 1, TRIALS])
def test_a_smaller_total_drops_no_trial_that_was_enqueued(storage: Storage, begun: int) -> None:
    made = make_study(storage, TRIALS, RANDOM)
    for _ in range(begun):
        attempt = claim(made)
        suggest(made, attempt)
        complete(made, attempt, 0.5)
    enqueued = [enqueue(made, {"head": "dense", "dropout": dropout}, add=True) for dropout in (0.1, 0.3)]
    assert overview.count(storage, made.study_id).total == TRIALS + 2

    make_study(storage, TRIALS, RANDOM)

    total = overview.count(storage, made.study_id).total
    assert total == max(TRIALS, enqueued[-1] + 1)
    trained = {}
    for _ in range(begun, total):
        attempt = claim(made)
        trained[attempt.trial_number] = suggest(made, attempt)
        complete(made, attempt, 0.5)
    assert [trained[number]["dropout"] for number in enqueued] == [0.1, 0.3]


def test_a_comparison_takes_no_recipe(made: study.Study) -> None:
    comparison = Comparison.of({"baseline": made.base}, name="small", searched_seed=0)
    settings = study.companion_settings(made.settings, comparison, 32)
    companion = study.continue_or_create(made.storage, "small-benchmark", settings, 2)

    with pytest.raises(BadInput, match=r"^study small-benchmark is not a search"):
        enqueue(companion, {})


def _enqueue_in_process(url: str, given: dict[str, Any]) -> str:
    storage = open_storage(url)
    try:
        return str(enqueue(study.load(storage, "small"), given))
    except BadInput as error:
        return str(error)
    finally:
        storage.close()


def _claim_in_process(url: str, _: object) -> str:
    storage = open_storage(url)
    made = study.load(storage, "small")
    suggest(made, claim(made))
    storage.close()
    return "claimed"


def test_of_several_who_enqueue_one_recipe_at_once_one_does(made: study.Study, storage_url: str) -> None:
    calls: list[tuple[Any, ...]] = [(_enqueue_in_process, storage_url, WHOLE)] * 3
    said = in_processes(_call, [*calls, (_claim_in_process, storage_url, None)])

    [number] = [line for line in said if line.isdigit()]
    refused = f"study small: trial {number} of the study has this recipe already; no recipe is tried twice"
    assert sorted(said) == sorted([number, refused, refused, "claimed"])
    assert overview.count(made.storage, made.study_id).total == TRIALS


def _call(function: Callable[..., str], *arguments: Any) -> str:
    return function(*arguments)
