"""Check on real databases that trials share what they train, bit for bit, whatever happens to the checkpoints."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as save_tensors
from sqlalchemy import select, update

from hpo import study
from hpo.artifacts import Artifact, Artifacts, open_artifacts
from hpo.database import queue, workers
from hpo.database.attempt import Attempt, Outcome, Progress
from hpo.database.checkpoint_index import find_checkpoint, load_note_key
from hpo.database.storage import Storage, open_storage
from hpo.database.tables import AttemptRow, CheckpointRow
from hpo.errors import VerificationFailed
from hpo.recipes.recipe import Recipe
from hpo.recipes.schedule import CurvePoint, evaluation
from hpo.training.data import Dataset
from hpo.training.numerics import numerics
from hpo.training.train import Training
from hpo.trial.checkpoint_note import SavedCheckpoint, note_name, write_note
from hpo.trial.checkpoints import Checkpoints, Sharing, encode
from hpo.trial.segments import Segment, segments
from hpo.worker.verify import compare_with_scratch
from tests.integration.sharing import BUDGET, RECIPE, claim, train, train_alone, train_and_finish
from tests.integration.support import NOTHING, SETTINGS, WORKER, complete


@pytest.fixture
def artifacts(tmp_path: Path) -> Artifacts:
    return open_artifacts(str(tmp_path / "artifacts"))


@pytest.fixture
def checkpoints(storage: Storage, artifacts: Artifacts) -> Checkpoints:
    return Checkpoints(storage, artifacts)


@dataclass(frozen=True)
class Trained:
    """Hold the checkpoints of a trial of RECIPE, and its curve."""

    folder: Path
    rows: list[dict[str, Any]]
    curve: list[CurvePoint]

    def copy_to(self, checkpoints: Checkpoints) -> None:
        shutil.copytree(self.folder, checkpoints.artifacts.url, dirs_exist_ok=True)
        with checkpoints.storage.transaction() as session:
            session.add_all(CheckpointRow(**row) for row in self.rows)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    storage = open_storage(f"sqlite:///{folder}/hpo.db", "create")
    _, watcher = train_and_finish(RECIPE, digits, Checkpoints(storage, open_artifacts(str(folder / "artifacts"))))
    columns = [column.name for column in CheckpointRow.__table__.columns if column.name != "checkpoint_id"]
    with storage.transaction() as session:
        rows = [{name: getattr(row, name) for name in columns} for row in session.scalars(select(CheckpointRow))]
    storage.close()
    return Trained(folder / "artifacts", rows, watcher.curve)


recipes = st.builds(
    replace,
    st.just(RECIPE),
    head=st.sampled_from(["dropout", "dense"]),
    boundaries=st.tuples(st.sampled_from([12000, 20000]), st.sampled_from([32000, 40000])),
    values=st.tuples(st.just(0.05), st.sampled_from([0.05, 0.02]), st.just(0.005)),
    early_stopping=st.sampled_from([None, 8000, 16000]),
)


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(recipes, min_size=2, max_size=4))
def test_trials_that_share_have_the_curves_values_and_weights_of_trials_alone(
    make_url: Callable[[str], str], opened: Callable[..., Storage], tmp_path: Path, digits: Dataset, drawn: list[Recipe]
) -> None:
    checkpoints = Checkpoints(opened(make_url("sqlite")), open_artifacts(str(tmp_path / "shared")))
    for recipe in drawn:
        outcome, shared = train_and_finish(recipe, digits, checkpoints)
        outcome_alone, alone = train_alone(recipe, digits)
        assert (outcome, shared.curve) == (outcome_alone, alone.curve)
        said = compare_with_scratch(recipe, digits, "fp32", shared.curve, checkpoints)
        assert said.endswith("and so are weights, momentum and BatchNorm statistics at its end")


def test_a_trial_trains_only_what_no_other_has_trained(checkpoints: Checkpoints, digits: Dataset) -> None:
    later = replace(RECIPE, boundaries=(20000, 48000))
    other_end = replace(RECIPE, values=(0.05, 0.02, 0.002))
    steps = [train_and_finish(r, digits, checkpoints)[1].steps for r in (RECIPE, RECIPE, later, other_end)]
    assert steps == [32, 0, 12, 12]  # 20 of 32 iterations lie before the boundary at 40,000


def test_a_trial_pruned_on_what_it_inherits_trains_nothing(
    checkpoints: Checkpoints, digits: Dataset, trained: Trained
) -> None:
    trained.copy_to(checkpoints)
    [attempt] = claim(checkpoints.storage)
    outcome, watcher = train(RECIPE, digits, Sharing(checkpoints, attempt), prune_at=10)
    assert isinstance(outcome, Outcome)
    assert (outcome.state, watcher.steps, watcher.curve[-1].iteration) == ("pruned", 0, 10)


@pytest.mark.parametrize("stop_at", [1, 7, 20, 31])
def test_a_stopped_trial_goes_on_from_the_iteration_it_was_stopped_at(
    checkpoints: Checkpoints, digits: Dataset, stop_at: int
) -> None:
    [first, second] = claim(checkpoints.storage, 2)
    blocked, before = train(RECIPE, digits, Sharing(checkpoints, first), stop_at=stop_at)
    queue.hand_back(checkpoints.storage, first, NOTHING, "stopped")
    outcome, after = train(RECIPE, digits, Sharing(checkpoints, second))
    outcome_alone, alone = train_alone(RECIPE, digits)
    assert (blocked, before.steps + after.steps) == ("stopped", BUDGET)
    assert (outcome, after.curve) == (outcome_alone, alone.curve)


def spoil(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content[:1000] if how == "cut short" else content))
    if how == "removed":
        path.unlink()


@pytest.mark.parametrize("how", ["flipped", "cut short", "removed"])
@pytest.mark.parametrize("number", [1, 100])
def test_spoilt_checkpoints_are_trained_again(
    checkpoints: Checkpoints, artifacts: Artifacts, digits: Dataset, trained: Trained, how: str, number: int
) -> None:
    trained.copy_to(checkpoints)
    with checkpoints.storage.transaction() as session:
        deepest = session.scalars(select(CheckpointRow.artifact_id).order_by(CheckpointRow.iteration.desc())).all()
    for artifact_id in deepest[12 : 12 + number]:  # 20, the last state that the next recipe shares, and before
        spoil(Path(artifacts.url) / artifact_id, how)
    recipe = replace(RECIPE, values=(0.05, 0.02, 0.002))
    outcome, shared = train_and_finish(recipe, digits, Checkpoints(checkpoints.storage, artifacts))
    outcome_alone, alone = train_alone(recipe, digits)
    assert (outcome, shared.curve) == (outcome_alone, alone.curve)
    assert shared.steps == (13 if number == 1 else 32)


def test_a_full_store_costs_checkpoints_and_nothing_else(
    checkpoints: Checkpoints, digits: Dataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.artifacts.store, "write", fail)
    outcome, watcher = train_and_finish(RECIPE, digits, checkpoints)
    outcome_alone, alone = train_alone(RECIPE, digits)
    assert (outcome, watcher.curve) == (outcome_alone, alone.curve)
    assert [r.getMessage() for r in caplog.records] == [
        f"artifacts {checkpoints.artifacts.url}: [Errno 28] No space left on device; "
        "training continues without new checkpoints"
    ]


def test_the_least_recently_used_checkpoints_go_first_but_never_the_best_trials(
    storage: Storage, artifacts: Artifacts, digits: Dataset
) -> None:
    kept = Checkpoints(storage, artifacts)
    train_and_finish(RECIPE, digits, kept)
    train_and_finish(replace(RECIPE, head="linear"), digits, kept)
    made = study.load(storage, "shared")
    best = next(t for t in made.trials() if t.number == study.best(made).trial)
    kept.budget_bytes = 10_000_000
    left = kept.collect_garbage()
    with storage.transaction() as session:
        rows = session.execute(select(CheckpointRow.checkpoint_id, CheckpointRow.artifact_id)).all()
        needed = session.scalars(select(AttemptRow.checkpoint_id).where(AttemptRow.trial_id == best._trial_id)).one()
    assert 2_000_000 < left <= 10_000_000
    assert needed in {row.checkpoint_id for row in rows}
    assert {row.artifact_id for row in rows} == {path.name for path in Path(artifacts.url).iterdir()}


def test_as_many_checkpoints_go_as_have_to_and_no_more(storage: Storage, artifacts: Artifacts) -> None:
    made = study.continue_or_create(storage, "shared", SETTINGS, 1)
    rows = [checkpoint_row(iteration, last_used_s=100.0 - iteration) for iteration in range(1, 6)]
    with storage.transaction() as session:
        session.add_all(rows)
    attempt = queue.claim(storage, made.study_id, WORKER)
    assert attempt is not None
    kept = Checkpoints(storage, artifacts, budget_bytes=250)
    with storage.transaction() as session:  # the oldest is what a running trial goes on from
        at = CheckpointRow.iteration == 5
        needed = session.scalars(select(CheckpointRow.checkpoint_id).where(at)).one()
        session.execute(update(AttemptRow).values(checkpoint_id=needed))

    assert kept.collect_garbage() == 200
    with storage.transaction() as session:
        assert sorted(session.scalars(select(CheckpointRow.iteration))) == [1, 5]


def test_what_a_confirmation_may_choose_from_is_kept(storage: Storage, artifacts: Artifacts) -> None:
    made = study.continue_or_create(storage, "shared", SETTINGS, 6)
    for number, value in enumerate((0.1, 0.5, 0.9, 0.7, 0.8, 0.2)):
        attempt = queue.claim(storage, made.study_id, WORKER)
        assert attempt is not None
        with storage.transaction() as session:
            row = checkpoint_row(number, last_used_s=0.0)
            session.add(row)
            session.flush()
            at = AttemptRow.attempt_id == attempt.attempt_id
            session.execute(update(AttemptRow).where(at).values(checkpoint_id=row.checkpoint_id))
        complete(made, attempt, value)

    Checkpoints(storage, artifacts, budget_bytes=1).collect_garbage()

    with storage.transaction() as session:
        assert sorted(session.scalars(select(CheckpointRow.iteration))) == [0, 2, 3, 4]


def checkpoint_row(iteration: int, last_used_s: float) -> CheckpointRow:
    return CheckpointRow(
        segment="s",
        iteration=iteration,
        curve="[]",
        artifact_id=f"file-{iteration}",
        size_bytes=100,
        sha256="",
        last_used_s=last_used_s,
    )


def test_a_checkpoint_that_is_gone_on_from_counts_as_used_just_now(checkpoints: Checkpoints) -> None:
    storage = checkpoints.storage
    [first, second] = claim(storage, 2)
    with storage.transaction() as session:
        row = checkpoint_row(5, last_used_s=1.0)
        session.add(row)
        session.flush()
        place = (row.segment, row.iteration)
    found = find_checkpoint(storage, [place])
    assert found is not None

    checkpoints.note_use(first, found)
    with storage.transaction() as session:
        assert session.scalars(select(CheckpointRow.last_used_s)).one() > 1.0
        session.execute(update(CheckpointRow).values(last_used_s=1.0))
        if session.get_bind().dialect.name == "postgresql":  # SQLite has one writer at a time
            with ThreadPoolExecutor(1) as pool:
                pool.submit(checkpoints.note_use, second, found).result(timeout=60.0)
    checkpoints.note_use(second, found)
    with storage.transaction() as session:
        assert set(session.scalars(select(AttemptRow.checkpoint_id))) == {found.checkpoint_id}
        assert session.scalars(select(CheckpointRow.last_used_s)).one() > 1.0


def test_a_trial_waits_while_another_worker_trains_what_it_needs(checkpoints: Checkpoints, digits: Dataset) -> None:
    storage = checkpoints.storage
    [ahead, behind] = claim(storage, 2)
    path = segments(RECIPE, digits, evaluation(BUDGET, 8, 20), numerics(torch.device("cpu"), "fp32"))
    assert checkpoints.enter(ahead, path[0])
    assert train(RECIPE, digits, Sharing(checkpoints, behind))[0] == "parked"
    queue.hand_back(storage, behind, NOTHING, "parked")

    study_id = study.load(storage, "shared").study_id
    third = queue.claim(storage, study_id, WORKER)
    assert third is not None
    assert third.trial_number == 2, "the parked trial was passed over"

    passed = Progress(iteration=path[0].end, trained_iterations=0, val_accuracy=None)
    queue.renew(storage, ahead, passed)
    fourth = queue.claim(storage, study_id, WORKER)
    assert fourth is not None
    assert fourth.trial_number == 3, "the checkpoint at the end may not be there yet"

    assert checkpoints.enter(ahead, path[1])
    again = queue.claim(storage, study_id, WORKER)
    assert again is not None
    assert (again.trial_number, again.number) == (1, 2)


def test_the_segment_of_a_dead_worker_is_free(checkpoints: Checkpoints, digits: Dataset) -> None:
    [dead, alive] = claim(checkpoints.storage, 2)
    path = segments(RECIPE, digits, evaluation(BUDGET, 8, 20), numerics(torch.device("cpu"), "fp32"))
    assert checkpoints.enter(dead, path[0])
    queue.renew(checkpoints.storage, dead, NOTHING, lease_s=-1.0)
    assert checkpoints.enter(alive, path[0])
    assert not checkpoints.enter(dead, path[0])


def test_of_several_that_come_when_a_holder_has_ended_one_holds_the_segment(checkpoints: Checkpoints) -> None:
    storage, segment = checkpoints.storage, Segment(key="segment", start=0, end=12)
    [holder, *others] = claim(storage, 61)
    assert checkpoints.enter(holder, segment)
    with ThreadPoolExecutor(4) as pool:
        for coming in batched(others, 4):
            queue.hand_back(storage, holder, NOTHING, "stopped")
            entered = list(pool.map(lambda attempt: checkpoints.enter(attempt, segment), coming))
            assert sum(entered) == 1
            holder = coming[entered.index(True)]


def batched(attempts: list[Attempt], size: int) -> list[list[Attempt]]:
    return [attempts[start : start + size] for start in range(0, len(attempts), size)]


def test_a_worker_that_goes_on_to_the_next_segment_leaves_the_last(checkpoints: Checkpoints, digits: Dataset) -> None:
    [ahead, behind] = claim(checkpoints.storage, 2)
    path = segments(RECIPE, digits, evaluation(BUDGET, 8, 20), numerics(torch.device("cpu"), "fp32"))
    assert [checkpoints.enter(ahead, s) for s in path[:2]] == [True, True]
    assert [checkpoints.enter(behind, s) for s in path] == [True, False, True]


def test_no_new_trial_is_begun_while_two_are_parked(checkpoints: Checkpoints, digits: Dataset) -> None:
    storage = checkpoints.storage
    attempts = claim(storage, 3)
    path = segments(RECIPE, digits, evaluation(BUDGET, 8, 20), numerics(torch.device("cpu"), "fp32"))
    assert checkpoints.enter(attempts[0], path[0])
    for attempt in attempts[1:]:
        assert not checkpoints.enter(attempt, path[0])
        queue.hand_back(storage, attempt, NOTHING, "parked")
    study_id = study.load(storage, "shared").study_id
    assert queue.claim(storage, study_id, WORKER) is None


@pytest.mark.parametrize("serves_all", [True, False])
def test_while_workers_are_idle_more_trials_may_be_parked(checkpoints: Checkpoints, serves_all: bool) -> None:
    storage = checkpoints.storage
    [ahead] = claim(storage, 1)
    study_id = study.load(storage, "shared").study_id
    for number in range(6):
        served = None if serves_all else study_id
        workers.heartbeat(storage, replace(WORKER, name=f"worker {number}"), served, lease_s=60.0)
    workers.heartbeat(storage, WORKER, served, lease_s=60.0)
    workers.heartbeat(storage, replace(WORKER, name="dead"), served, lease_s=-1.0)
    segment = Segment(key="segment", start=0, end=12)
    assert checkpoints.enter(ahead, segment)
    begun = []
    while attempt := queue.claim(storage, study_id, WORKER):
        assert not checkpoints.enter(attempt, segment)
        queue.hand_back(storage, attempt, NOTHING, "parked")
        begun.append(attempt.trial_number)
    assert begun == [1, 2, 3, 4, 5, 6], "one for each idle worker, none for the dead and for that which trains"


def test_verification_finds_a_changed_curve_and_a_changed_checkpoint(
    checkpoints: Checkpoints, digits: Dataset, trained: Trained
) -> None:
    trained.copy_to(checkpoints)
    curve = trained.curve
    changed = [*curve[:-1], replace(curve[-1], val_loss=curve[-1].val_loss + 1e-9)]
    with pytest.raises(VerificationFailed, match="the curve differs at iteration 32"):
        compare_with_scratch(RECIPE, digits, "fp32", changed, checkpoints)

    other = Training(replace(RECIPE, seed=1), digits, "fp32")
    other.advance(BUDGET)
    artifact = checkpoints.artifacts.write(encode(other.state()))
    with checkpoints.storage.transaction() as session:
        session.execute(update(CheckpointRow).where(CheckpointRow.iteration == BUDGET).values(**asdict(artifact)))
    with pytest.raises(VerificationFailed, match="the state at iteration 32 differs"):
        compare_with_scratch(RECIPE, digits, "fp32", curve, checkpoints)


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_study_of_a_release_without_training_accuracy_goes_on_and_can_be_verified(
    checkpoints: Checkpoints, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(RECIPE, iterations=2 * BUDGET)  # measured at every other iteration
    first, second = claim(checkpoints.storage, 2)
    with monkeypatch.context() as before:
        before.setattr("hpo.trial.checkpoints.encode", lambda state: encode(replace(state, correct_count=None)))
        train(recipe, digits, Sharing(checkpoints, first), stop_at=7)
    queue.hand_back(checkpoints.storage, first, NOTHING, "stopped")
    _forget_training_accuracies(checkpoints.storage)

    outcome, after = train(recipe, digits, Sharing(checkpoints, second))

    outcome_alone, alone = train_alone(recipe, digits)
    unknown = [replace(point, train_accuracy=None) if point.iteration <= 8 else point for point in alone.curve]
    assert (outcome, after.curve, after.steps) == (outcome_alone, unknown, 2 * BUDGET - 7)
    said = compare_with_scratch(recipe, digits, "fp32", after.curve, checkpoints)
    assert said.endswith("and so are weights, momentum and BatchNorm statistics at its end")
    assert compare_with_scratch(recipe, digits, "fp32", after.curve[:3], checkpoints)
    with pytest.raises(VerificationFailed, match="the curve differs at iteration 10"):
        wrong = replace(after.curve[4], train_accuracy=0.5)
        compare_with_scratch(recipe, digits, "fp32", [*after.curve[:4], wrong], checkpoints)


def _forget_training_accuracies(storage: Storage) -> None:
    with storage.transaction() as session:
        for row in session.scalars(select(CheckpointRow)):
            points = [{n: v for n, v in p.items() if n != "train_accuracy"} for p in json.loads(row.curve)]
            row.curve = json.dumps(points)


def state_file(digits: Dataset, iteration: int, **changed: Any) -> bytes:
    training = Training(replace(RECIPE, **changed), digits, "fp32")
    return encode(replace(training.state(), iteration=iteration))


@pytest.mark.parametrize("kind", ["sqlite"])
@pytest.mark.parametrize("how", ["another shape", "no metadata", "iteration 1,000,000", "no momentum"])
def test_a_checkpoint_that_does_not_fit_is_dropped_and_trained_again_even_if_its_checksum_does(
    storage: Storage, artifacts: Artifacts, digits: Dataset, trained: Trained, how: str
) -> None:
    trained.copy_to(Checkpoints(storage, artifacts))
    contents = {
        "another shape": state_file(digits, BUDGET, head="dense"),
        "no metadata": save_tensors({"weights/a": torch.zeros(1)}),
        "iteration 1,000,000": state_file(digits, 1_000_000),
        "no momentum": state_file(digits, BUDGET),
    }
    replace_deepest(storage, artifacts.write(contents[how]))

    outcome, shared = train_and_finish(RECIPE, digits, Checkpoints(storage, artifacts))

    outcome_alone, alone = train_alone(RECIPE, digits)
    assert (outcome, shared.curve, shared.steps) == (outcome_alone, alone.curve, 1)


def replace_deepest(storage: Storage, artifact: Artifact) -> None:
    """Let the row of the last checkpoint name another file, with its right checksum."""
    with storage.transaction() as session:
        deepest = update(CheckpointRow).where(CheckpointRow.iteration == BUDGET)
        session.execute(deepest.values(**asdict(artifact)))


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_curve_counts_for_nothing_without_its_state(
    checkpoints: Checkpoints, digits: Dataset, trained: Trained
) -> None:
    trained.copy_to(checkpoints)
    for file in Path(checkpoints.artifacts.url).iterdir():
        file.unlink()
    forged = [asdict(replace(point, val_accuracy=0.999)) for point in trained.curve]
    with checkpoints.storage.transaction() as session:
        session.execute(update(CheckpointRow).values(curve=json.dumps(forged)))

    outcome, shared = train_and_finish(RECIPE, digits, checkpoints)

    outcome_alone, alone = train_alone(RECIPE, digits)
    assert (outcome, shared.curve, shared.steps) == (outcome_alone, alone.curve, BUDGET)


def list_saved(rows: list[dict[str, Any]], *iterations: int) -> list[SavedCheckpoint]:
    """Give what a note says of checkpoints."""
    return [
        SavedCheckpoint(
            **{name: value for name, value in row.items() if name not in ("curve", "last_used_s")},
            curve=tuple(CurvePoint(**point) for point in json.loads(row["curve"])),
        )
        for row in rows
        if row["iteration"] in iterations
    ]


@pytest.fixture
def note(artifacts: Artifacts, storage: Storage, digits: Dataset, trained: Trained) -> str:
    """Fill the artifact store with real checkpoints that the database does not know, and give their note's name."""
    shutil.copytree(trained.folder, artifacts.url, dirs_exist_ok=True)
    path = segments(RECIPE, digits, evaluation(BUDGET, 8, 20), numerics(torch.device("cpu"), "fp32"))
    return note_name(path, load_note_key(storage))


@pytest.mark.parametrize("kind", ["sqlite"])
def test_notes_with_a_real_checkpoint_and_a_made_up_curve_are_not_believed(
    storage: Storage, artifacts: Artifacts, digits: Dataset, trained: Trained, note: str
) -> None:
    [last] = list_saved(trained.rows, BUDGET)
    forged = [replace(last, curve=tuple(replace(point, val_accuracy=0.999) for point in last.curve))]
    artifacts.write_note(f"unindexed-{last.segment}", write_note(note, forged, bytes(32)))
    artifacts.write_note(note, write_note(note, forged, bytes(32)))

    outcome, shared = train_and_finish(RECIPE, digits, Checkpoints(storage, artifacts))

    outcome_alone, alone = train_alone(RECIPE, digits)
    assert (outcome, shared.curve, shared.steps) == (outcome_alone, alone.curve, BUDGET)
    assert artifacts.find_note(note) is None


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_signed_note_is_believed_as_far_as_it_belongs_to_the_recipe(
    storage: Storage, artifacts: Artifacts, digits: Dataset, trained: Trained, note: str
) -> None:
    shared_state, last = sorted(list_saved(trained.rows, 20, BUDGET), key=lambda saved: saved.iteration)
    diverged = replace(last, curve=(replace(last.curve[0], val_loss=math.nan), *last.curve[1:]))
    artifacts.write_note(note, write_note(note, [shared_state, diverged], load_note_key(storage)))

    outcome, shared = train_and_finish(RECIPE, digits, Checkpoints(storage, artifacts))

    outcome_alone, alone = train_alone(RECIPE, digits)
    assert (outcome, shared.curve, shared.steps) == (outcome_alone, alone.curve, BUDGET - 20)


class _Payload:
    """Make a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("kind", ["sqlite"])
@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_checkpoint_that_somebody_replaced_by_code_runs_nothing_and_is_dropped(
    storage: Storage, artifacts: Artifacts, digits: Dataset, trained: Trained, tmp_path: Path, how: str
) -> None:
    trained.copy_to(Checkpoints(storage, artifacts))
    content = pickle.dumps(_Payload(tmp_path / "owned"))
    if how == "torch":
        buffer = io.BytesIO()
        torch.save(_Payload(tmp_path / "owned"), buffer)
        content = buffer.getvalue()
    for file in Path(artifacts.url).iterdir():
        file.write_bytes(content)
    with storage.transaction() as session:  # whoever could write the files wrote the checksums too
        session.execute(update(CheckpointRow).values(sha256=hashlib.sha256(content).hexdigest()))

    recipe = replace(RECIPE, values=(0.05, 0.02, 0.002))
    outcome, shared = train_and_finish(recipe, digits, Checkpoints(storage, artifacts))

    outcome_alone, alone = train_alone(recipe, digits)
    assert (outcome, shared.curve, shared.steps) == (outcome_alone, alone.curve, BUDGET)
    assert not (tmp_path / "owned").exists()
    pickle.loads(content if how == "pickle" else pickle.dumps(_Payload(tmp_path / "owned")))
    assert (tmp_path / "owned").exists(), "the payload works"
