"""Let other clients of Optuna write into a study: it ends all the same, and nothing of ours is lost.

The clients are real: Optuna's API, its command, and all that optuna-dashboard lets people do.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, cast
from wsgiref.util import setup_testing_defaults

import optuna
import optuna_dashboard
import pytest
import torch
from optuna.distributions import FloatDistribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo import study
from hpo.artifacts import open_artifacts
from hpo.database import losses, overview, queue, study_state
from hpo.database.attempt import Attempt, Outcome
from hpo.database.overview import Counts
from hpo.database.storage import Storage
from hpo.errors import BadInput, LeaseLost, StudyNotFound
from hpo.results.report import facts
from hpo.trial.checkpoints import Checkpoints
from hpo.worker.stop import StopSignal
from hpo.worker.verify import verify
from hpo.worker.work import work
from tests.integration.sharing import require_undisturbed
from tests.integration.support import NOTHING, SETTINGS, WORKER, claim, complete, make_study, suggest

CPU = torch.device("cpu")
TRIALS = 4
RANDOM = replace(SETTINGS, sampler="random", pruner="none")
GOOD = {"head": "dense", "dropout": 0.3, "early_stopping": False, "boundary_1": 12_000, "boundary_2": 48_000}
BEST = {**GOOD, "learning_rate_1": 0.1, "learning_rate_2": 0.05, "learning_rate_3": 0.001}


@pytest.fixture
def made(storage: Storage) -> study.Study:
    return make_study(storage, TRIALS, RANDOM)


@pytest.fixture
def theirs(storage_url: str, made: study.Study) -> Iterator[optuna.Study]:
    """Give the study as a client sees it that knows nothing of ours."""
    own = RDBStorage(storage_url)
    yield optuna.load_study(study_name=made.name, storage=own)
    own.engine.dispose()


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def train(made: study.Study, folder: Path) -> int:
    checkpoints = Checkpoints(made.storage, open_artifacts(f"{folder}/artifacts"))
    return work(made, device=CPU, data_dir=folder, stop=StopSignal(), checkpoints=checkpoints)


def count(made: study.Study) -> Counts:
    return overview.count(made.storage, made.study_id)


def require_readable(made: study.Study, folder: Path) -> None:
    """Read a study in every way in which our commands do."""
    winner = study.best(made)
    assert winner == study.best(study.load(made.storage, made.name))
    assert overview.find_best(made.storage, made.study_id) == (winner.trial, winner.value)
    summary = study.status(made)
    assert summary["best"]["trial"] == winner.trial
    assert json.loads(json.dumps(summary)) == summary
    found = facts.load_facts(made)
    assert found.best is not None
    assert found.best.number == winner.trial
    checkpoints = Checkpoints(made.storage, open_artifacts(f"{folder}/artifacts"))
    assert "bit for bit" in verify(made, winner.trial, folder, checkpoints, lambda _: None)


# Asked for


@pytest.mark.parametrize("how", ["its lease is over", "somebody takes it back"])
def test_a_trial_that_a_client_asks_for_is_lent_until_it_is_taken_back(
    made: study.Study, theirs: optuna.Study, how: str, tmp_path: Path
) -> None:
    lent = theirs.ask()
    lent.suggest_float("their own", 0, 1)

    assert count(made) == Counts(running=1, waiting=TRIALS - 1, lent=1)
    assert study.status(made)["of_other_clients"] == {"lent": 1, "told": 0, "refused": 0}
    assert [claim(made).trial_number for _ in range(TRIALS - 1)] == [1, 2, 3]
    assert queue.claim(made.storage, made.study_id, WORKER) is None
    assert not study_state.is_over("running", count(made))
    for running in overview.list_running(made.storage, made.study_id):
        assert running.trial_number != lent.number
    if how == "its lease is over":
        assert losses.reap(made.storage, made.study_id, lent_s=-1) == [], "it begins when the trial is first seen"
        lent.set_user_attr("I am", "alive")
        assert losses.reap(made.storage, made.study_id, lent_s=-1) == []
        assert losses.reap(made.storage, made.study_id, lent_s=-1) == [lent.number]
    else:
        assert losses.reclaim(made.storage, made.study_id) == [lent.number]
    assert losses.reclaim(made.storage, made.study_id) == []

    assert count(made).lent == 0
    again = claim(made)
    assert again.trial_number == lent.number
    assert suggest(made, again) == made.space.base_params()


def test_a_study_that_another_sampler_optimises_too_has_the_trials_asked_for_and_a_winner_of_ours(
    made: study.Study, theirs: optuna.Study, tmp_path: Path
) -> None:
    theirs.sampler = optuna.samplers.RandomSampler(seed=0)
    theirs.optimize(lambda trial: trial.suggest_float("x", 2, 3), n_trials=2)  # takes the first, and adds one

    assert train(made, tmp_path) == TRIALS - 2

    assert count(made) == Counts(complete=TRIALS, told=2)
    assert study.best(made).trial > 1
    require_readable(made, tmp_path)


def test_the_command_of_optuna_asks_and_tells(storage_url: str, made: study.Study, tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        command = [str(Path(sys.executable).with_name("optuna")), "--storage", storage_url, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout

    space = json.dumps({"x": json.loads(optuna.distributions.distribution_to_json(FloatDistribution(0, 1)))})
    run("ask", "--study-name", made.name, "--search-space", space)
    assert count(made).lent == 1

    run("tell", "--study-name", made.name, "--trial-number", "0", "--values", "0.999")

    assert train(made, tmp_path) == TRIALS - 1
    assert count(made) == Counts(complete=TRIALS, told=1)
    assert study.best(made).value < 0.999


# Enqueued and added


@pytest.mark.parametrize(
    ("given", "trained"),
    [
        (BEST, BEST),
        ({"head": "dropout", "dropout": 0.1 + 2 * 0.1}, {"head": "dropout", "dropout": 0.3}),
        ({"head": "dropout", "dropout": 0.5}, {"dropout": 0.5}),
        ({"boundary_1": 28_000.0, "learning_rate_3": 0.005}, {"boundary_1": 28_000, "learning_rate_3": 0.005}),
        ({"head": "linear", "dropout": 0.5}, {"head": "linear"}),
        ({}, {}),
    ],
    ids=["all", "a rounding error", "on the edge", "a whole number as a fraction", "one that does not apply", "none"],
)
def test_what_a_client_enqueues_in_the_space_is_trained_next(
    made: study.Study, theirs: optuna.Study, given: dict[str, Any], trained: dict[str, Any]
) -> None:
    complete(made, claim(made), 0.5)
    theirs.enqueue_trial(given)

    assert count(made).total == TRIALS, "it takes the place of one that was to come"
    attempt = claim(made)
    params = suggest(made, attempt)

    assert attempt.trial_number == 1
    assert {name: params[name] for name in trained} == trained
    assert {name: type(params[name]) for name in trained} == {name: type(value) for name, value in trained.items()}
    complete(made, attempt, 0.75)
    assert theirs.trials[1].params == params
    assert study.best(made).recipe == made.space.recipe(params, iterations=32, seed=0)


OUTSIDE: list[tuple[dict[str, Any], str]] = [
    ({"boundary_1": 60_000}, "boundary_1 is 60000; allowed: 12000 to 28000 in steps of 4000"),
    ({"boundary_1": 13_000}, "boundary_1 is 13000; allowed: 12000 to 28000 in steps of 4000"),
    ({"boundary_1": "early"}, "boundary_1 is 'early'; allowed: 12000 to 28000 in steps of 4000"),
    ({"boundary_1": None}, "boundary_1 is None; allowed: 12000 to 28000 in steps of 4000"),
    ({"dropout": 0.9}, "dropout is 0.9; allowed: 0.1 to 0.5 in steps of 0.2"),
    ({"dropout": float("nan")}, "dropout is nan; allowed: 0.1 to 0.5 in steps of 0.2"),
    ({"dropout": float("inf")}, "dropout is inf; allowed: 0.1 to 0.5 in steps of 0.2"),
    ({"dropout": True}, "dropout is True; allowed: 0.1 to 0.5 in steps of 0.2"),
    ({"early_stopping": 1}, "early_stopping is 1; allowed: False, True"),
    ({"head": "softmax"}, "head is 'softmax'; allowed: linear, dropout, dense"),
    ({"head": ["linear"]}, "head is ['linear']; allowed: linear, dropout, dense"),
    ({"their own": 3}, "parameter 'their own' is unknown; allowed: head, dropout, early_stopping, patience, "),
    ({"x" * 5_000: 3}, f"parameter '{'x' * 59}... is unknown; allowed: head, dropout, "),
]


def test_what_a_client_enqueues_outside_the_space_fails_alone_with_the_reason(
    storage: Storage, made: study.Study, theirs: optuna.Study, tmp_path: Path
) -> None:
    make_study(storage, len(OUTSIDE) + 2, RANDOM)
    for given, _ in OUTSIDE:
        theirs.enqueue_trial(given)

    assert train(made, tmp_path) == len(OUTSIDE) + 2

    assert count(made) == Counts(complete=2, failed=len(OUTSIDE), refused=len(OUTSIDE))
    for (_, reason), refused in zip(OUTSIDE, theirs.trials[1:], strict=False):
        assert (refused.state, refused.params) == (TrialState.FAIL, {})
        assert refused.user_attrs["outcome"].startswith(f"refused: {reason}")
    require_readable(made, tmp_path)


@pytest.mark.parametrize("kind", ["sqlite"])
def test_trials_that_clients_spoil_are_no_sign_that_everything_fails(
    storage: Storage, storage_url: str, tmp_path: Path
) -> None:
    made = make_study(storage, study.HOPELESS_FAILURES + 2, RANDOM)
    theirs = optuna.load_study(study_name=made.name, storage=RDBStorage(storage_url))
    for _ in range(study.HOPELESS_FAILURES):
        theirs.tell(theirs.ask(), state=TrialState.FAIL)
    theirs.enqueue_trial({"head": "softmax"})

    assert train(made, tmp_path) == 2
    assert count(made) == Counts(complete=1, failed=study.HOPELESS_FAILURES + 1, refused=study.HOPELESS_FAILURES + 1)


SPOILT: list[dict[str, Any]] = [
    {},
    {"standard error": "large", "validation loss": [], "outcome": {}, "iterations": "many", "numerics": 7},
    {"outcome": "<script>alert(1)</script>" * 10_000, "standard error": None},
]


def test_results_that_a_client_adds_are_counted_and_shown_but_never_the_winner(
    storage: Storage, made: study.Study, theirs: optuna.Study, tmp_path: Path
) -> None:
    known = made.space.distributions()
    added = [(params, attrs) for params in (BEST, {"x": 0.5}, {}) for attrs in SPOILT]
    for params, attrs in added:
        distributions = {name: known.get(name, FloatDistribution(0, 1)) for name in params}
        theirs.add_trial(create_trial(value=0.999, params=params, distributions=distributions, user_attrs=attrs))
    make_study(storage, len(added) + 2, RANDOM)

    assert train(made, tmp_path) == 2

    assert count(made) == Counts(complete=len(added) + 2, told=len(added))
    assert study.best(made).value < 0.999
    require_readable(made, tmp_path)
    with pytest.raises(BadInput, match="--trial 1: it was not trained by hpo, so it cannot be compared"):
        verify(made, 1, tmp_path, Checkpoints(made.storage, open_artifacts(f"{tmp_path}/artifacts")), lambda _: None)


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_study_of_results_that_clients_told_alone_has_no_winner(made: study.Study, theirs: optuna.Study) -> None:
    for _ in range(TRIALS):
        theirs.add_trial(create_trial(value=0.999))

    assert study.status(made)["best"] is None
    assert overview.find_best(made.storage, made.study_id) is None
    for read in (study.best, facts.load_facts):
        with pytest.raises(StudyNotFound):
            read(made)


# Ended while we train


@pytest.mark.parametrize("state", [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL])
def test_what_a_client_tells_of_a_trial_that_we_train_stays_and_our_attempt_ends(
    made: study.Study, theirs: optuna.Study, state: TrialState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = queue.record

    def tell_before(storage: Storage, attempt: Attempt, *given: Any) -> Any:
        if attempt.trial_number == 1 and not theirs.trials[1].state.is_finished():
            theirs.tell(1, 0.999 if state == TrialState.COMPLETE else None, state=state)
        return record(storage, attempt, *given)

    monkeypatch.setattr(queue, "record", tell_before)

    assert train(made, tmp_path) == TRIALS - 1

    told = theirs.trials[1]
    assert (told.state, told.value) == (state, 0.999 if state == TrialState.COMPLETE else None)
    assert count(made).total == count(made).finished == TRIALS
    assert overview.list_running(made.storage, made.study_id) == []
    assert study.best(made).value < 0.999
    require_readable(made, tmp_path)


def test_an_attempt_whose_trial_was_ended_by_a_client_writes_nothing_more(
    made: study.Study, theirs: optuna.Study
) -> None:
    attempt = claim(made)
    theirs.tell(0, 0.25)
    ended = Outcome(state="complete", value=0.75, attrs={})
    for write in (
        lambda: queue.renew(made.storage, attempt, NOTHING),
        lambda: queue.record(made.storage, attempt, NOTHING, [], {1: 0.5}),
        lambda: queue.finish(made.storage, attempt, NOTHING, ended),
        lambda: queue.hand_back(made.storage, attempt, NOTHING, "stopped"),
    ):
        with pytest.raises(LeaseLost, match="trial 0: ended by another client, or put it back in the queue"):
            write()

    assert losses.reap(made.storage, made.study_id) == []
    assert [(trial.state, trial.value) for trial in theirs.trials] == [(TrialState.COMPLETE, 0.25)]
    with pytest.raises(LeaseLost, match="attempt 1 has ended"):
        queue.renew(made.storage, attempt, NOTHING)


def test_what_a_client_writes_beside_our_training_changes_no_value_of_ours(
    made: study.Study, theirs: optuna.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = queue.record

    def write_before(storage: Storage, attempt: Attempt, *given: Any) -> Any:
        beside = optuna.Trial(theirs, attempt.trial_id)
        if 1_000_000 not in theirs.trials[attempt.trial_number].intermediate_values:
            beside.report(0.999, 1_000_000)
        beside.suggest_float("their own", 0, 1)
        beside.set_user_attr("standard error", "spoilt")
        return record(storage, attempt, *given)

    monkeypatch.setattr(queue, "record", write_before)

    assert train(made, tmp_path) == TRIALS

    monkeypatch.undo()
    assert count(made) == Counts(complete=TRIALS)
    assert all("their own" not in trial.params for trial in theirs.trials)
    require_undisturbed(made, tmp_path, map)
    require_readable(made, tmp_path)


# Deleted, renamed, copied, edited


def test_a_study_that_a_client_deletes_ends_its_worker_in_one_line(
    made: study.Study, theirs: optuna.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = queue.record

    def delete_before(*given: Any) -> Any:
        optuna.delete_study(study_name=made.name, storage=theirs._storage)
        monkeypatch.undo()
        return record(*given)

    monkeypatch.setattr(queue, "record", delete_before)
    with pytest.raises(StudyNotFound, match="no longer exists: it was deleted or renamed"):
        train(made, tmp_path)


def request(storage: RDBStorage, method: str, path: str, body: object = None) -> dict[str, Any]:
    """Ask optuna-dashboard's HTTP interface for something."""
    sent = json.dumps(body).encode()
    environ: dict[str, Any] = {"REQUEST_METHOD": method, "PATH_INFO": path, "CONTENT_TYPE": "application/json"}
    environ |= {"wsgi.input": io.BytesIO(sent), "CONTENT_LENGTH": str(len(sent))}
    setup_testing_defaults(environ)
    said: list[str] = []
    start = cast(Any, lambda status, *_: said.append(status))
    answer = b"".join(optuna_dashboard.wsgi(storage)(environ, start))
    assert said[0][0] == "2", (said, answer)
    return cast(dict[str, Any], json.loads(answer or b"{}"))


def rename(made: study.Study, theirs: optuna.Study) -> None:
    storage = cast(RDBStorage, theirs._storage)
    request(storage, "POST", f"/api/studies/{made.study_id}/rename", {"study_name": "renamed"})


def copy(_: study.Study, theirs: optuna.Study) -> None:
    optuna.copy_study(
        from_study_name=theirs.study_name,
        from_storage=theirs._storage,
        to_storage=theirs._storage,
        to_study_name="renamed",
    )


@pytest.mark.parametrize("client", [rename, copy], ids=["renamed", "copied"])
def test_a_study_that_a_client_renames_or_copies_keeps_curves_figures_and_counts_and_goes_on(
    made: study.Study, theirs: optuna.Study, client: Callable[..., None], opened: Callable[..., Storage], tmp_path: Path
) -> None:
    artifacts = open_artifacts(f"{tmp_path}/artifacts")
    checkpoints = Checkpoints(made.storage, artifacts)
    work(made, device=CPU, data_dir=tmp_path, stop=StopSignal(), checkpoints=checkpoints, artifacts=artifacts)
    before = study.status(made), study.best(made), facts.load_facts(made).trials

    client(made, theirs)

    url = made.storage.engine.url.render_as_string(hide_password=False)
    renamed = study.load(opened(url, "read"), "renamed")
    assert renamed.settings == made.settings
    assert study.status(renamed) == before[0] | {"study": "renamed"}
    assert study.best(renamed) == before[1]
    assert facts.load_facts(renamed).trials == before[2]
    require_readable(renamed, tmp_path)
    if client is rename:
        storage = renamed.storage
        attrs = storage.optuna.get_study_system_attrs(renamed.study_id)
        assert attrs["study:metric_names"] == ["validation accuracy"]
        for trial in storage.optuna.get_all_trials(renamed.study_id):
            assert (
                f"/artifacts/{renamed.study_id}/{trial._trial_id}/" in attrs[f"dashboard:{trial._trial_id}:note_str:0"]
            )
    longer = study.continue_or_create(opened(url), "renamed", RANDOM, TRIALS + 1)
    assert train(longer, tmp_path) == 1
    assert count(longer) == Counts(complete=TRIALS + 1)


def test_a_study_that_is_renamed_while_it_trains_goes_on_under_its_new_name(
    made: study.Study,
    theirs: optuna.Study,
    opened: Callable[..., Storage],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record = queue.record

    def rename_before(storage: Storage, attempt: Attempt, *given: Any) -> Any:
        if attempt.trial_number == 1:
            monkeypatch.undo()
            rename(made, theirs)
        return record(storage, attempt, *given)

    monkeypatch.setattr(queue, "record", rename_before)
    with pytest.raises(StudyNotFound, match="no longer exists: it was deleted or renamed"):
        train(made, tmp_path)

    storage = opened(str(made.storage.engine.url.render_as_string(hide_password=False)))
    renamed = study.load(storage, "renamed")
    assert count(renamed) == Counts(complete=1, waiting=TRIALS - 1)
    assert study_state.find_state(storage, renamed.study_id) == "stopped"
    renamed = study.continue_or_create(storage, "renamed", RANDOM, TRIALS)
    assert train(renamed, tmp_path) == TRIALS - 1
    assert count(renamed) == Counts(complete=TRIALS)
    require_undisturbed(renamed, tmp_path, map)


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_copy_whose_records_somebody_changed_counts_them_as_told(
    made: study.Study, theirs: optuna.Study, tmp_path: Path
) -> None:
    train(made, tmp_path)
    changed = optuna.create_study(study_name="renamed", storage=theirs._storage, direction="maximize")
    for title, value in theirs.user_attrs.items():
        changed.set_user_attr(title, value)
    for trial, record in zip_longest(theirs.trials, (None, {"outcome": "best"}, "x" * 10_000), fillvalue="theirs"):
        assert isinstance(trial, FrozenTrial)
        trial.system_attrs |= {} if record == "theirs" else {"hpo:record": record}
        changed.add_trial(trial)

    copied = study.load(made.storage, "renamed")

    assert count(copied) == Counts(complete=TRIALS, told=3)
    assert study.best(copied).trial == 3


@pytest.mark.parametrize(
    ("title", "value"),
    [("seed", 99), ("sampler", "best"), ("search space", "<script>"), ("iterations", None), ("trials", -1)],
)
@pytest.mark.parametrize("kind", ["sqlite"])
def test_attributes_that_a_client_edits_change_nothing_that_we_do(
    made: study.Study, theirs: optuna.Study, title: str, value: Any, tmp_path: Path
) -> None:
    theirs.set_user_attr(title, value)
    theirs.set_user_attr("their own", "<script>" * 10_000)

    again = study.load(made.storage, made.name)
    assert again.settings == RANDOM
    again = make_study(made.storage, 2, RANDOM)
    assert train(again, tmp_path) == 2
    require_readable(again, tmp_path)


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_copy_with_edited_settings_is_refused_with_what_is_allowed(made: study.Study, theirs: optuna.Study) -> None:
    theirs.set_user_attr("sampler", "best")
    copy(made, theirs)

    with pytest.raises(BadInput, match="study renamed: its attribute 'sampler' is 'best'; allowed: tpe, random"):
        study.load(made.storage, "renamed")
    theirs.set_user_attr("their own", 1)
    assert study.load(made.storage, made.name).settings == RANDOM
