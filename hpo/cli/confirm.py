"""`hpo confirm`: train a search's best recipes on further seeds, to find the one that holds."""

from __future__ import annotations

from typing import Annotated

import typer

from hpo.cli.driving import check_launcher, connect, drive, worker_environment, worker_options
from hpo.cli.options import (
    AddressOption,
    ArtifactsOption,
    BudgetOption,
    DataOption,
    GpusOption,
    JsonOption,
    LauncherChoice,
    LauncherOption,
    LeaseOption,
    ReuseOption,
    StorageOption,
    StorageTimeoutOption,
    StudyOption,
    TimeoutOption,
    WorkersOption,
)
from hpo.cli.output import print_json, say_unfinished, show
from hpo.errors import BadInput, StudyFailed
from hpo.settings import (
    DEFAULT_ARTIFACTS,
    DEFAULT_CHECKPOINT_GB,
    DEFAULT_CONFIRM_SEEDS,
    DEFAULT_CONFIRM_TOP,
    DEFAULT_LAUNCHER,
    DEFAULT_LEASE_S,
    DEFAULT_REUSE,
    DEFAULT_STORAGE,
    DEFAULT_STORAGE_TIMEOUT_S,
    default_data_dir,
)


def confirm(
    study_name: StudyOption = None,
    top: Annotated[
        int, typer.Option(min=1, max=100, metavar="N", help="Number of recipes next to the base recipe.")
    ] = (DEFAULT_CONFIRM_TOP),
    seeds: Annotated[int, typer.Option(min=1, max=100, metavar="N", help="Number of further seeds.")] = (
        DEFAULT_CONFIRM_SEEDS
    ),
    workers: WorkersOption = None,
    launcher: LauncherOption = LauncherChoice[DEFAULT_LAUNCHER],
    address: AddressOption = None,
    gpus_per_worker: GpusOption = None,
    reuse: ReuseOption = DEFAULT_REUSE,
    checkpoint_budget: BudgetOption = DEFAULT_CHECKPOINT_GB,
    timeout: TimeoutOption = None,
    storage_timeout: StorageTimeoutOption = DEFAULT_STORAGE_TIMEOUT_S,
    lease: LeaseOption = DEFAULT_LEASE_S,
    storage: StorageOption = DEFAULT_STORAGE,
    artifacts: ArtifactsOption = DEFAULT_ARTIFACTS,
    data_dir: DataOption = None,
    json_output: JsonOption = False,
) -> None:
    """Train the best recipes on further seeds.

    The recipe with the best mean becomes the study's best.
    """
    from hpo import study as studies
    from hpo.artifacts import check_artifacts_url
    from hpo.cli import view
    from hpo.database.retry import RetryPolicy
    from hpo.database.storage import open_storage
    from hpo.launch.supervise import DRIVER_LAST_CALL_S
    from hpo.results import confirmation
    from hpo.worker.stop import StopSignal

    check_launcher(launcher, address, gpus_per_worker)
    check_artifacts_url(artifacts)
    stop = StopSignal(last_call_s=DRIVER_LAST_CALL_S)
    connected = connect(launcher, address, storage, workers, gpus_per_worker, stop)
    retry_policy = RetryPolicy(storage_timeout, gives_up=stop.__bool__)
    search = studies.load(open_storage(storage, retry_policy=retry_policy), study_name)
    say_unfinished(search, "this confirms the best trials so far")
    companion = confirmation.begin(search, top, seeds)
    if companion is None:
        raise BadInput(confirmation.nothing_to_confirm(search))
    options = worker_options(data_dir or default_data_dir(), checkpoint_budget, storage_timeout, lease, reuse)
    drive(companion, connected, timeout, options, worker_environment(storage, artifacts), stop)
    confirmation.publish(search)
    result = confirmation.result(companion)
    if json_output:
        print_json(confirmation.to_dict(result))
    else:
        show(view.confirmation(result, confirmation.verdict(result)))
    if result.winner is None and not result.waiting:
        raise StudyFailed(f"no seed of study {companion.name} has a result; `hpo dashboard` shows why")
