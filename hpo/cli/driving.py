"""Drive a study's workers: what `hpo run` and `hpo benchmark` have in common."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from hpo.cli.options import LauncherChoice
from hpo.cli.output import exit_if_stopped, say
from hpo.errors import BadInput

if TYPE_CHECKING:
    from hpo.cli.progress import Progress
    from hpo.database.overview import Counts
    from hpo.launch.supervise import Launcher, Workers
    from hpo.study import Study
    from hpo.worker.stop import StopSignal


def check_launcher(launcher: LauncherChoice, address: str | None, gpus_per_worker: float | None) -> None:
    """Refuse options of Ray without it.

    Raises:
        BadInput: Naming the option.
    """
    if launcher == LauncherChoice.ray:
        return
    for option, value in (("--address", address), ("--gpus-per-worker", gpus_per_worker)):
        if value is not None:
            raise BadInput(f"{option} {value}: allowed only with --launcher ray")


def connect(
    launcher: LauncherChoice,
    address: str | None,
    storage: str,
    workers: int | None,
    gpus_per_worker: float | None,
    stop: StopSignal,
) -> Launcher:
    """Find out where workers can run, which may take a while on a cluster.

    Raises:
        BadInput: Ray is not installed, or the cluster can have no such workers.
        ClusterUnavailable: There is no such cluster.
    """
    if launcher == LauncherChoice.local:
        from hpo.launch.local import LocalLauncher

        return LocalLauncher(workers)
    try:
        from hpo.launch.ray import RayLauncher
    except ModuleNotFoundError as error:
        raise BadInput(f"--launcher ray: needs `pip install hpo[ray]` ({error})") from error
    with stop.installed():
        found = RayLauncher.connect(address, storage, workers, gpus_per_worker)
        if stop:
            found.close()
    exit_if_stopped(stop)
    return found


def worker_options(
    data_dir: Path, checkpoint_gb: float, storage_timeout_s: float, lease_s: float, reuse: bool
) -> list[str]:
    """Write the options of `hpo worker` that all workers of a driver get."""
    options = ["--data-dir", str(data_dir.absolute()), "--checkpoint-budget", str(checkpoint_gb)]
    options += ["--storage-timeout", str(storage_timeout_s), "--lease", str(lease_s)]
    return options + ([] if reuse else ["--no-reuse"])


def worker_environment(storage: str, artifacts: str) -> dict[str, str]:
    """Name the shared places to workers, which may work in another folder."""
    from hpo.artifacts import absolute_artifacts
    from hpo.database.storage import absolute_url

    return {"HPO_STORAGE": absolute_url(storage), "HPO_ARTIFACTS": absolute_artifacts(artifacts)}


def drive(
    study: Study,
    launcher: Launcher,
    timeout_s: float | None,
    options: list[str],
    environment: dict[str, str],
    stop: StopSignal,
) -> None:
    """Train a study's trials until none is left, and show how it goes on.

    Raises:
        StudyFailed: A worker kept dying.
        typer.Exit: A signal ended it.
    """
    with stop.installed(), closing(launcher):
        workers = launcher.prepare(study, ["--study", study.name, *options], environment)
        _train(study, workers, timeout_s, stop)
    if stop.reason == "timed out":
        say(f"stopped after {timeout_s:g} s; the same command continues")
    if stop.reason == "stopped":
        say(f"study {study.name} was stopped; `hpo resume --study {study.name}`, or the same command, continues")
    exit_if_stopped(stop)


def _train(study: Study, workers: Workers, timeout_s: float | None, stop: StopSignal) -> None:
    from hpo.cli.progress import Progress
    from hpo.database import overview

    counts = overview.count(study.storage, study.study_id)
    if counts.waiting + counts.running == 0:
        return
    say(f"study {study.name}: {workers.summary}")
    stop.deadline = None if timeout_s is None else time.monotonic() + timeout_s
    with Progress(study) as shown:
        workers.run(stop, lambda counts, note: _look(study, counts, note, shown, stop))


def _look(study: Study, counts: Counts, note: str, shown: Progress, stop: StopSignal) -> None:
    """Show how a study stands, and let its driver end when somebody has stopped it."""
    from hpo.database import study_state

    state = study_state.find_state(study.storage, study.study_id)
    shown.update(counts, study_state.shown_state(state, counts), note)
    if study_state.is_over(state, counts) and counts.waiting + counts.running:
        stop.reason = stop.reason or "stopped"
