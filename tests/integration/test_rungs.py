"""Let trials wait at rungs, promote, prune and revive them, on both kinds of database and from many processes."""

from __future__ import annotations

from collections.abc import Callable

from optuna.trial import TrialState

from hpo import study
from hpo.database import losses, overview, queue, rungs, study_state
from hpo.database.attempt import Attempt, Outcome, Progress, WorkerId
from hpo.database.optuna_view import OptunaView
from hpo.database.overview import Counts
from hpo.database.storage import Storage, open_storage
from hpo.recipes.promotion import FACTOR
from hpo.recipes.schedule import CurvePoint
from tests.integration.support import (
    NOTHING,
    PROMOTING,
    WORKER,
    claim,
    complete,
    dump,
    in_processes,
    make_study,
    suggest,
)

Open = Callable[..., Storage]
LAPSED = -1.0  # a lease that is over when it begins: no test has to wait


def reach(storage: Storage, attempt: Attempt, rung: int, value: float, *, promoted: bool = False) -> bool:
    """Take a claimed trial to a rung, without training, and tell whether it trains on."""
    iteration = 10 * rung
    progress = Progress(iteration=iteration, trained_iterations=10, val_accuracy=value)
    point = CurvePoint(iteration=iteration, train_loss=1.0, val_loss=1.0, val_accuracy=value)
    queue.record(storage, attempt, progress, [point], {iteration: value})
    if queue.reach_rung(storage, attempt, progress, rung, value, promoted=promoted):
        return True
    attrs = {"outcome": f"waiting at rung {rung} (iteration {iteration})", "iterations": iteration}
    queue.finish(storage, attempt, progress, Outcome(state="waiting", value=None, attrs=attrs))
    return False


def wait_at_rung(made: study.Study, *values: float) -> None:
    """Claim a trial for each value, and let it wait at the first rung."""
    for value in values:
        attempt = claim(made)
        suggest(made, attempt)
        assert not reach(made.storage, attempt, 1, value)


def lead(made: study.Study) -> None:
    """Let the first trial pass both rungs as the best of all, so that four more may wait and none is promoted."""
    attempt = claim(made)
    suggest(made, attempt)
    for rung in (1, 2):
        assert reach(made.storage, attempt, rung, 0.99, promoted=True)
    complete(made, attempt, 0.99)


def outcomes(made: study.Study) -> list[tuple[str, float | None, str]]:
    return [(trial.state.name, trial.value, trial.user_attrs["outcome"]) for trial in made.trials()]


def test_a_trial_that_waits_keeps_all_that_it_has(storage: Storage) -> None:
    made = make_study(storage, 4, PROMOTING)
    lead(made)
    attempt = claim(made)
    params = suggest(made, attempt)

    assert not reach(storage, attempt, 1, 0.5)

    trial = made.trials()[1]
    assert (trial.state, trial.params, trial.intermediate_values) == (TrialState.WAITING, params, {10: 0.5})
    assert [point.iteration for point in overview.load_curve(storage, trial._trial_id)] == [10]
    assert trial.user_attrs["outcome"] == "waiting at rung 1 (iteration 10)"
    counts = overview.count(storage, made.study_id)
    assert counts == Counts(waiting=3, complete=1, at_rungs={1: 1})
    assert study.status(made)["waiting_at_rungs"] == {1: 1}


def test_the_best_third_trains_on_and_comes_before_new_trials(storage: Storage) -> None:
    made = make_study(storage, 12, PROMOTING)
    lead(made)
    wait_at_rung(made, 0.5, 0.6, 0.1, 0.2)
    assert reach(storage, claim(made), 1, 0.7), "the second of six trains on at once"
    wait_at_rung(made, 0.3, 0.4)
    ninth = claim(made)
    assert ninth.trial_number == 8
    assert not reach(storage, ninth, 1, 0.45)

    promoted = claim(made)

    assert (promoted.trial_number, promoted.number) == (2, 2)
    assert made.trials()[2].user_attrs["outcome"] == "promoted from rung 1 (iteration 10)"
    assert queue.reach_rung(storage, promoted, NOTHING, 1, 0.6, promoted=False), "it passes the rung again"
    assert claim(made).trial_number == 9


def test_an_interrupted_trial_comes_before_those_that_may_be_promoted(storage: Storage) -> None:
    made = make_study(storage, 9, PROMOTING)
    lead(made)
    interrupted = [claim(made), claim(made)]
    wait_at_rung(made, 0.7, 0.5, 0.4, 0.3)
    assert not reach(storage, claim(made), 1, 0.6)
    for attempt in interrupted:
        queue.hand_back(storage, attempt, NOTHING, "stopped")

    assert [claim(made).trial_number for _ in range(4)] == [1, 2, 3, 8]


def test_a_promoted_trial_that_is_interrupted_need_not_be_promoted_again(storage: Storage) -> None:
    made = make_study(storage, 4, PROMOTING)
    first, second = claim(made), claim(made)
    assert reach(storage, first, 1, 0.7)
    assert reach(storage, second, 1, 0.9), "the better of two"
    queue.hand_back(storage, first, NOTHING, "stopped")

    assert overview.count(storage, made.study_id) == Counts(running=1, waiting=3)
    again = claim(made)
    assert again.trial_number == 0
    assert reach(storage, again, 1, 0.7), "although another is the better of two now"


def test_the_best_of_a_rung_trains_on_however_few_have_reached_it(storage: Storage) -> None:
    made = make_study(storage, 4, PROMOTING)
    first, second, third, fourth = (claim(made) for _ in range(4))

    assert reach(storage, first, 1, 0.5)
    assert not reach(storage, second, 1, 0.4)
    assert reach(storage, third, 1, 0.6)
    assert reach(storage, first, 2, 0.7)
    assert not reach(storage, fourth, 1, 0.3)
    assert not reach(storage, third, 2, 0.65)

    assert overview.count(storage, made.study_id) == Counts(running=1, waiting=3, at_rungs={1: 2, 2: 1})


def test_a_worker_that_dies_at_a_rung_before_its_trial_waits_costs_nothing(storage: Storage) -> None:
    made = make_study(storage, 3, PROMOTING)
    lead(made)
    passed = dump(storage)["hpo_rungs"]
    attempt = queue.claim(storage, made.study_id, WORKER, LAPSED)
    assert attempt is not None
    assert not queue.reach_rung(storage, attempt, NOTHING, 1, 0.5, promoted=False)
    assert dump(storage)["hpo_rungs"] != passed

    assert losses.reap(storage, made.study_id) == [1]

    assert overview.count(storage, made.study_id) == Counts(waiting=2, complete=1)
    assert dump(storage)["hpo_rungs"] == passed
    assert claim(made).trial_number == 1


def test_the_base_recipe_trains_on_whatever_its_value_is(storage: Storage) -> None:
    made = make_study(storage, 3, PROMOTING)

    assert reach(storage, claim(made), 1, 0.0, promoted=True)

    assert [row["promoted"] for row in dump(storage)["hpo_rungs"]] == [True]


def test_trials_that_wait_are_pruned_once_nothing_else_is_left(storage: Storage) -> None:
    made = make_study(storage, 7, PROMOTING)
    lead(made)
    wait_at_rung(made, 0.6, 0.4, 0.3, 0.2)
    runs = claim(made)
    assert rungs.prune_if_used_up(storage, made.study_id) == 0, "a trial runs, and a new one waits"
    complete(made, runs, 0.9)
    last = claim(made)
    assert queue.claim(storage, made.study_id, WORKER) is None
    assert rungs.prune_if_used_up(storage, made.study_id) == 0, "a trial runs"
    assert not reach(storage, last, 1, 0.5)
    assert rungs.prune_if_used_up(storage, made.study_id) == 0, "a trial may be promoted"
    complete(made, claim(made), 0.8)
    study_state.set_state(storage, made.study_id, "paused")
    assert rungs.prune_if_used_up(storage, made.study_id) == 0, "the study is paused"
    study_state.set_state(storage, made.study_id, "running")

    assert queue.claim(storage, made.study_id, WORKER) is None
    assert rungs.prune_if_used_up(storage, made.study_id) == 4

    pruned = "pruned at rung 1 (iteration 10)"
    assert outcomes(made) == [
        ("COMPLETE", 0.99, "complete"),
        ("COMPLETE", 0.8, "complete"),
        ("PRUNED", 0.4, pruned),
        ("PRUNED", 0.3, pruned),
        ("PRUNED", 0.2, pruned),
        ("COMPLETE", 0.9, "complete"),
        ("PRUNED", 0.5, pruned),
    ]
    assert overview.count(storage, made.study_id) == Counts(complete=3, pruned=4)
    assert rungs.prune_if_used_up(storage, made.study_id) == 0


def test_trials_that_were_pruned_at_the_end_wait_again_when_the_study_is_extended(
    storage_url: str, opened: Open
) -> None:
    made = make_study(opened(storage_url), 6, PROMOTING)
    lead(made)
    diverged = claim(made)
    suggest(made, diverged)
    queue.finish(made.storage, diverged, NOTHING, Outcome(state="pruned", value=0.9, attrs={"outcome": "pruned: ..."}))
    wait_at_rung(made, 0.5, 0.4, 0.3, 0.2)
    before = dump(made.storage)
    assert rungs.prune_if_used_up(made.storage, made.study_id) == 4
    make_study(opened(storage_url), 6, PROMOTING)
    assert overview.count(made.storage, made.study_id) == Counts(complete=1, pruned=5), "no trial was added"

    again = make_study(opened(storage_url), 7, PROMOTING)

    after = dump(again.storage)
    for name in ("hpo_rungs", "hpo_curve_points", "trial_values", "trial_intermediate_values"):
        assert after[name] == before[name]
    assert after["trials"][:6] == before["trials"]
    assert after["trial_user_attributes"] == before["trial_user_attributes"]
    assert not reach(again.storage, claim(again), 1, 0.1)
    assert claim(again).trial_number == 2, "of six, the second is promoted"


def test_a_smaller_number_of_trials_removes_none_that_waits_at_a_rung(storage: Storage) -> None:
    made = make_study(storage, 5, PROMOTING)
    lead(made)
    wait_at_rung(made, 0.5, 0.4)

    make_study(storage, 1, PROMOTING)

    assert overview.count(storage, made.study_id) == Counts(waiting=2, complete=1, at_rungs={1: 2})


def test_samplers_see_a_waiting_trial_as_one_that_was_pruned(storage: Storage) -> None:
    made = make_study(storage, 7, PROMOTING)
    lead(made)
    wait_at_rung(made, 0.6, 0.4, 0.3, 0.2)

    def shown(view: OptunaView = storage.view) -> list[tuple[int, str, float | None, dict[int, float]]]:
        trials = view.get_all_trials(made.study_id, states=(TrialState.COMPLETE, TrialState.PRUNED))
        return [(t.number, t.state.name, t.value, t.intermediate_values) for t in trials if t.number > 0]

    first = (1, "PRUNED", 0.6, {10: 0.6})
    others = [(number, "PRUNED", value, {10: value}) for number, value in ((2, 0.4), (3, 0.3), (4, 0.2))]
    assert shown() == [first, *others]
    complete(made, claim(made), 0.9)
    assert not reach(storage, claim(made), 1, 0.5)
    others += [(5, "COMPLETE", 0.9, {}), (6, "PRUNED", 0.5, {10: 0.5})]
    assert shown() == [first, *others]
    promoted = claim(made)
    assert shown() == others
    assert not reach(storage, promoted, 2, 0.7)
    further = (1, "PRUNED", 0.7, {10: 0.6, 20: 0.7})
    assert shown() == [further, *others]

    assert rungs.prune_if_used_up(storage, made.study_id) == 5

    assert shown() == shown(storage.with_empty_cache().view) == [further, *others]
    make_study(storage, 8, PROMOTING)
    complete(made, claim(made), 0.8)
    assert shown() == shown(storage.with_empty_cache().view) == [further, *others, (7, "COMPLETE", 0.8, {})]


def test_many_workers_promote_exactly_the_best_third(storage_url: str, storage: Storage) -> None:
    made = make_study(storage, 40, PROMOTING)

    in_processes(_work_without_training, [(storage_url, f"worker {i}") for i in range(6)])

    assert overview.count(storage, made.study_id).finished == 40
    assert overview.count(storage, made.study_id).total == 40
    rows = dump(storage)["hpo_rungs"]
    for rung in (1, 2):
        there = sorted((row for row in rows if row["rung"] == rung), key=lambda row: -row["value"])
        best = there[: max(1, len(there) // FACTOR)]
        assert all(row["promoted"] for row in best)
        completed = {trial._trial_id for trial in made.trials() if trial.state == TrialState.COMPLETE}
        beyond = completed if rung == 2 else {row["trial_id"] for row in rows if row["rung"] == 2}
        assert {row["trial_id"] for row in there if row["promoted"]} == beyond
    assert len([row for row in rows if row["rung"] == 1]) == 40


def _work_without_training(url: str, name: str) -> None:
    """Work on trials that have values that are known beforehand, until the study is over."""
    storage = open_storage(url)
    made = study.load(storage, None)
    worker = WorkerId(name=name, host="host", device="cpu")
    while not study_state.is_over("running", overview.count(storage, made.study_id)):
        attempt = queue.claim(storage, made.study_id, worker)
        if attempt is None:
            rungs.prune_if_used_up(storage, made.study_id)
            continue
        value = (attempt.trial_number * 7 % 40) / 40
        if all(reach(storage, attempt, rung, value) for rung in (1, 2)):
            complete(made, attempt, value)
    storage.close()
