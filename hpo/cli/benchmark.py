"""Measure a winner, or the documented experiments, on the test split."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpo.cli.driving import check_launcher, connect, drive, worker_environment, worker_options
from hpo.cli.options import (
    AddressOption,
    ArtifactsOption,
    BudgetOption,
    DataOption,
    DatasetChoice,
    GpusOption,
    JsonOption,
    LauncherChoice,
    LauncherOption,
    LeaseOption,
    PrecisionChoice,
    ReuseOption,
    StorageOption,
    StorageTimeoutOption,
    StudyOption,
    WorkersOption,
)
from hpo.cli.output import print_json, say, show
from hpo.cli.run import choose_data, choose_precision
from hpo.errors import BadInput, StudyFailed
from hpo.recipes.recipe import MIN_ITERATIONS, REFERENCE_ITERATIONS
from hpo.settings import (
    DEFAULT_ARTIFACTS,
    DEFAULT_CHECKPOINT_GB,
    DEFAULT_ITERATIONS,
    DEFAULT_LEASE_S,
    DEFAULT_STORAGE,
    DEFAULT_STORAGE_TIMEOUT_S,
    StudySettings,
    check_study_name,
    default_data_dir,
)

if TYPE_CHECKING:
    from hpo.database.storage import Storage
    from hpo.study import Study


def benchmark(
    study: StudyOption = None,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="How many fresh seeds each recipe is trained on.")] = 5,
    all_documented: Annotated[
        bool, typer.Option("--all-documented", help="Train the five documented experiments, and no study's best.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="Study of the runs. [STUDY.benchmark; documented-DATASET]")] = None,
    dataset: Annotated[DatasetChoice | None, typer.Option(help="With --all-documented. [auto]")] = None,
    precision: Annotated[PrecisionChoice | None, typer.Option(help="With --all-documented. [auto]")] = None,
    iterations: Annotated[
        int | None,
        typer.Option(min=MIN_ITERATIONS, max=100 * REFERENCE_ITERATIONS, help="Budget of a run. [the study's]"),
    ] = None,
    workers: WorkersOption = None,
    launcher: LauncherOption = LauncherChoice.local,
    address: AddressOption = None,
    gpus_per_worker: GpusOption = None,
    reuse: ReuseOption = True,
    checkpoint_budget: BudgetOption = DEFAULT_CHECKPOINT_GB,
    timeout: Annotated[float | None, typer.Option(min=1, help="Stop after so many seconds.")] = None,
    storage_timeout: StorageTimeoutOption = DEFAULT_STORAGE_TIMEOUT_S,
    lease: LeaseOption = DEFAULT_LEASE_S,
    storage: StorageOption = DEFAULT_STORAGE,
    artifacts: ArtifactsOption = DEFAULT_ARTIFACTS,
    data_dir: DataOption = None,
    json_output: JsonOption = False,
) -> None:
    """Train the best recipe and the documented baseline on fresh seeds, and compare them on the test split."""
    from hpo.artifacts import check_artifacts_url
    from hpo.cli import view
    from hpo.database.retry import RetryPolicy
    from hpo.database.storage import open_storage
    from hpo.launch.supervise import DRIVER_LAST_CALL_S
    from hpo.results import benchmark as benchmarks
    from hpo.worker.stop import StopSignal

    _check_options(all_documented, study, dataset, precision)
    check_launcher(launcher, address, gpus_per_worker)
    if name is not None:
        check_study_name(name)
    check_artifacts_url(artifacts)
    folder = data_dir or default_data_dir()
    stop = StopSignal(last_call_s=DRIVER_LAST_CALL_S)
    chosen = connect(launcher, address, storage, workers, gpus_per_worker, stop)
    retry_policy = RetryPolicy(storage_timeout, gives_up=stop.__bool__)
    if all_documented:
        settings = _documented_settings(folder, dataset, precision, iterations)
        opened = open_storage(storage, "create", retry_policy)
        made = benchmarks.begin_documented(opened, seeds, settings, folder, name=name)
    else:
        search = _load_search(open_storage(storage, retry_policy=retry_policy), study)
        made = benchmarks.begin(search, seeds, folder, name=name, iterations=iterations)
    options = worker_options(folder, checkpoint_budget, storage_timeout, lease, reuse)
    drive(made, chosen, timeout, options, worker_environment(storage, artifacts), stop)
    found = benchmarks.result(made)
    if json_output:
        print_json(benchmarks.to_dict(found))
    else:
        show(view.documented_runs(found) if all_documented else view.benchmark(found, benchmarks.verdict(found)))
    if not found.seeds and not found.waiting:
        raise StudyFailed(f"no seed of study {made.name} has all its figures; `hpo dashboard` shows why")


def _check_options(
    all_documented: bool, study: str | None, dataset: DatasetChoice | None, precision: PrecisionChoice | None
) -> None:
    if all_documented and study is not None:
        raise BadInput(f"--study {study}: with --all-documented no study is benchmarked; --name names the runs' own")
    for option, choice in (("--dataset", dataset), ("--precision", precision)):
        if choice is not None and not all_documented:
            raise BadInput(
                f"{option} {choice.value}: allowed only with --all-documented; a study's runs have the study's"
            )


def _documented_settings(
    folder: Path, dataset: DatasetChoice | None, precision: PrecisionChoice | None, iterations: int | None
) -> StudySettings:
    name, split = choose_data(DatasetChoice.auto.value if dataset is None else dataset.value, folder)
    return StudySettings(
        space={},
        dataset=name,
        split=split,
        iterations=iterations or DEFAULT_ITERATIONS[name],
        seed=0,
        precision=choose_precision(PrecisionChoice.auto.value if precision is None else precision.value),
        sampler="random",
        pruner="none",
        align="iteration",
    )


def _load_search(storage: Storage, name: str | None) -> Study:
    """Load the study to be benchmarked, and say so where it is still under way."""
    from hpo import study as studies
    from hpo.database import overview

    found = studies.load(storage, name)
    counts = overview.count(storage, found.study_id)
    if left := counts.waiting + counts.running:
        say(f"study {found.name} has {left} trials that are not finished; this is a benchmark of its best so far")
    return found
