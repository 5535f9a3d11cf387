"""Break the devices of workers, or let them hang: no trial pays for its device, and no healthy worker for a sick one.

No GPU is at hand: what a fault leaves behind is that every further call fails, which is what these tests let torch do.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from optuna.trial import TrialState

from hpo import study
from hpo.artifacts import open_artifacts
from hpo.database import overview, workers
from hpo.database.overview import Counts
from hpo.database.storage import Storage
from hpo.errors import DeviceLost, StudyFailed
from hpo.training.train import Training
from hpo.trial.checkpoints import Checkpoints
from hpo.worker import work as worker
from hpo.worker.rotation import StudyRotation
from hpo.worker.stop import StopSignal
from hpo.worker.work import WorkerConfig
from tests.integration.conftest import Start
from tests.integration.preloaded import Forked
from tests.integration.sharing import require_undisturbed
from tests.integration.support import SPACE, list_attempts, make_study, wait_until

Open = Callable[..., Storage]
Advance = Callable[..., int]
CPU = torch.device("cpu")
START_S = 300.0  # to import torch on a busy machine
FINISH_S = 300.0
SHORT_LEASE_S = 12.0  # after memory was short a worker waits for a sixth of it
LOST = "device cpu: CUDA error: an illegal memory access was encountered"
LOST_LINE = f"{LOST}; this worker exits; another process may be using it"


def break_device(*_: object, **__: object) -> int:
    raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")


def work_here(made: study.Study, folder: Path, lease_s: float = 60.0) -> int:
    checkpoints = Checkpoints(made.storage, open_artifacts(str(folder / "artifacts")))
    stop = StopSignal()
    return worker.work(made, device=CPU, data_dir=folder, stop=stop, checkpoints=checkpoints, lease_s=lease_s)


def outcomes(storage: Storage) -> list[str]:
    return [row["outcome"] for row in list_attempts(storage)]


def lose_device(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Let the device fail in training after so many stretches, and from then on."""
    advance: Advance = Training.advance
    calls = 0

    def train(self: Training, *arguments: object) -> int:
        nonlocal calls
        calls += 1
        if calls <= after:
            return advance(self, *arguments)
        monkeypatch.setattr(torch, "ones", break_device)
        return break_device()

    monkeypatch.setattr(Training, "advance", train)


def test_a_worker_whose_device_is_lost_ends_and_another_finishes_its_trial(storage: Storage, tmp_path: Path) -> None:
    made = make_study(storage, 2)

    with pytest.MonkeyPatch.context() as broken, pytest.raises(DeviceLost) as lost:
        lose_device(broken, after=2)
        work_here(made, tmp_path)

    assert str(lost.value) == LOST_LINE
    assert overview.count(storage, made.study_id) == Counts(waiting=2)
    assert workers.list_workers(storage) == []
    [left] = list_attempts(storage)
    assert (left["outcome"], left["iteration"] > 0) == ("device lost", True)
    params = made.trials()[0].params
    assert params

    assert work_here(made, tmp_path) == 2

    assert made.trials()[0].params == params
    assert overview.count(storage, made.study_id).failed == 0
    assert outcomes(storage)[0] == "device lost"
    require_undisturbed(made, tmp_path)


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_trial_whose_devices_are_lost_fails_at_the_fourth_with_the_reason(storage: Storage, tmp_path: Path) -> None:
    made = make_study(storage, 1)

    for _ in range(4):
        assert overview.count(storage, made.study_id) == Counts(waiting=1)
        with pytest.MonkeyPatch.context() as broken, pytest.raises(DeviceLost):
            lose_device(broken, after=0)
            work_here(made, tmp_path)

    assert overview.count(storage, made.study_id) == Counts(failed=1)
    assert outcomes(storage) == ["device lost"] * 4
    assert made.trials()[0].user_attrs["outcome"] == (
        f"failed: 4 attempts were lost without getting past iteration 0; the last: {LOST_LINE}"
    )


def starve(times: int) -> Advance:
    """Let so many calls find no memory."""
    advance: Advance = Training.advance
    calls = 0

    def train(self: Training, *arguments: object) -> int:
        nonlocal calls
        calls += 1
        if calls <= times:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return advance(self, *arguments)

    return train


@pytest.mark.parametrize("kind", ["sqlite"])
def test_memory_that_neighbours_took_spends_a_retry_and_the_worker_goes_on(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_study(storage, 2)
    monkeypatch.setattr(worker, "SHARED_MEMORY", ("cpu",))
    monkeypatch.setattr(Training, "advance", starve(times=2))

    assert work_here(made, tmp_path, SHORT_LEASE_S) == 2

    assert outcomes(storage) == ["device full", "device full", "complete", "complete"]
    require_undisturbed(made, tmp_path)


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_trial_that_never_finds_memory_fails_at_the_fourth_and_a_study_of_such_is_given_up(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_study(storage, 9)
    monkeypatch.setattr(worker, "SHARED_MEMORY", ("cpu",))
    monkeypatch.setattr(worker, "beat_s", lambda _lease_s: 0.0)
    monkeypatch.setattr(Training, "advance", starve(times=1000))

    with pytest.raises(StudyFailed):
        work_here(made, tmp_path)

    assert overview.count(storage, made.study_id) == Counts(failed=5, waiting=4)
    assert outcomes(storage) == ["device full"] * (4 * 5 + 4), "four more, as trials that were not lost here come first"
    reason = made.trials()[0].user_attrs["outcome"]
    assert reason.startswith(
        "failed: 4 attempts were lost without getting past iteration 0; "
        "the last: OutOfMemoryError: CUDA out of memory. (test_devices.py:"
    )


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_worker_that_starts_on_a_device_that_does_not_compute_claims_nothing(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_study(storage, 2)
    monkeypatch.setattr(torch, "ones", break_device)
    rotation = StudyRotation(
        storage=storage, device=CPU, data_dir=tmp_path, config=WorkerConfig(), at_end_of=lambda _study: None
    )

    for serve in (lambda: work_here(made, tmp_path), lambda: rotation.serve(StopSignal())):
        with pytest.raises(DeviceLost, match=LOST):
            serve()

    assert list_attempts(storage) == []
    assert overview.count(storage, made.study_id) == Counts(waiting=2)


# What tidies up after a spoiled context may hang: a thread that never ends keeps an interpreter that exits in order.
HANG_AT_THE_END = """
import threading

threading.Thread(target=threading.Event().wait).start()
"""
LOSE_DEVICE = f"""
{HANG_AT_THE_END}
import torch
from hpo.training.train import Training

def fail(*_, **__): raise RuntimeError("CUDA error: an illegal memory access was encountered")

def train(*_):
    torch.ones = fail
    fail()

Training.advance = train
"""


@pytest.mark.parametrize("options", [(), ("--forever",)])
@pytest.mark.parametrize("kind", ["sqlite"])
def test_the_process_of_a_worker_on_a_lost_device_ends_at_once_with_code_1(
    storage: Storage, start: Start, options: tuple[str, ...]
) -> None:
    made = make_study(storage, 1)

    process = start("worker", *options, before=LOSE_DEVICE)
    _, err = process.communicate(timeout=START_S)

    assert (process.returncode, err.splitlines()[-1]) == (1, f"error: {LOST_LINE}")
    assert "trial 0: attempt 1 failed" in err
    assert outcomes(storage) == ["device lost"]
    assert overview.count(storage, made.study_id) == Counts(waiting=1)
    assert workers.list_workers(storage) == []


# The worker on `cpu:0` is the one on a sick device; the other waits in its first trial until that place is given up.
ONE_SICK = """
import sys, time
from pathlib import Path

import torch
from hpo.launch import local
from hpo.launch.devices import WorkerDevice
from hpo.training.train import Training

devices = {name: WorkerDevice(name=name, option=name) for name in ("cpu", "cpu:0")}
local.choose_devices = lambda *_, **__: list(devices.values())
ones, advance = torch.ones, Training.advance

def look(*arguments, **options):
    if "cpu:0" in sys.argv:
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered")
    return ones(*arguments, **options)

def train(*arguments):
    while not Path("given up").exists():
        time.sleep(0.01)
    return advance(*arguments)

torch.ones, Training.advance = look, train
"""
ALL_SICK = f"{ONE_SICK}\nlocal.choose_devices = lambda *_, **__: [devices['cpu:0']] * 2\n"
RUN = ["run", "--no-confirm", "--space", "small.yaml", "--study", "small", "--dataset", "digits", "--iterations", "32"]
RUN += ["--trials", "3", "--pruner", "none", "--precision", "fp32"]


def died(folder: Path) -> str:
    return f"the worker on cpu:0 died 4 times in a row, last with code 1; its output is in {folder}/small.log; "


@pytest.mark.parametrize("kind", ["sqlite"])
def test_one_sick_device_of_two_is_given_up_and_the_other_finishes_the_study(
    storage_url: str, opened: Open, start: Start, tmp_path: Path
) -> None:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SPACE))

    driver = start(*RUN, before=ONE_SICK)
    assert isinstance(driver, Forked)
    warning = f"{died(tmp_path)}no more workers are started there, 1 devices remain"
    wait_until(lambda: warning in driver.printed(), START_S, "a place that is given up")
    (tmp_path / "given up").touch()
    _, err = driver.communicate(timeout=FINISH_S)

    assert driver.returncode == 0, err
    made = study.load(opened(storage_url), "small")
    assert [trial.state for trial in made.trials()] == [TrialState.COMPLETE] * 3
    assert set(outcomes(made.storage)) == {"complete"}
    assert "device cpu:0: CUDA error: uncorrectable ECC error" in (tmp_path / "small.log").read_text()
    require_undisturbed(made, tmp_path)


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_study_of_which_every_device_is_sick_fails_and_its_trials_wait(
    storage_url: str, opened: Open, start: Start, tmp_path: Path
) -> None:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SPACE))

    driver = start(*RUN, before=ALL_SICK)
    _, err = driver.communicate(timeout=START_S)

    assert (driver.returncode, err.splitlines()[-1]) == (1, f"error: {died(tmp_path)}no other device remains")
    made = study.load(opened(storage_url), "small")
    assert overview.count(made.storage, made.study_id) == Counts(waiting=3)
    assert list_attempts(made.storage) == []


WATCHED = """
import threading
from functools import partial

from hpo.training import train
from hpo.worker import work
from hpo.worker.watch import HangLimits

work.TrialSupervisor = partial(work.TrialSupervisor, hang_limits=HangLimits(least_s=0.5, stretches=2.0))

def hang(*_, **__):
    threading.Event().wait()
"""

# Where the device hangs: in a step of the third stretch of training, while the network is built, or copied from it.
HANGS = {
    "step": """
draw, drawn = train.Batches.draw, []

def draw_or_hang(self, *arguments):
    drawn.append(None)
    return draw(self, *arguments) if len(drawn) < 10 else hang()

train.Batches.draw = draw_or_hang
""",
    "network": "train.ResNet = hang",
    "checkpoint": "train.ResNet.state_dict = hang",
}


@pytest.mark.parametrize("where", HANGS)
def test_a_worker_whose_device_hangs_ends_and_another_finishes_its_trial(
    where: str, storage: Storage, start: Start, tmp_path: Path
) -> None:
    made = make_study(storage, 1)

    process = start("worker", "--lease", "2", before=WATCHED + HANGS[where])
    _, err = process.communicate(timeout=START_S)

    assert process.returncode == 1, err
    assert "ERROR trial 0: training has made no progress for " in err
    assert outcomes(storage) == ["hung"]
    assert overview.count(storage, made.study_id) == Counts(waiting=1)
    params = made.trials()[0].params

    assert work_here(made, tmp_path) == 1

    assert outcomes(storage) == ["hung", "complete"]
    assert made.trials()[0].params == params
    require_undisturbed(made, tmp_path)
