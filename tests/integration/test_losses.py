"""Put trials back whose workers or devices are gone, on real databases, and fail them after too many."""

from __future__ import annotations

from dataclasses import replace

import pytest
from optuna.trial import TrialState

from hpo import study
from hpo.database import losses, overview, queue
from hpo.database.attempt import Attempt, Loss
from hpo.database.overview import Counts, Running
from hpo.database.storage import Storage, open_storage
from tests.integration.support import (
    HALFWAY,
    LAPSED,
    NOTHING,
    POINTS,
    PROCESSES,
    SETTINGS,
    VALUES,
    WORKER,
    claim,
    dump,
    in_processes,
    list_attempts,
    make_study,
    states,
    suggest,
)

LOSS = Loss(kind="device lost", reason="device cuda:0: CUDA error")


@pytest.fixture
def made(storage: Storage) -> study.Study:
    return make_study(storage, 3)


def test_a_lapsed_trial_goes_back_under_its_number_with_its_parameters(storage: Storage, made: study.Study) -> None:
    claim(made)
    attempt = claim(made, LAPSED)
    params = suggest(made, attempt)
    queue.record(storage, attempt, HALFWAY, POINTS, VALUES, LAPSED)

    assert losses.reap(storage, made.study_id) == [1]

    trial = made.trials()[1]
    assert (trial.number, trial.state, trial.params) == (1, TrialState.WAITING, params)
    assert trial.intermediate_values == {}
    assert overview.load_curve(storage, attempt.trial_id) == []
    assert overview.count(storage, made.study_id) == Counts(running=1, waiting=2)
    again = claim(made)
    assert (again.trial_id, again.trial_number, again.number) == (attempt.trial_id, 1, 2)
    assert suggest(made, again) == params


def test_a_lease_that_has_not_run_out_is_not_reaped(storage: Storage, made: study.Study) -> None:
    claim(made, lease_s=30.0)
    before = dump(storage)
    assert losses.reap(storage, made.study_id) == []
    assert dump(storage) == before


def test_a_lease_runs_by_the_databases_clock(storage: Storage, made: study.Study) -> None:
    # No process has waited here, and none has compared the times with a clock of its own.
    late, early = claim(made, LAPSED), claim(made, lease_s=30.0)
    assert losses.reap(storage, made.study_id) == [late.trial_number]
    queue.renew(storage, early, HALFWAY, LAPSED)
    assert losses.reap(storage, made.study_id) == [early.trial_number]


def test_a_renewed_lease_is_not_reaped(storage: Storage, made: study.Study) -> None:
    attempt = claim(made, LAPSED)
    queue.renew(storage, attempt, HALFWAY)
    assert losses.reap(storage, made.study_id) == []
    assert overview.list_running(storage, made.study_id) == [
        Running(worker="host:1", host="host", device="cpu", trial_number=0, iteration=16, val_accuracy=0.5)
    ]


def test_a_study_is_reaped_without_touching_another(storage: Storage, made: study.Study) -> None:
    other = study.continue_or_create(storage, "other", SETTINGS, 1)
    claim(other, LAPSED)
    assert losses.reap(storage, made.study_id) == []
    assert overview.count(storage, other.study_id) == Counts(running=1)


def test_several_processes_reap_a_trial_once(storage_url: str, storage: Storage) -> None:
    made = make_study(storage, 12)
    for _ in range(12):
        claim(made, LAPSED)

    reaped = in_processes(_reap, [(storage_url, made.study_id)] * PROCESSES)

    assert sorted(number for numbers in reaped for number in numbers) == list(range(12))
    assert overview.count(storage, made.study_id) == Counts(waiting=12)


def _reap(url: str, study_id: int) -> list[int]:
    storage = open_storage(url)
    reaped = losses.reap(storage, study_id)
    storage.close()
    return reaped


def test_a_trial_whose_workers_keep_vanishing_fails_with_the_reason(storage: Storage, made: study.Study) -> None:
    for attempt in range(1, losses.MAX_LAPSES + 1):
        assert claim(made, LAPSED).number == attempt
        assert losses.reap(storage, made.study_id) == [0]
        assert made.trials()[0].state == TrialState.WAITING
    claim(made, LAPSED)
    assert losses.reap(storage, made.study_id) == [0]

    trial = made.trials()[0]
    assert (trial.state, trial.value) == (TrialState.FAIL, None)
    assert trial.user_attrs["outcome"] == (
        "failed: 4 attempts were lost without getting past iteration 0; the last: its worker vanished"
    )
    assert trial.datetime_complete is not None
    assert overview.count(storage, made.study_id) == Counts(failed=1, waiting=2)
    assert claim(made).trial_number == 1


def claim_on(made: study.Study, device: str) -> Attempt:
    """Claim as a worker on another device: one that has lost a trial is given the others first."""
    attempt = queue.claim(made.storage, made.study_id, replace(WORKER, device=device))
    assert attempt is not None
    return attempt


def test_a_trial_whose_devices_keep_failing_is_given_out_again_and_fails_at_the_fourth_with_the_reason(
    storage: Storage, made: study.Study
) -> None:
    params = suggest(made, claim(made, LAPSED))
    assert losses.reap(storage, made.study_id) == [0]
    for kind in ("device lost", "hung"):
        attempt = claim_on(made, kind)
        assert not losses.lose(storage, attempt, NOTHING, replace(LOSS, kind=kind))
        assert states(made)[0] == (0, TrialState.WAITING)
        assert made.trials()[0].params == params
    attempt = claim_on(made, "a third device")
    assert losses.lose(storage, attempt, NOTHING, LOSS)

    trial = made.trials()[0]
    assert (trial.state, trial.params) == (TrialState.FAIL, params)
    assert trial.user_attrs["outcome"] == (
        "failed: 4 attempts were lost without getting past iteration 0; the last: device cuda:0: CUDA error"
    )
    assert [row["outcome"] for row in list_attempts(storage)] == ["lapsed", "device lost", "hung", "device lost"]


def test_a_trial_that_a_device_lost_is_given_out_elsewhere_first(storage: Storage, made: study.Study) -> None:
    losses.lose(storage, claim(made), NOTHING, LOSS)
    others = [replace(WORKER, device="cuda:1"), replace(WORKER, host="other")]

    assert claim(made).trial_number == 1
    for other in others:
        attempt = queue.claim(storage, made.study_id, other)
        assert attempt is not None
        assert attempt.trial_number == 0
        queue.hand_back(storage, attempt, NOTHING, "stopped")
    assert [claim(made).trial_number, claim(made).trial_number] == [2, 0], "rather here than nowhere"


def test_a_device_that_fails_later_each_time_costs_no_trial(storage: Storage, made: study.Study) -> None:
    for iteration in range(1, 2 * losses.MAX_LAPSES):
        attempt = claim_on(made, f"cuda:{iteration}")
        assert attempt.trial_number == 0
        assert not losses.lose(storage, attempt, replace(HALFWAY, iteration=iteration), LOSS)
    assert states(made)[0] == (0, TrialState.WAITING)


def test_handing_back_spends_no_retry(storage: Storage, made: study.Study) -> None:
    for _ in range(2 * losses.MAX_LAPSES):
        queue.hand_back(storage, claim(made), NOTHING, "stopped")
    for _ in range(losses.MAX_LAPSES):
        claim(made, LAPSED)
        losses.reap(storage, made.study_id)
    assert states(made)[0] == (0, TrialState.WAITING)
