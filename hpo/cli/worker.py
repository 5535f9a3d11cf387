"""`hpo worker`: join a study, or serve all studies, from any machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hpo.cli.data import decode_for
from hpo.cli.help import STUDY, WORKERS
from hpo.cli.options import (
    ArtifactsOption,
    BudgetOption,
    DataOption,
    LeaseOption,
    ReuseOption,
    StorageOption,
    StorageTimeoutOption,
    StudyOption,
)
from hpo.cli.output import exit_if_stopped, log_to_stderr, say
from hpo.errors import BadInput
from hpo.paths import expand_path
from hpo.settings import (
    DEFAULT_ARTIFACTS,
    DEFAULT_CHECKPOINT_GB,
    DEFAULT_DEVICE,
    DEFAULT_LEASE_S,
    DEFAULT_REUSE,
    DEFAULT_STORAGE,
    DEFAULT_STORAGE_TIMEOUT_S,
    GIGABYTE,
    check_study_name,
    default_data_dir,
)
from hpo.wording import counted

if TYPE_CHECKING:
    from torch import device

    from hpo.database.storage import Storage
    from hpo.worker.stop import StopSignal
    from hpo.worker.work import WorkerConfig


def worker(
    study_name: StudyOption = None,
    forever: Annotated[
        bool,
        typer.Option(
            "--forever", help="Serve all studies in turn, or the one of --study; never exit.", rich_help_panel=WORKERS
        ),
    ] = False,
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda or cuda:N.", rich_help_panel=WORKERS)
    ] = DEFAULT_DEVICE,
    reuse: ReuseOption = DEFAULT_REUSE,
    checkpoint_budget: BudgetOption = DEFAULT_CHECKPOINT_GB,
    storage_timeout: StorageTimeoutOption = DEFAULT_STORAGE_TIMEOUT_S,
    lease: LeaseOption = DEFAULT_LEASE_S,
    storage: StorageOption = DEFAULT_STORAGE,
    artifacts: ArtifactsOption = DEFAULT_ARTIFACTS,
    data_dir: DataOption = None,
    dataset: Annotated[
        Path | None,
        typer.Option(
            parser=expand_path,
            metavar="PATH",
            help="The study's folder of images or .npz file, if --data-dir lacks it.",
            rich_help_panel=STUDY,
        ),
    ] = None,
) -> None:
    """Train trials of a study from any machine.

    The machine must reach the storage and the artifacts. The worker exits when no trial is left.
    """
    from hpo.artifacts import open_artifacts
    from hpo.database.retry import RetryPolicy
    from hpo.database.storage import open_storage
    from hpo.launch.process import DRIVER_ENV
    from hpo.trial.checkpoints import Checkpoints
    from hpo.worker.device import open_device
    from hpo.worker.stop import StopSignal
    from hpo.worker.work import WorkerConfig

    log_to_stderr("%(asctime)s %(process)d %(levelname)s %(message)s")
    if study_name is not None:
        check_study_name(study_name)
    if dataset is not None and forever:
        raise BadInput(f"--dataset {dataset}: only valid without --forever, as it belongs to one study")
    stop = StopSignal(parent=_driver(os.environ.get(DRIVER_ENV, "")))
    retry_policy = RetryPolicy(storage_timeout, gives_up=stop.__bool__)
    # With --forever the first study may be created later, and the tables with it.
    access: Literal["create", "write"] = "create" if forever else "write"
    database = retry_policy.call(lambda: open_storage(storage, access, retry_policy, one_connection=True))
    picked = open_device(device)
    store = open_artifacts(artifacts)
    checkpoints = Checkpoints(database, store, int(checkpoint_budget * GIGABYTE)) if reuse else None
    config = WorkerConfig(checkpoints=checkpoints, artifacts=store, lease_s=lease)
    folder = data_dir or default_data_dir()
    if forever:
        _serve_forever(database, study_name, picked, folder, config, stop)
    else:
        _serve_one(database, study_name, picked, folder, config, stop, dataset)
    exit_if_stopped(stop)


def _serve_one(
    storage: Storage,
    name: str | None,
    device: device,
    data_dir: Path,
    config: WorkerConfig,
    stop: StopSignal,
    dataset: Path | None,
) -> None:
    from hpo import study as studies
    from hpo.database import study_state
    from hpo.database.ends import find_ends
    from hpo.results.test_split import end_of_run
    from hpo.worker.work import work

    study = studies.load(storage, name)
    if dataset is not None:
        decode_for(study, dataset, data_dir)
    finished = work(
        study,
        device=device,
        data_dir=data_dir,
        checkpoints=config.checkpoints,
        stop=stop,
        lease_s=config.lease_s,
        artifacts=config.artifacts,
        at_end=end_of_run(study, data_dir),
    )
    say(f"finished {counted(finished, 'trial')} of {study.name}")
    if used_up := studies.find_used_up(study):
        say(used_up)
    state = study_state.find_state(storage, study.study_id)
    if not stop and state in ("stopped", "finishing"):
        say(f"study {study.name} was stopped; continue it with `hpo resume --study {study.name}`")
    if not stop and state == "ended":
        say(f"study {study.name} has ended: {find_ends(storage, study.study_id)[1]}")


def _serve_forever(
    storage: Storage, name: str | None, device: device, data_dir: Path, config: WorkerConfig, stop: StopSignal
) -> None:
    from hpo.results.test_split import end_of_run
    from hpo.worker.rotation import StudyRotation

    say(f"serving {f'study {name}' if name else 'all studies'} of {storage.url} until interrupted")
    rotation = StudyRotation(
        storage=storage,
        device=device,
        data_dir=data_dir,
        config=config,
        at_end_of=lambda study: end_of_run(study, data_dir),
        only=name,
    )
    finished = rotation.serve(stop)
    say(f"finished {counted(finished, 'trial')}")


def _driver(given: str) -> int | None:
    """Read the process id that a driver passes to its workers."""
    if given and not (given.isascii() and given.isdigit()):
        raise BadInput(f"HPO_DRIVER_PID is {given!r}, which is not a process id; `hpo run` sets it for its workers")
    return int(given) if given else None
