"""`hpo benchmark`: measure a winner, or the documented experiments, on the test split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from hpo.cli.data import choose_data, data_settings
from hpo.cli.driving import check_artifacts, check_launcher, connect, drive, worker_environment, worker_options
from hpo.cli.help import STUDY, TRAINING
from hpo.cli.options import (
    MAX_ITERATIONS,
    AddressOption,
    ArtifactsOption,
    AugmentOption,
    BudgetOption,
    DataOption,
    GpusOption,
    ImageSizeOption,
    JsonOption,
    LauncherChoice,
    LauncherOption,
    LeaseOption,
    PrecisionChoice,
    ReuseOption,
    StorageOption,
    StorageTimeoutOption,
    StudyOption,
    TimeoutOption,
    WorkersOption,
)
from hpo.cli.output import print_json, say, say_unfinished, show
from hpo.cli.run import choose_precision
from hpo.errors import BadInput, StudyFailed
from hpo.recipes.recipe import MAX_BENCHMARK_SEEDS, MIN_ITERATIONS
from hpo.settings import (
    DEFAULT_ARTIFACTS,
    DEFAULT_BENCHMARK_SEEDS,
    DEFAULT_CHECKPOINT_GB,
    DEFAULT_DATASET,
    DEFAULT_LAUNCHER,
    DEFAULT_LEASE_S,
    DEFAULT_PRECISION,
    DEFAULT_REUSE,
    DEFAULT_SEED,
    DEFAULT_STORAGE,
    DEFAULT_STORAGE_TIMEOUT_S,
    StudySettings,
    check_study_name,
    default_data_dir,
    default_iterations,
)

if TYPE_CHECKING:
    from hpo.training.data import Dataset


def benchmark(
    study_name: StudyOption = None,
    seeds: Annotated[int, typer.Option(min=1, max=MAX_BENCHMARK_SEEDS, metavar="N", help="Number of fresh seeds.")] = (
        DEFAULT_BENCHMARK_SEEDS
    ),
    all_documented: Annotated[
        bool, typer.Option("--all-documented", help="Train the five documented experiments instead of a study's best.")
    ] = False,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name of the new study.",
            show_default="STUDY.benchmark or documented-DATASET",
            rich_help_panel=STUDY,
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|PATH",
            help="With --all-documented, as for `hpo run`.",
            show_default="auto",
            rich_help_panel=STUDY,
        ),
    ] = None,
    image_size: ImageSizeOption = None,
    augment: AugmentOption = None,
    precision: Annotated[
        PrecisionChoice | None,
        typer.Option(help="With --all-documented.", show_default="auto", rich_help_panel=TRAINING),
    ] = None,
    iterations: Annotated[
        int | None,
        typer.Option(
            min=MIN_ITERATIONS,
            max=MAX_ITERATIONS,
            metavar="N",
            help="Optimizer steps of a run.",
            show_default="as in the study",
            rich_help_panel=TRAINING,
        ),
    ] = None,
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
    """Compare winner and base recipe on the test split.

    Both are trained on the same fresh seeds.
    """
    from hpo import study as studies
    from hpo.cli import view
    from hpo.database.retry import RetryPolicy
    from hpo.database.storage import open_storage
    from hpo.launch.supervise import DRIVER_LAST_CALL_S
    from hpo.results import benchmark as benchmarks
    from hpo.results import confirmation
    from hpo.worker.stop import StopSignal

    of_the_data = {"--dataset": dataset, "--image-size": image_size, "--augment": augment, "--precision": precision}
    _check_options(all_documented, study_name, of_the_data)
    check_launcher(launcher, address, gpus_per_worker)
    if name is not None:
        check_study_name(name)
    check_artifacts(artifacts, local=launcher == LauncherChoice.local)
    folder = data_dir or default_data_dir()
    stop = StopSignal(last_call_s=DRIVER_LAST_CALL_S)
    connected = connect(launcher, address, storage, workers, gpus_per_worker, stop)
    retry_policy = RetryPolicy(storage_timeout, gives_up=stop.__bool__)
    if all_documented:
        data = choose_data(dataset or DEFAULT_DATASET, folder, image_size, None if augment is None else augment.value)
        settings = _documented_settings(data, precision, iterations)
        database = open_storage(storage, "create", retry_policy)
        companion = benchmarks.begin_documented(database, seeds, settings, folder, name=name)
    else:
        study = studies.load(open_storage(storage, retry_policy=retry_policy), study_name)
        say_unfinished(study, "this benchmarks the best trial so far")
        companion = benchmarks.begin(study, seeds, folder, name=name, iterations=iterations)
        say(confirmation.explain(study))
    options = worker_options(folder, checkpoint_budget, storage_timeout, lease, reuse)
    drive(companion, connected, timeout, options, worker_environment(storage, artifacts), stop)
    result = benchmarks.result(companion)
    if json_output:
        print_json(benchmarks.to_dict(result))
    else:
        show(view.documented_runs(result) if all_documented else view.benchmark(result, benchmarks.verdict(result)))
    if not result.seeds and not result.waiting:
        raise StudyFailed(f"no seed of study {companion.name} has all results; `hpo dashboard` shows why")


def _check_options(all_documented: bool, study_name: str | None, of_the_data: Mapping[str, str | int | None]) -> None:
    if all_documented and study_name is not None:
        raise BadInput(
            f"--study {study_name}: cannot be combined with --all-documented; use --name to name the new study"
        )
    for option, choice in of_the_data.items():
        if choice is not None and not all_documented:
            raise BadInput(
                f"{option} {choice}: only valid with --all-documented; otherwise the study's setting is used"
            )


def _documented_settings(dataset: Dataset, precision: PrecisionChoice | None, iterations: int | None) -> StudySettings:
    return StudySettings(
        space={},
        **data_settings(dataset),
        iterations=iterations or default_iterations(dataset.name),
        seed=DEFAULT_SEED,
        precision=choose_precision(DEFAULT_PRECISION if precision is None else precision.value),
        sampler="random",
        pruner="none",
        align="iteration",
    )
