"""Let workers train where the promise of equal bits is broken on purpose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hpo import study
from hpo.artifacts import open_artifacts
from hpo.database import study_state
from hpo.database.storage import Storage
from hpo.trial import promise
from hpo.trial.checkpoints import Checkpoints, decode
from hpo.worker.rotation import StudyRotation
from hpo.worker.work import WorkerConfig
from tests.conftest import Kind
from tests.disturbance import one_bit_off
from tests.integration.support import PROMOTING, make_study
from tests.integration.test_study import content, train

TRIALS = 9
WARNING = "does not repeat training bit for bit in fp32 (interrupted at iterations 1, 4 and 5: "


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let each checkpoint of a self-check come back with another bit."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(promise, "decode", lambda written: one_bit_off(decode(written)))


@pytest.mark.usefixtures("broken")
def test_a_device_that_breaks_the_promise_trains_promoted_trials_from_their_start(
    make_url: Callable[[Kind], str], opened: Callable[..., Storage], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    artifacts, storage = tmp_path / "artifacts", opened(make_url("sqlite"))
    made = make_study(storage, TRIALS, PROMOTING)

    assert train(made, Checkpoints(storage, open_artifacts(str(artifacts)))) > 0

    assert sum(WARNING in record.getMessage() for record in caplog.records) == 1
    assert list(artifacts.iterdir()) == [], "no checkpoint is written"
    found, spent = content(made), study.status(made)["iterations_spent"]
    assert all(trial["state"] in ("COMPLETE", "PRUNED") for trial in found)
    for trial in found:
        iterations = [point.iteration for point in trial["curve"]]
        assert iterations == sorted(set(iterations)) and iterations[-1] == trial["user_attrs"]["iterations"]
    assert spent["trained"] > spent["requested"], "what was promoted has been trained again"


@pytest.mark.usefixtures("broken")
def test_a_worker_of_all_studies_shares_nothing_there_either(
    storage: Storage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    artifacts = tmp_path / "artifacts"
    made = make_study(storage, 1)
    checkpoints = Checkpoints(storage, open_artifacts(str(artifacts)))
    rotation = StudyRotation(
        storage=storage,
        device=torch.device("cpu"),
        data_dir=tmp_path,
        config=WorkerConfig(checkpoints=checkpoints),
        at_end_of=lambda _study: None,
    )
    [load] = study_state.list_study_loads(storage, made.name)

    served = rotation._prepare(load)

    assert served is not None and served.config.checkpoints is None
    assert sum(WARNING in record.getMessage() for record in caplog.records) == 1
