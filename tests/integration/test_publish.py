"""Train trials as a worker does, and see what optuna-dashboard is given of each."""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import optuna_dashboard
import pytest
from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, TrialState
from PIL import Image
from sqlalchemy import update

from hpo.artifacts import Artifacts, open_artifacts
from hpo.database import losses, queue
from hpo.database.storage import Storage
from hpo.database.tables import AttemptRow
from hpo.study import Study, continue_or_create
from hpo.training.data import Dataset
from hpo.worker.stop import StopSignal
from hpo.worker.work import WorkerConfig, train_attempt
from tests.integration.support import NOTHING, PROMOTING, SETTINGS, SPACE, claim, make_study, suggest

FIXED = replace(SETTINGS, space=SPACE | {"search": {}})


class FullStore(FileSystemArtifactStore):
    """A folder on a disk that is full."""

    def write(self, artifact_id: str, content_body: Any) -> None:
        raise OSError(28, "No space left on device")


@pytest.fixture
def artifacts(tmp_path: Path) -> Artifacts:
    return open_artifacts(str(tmp_path / "artifacts"))


def finished_trial(made: Study) -> FrozenTrial:
    [trial] = made.trials()
    return trial


def note_of(made: Study, trial: FrozenTrial) -> str:
    study = optuna.load_study(study_name=made.name, storage=made.storage.optuna)
    return optuna_dashboard.get_note(optuna.trial.Trial(study, trial._trial_id))


def figures_of(made: Study, trial: FrozenTrial) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        found = get_all_artifact_meta(trial, storage=made.storage.optuna)
    return [meta.artifact_id for meta in found]


def files_in(artifacts: Artifacts) -> list[str]:
    return sorted(path.name for path in Path(artifacts.url).iterdir())


def test_a_finished_trial_has_its_figure_and_a_note_that_shows_it(
    storage: Storage, digits: Dataset, artifacts: Artifacts
) -> None:
    made = make_study(storage, 1, FIXED)

    assert train_attempt(made, claim(made), digits, StopSignal(), WorkerConfig(artifacts=artifacts))

    trial = finished_trial(made)
    [figure_id] = figures_of(made, trial)
    assert files_in(artifacts) == [figure_id]
    with artifacts.store.open_reader(figure_id) as file, Image.open(io.BytesIO(file.read())) as image:
        assert (image.format, image.width) == ("PNG", 1050)
    lines = note_of(made, trial).splitlines()
    assert lines[0] == "**Complete.**"
    assert f"![Loss and accuracy over the iterations](/artifacts/1/1/{figure_id})" in lines
    assert "| head | dropout | dropout |" in lines


def test_the_figure_of_a_trial_that_waited_at_a_rung_is_replaced(
    storage: Storage, digits: Dataset, artifacts: Artifacts
) -> None:
    made = make_study(storage, 6, PROMOTING)
    config = WorkerConfig(artifacts=artifacts)
    suggest(made, base := claim(made))
    queue.reach_rung(storage, base, NOTHING, 1, 2.0, promoted=True)
    assert train_attempt(made, claim(made), digits, StopSignal(), config) is None
    waited = made.trials()[1]
    assert note_of(made, waited).startswith("**Waiting at rung 1 (iteration ")
    [figure_id] = figures_of(made, waited)
    for _ in range(4):
        queue.reach_rung(storage, claim(made), NOTHING, 1, -1.0, promoted=False)
    attempt = claim(made)
    assert attempt.trial_number == 1, "of six, the second is promoted"

    train_attempt(made, attempt, digits, StopSignal(), config)

    trial = made.trials()[1]
    [replaced_by] = figures_of(made, trial)
    assert replaced_by != figure_id
    assert figure_id not in files_in(artifacts)
    assert f"/{replaced_by})" in note_of(made, trial)


def test_a_full_store_costs_a_trial_its_figure_and_nothing_else(
    storage: Storage, digits: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = make_study(storage, 1, FIXED)

    assert train_attempt(
        made, claim(made), digits, StopSignal(), WorkerConfig(artifacts=Artifacts("full", FullStore(str(tmp_path))))
    )

    trial = finished_trial(made)
    assert trial.state == TrialState.COMPLETE
    assert figures_of(made, trial) == []
    assert "![" not in note_of(made, trial)
    assert caplog.messages == ["trial 0 has no figure: artifacts full: [Errno 28] No space left on device"]


def test_a_figure_that_cannot_be_drawn_costs_no_trial(
    storage: Storage,
    digits: Dataset,
    artifacts: Artifacts,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("none left")

    monkeypatch.setattr("hpo.results.figures.training_figure", fail)
    made = make_study(storage, 1, FIXED)

    assert train_attempt(made, claim(made), digits, StopSignal(), WorkerConfig(artifacts=artifacts))

    assert finished_trial(made).state == TrialState.COMPLETE
    assert files_in(artifacts) == []
    assert caplog.messages == ["trial 0 has no figure: it could not be drawn"]


def test_a_worker_that_was_given_up_leaves_neither_note_nor_figure(
    storage: Storage, digits: Dataset, artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_study(storage, 1, FIXED)
    attempt = claim(made)
    write = Artifacts.write

    def lose_the_lease_while_writing(self: Artifacts, content: bytes) -> Any:
        with storage.transaction() as session:
            session.execute(update(AttemptRow).values(ended_s=0.0))
        return write(self, content)

    monkeypatch.setattr(Artifacts, "write", lose_the_lease_while_writing)

    assert not train_attempt(made, attempt, digits, StopSignal(), WorkerConfig(artifacts=artifacts))

    trial = finished_trial(made)
    assert (trial.state, note_of(made, trial), files_in(artifacts)) == (TrialState.RUNNING, "", [])


def test_a_trial_that_failed_has_a_note_that_says_why(
    storage: Storage, digits: Dataset, artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("none left")

    monkeypatch.setattr("hpo.worker.work.run_trial", fail)
    made = make_study(storage, 1)

    assert train_attempt(made, claim(made), digits, StopSignal(), WorkerConfig(artifacts=artifacts))

    trial = finished_trial(made)
    lines = note_of(made, trial).splitlines()
    assert trial.state == TrialState.FAIL
    assert re.fullmatch(r"\*\*Failed: MemoryError: none left \(test_publish.py:\d+\)\.\*\*", lines[0])
    assert "| head | dropout | dropout |" in lines
    assert files_in(artifacts) == []


def test_a_trial_whose_workers_vanished_has_a_note_too(storage: Storage) -> None:
    made = make_study(storage, 1)
    for _ in range(losses.MAX_LAPSES + 1):
        claim(made, lease_s=-1)
        losses.reap(storage, made.study_id)

    trial = finished_trial(made)
    assert (trial.state, note_of(made, trial)) == (
        TrialState.FAIL,
        "**Failed: 4 attempts were lost without getting past iteration 0; the last: its worker vanished.**",
    )


def test_the_note_of_a_study_is_written_once_and_a_persons_words_stay(storage: Storage) -> None:
    made = continue_or_create(storage, "small", SETTINGS, 1, note="ours")
    study = optuna.load_study(study_name="small", storage=storage.optuna)
    assert optuna_dashboard.get_note(study) == "ours"

    optuna_dashboard.save_note(study, "theirs")
    continue_or_create(storage, made.name, SETTINGS, 2, note="ours")

    assert optuna_dashboard.get_note(study) == "theirs"


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_trial_that_is_handed_back_has_no_note_yet(storage: Storage, digits: Dataset, artifacts: Artifacts) -> None:
    made = make_study(storage, 1, FIXED)

    assert not train_attempt(
        made, claim(made), digits, StopSignal(reason="terminated"), WorkerConfig(artifacts=artifacts)
    )

    trial = finished_trial(made)
    assert (trial.state, note_of(made, trial), files_in(artifacts)) == (TrialState.WAITING, "", [])
