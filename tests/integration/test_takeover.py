"""Begin a study with what another found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.trial import TrialState

from hpo import steering, study
from hpo.artifacts import open_artifacts
from hpo.database import overview
from hpo.database.storage import Storage
from hpo.errors import BadInput, StudyMismatch, StudyNotFound
from hpo.results import export
from hpo.trial.checkpoints import Checkpoints
from hpo.worker.stop import StopSignal
from hpo.worker.verify import load_as_worker, verify
from hpo.worker.work import work
from tests.integration.support import PROMOTING, dump, make_study

TRIALS = 6
NARROW = replace(
    PROMOTING, space=PROMOTING.space | {"search": PROMOTING.space["search"] | {"head": ["dropout", "dense"]}}
)


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def train(made: study.Study, folder: Path) -> int:
    checkpoints = Checkpoints(made.storage, open_artifacts(f"{folder}/artifacts"))
    return work(made, device=torch.device("cpu"), data_dir=folder, stop=StopSignal(), checkpoints=checkpoints)


def begin(storage: Storage, settings: Any, total: int, name: str = "edited", source: str = "small") -> study.Study:
    begun = steering.begin_from(storage, name, settings, source)
    return study.continue_or_create(storage, name, settings, total, prepare=begun and begun[0])


def shown(made: study.Study) -> list[tuple[Any, ...]]:
    """List what is known of each finished trial, but its number and time."""
    return [
        (
            made.recipe_of(trial),
            trial.state,
            trial.value,
            trial.intermediate_values,
            {key: value for key, value in trial.user_attrs.items() if key != "begun from"},
            overview.load_curve(made.storage, trial._trial_id),
        )
        for trial in made.trained_trials()
    ]


def steps(made: study.Study) -> int:
    return overview.trained_iterations(made.storage, made.study_id)


def test_what_both_spaces_have_is_taken_over_at_no_step_and_the_search_goes_on(
    storage: Storage, tmp_path: Path
) -> None:
    source = make_study(storage, TRIALS, PROMOTING)
    train(source, tmp_path)
    inside = [row for row in shown(source) if row[0].head != "linear"]
    assert 0 < len(inside) < TRIALS

    begun = steering.begin_from(storage, "edited", NARROW, "small")
    assert begun is not None
    assert (begun[1].taken, begun[1].left) == (len(inside), TRIALS - len(inside))
    edited = begin(storage, NARROW, len(inside))

    assert shown(edited) == inside
    assert train(edited, tmp_path) == 0
    assert steps(edited) == 0
    assert steering.begin_from(storage, "edited", NARROW, "small") is None
    before = dump(storage)["trials"]
    begin(storage, NARROW, len(inside))
    assert dump(storage)["trials"] == before, "the same command copies nothing twice"
    best = study.best(edited)
    assert best.recipe == edited.space.recipe(edited.trials()[best.trial].params, iterations=32, seed=0)
    checkpoints = Checkpoints(storage, open_artifacts(f"{tmp_path}/artifacts"))
    assert "bit for bit" in verify(edited, best.trial, tmp_path, checkpoints, lambda _: None)
    announced: list[str] = []
    exported = export.load(edited, best, load_as_worker(edited, tmp_path), checkpoints, "", None, announced.append)
    assert (exported.val_accuracy, announced) == (best.value, []), "it has the checkpoint of the trial that it copies"

    with storage.translated():
        storage.optuna.delete_study(source.study_id)
    larger = begin(storage, NARROW, len(inside) + 1)
    train(larger, tmp_path)
    counts = overview.count(storage, larger.study_id)
    assert (counts.finished, counts.waiting) == (len(inside) + 1, 0)
    assert [trial.number for trial in larger.trials()] == list(range(len(inside) + 1))
    assert larger.trials()[0].state == TrialState.COMPLETE


@pytest.mark.parametrize("kind", ["sqlite"])
def test_what_differs_is_refused_with_both_values_and_nothing_is_created(storage: Storage) -> None:
    make_study(storage, 1, PROMOTING)
    base = PROMOTING.space["base"] | {"weight_decay": 0.1}
    for settings, message in (
        (replace(PROMOTING, iterations=64), "iterations is 32 in the study and 64 here"),
        (replace(PROMOTING, seed=1), "seed is 0 in the study and 1 here"),
        (replace(PROMOTING, pruner="median"), "pruner is asha in the study and median here"),
        (
            replace(PROMOTING, space=PROMOTING.space | {"base": base}),
            "weight_decay of the base recipe is 0.0 in the study and 0.1 here",
        ),
    ):
        with pytest.raises(StudyMismatch) as refused:
            begin(storage, settings, 3)
        assert str(refused.value) == f"--from small: the study has other settings: {message}"
    with pytest.raises(BadInput, match=r"^--from small: is the study itself; choose another name with --study$"):
        begin(storage, PROMOTING, 3, name="small")
    with pytest.raises(StudyNotFound, match="has no hpo study 'none'"):
        begin(storage, PROMOTING, 3, source="none")
    with pytest.raises(StudyNotFound):
        study.load(storage, "edited")
    study.continue_or_create(storage, "edited", PROMOTING, 3)
    with pytest.raises(StudyMismatch, match=r"^--from small: the study has trials, and was not begun from that one"):
        begin(storage, PROMOTING, 3)
