"""The drive of a study's workers, which `hpo run`, `hpo confirm` and `hpo benchmark` have in common."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from hpo import name_extra
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
    """Refuse options of Ray without `--launcher ray`.

    Raises:
        BadInput: There is such an option; it is named.
    """
    if launcher == LauncherChoice.ray:
        return
    for option, value in (("--address", address), ("--gpus-per-worker", gpus_per_worker)):
        if value is not None:
            raise BadInput(f"{option} {value}: only valid with --launcher ray")


def check_artifacts(url: str, *, local: bool) -> None:
    """Refuse artifacts that workers could not write; elsewhere than on this machine a folder may be another.

    Raises:
        BadInput: The URL is of another kind, or the folder cannot be written.
    """
    from hpo.artifacts import check_artifacts_folder, check_artifacts_url

    check_artifacts_url(url)
    if local:
        check_artifacts_folder(url)


def connect(
    launcher: LauncherChoice,
    address: str | None,
    storage: str,
    workers: int | None,
    gpus_per_worker: float | None,
    stop: StopSignal,
) -> Launcher:
    """Connect to the machines where workers can run, which may take a while on a cluster.

    Raises:
        BadInput: Ray is not installed, or the cluster has no room for such workers.
        ClusterUnavailable: There is no such cluster.
    """
    if launcher == LauncherChoice.local:
        from hpo.launch.local import LocalLauncher

        return LocalLauncher(workers)
    try:
        from hpo.launch.ray import RayLauncher
    except ModuleNotFoundError as error:
        raise BadInput(f"--launcher ray: needs `{name_extra('ray')}` ({error})") from error
    with stop.installed():
        cluster = RayLauncher.connect(address, storage, workers, gpus_per_worker)
        if stop:
            cluster.close()
    exit_if_stopped(stop)
    return cluster


def worker_options(
    data_dir: Path, checkpoint_gb: float, storage_timeout_s: float, lease_s: float, reuse: bool
) -> list[str]:
    """Write the options of `hpo worker` that all workers of a driver get."""
    options = ["--data-dir", str(data_dir.absolute()), "--checkpoint-budget", str(checkpoint_gb)]
    options += ["--storage-timeout", str(storage_timeout_s), "--lease", str(lease_s)]
    return options + ([] if reuse else ["--no-reuse"])


def worker_environment(storage: str, artifacts: str) -> dict[str, str]:
    """Return the environment that tells workers where the storage and artifacts are; they may run in another folder."""
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
    """Train a study's trials until none is left, and show the progress.

    Raises:
        StudyFailed: A worker kept dying.

    Side effects:
        Ends the process after a signal.
    """
    with stop.installed(), closing(launcher):
        workers = launcher.prepare(study, ["--study", study.name, *options], environment)
        _train(study, workers, timeout_s, stop)
    if stop.reason == "timed out":
        say(f"stopped after {timeout_s:g} s; the same command continues")
    if stop.reason == "stopped":
        say(f"study {study.name} was stopped; `hpo resume --study {study.name}`, or the same command, continues")
    if stop.reason == "ended":
        say(f"study {study.name} has ended: {_reason(study)}; the same command with more continues it")
        stop.reason = ""  # whatever follows a search is not affected
    exit_if_stopped(stop)


def _reason(study: Study) -> str | None:
    from hpo.database.ends import find_ends

    _, reason = find_ends(study.storage, study.study_id)
    return reason


def _train(study: Study, workers: Workers, timeout_s: float | None, stop: StopSignal) -> None:
    from hpo.cli.progress import Progress
    from hpo.database import overview

    counts = overview.count(study.storage, study.study_id)
    if counts.waiting + counts.running == 0:
        return
    say(f"study {study.name}: {workers.summary}")
    if stop.deadline is None and timeout_s is not None:  # what is trained after a search has what is left of its time
        stop.deadline = time.monotonic() + timeout_s
    with Progress(study) as progress:
        workers.run(stop, lambda counts, note: _look(study, counts, note, progress, stop))


def _look(study: Study, counts: Counts, note: str, progress: Progress, stop: StopSignal) -> None:
    """Show a study's progress, and let its driver end when somebody has stopped the study."""
    from hpo.database import study_state

    state = study_state.find_state(study.storage, study.study_id)
    progress.update(counts, study_state.shown_state(state, counts), note)
    if study_state.is_over(state, counts) and counts.waiting + counts.running:
        stop.reason = stop.reason or ("ended" if state == "ended" else "stopped")
