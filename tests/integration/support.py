"""Hold what several integration tests need: processes, settings of small studies, whole databases to compare."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from operator import itemgetter
from pathlib import Path
from typing import Any

from optuna.trial import TrialState
from sqlalchemy import MetaData, select

from hpo import study
from hpo.database import overview, queue
from hpo.database.attempt import Attempt, Outcome, Progress, WorkerId
from hpo.database.optuna_tables import TrialModel
from hpo.database.storage import Storage
from hpo.errors import HpoError
from hpo.recipes.schedule import CurvePoint
from hpo.sampling import sample
from hpo.settings import DEFAULT_LEASE_S, StudySettings

START_S = 300.0  # to import torch on a busy machine
PROCESSES_S = 300.0  # the machine may be busy
DIGITS_SPLIT = "0f0e738ae99df2fa73a31ad2b375d86bdf1c35183d3e625bfd18b5f805ab67a4"

# A small batch makes an iteration five times as fast as the documented one of 128.
SPACE: dict[str, Any] = {
    "name": "small",
    "description": "",
    "base": {
        "head": "dropout",
        "dropout": 0.5,
        "shortcut_norm": True,
        "boundaries": [20000, 40000],
        "values": [0.05, 0.02, 0.005],
        "batch_size": 8,
    },
    "search": {
        "head": ["linear", "dropout", "dense"],
        "dropout": {"low": 0.1, "high": 0.5, "step": 0.2},
        "early_stopping": [False, True],
        "patience": [6000, 12000],
        "boundaries": [{"low": 12000, "high": 28000, "step": 4000}, {"low": 32000, "high": 48000, "step": 4000}],
        "values": [[0.05, 0.1], [0.01, 0.02, 0.05], [0.001, 0.002, 0.005]],
    },
}
SETTINGS = StudySettings(
    space=SPACE,
    dataset="digits",
    split=DIGITS_SPLIT,
    image_shape=(8, 8, 1),
    classes=10,
    augment="crop",
    iterations=32,
    seed=0,
    precision="fp32",
    sampler="tpe",
    pruner="median",
    align="phase",
)
PROMOTING = replace(SETTINGS, sampler="random", pruner="asha")
WORKER = WorkerId(name="host:1", host="host", device="cpu")
NOTHING = Progress(iteration=0, trained_iterations=0, val_accuracy=None)
PROCESSES = 4  # that a test starts at once
LAPSED = -1.0  # a lease that is over when it begins: no test has to wait
HALFWAY = Progress(iteration=16, trained_iterations=16, val_accuracy=0.5)
POINTS = (
    CurvePoint(iteration=8, train_loss=2.0, val_loss=1.9, val_accuracy=0.25),
    CurvePoint(iteration=16, train_loss=1.5, val_loss=1.25, val_accuracy=0.5),
)
VALUES = {8: 0.25, 16: 0.5}


def in_processes(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Make calls at once, each in a process of its own, and give their results in order."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hpo.study", "psycopg", "pytest"])
    barrier = context.Barrier(len(calls))
    deadline = time.monotonic() + PROCESSES_S
    with ProcessPoolExecutor(len(calls), context, _keep_barrier, (barrier,)) as pool:
        futures = [pool.submit(_call_together, function, call) for call in calls]
        return [future.result(deadline - time.monotonic()) for future in futures]


_barriers: list[Barrier] = []  # a barrier reaches a process when that is started, not with its call


def _keep_barrier(barrier: Barrier) -> None:
    _barriers.append(barrier)


def _call_together(function: Callable[..., Any], call: tuple[Any, ...]) -> Any:
    _barriers[0].wait(PROCESSES_S)
    return function(*call)


def make_study(storage: Storage, total: int, settings: StudySettings = SETTINGS) -> study.Study:
    """Make the study `small` of so many waiting trials."""
    return study.continue_or_create(storage, "small", settings, total)


def claim(made: study.Study, lease_s: float = DEFAULT_LEASE_S) -> Attempt:
    """Claim the oldest waiting trial, which there must be."""
    attempt = queue.claim(made.storage, made.study_id, WORKER, lease_s)
    assert attempt is not None
    return attempt


def suggest(made: study.Study, attempt: Attempt) -> dict[str, Any]:
    """Sample the parameters of a claimed trial, as its worker would."""
    return dict(sample(made, attempt, NOTHING).params)


def complete(made: study.Study, attempt: Attempt, value: float, loss: float | None = None) -> None:
    """Finish a claimed trial without training."""
    loss = 1 - value if loss is None else loss
    attrs = {"outcome": "complete", "iterations": 32, "validation loss": loss, "standard error": 0.01}
    queue.finish(made.storage, attempt, NOTHING, Outcome(state="complete", value=value, attrs=attrs))


def dump(storage: Storage) -> dict[str, list[dict[str, Any]]]:
    """Load all rows of all tables, by the names of their columns."""
    tables = MetaData()
    with storage.engine.connect() as connection:
        tables.reflect(connection)
        return {
            name: sorted((dict(row) for row in connection.execute(select(table)).mappings()), key=repr)
            for name, table in tables.tables.items()
        }


def list_attempts(storage: Storage) -> list[dict[str, Any]]:
    """Load all attempts at trials, the oldest first."""
    return sorted(dump(storage)["hpo_attempts"], key=itemgetter("attempt_id"))


def wait_until(holds: Callable[[], Any], limit_s: float, what: str, pause_s: float = 0.05) -> Any:
    """Poll until something holds, and give what it gave."""
    deadline = time.monotonic() + limit_s
    while not (found := holds()):
        assert time.monotonic() < deadline, f"not within {limit_s:g} s: {what}"
        time.sleep(pause_s)
    return found


def load_all_of_trials(storage: Storage) -> dict[str, object]:
    """Load all that belongs to a trial: a worker that comes back may still add checkpoints, and leave the list."""
    ours = ("hpo_checkpoints", "hpo_segments", "hpo_attempts", "hpo_workers")
    return {name: rows for name, rows in dump(storage).items() if name not in ours}


def wait_until_it_trains(made: study.Study, workers: int = 1) -> None:
    """Wait until so many trials have parameters, and a measurement."""

    def trains() -> bool:
        running = overview.list_running(made.storage, made.study_id)
        return len(running) == workers and all(row.val_accuracy is not None for row in running)

    wait_until(trains, START_S, f"{workers} workers that train")


def find_study(url: str, opened: Callable[..., Storage]) -> study.Study | None:
    try:
        return study.load(opened(url), "small")
    except HpoError:  # not made yet
        return None


def is_running(pid: int) -> bool:
    """Tell whether a process lives; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def states(made: study.Study) -> list[tuple[int, TrialState]]:
    """List number and state of the trials as another process would see them."""
    with made.storage.engine.connect() as connection:
        trials = TrialModel
        rows = connection.execute(select(trials.number, trials.state).where(trials.study_id == made.study_id))
        return sorted((number, state) for number, state in rows)
