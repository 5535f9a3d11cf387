"""Parse the command line, call, and print.

Nothing heavy is imported at the top: `hpo --help` must feel instant.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Never

import typer
from rich.console import Console, RenderableType

from hpo import __version__
from hpo.errors import BadInput, HpoError, StudyFailed
from hpo.recipe import MIN_ITERATIONS, REFERENCE_ITERATIONS
from hpo.settings import (
    DEFAULT_ARTIFACTS,
    DEFAULT_CHECKPOINT_GB,
    DEFAULT_ITERATIONS,
    DEFAULT_STORAGE,
    GIGABYTE,
    DatasetName,
    Precision,
    StudySettings,
    check_study_name,
    default_data_dir,
)

if TYPE_CHECKING:
    from hpo.study import Study
    from hpo.worker import StopSignal

app = typer.Typer(
    name="hpo",
    help="Search the hyperparameters of a small convolutional network around five documented experiments.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
spaces_app = typer.Typer(help="List, show and check search spaces.", no_args_is_help=True, rich_markup_mode=None)
data_app = typer.Typer(help="Fetch and check data sets.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(spaces_app, name="spaces")
app.add_typer(data_app, name="data")

INTERRUPTED, TERMINATED = 130, 143


class DatasetChoice(StrEnum):
    """Be a data set that can be asked for."""

    auto = "auto"
    cifar10 = "cifar10"
    fashion_mnist = "fashion_mnist"
    digits = "digits"


class FetchableDataset(StrEnum):
    """Be a data set that can be fetched."""

    cifar10 = "cifar10"
    fashion_mnist = "fashion_mnist"


class SamplerChoice(StrEnum):
    """Be a way to choose the next recipe."""

    tpe = "tpe"
    random = "random"
    qmc = "qmc"
    gp = "gp"
    cmaes = "cmaes"


class PrunerChoice(StrEnum):
    """Be a way to end poor trials."""

    asha = "asha"
    hyperband = "hyperband"
    median = "median"
    wilcoxon = "wilcoxon"
    none = "none"


class AlignChoice(StrEnum):
    """Be a way to line up trials for the pruner."""

    phase = "phase"
    iteration = "iteration"


class PrecisionChoice(StrEnum):
    """Be a number format to train in."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


class HeadChoice(StrEnum):
    """Be a head of the network."""

    linear = "linear"
    dropout = "dropout"
    dense = "dense"


StorageOption = Annotated[
    str, typer.Option("--storage", envvar="HPO_STORAGE", show_envvar=True, help="Database URL: SQLite or PostgreSQL.")
]
StudyOption = Annotated[str | None, typer.Option("--study", help="Name; needed where the storage holds several.")]
DataOption = Annotated[
    Path | None,
    typer.Option("--data-dir", envvar="HPO_DATA", show_envvar=True, help="Folder of the data sets. [~/.cache/hpo]"),
]
ArtifactsOption = Annotated[
    str,
    typer.Option(
        "--artifacts", envvar="HPO_ARTIFACTS", show_envvar=True, help="Where checkpoints go: a folder, s3:// or gs://."
    ),
]
ReuseOption = Annotated[
    bool, typer.Option("--reuse/--no-reuse", help="Start trials from checkpoints of others, or all from scratch.")
]
BudgetOption = Annotated[
    float, typer.Option("--checkpoint-budget", min=0.01, help="Gigabytes that checkpoints may take in all.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


@app.command()
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
    workers: Annotated[int | None, typer.Option(min=1, max=512, help="Processes. [one per GPU, or per core]")] = None,
    sampler: Annotated[SamplerChoice, typer.Option(help="How recipes are chosen.")] = SamplerChoice.tpe,
    pruner: Annotated[PrunerChoice, typer.Option(help="How poor trials are ended.")] = PrunerChoice.median,
    align: Annotated[AlignChoice, typer.Option(help="What pruners compare: equal phase time or iterations.")] = (
        AlignChoice.phase
    ),
    precision: Annotated[PrecisionChoice, typer.Option(help="auto: bf16 where it is native.")] = PrecisionChoice.auto,
    compiled: Annotated[bool, typer.Option("--compile", help="Let torch.compile make the kernels.")] = False,
    reuse: ReuseOption = True,
    checkpoint_budget: BudgetOption = DEFAULT_CHECKPOINT_GB,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of all that is random in the study.")] = 0,
    timeout: Annotated[float | None, typer.Option(min=1, help="Stop after so many seconds.")] = None,
    storage: StorageOption = DEFAULT_STORAGE,
    artifacts: ArtifactsOption = DEFAULT_ARTIFACTS,
    data_dir: DataOption = None,
    json_output: JsonOption = False,
) -> None:
    """Create a study or continue one, and train until it has TRIALS finished trials."""
    from hpo import study as studies
    from hpo.artifacts import check_artifacts_url
    from hpo.space import load_space
    from hpo.storage import open_storage

    if study is not None:
        check_study_name(study)
    found_space = load_space(space)
    folder = data_dir or default_data_dir()
    dataset_name, split = _choose_data(dataset.value, folder)
    name = study or f"{found_space.name}-{dataset_name}"
    settings = StudySettings(
        space=found_space.model_dump(mode="json", exclude_none=True),
        dataset=dataset_name,
        split=split,
        iterations=iterations or DEFAULT_ITERATIONS[dataset_name],
        seed=seed,
        precision=_choose_precision(precision.value),
        compiled=compiled,
        sampler=sampler.value,
        pruner=pruner.value,
        align=align.value,
    )
    check_artifacts_url(artifacts)
    database = open_storage(storage, "create")
    made = studies.continue_or_create(database, name, settings, trials)
    options = ["--data-dir", str(folder), "--checkpoint-budget", str(checkpoint_budget)]
    options += [] if reuse else ["--no-reuse"]
    environment = {"HPO_STORAGE": storage, "HPO_ARTIFACTS": artifacts}
    _drive(made, workers, timeout, options, environment)
    found = studies.status(made)
    if json_output:
        _print_json(found)
    else:
        _conclude(made, found, storage)
    counts = found["trials"]
    if counts["failed"] and not counts["complete"] + counts["pruned"]:
        raise StudyFailed(f"all trials of study {name} failed; `hpo dashboard` shows why")


@app.command()
def worker(
    study: StudyOption = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    reuse: ReuseOption = True,
    checkpoint_budget: BudgetOption = DEFAULT_CHECKPOINT_GB,
    storage: StorageOption = DEFAULT_STORAGE,
    artifacts: ArtifactsOption = DEFAULT_ARTIFACTS,
    data_dir: DataOption = None,
) -> None:
    """Join a study, from any machine that reaches its storage, until it has no trial left to train."""
    from hpo import study as studies
    from hpo.artifacts import open_artifacts
    from hpo.launch.local import DRIVER_ENV
    from hpo.storage import open_storage
    from hpo.trajectory import Checkpoints
    from hpo.worker import StopSignal, pick_device, work

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(levelname)s %(message)s")
    database = open_storage(storage)
    found = studies.load(database, study)
    kept = Checkpoints(database, open_artifacts(artifacts), int(checkpoint_budget * GIGABYTE)) if reuse else None
    driver = os.environ.get(DRIVER_ENV)
    stop = StopSignal(parent=int(driver) if driver else None)
    folder = data_dir or default_data_dir()
    finished = work(found, device=pick_device(device), data_dir=folder, checkpoints=kept, stop=stop)
    _say(f"finished {finished} trials of {found.name}")
    _exit_if_stopped(stop)


@app.command()
def status(
    study: StudyOption = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on showing it until the study is done.")] = False,
    storage: StorageOption = DEFAULT_STORAGE,
    json_output: JsonOption = False,
) -> None:
    """Say how a study stands."""
    from hpo import study as studies
    from hpo.storage import open_storage

    found = studies.load(open_storage(storage, "read"), study)
    if watch and not json_output:
        _watch(found)
    elif json_output:
        _print_json(studies.status(found))
    else:
        from hpo import view

        _print(view.status(studies.status(found)))


@app.command()
def best(study: StudyOption = None, storage: StorageOption = DEFAULT_STORAGE, json_output: JsonOption = False) -> None:
    """Show the best completed trial: its validation accuracy, recipe and curve."""
    from dataclasses import asdict

    from hpo import study as studies
    from hpo import view
    from hpo.storage import open_storage

    found_study = studies.load(open_storage(storage, "read"), study)
    found = studies.best(found_study)
    if json_output:
        _print_json(asdict(found) | {"recipe": found.recipe.to_dict()})
    else:
        _print(view.best(found, found_study.base.to_dict()))


@app.command()
def verify(
    trial: Annotated[int | None, typer.Option(min=0, help="Number of a finished trial. [the best]")] = None,
    study: StudyOption = None,
    storage: StorageOption = DEFAULT_STORAGE,
    artifacts: ArtifactsOption = DEFAULT_ARTIFACTS,
    data_dir: DataOption = None,
) -> None:
    """Train a finished trial's recipe from scratch, and compare curve and weights bit for bit."""
    from hpo import study as studies
    from hpo.artifacts import open_artifacts
    from hpo.storage import open_storage
    from hpo.trajectory import Checkpoints
    from hpo.worker import verify as verify_trial

    database = open_storage(storage)
    found = studies.load(database, study)
    kept = Checkpoints(database, open_artifacts(artifacts))
    number = studies.best(found).trial if trial is None else trial
    _say(f"training trial {number} of {found.name} from scratch")
    print(verify_trial(found, number, data_dir or default_data_dir(), kept))


@app.command()
def gc(
    checkpoint_budget: BudgetOption = DEFAULT_CHECKPOINT_GB,
    storage: StorageOption = DEFAULT_STORAGE,
    artifacts: ArtifactsOption = DEFAULT_ARTIFACTS,
) -> None:
    """Delete the least recently used checkpoints over a budget, but none that a running or a best trial needs."""
    from hpo.artifacts import open_artifacts
    from hpo.storage import open_storage
    from hpo.trajectory import Checkpoints

    kept = Checkpoints(open_storage(storage), open_artifacts(artifacts), int(checkpoint_budget * GIGABYTE))
    left = kept.collect_garbage()
    print(f"{left / GIGABYTE:.3f} GB of checkpoints are left")


@app.command()
def dashboard(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8080,
    read_write: Annotated[bool, typer.Option("--read-write", help="Allow changes from the browser.")] = False,
    storage: StorageOption = DEFAULT_STORAGE,
) -> None:
    """Show all studies of the storage in a browser, with optuna-dashboard."""
    from hpo.dashboard import serve
    from hpo.storage import open_storage

    opened = open_storage(storage, "write" if read_write else "read")
    mode = "changes allowed" if read_write else "read-only"
    _say(f"optuna-dashboard on http://{host}:{port}/ ({mode}); Ctrl-C ends it")
    serve(opened, host=host, port=port, read_write=read_write)


@app.command()
def model(
    head: Annotated[HeadChoice, typer.Option(help="What comes after the last residual block.")] = HeadChoice.linear,
    shortcut_norm: Annotated[bool, typer.Option("--shortcut-norm", help="BatchNorm on the padded shortcuts.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Print the layer table of the network for CIFAR-10, with its parameter counts."""
    from dataclasses import asdict

    import torch

    from hpo import view
    from hpo.model import ResNet20, count_parameters, layer_table

    built = ResNet20(
        channels=3,
        classes=10,
        head=head.value,
        dropout=0.5,
        shortcut_norm=shortcut_norm,
        generator=torch.Generator(),
    )
    rows, counts = layer_table(built, (32, 32, 3)), count_parameters(built)
    if json_output:
        _print_json({"layers": [asdict(row) for row in rows], "params": asdict(counts)})
    else:
        _print(view.layers(rows, counts))


@spaces_app.command("list")
def spaces_list(json_output: JsonOption = False) -> None:
    """List the shipped search spaces."""
    from hpo import view
    from hpo.space import list_shipped, load_space

    found = [load_space(name) for name in list_shipped()]
    entries = [(s.name, str(s.base), len(s.distributions()), s.description) for s in found]
    if json_output:
        _print_json([dict(zip(("name", "base", "parameters", "description"), e, strict=True)) for e in entries])
    else:
        _print(view.spaces(entries))


@spaces_app.command("show")
def spaces_show(name: str) -> None:
    """Print a shipped space's YAML."""
    from hpo.space import load_space, shipped_dir

    load_space(name)
    path = shipped_dir() / f"{name}.yaml"
    print((path if path.is_file() else Path(name)).read_text("utf-8"), end="")


@spaces_app.command("check")
def spaces_check(file: str) -> None:
    """Check a space file, and name file, line, key, bad value and what is allowed."""
    from hpo.space import load_space

    found = load_space(file)
    print(f"{file}: a good space: {found.name}, {len(found.distributions())} parameters around {found.base}")


@spaces_app.command("schema")
def spaces_schema() -> None:
    """Print the JSON Schema of space files, for editors."""
    from hpo.space import json_schema

    _print_json(json_schema())


@data_app.command("fetch")
def data_fetch(name: FetchableDataset, data_dir: DataOption = None) -> None:
    """Download a data set unless it is there."""
    from hpo.data import fetch_dataset

    folder = data_dir or default_data_dir()
    fetch_dataset(name.value, folder)
    print(f"{name.value} is there and whole (looked in {folder})")


@data_app.command("check")
def data_check(data_dir: DataOption = None, json_output: JsonOption = False) -> None:
    """Say which data sets are here, and whether they are whole."""
    from hpo.data import load_dataset
    from hpo.errors import DataDamaged, DataUnavailable

    folder = data_dir or default_data_dir()
    found: dict[str, str] = {}
    damaged = False
    for name in DEFAULT_ITERATIONS:
        try:
            data = load_dataset(name, folder)
            found[name] = f"whole: {len(data.train)} training and {len(data.validation)} validation images"
        except DataUnavailable as error:
            found[name] = f"not here: {error}"
        except DataDamaged as error:
            found[name], damaged = f"damaged: {error}", True
    if json_output:
        _print_json(found)
    else:
        for title, line in found.items():
            print(f"{title}: {line}")
    if damaged:
        raise typer.Exit(BadInput.exit_code)


def _choose_data(wanted: DatasetName | Literal["auto"], folder: Path) -> tuple[DatasetName, str]:
    """Find the data set, and give its name and the checksum of its splits."""
    from hpo.data import choose_dataset, load_dataset

    name, why_not_cifar10 = choose_dataset(wanted, folder)
    if why_not_cifar10 is not None:
        _notice_digits(why_not_cifar10)
    return name, load_dataset(name, folder).checksum


def _choose_precision(wanted: Precision | Literal["auto"]) -> Precision:
    from hpo.train import native_precision
    from hpo.worker import pick_device

    return native_precision(pick_device("auto")) if wanted == "auto" else wanted


def _drive(
    study: Study, workers: int | None, timeout_s: float | None, options: list[str], environment: dict[str, str]
) -> None:
    import torch

    from hpo import queue
    from hpo.launch.local import LocalWorkers, choose_devices
    from hpo.progress import Progress
    from hpo.worker import StopSignal

    counts = queue.count(study.storage, study.study_id)
    if counts.waiting + counts.running == 0:
        return
    devices = choose_devices(workers, torch.cuda.device_count(), cores=len(os.sched_getaffinity(0)))
    log_path = Path(f"{study.name}.log").absolute()
    launcher = LocalWorkers(study=study, devices=devices, options=options, environment=environment, log_path=log_path)
    _say(f"study {study.name}: {len(devices)} workers ({', '.join(devices)}), their log is {log_path}")
    stop = StopSignal(deadline=None if timeout_s is None else time.monotonic() + timeout_s)
    with stop.installed(), Progress(study) as shown:
        launcher.run(stop, shown.update)
    if stop.reason == "timed out":
        _say(f"stopped after {timeout_s:g} s; the same command continues")
    _exit_if_stopped(stop)


def _watch(study: Study) -> None:
    from hpo import queue
    from hpo.progress import Progress

    with Progress(study) as shown:
        while True:
            counts = queue.count(study.storage, study.study_id)
            shown.update(counts)
            if counts.waiting + counts.running == 0:
                return
            time.sleep(1.0)


def _conclude(study: Study, found: dict[str, Any], storage_url: str) -> None:
    from hpo import view
    from hpo.study import best as load_best

    _print(view.status(found))
    if found["best"] is None:
        return
    print()
    _print(view.best(load_best(study), study.base.to_dict()))
    where = "" if storage_url == DEFAULT_STORAGE else " with the same --storage"
    print(f"\nNext{where}:")
    print(f"  hpo best --study {study.name} --json     the curve of the best trial")
    print("  hpo dashboard                            all trials in a browser")
    print("  the same command with a larger --trials  goes on searching")


def _notice_digits(why: str) -> None:
    console = Console(stderr=True)
    text = f"CIFAR-10 is not to be had ({why}). This study runs on scikit-learn's digits instead: 1,797 scans of 8x8."
    console.rule("[bold]NOTICE: digits in place of CIFAR-10", style="yellow")
    console.print(text, style="bold yellow", highlight=False, soft_wrap=True)
    console.rule(style="yellow")


def _exit_if_stopped(stop: StopSignal) -> None:
    codes = {"interrupted": INTERRUPTED, "terminated": TERMINATED, "orphaned": TERMINATED}
    if stop.reason in codes:
        _say(f"{stop.reason}; the same command continues")
        raise typer.Exit(codes[stop.reason])


def _print(renderable: RenderableType) -> None:
    Console(highlight=False).print(renderable)


def _print_json(document: object) -> None:
    json.dump(document, sys.stdout, indent=2)
    sys.stdout.write("\n")


def _say(message: str) -> None:
    """Tell a person something; stdout stays for results."""
    print(message, file=sys.stderr)


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Search the hyperparameters of a small convolutional network around five documented experiments."""


def main() -> Never:
    """Run the command line: errors are one line on stderr, and each kind has its exit code."""
    sys.exit(_run())


def _run() -> int:
    try:
        return app(standalone_mode=False) or 0
    except HpoError as error:
        _say(f"error: {error}")
        return error.exit_code
    except typer.Exit as error:
        return error.exit_code
    except typer.TyperException as error:
        _say(f"error: {error.format_message()}")
        return BadInput.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
