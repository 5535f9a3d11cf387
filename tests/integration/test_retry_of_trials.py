"""Put failed trials back in the queue."""

from __future__ import annotations

from dataclasses import replace

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from hpo import study
from hpo.database import enqueueing, losses, overview, queue
from hpo.database.attempt import Attempt, Loss, Outcome
from hpo.database.storage import Storage
from hpo.errors import BadInput
from tests.integration.support import NOTHING, SETTINGS, claim, complete, list_attempts, make_study, suggest

RANDOM = replace(SETTINGS, sampler="random", pruner="none")
LOST = Loss(kind="hung", reason="no progress")


@pytest.fixture
def made(storage: Storage) -> study.Study:
    """Give a study of a complete trial and two that failed: with an exception, and after losses.

    A worker has seen them fail.
    """
    made = make_study(storage, 3, RANDOM)
    complete(made, claim(made), 0.5)
    fail(made, claim(made))
    lose_until_it_fails(made)
    assert len(seen(made)) == 3
    return made


def seen(made: study.Study) -> list[FrozenTrial]:
    """List the trials as the samplers of a worker see them."""
    return made.storage.view.get_all_trials(made.study_id)


def fail(made: study.Study, attempt: Attempt, state: str = "failed") -> None:
    suggest(made, attempt)
    outcome = Outcome(state=state, value=None, attrs={"outcome": f"{state}: x", "iterations": 0})  # type: ignore[arg-type]
    queue.finish(made.storage, attempt, NOTHING, outcome)


def lose_until_it_fails(made: study.Study) -> int:
    attempts = 1
    while not losses.lose(made.storage, claim(made), NOTHING, LOST):
        attempts += 1
    return attempts


def retry(made: study.Study, *numbers: int) -> list[int]:
    return enqueueing.retry_failed(made.storage, made.study_id, numbers)


def test_failed_trials_go_back_with_their_parameters_and_their_losses_count_anew(made: study.Study) -> None:
    [_, failed, lost] = seen(made)
    assert (failed.state, lost.state) == (TrialState.FAIL, TrialState.FAIL)
    attempts = list_attempts(made.storage)

    assert retry(made) == [1, 2]

    assert list_attempts(made.storage) == attempts
    assert [trial.number for trial in seen(made)] == [0]
    again = made.trials()[1]
    assert (again.state, again.params, again.user_attrs) == (TrialState.WAITING, failed.params, {})
    assert again.datetime_complete is None
    counts = overview.count(made.storage, made.study_id)
    assert (counts.complete, counts.failed, counts.waiting, counts.total) == (1, 0, 2, 3)
    attempt = claim(made)
    assert (attempt.trial_number, attempt.number, suggest(made, attempt)) == (1, 2, failed.params)
    complete(made, attempt, 0.75)
    assert [(trial.number, trial.value) for trial in seen(made)] == [(0, 0.5), (1, 0.75)]
    assert lose_until_it_fails(made) == losses.MAX_LAPSES + 1
    assert retry(made, 2) == [2]
    assert retry(made) == []
    assert study.best(made).trial == 1


@pytest.mark.parametrize(
    ("number", "reason"),
    [(0, "it has not failed: it is complete"), (3, "the study has no trial with that number yet")],
)
def test_a_trial_that_has_not_failed_is_refused_and_nothing_changes(
    made: study.Study, number: int, reason: str
) -> None:
    with pytest.raises(BadInput, match=f"^--trial {number}: {reason}$"):
        retry(made, 1, number)

    assert overview.count(made.storage, made.study_id).failed == 2


@pytest.mark.parametrize("kind", ["sqlite"])
def test_trials_that_other_clients_ended_or_spoilt_are_left(storage: Storage, storage_url: str) -> None:
    made = make_study(storage, 2, RANDOM)
    own = RDBStorage(storage_url)
    theirs = optuna.load_study(study_name=made.name, storage=own)
    theirs.tell(theirs.ask(), state=TrialState.FAIL)
    own.engine.dispose()
    fail(made, claim(made), "refused")

    assert retry(made) == []
    for number in (0, 1):
        with pytest.raises(BadInput, match="another client ended it, or chose parameters for it that were refused"):
            retry(made, number)
