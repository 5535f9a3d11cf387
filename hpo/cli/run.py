"""Search: create a study or continue one, join it, and see how it stands."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from hpo.cli.driving import check_launcher, connect, drive, worker_environment, worker_options
from hpo.cli.options import (
    AddressOption,
    AlignChoice,
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
    PrunerChoice,
    ReuseOption,
    SamplerChoice,
    StorageOption,
    StorageTimeoutOption,
    StudyOption,
    WorkersOption,
)
from hpo.cli.output import exit_if_stopped, print_json, say, show
from hpo.errors import BadInput, StudyFailed
from hpo.recipes.recipe import MIN_ITERATIONS, REFERENCE_ITERATIONS
from hpo.settings import (
    DEFAULT_ARTIFACTS,
    DEFAULT_CHECKPOINT_GB,
    DEFAULT_ITERATIONS,
    DEFAULT_LEASE_S,
    DEFAULT_STORAGE,
    DEFAULT_STORAGE_TIMEOUT_S,
    GIGABYTE,
    DatasetName,
    Precision,
    StudySettings,
    check_study_name,
    default_data_dir,
)

if TYPE_CHECKING:
    from torch import device

    from hpo.database.storage import Storage
    from hpo.study import Study
    from hpo.worker.stop import StopSignal
    from hpo.worker.work import WorkerConfig


def run(
    space: Annotated[str, typer.Option(help="A shipped space's name, or a YAML file.")],
    trials: Annotated[int, typer.Option(min=1, help="How many trials the study is to have in all.")],
    study: Annotated[str | None, typer.Option(help="Name of the study. [SPACE-DATASET]")] = None,
    dataset: Annotated[DatasetChoice, typer.Option(help="auto: CIFAR-10 if it can be had, else digits.")] = (
        DatasetChoice.auto
    ),
    iterations: Annotated[
        int | None,
        typer.Option(
            min=MIN_ITERATIONS, max=100 * REFERENCE_ITERATIONS, help="Budget of one trial. [64,000; digits 640]"
        ),
    ] = None,
    workers: WorkersOption = None,
    launcher: LauncherOption = LauncherChoice.local,
    address: AddressOption = None,
    gpus_per_worker: GpusOption = None,
    sampler: Annotated[SamplerChoice, typer.Option(help="How recipes are chosen.")] = SamplerChoice.tpe,
    pruner: Annotated[PrunerChoice, typer.Option(help="How poor trials are ended.")] = PrunerChoice.asha,
    align: Annotated[AlignChoice, typer.Option(help="What pruners compare: equal phase time or iterations.")] = (
        AlignChoice.phase
    ),
    precision: Annotated[PrecisionChoice, typer.Option(help="auto: bf16 where it is native.")] = PrecisionChoice.auto,
    compiled: Annotated[bool, typer.Option("--compile", help="Let torch.compile make the kernels.")] = False,
    submit: Annotated[bool, typer.Option("--submit", help="Leave the trials to `hpo worker`, and return.")] = False,
    reuse: ReuseOption = True,
    checkpoint_budget: BudgetOption = DEFAULT_CHECKPOINT_GB,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of all that is random in the study.")] = 0,
    timeout: Annotated[float | None, typer.Option(min=1, help="Stop after so many seconds.")] = None,
    storage_timeout: StorageTimeoutOption = DEFAULT_STORAGE_TIMEOUT_S,
    lease: LeaseOption = DEFAULT_LEASE_S,
    dashboard: Annotated[
        bool, typer.Option("--dashboard", help="Show the study in a browser while it runs, read-only.")
    ] = False,
    storage: StorageOption = DEFAULT_STORAGE,
    artifacts: ArtifactsOption = DEFAULT_ARTIFACTS,
    data_dir: DataOption = None,
    json_output: JsonOption = False,
) -> None:
    """Create a study or continue one, and train until it has TRIALS finished trials."""
    from hpo import study as studies
    from hpo.artifacts import check_artifacts_url
    from hpo.database.retry import RetryPolicy
    from hpo.database.storage import open_storage
    from hpo.launch.supervise import DRIVER_LAST_CALL_S
    from hpo.recipes.space_file import load_space
    from hpo.results.notes import study_note
    from hpo.worker.stop import StopSignal

    if study is not None:
        check_study_name(study)
    check_launcher(launcher, address, gpus_per_worker)
    if submit and launcher != LauncherChoice.local:
        raise BadInput("--submit: allowed only without --launcher ray; it leaves the trials to `hpo worker`")
    found_space = load_space(space)
    check_artifacts_url(artifacts)
    stop = StopSignal(last_call_s=DRIVER_LAST_CALL_S)
    chosen = connect(launcher, address, storage, workers, gpus_per_worker, stop)
    folder = data_dir or default_data_dir()
    dataset_name, split = choose_data(dataset.value, folder)
    name = study or f"{found_space.name}-{dataset_name}"
    settings = StudySettings(
        space=found_space.model_dump(mode="json", exclude_none=True),
        dataset=dataset_name,
        split=split,
        iterations=iterations or DEFAULT_ITERATIONS[dataset_name],
        seed=seed,
        precision=choose_precision(precision.value),
        compiled=compiled,
        sampler=sampler.value,
        pruner=pruner.value,
        align=align.value,
    )
    database = open_storage(storage, "create", RetryPolicy(storage_timeout, gives_up=stop.__bool__))
    made = studies.continue_or_create(database, name, settings, trials, note=study_note(name, settings, space))
    options = worker_options(folder, checkpoint_budget, storage_timeout, lease, reuse)
    environment = worker_environment(storage, artifacts)
    if submit:
        say(f"study {name}: its trials wait for `hpo worker --study {name}`, on any machine")
    else:
        with _dashboard(storage, artifacts) if dashboard else nullcontext():
            drive(made, chosen, timeout, options, environment, stop)
    found = studies.status(made)
    if json_output:
        print_json(found)
    else:
        _conclude(made, found, storage)
    counts = found["trials"]
    if counts["failed"] and not counts["complete"] + counts["pruned"]:
        raise StudyFailed(f"all trials of study {name} failed; `hpo dashboard` shows why")


def worker(
    study: StudyOption = None,
    forever: Annotated[
        bool, typer.Option("--forever", help="Serve all studies in turn, or STUDY, and those made later; never end.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    reuse: ReuseOption = True,
    checkpoint_budget: BudgetOption = DEFAULT_CHECKPOINT_GB,
    storage_timeout: StorageTimeoutOption = DEFAULT_STORAGE_TIMEOUT_S,
    lease: LeaseOption = DEFAULT_LEASE_S,
    storage: StorageOption = DEFAULT_STORAGE,
    artifacts: ArtifactsOption = DEFAULT_ARTIFACTS,
    data_dir: DataOption = None,
) -> None:
    """Join a study, from any machine that reaches its storage, until it has no trial left to train."""
    from hpo.artifacts import open_artifacts
    from hpo.database.retry import RetryPolicy
    from hpo.database.storage import open_storage
    from hpo.launch.process import DRIVER_ENV
    from hpo.trial.checkpoints import Checkpoints
    from hpo.worker.device import pick_device
    from hpo.worker.stop import StopSignal
    from hpo.worker.work import WorkerConfig

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(levelname)s %(message)s")
    if study is not None:
        check_study_name(study)
    stop = StopSignal(parent=_driver(os.environ.get(DRIVER_ENV, "")))
    retry_policy = RetryPolicy(storage_timeout, gives_up=stop.__bool__)
    # With --forever the first study may be made later, and with it the tables.
    access: Literal["create", "write"] = "create" if forever else "write"
    database = retry_policy.call(lambda: open_storage(storage, access, retry_policy, one_connection=True))
    place = pick_device(device)
    store = open_artifacts(artifacts)
    kept = Checkpoints(database, store, int(checkpoint_budget * GIGABYTE)) if reuse else None
    config = WorkerConfig(checkpoints=kept, artifacts=store, lease_s=lease)
    serve = _serve_forever if forever else _serve_one
    serve(database, study, place, data_dir or default_data_dir(), config, stop)
    exit_if_stopped(stop)


def _serve_one(
    storage: Storage, name: str | None, device: device, data_dir: Path, config: WorkerConfig, stop: StopSignal
) -> None:
    from hpo import study as studies
    from hpo.database import study_state
    from hpo.results.test_split import end_of_run
    from hpo.worker.work import work

    found = studies.load(storage, name)
    finished = work(
        found,
        device=device,
        data_dir=data_dir,
        checkpoints=config.checkpoints,
        stop=stop,
        lease_s=config.lease_s,
        artifacts=config.artifacts,
        at_end=end_of_run(found, data_dir),
    )
    say(f"finished {finished} trials of {found.name}")
    if not stop and study_state.find_state(storage, found.study_id) in ("stopped", "finishing"):
        say(f"study {found.name} was stopped; `hpo resume --study {found.name}` lets it go on")


def _serve_forever(
    storage: Storage, name: str | None, device: device, data_dir: Path, config: WorkerConfig, stop: StopSignal
) -> None:
    from hpo.results.test_split import end_of_run
    from hpo.worker.rotation import StudyRotation

    say(f"serving {f'study {name}' if name else 'all studies'} of {storage.url} until a signal ends it")
    rotation = StudyRotation(
        storage=storage,
        device=device,
        data_dir=data_dir,
        config=config,
        at_end_of=lambda study: end_of_run(study, data_dir),
        only=name,
    )
    finished = rotation.serve(stop)
    say(f"finished {finished} trials")


def status(
    study: StudyOption = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on showing it until the study is done.")] = False,
    storage: StorageOption = DEFAULT_STORAGE,
    json_output: JsonOption = False,
) -> None:
    """Say how a study stands."""
    from hpo import study as studies
    from hpo.database.storage import open_storage

    found = studies.load(open_storage(storage, "read"), study)
    if watch and not json_output:
        _watch(found)
    elif json_output:
        print_json(studies.status(found))
    else:
        from hpo.cli import view

        show(view.status(studies.status(found)))


def _driver(given: str) -> int | None:
    """Read the process id that the driver gives its workers."""
    if given and not (given.isascii() and given.isdigit()):
        raise BadInput(f"HPO_DRIVER_PID is {given!r}: allowed is a process id, which `hpo run` sets for its workers")
    return int(given) if given else None


def choose_data(wanted: DatasetName | Literal["auto"], folder: Path) -> tuple[DatasetName, str]:
    """Find the data set, and give its name and the checksum of its splits."""
    from hpo.training.datasets import choose_dataset, load_dataset

    name, why_not_cifar10 = choose_dataset(wanted, folder)
    if why_not_cifar10 is not None:
        _notice_digits(why_not_cifar10)
    return name, load_dataset(name, folder).checksum


def choose_precision(wanted: Precision | Literal["auto"]) -> Precision:
    """Resolve `auto` to what this machine computes natively."""
    from hpo.training.train import native_precision
    from hpo.worker.device import pick_device

    return native_precision(pick_device("auto")) if wanted == "auto" else wanted


@contextmanager
def _dashboard(storage: str, artifacts: str) -> Iterator[None]:
    """Serve optuna-dashboard beside a run, and say where."""
    from hpo.artifacts import open_artifacts
    from hpo.dashboard.server import serve_beside
    from hpo.database.storage import open_storage

    with serve_beside(open_storage(storage, "read"), open_artifacts(artifacts, create=False)) as address:
        say(f"optuna-dashboard on {address} (read-only) until the run ends")
        yield


def _watch(study: Study) -> None:
    from hpo.cli.progress import Progress
    from hpo.database import overview, study_state

    with Progress(study) as shown:
        while True:
            counts = overview.count(study.storage, study.study_id)
            shown.update(counts, study_state.shown_state(study_state.find_state(study.storage, study.study_id), counts))
            if counts.waiting + counts.running == 0:
                return
            time.sleep(1.0)


def _conclude(study: Study, found: dict[str, Any], storage_url: str) -> None:
    from hpo.cli import view
    from hpo.study import best as load_best

    show(view.status(found))
    if found["best"] is None:
        return
    print()
    show(view.best(load_best(study), study.base.to_dict()))
    where = "" if storage_url == DEFAULT_STORAGE else " with the same --storage"
    print(f"\nNext{where}:")
    steps = {
        f"hpo benchmark --study {study.name}": "tests the best recipe and the baseline on images that no search saw",
        f"hpo report --study {study.name} --out report": "writes what was found, with figures, as one page",
        "hpo dashboard": "shows all trials in a browser",
        "the same command with a larger --trials": "goes on searching",
    }
    width = max(map(len, steps))
    for command, purpose in steps.items():
        print(f"  {command:{width}}  {purpose}")


def _notice_digits(why: str) -> None:
    console = Console(stderr=True)
    text = f"CIFAR-10 is not to be had ({why}). This study runs on scikit-learn's digits instead: 1,797 scans of 8x8."
    console.rule("[bold]NOTICE: digits in place of CIFAR-10", style="yellow")
    console.print(text, style="bold yellow", highlight=False, soft_wrap=True)
    console.rule(style="yellow")
