"""Options that several commands take, and the values that may be chosen."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated, get_args

import typer

from hpo.cli.help import STORAGE, STUDY, TRAINING, WORKERS
from hpo.paths import expand, expand_path
from hpo.recipes.recipe import REFERENCE_ITERATIONS
from hpo.settings import DEFAULT_PRUNER, MAX_IMAGE_SIDE, MAX_WORKERS, MIN_IMAGE_SIDE, DatasetName

MAX_ITERATIONS = 100 * REFERENCE_ITERATIONS
"""The largest budget of a run."""


LONGEST_S = 10 * 365 * 86_400.0
"""The longest time of an option: ten years. The system's clocks refuse waits of centuries."""

MAX_GIGABYTES = 1e9
"""The largest budget of checkpoints: an exabyte."""

MAX_NUMBER = 2**31 - 1
"""The largest number of a trial, and seed."""


def require_number(value: float | None) -> float | None:
    """Refuse NaN, which no range excludes.

    Raises:
        BadParameter: The value is not a number.
    """
    if value is not None and math.isnan(value):
        raise typer.BadParameter("nan is not a number")
    return value


class FetchableDataset(StrEnum):
    """A data set that can be downloaded."""

    cifar10 = "cifar10"
    cifar100 = "cifar100"
    fashion_mnist = "fashion_mnist"


class AugmentChoice(StrEnum):
    """How training images are varied."""

    crop_flip = "crop,flip"
    crop = "crop"
    none = "none"


class SamplerChoice(StrEnum):
    """A sampler, which chooses the next recipe."""

    tpe = "tpe"
    random = "random"
    qmc = "qmc"
    gp = "gp"
    cmaes = "cmaes"


class PrunerChoice(StrEnum):
    """A pruner, which ends poor trials early."""

    asha = "asha"
    asha_stop = "asha-stop"
    hyperband = "hyperband"
    median = "median"
    wilcoxon = "wilcoxon"
    none = "none"


DEFAULT_PRUNER_CHOICE = PrunerChoice(DEFAULT_PRUNER)


class AlignChoice(StrEnum):
    """The time scale on which a pruner compares trials."""

    phase = "phase"
    iteration = "iteration"


class PrecisionChoice(StrEnum):
    """A number format for training; `auto` chooses one."""

    auto = "auto"
    fp32 = "fp32"
    tf32 = "tf32"
    bf16 = "bf16"


class LauncherChoice(StrEnum):
    """The place where workers are started."""

    local = "local"
    ray = "ray"


class HeadChoice(StrEnum):
    """A head of the network."""

    linear = "linear"
    dropout = "dropout"
    dense = "dense"


def complete_space(incomplete: str) -> list[str]:
    """List the shipped spaces whose names begin like what was typed."""
    from hpo.recipes.shipped import list_shipped

    return [name for name in list_shipped() if name.startswith(incomplete)]


def complete_dataset(incomplete: str) -> list[str]:
    """List the data sets whose names begin like what was typed."""
    return [name for name in get_args(DatasetName) if name.startswith(incomplete)]


StorageOption = Annotated[
    str,
    typer.Option(
        "--storage",
        envvar="HPO_STORAGE",
        show_envvar=True,
        metavar="URL",
        help="Database of the studies: SQLite or PostgreSQL.",
        rich_help_panel=STORAGE,
    ),
]
StudyOption = Annotated[
    str | None,
    typer.Option(
        "--study", metavar="NAME", help="Name of the study.", show_default="the only one", rich_help_panel=STUDY
    ),
]
DatasetOption = Annotated[
    str,
    typer.Option(
        "--dataset",
        metavar="NAME|PATH",
        autocompletion=complete_dataset,
        help="cifar10, cifar100, fashion_mnist, digits, a folder of images or an .npz file. "
        "auto: CIFAR-10 if it is available, else digits.",
        rich_help_panel=STUDY,
    ),
]
ImageSizeOption = Annotated[
    int | None,
    typer.Option(
        "--image-size",
        min=MIN_IMAGE_SIDE,
        max=MAX_IMAGE_SIDE,
        metavar="PIXELS",
        help="Scale the images of a folder to this shorter side, and crop the centre.",
        rich_help_panel=STUDY,
    ),
]
AugmentOption = Annotated[
    AugmentChoice | None,
    typer.Option(
        "--augment",
        help="How training images are varied.",
        show_default="crop,flip, or crop for images without colour",
        rich_help_panel=TRAINING,
    ),
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        envvar="HPO_DATA",
        show_envvar=True,
        parser=expand_path,
        metavar="FOLDER",
        help="Folder of the data sets.",
        show_default="~/.cache/hpo",
        rich_help_panel=STORAGE,
    ),
]
ArtifactsOption = Annotated[
    str,
    typer.Option(
        "--artifacts",
        envvar="HPO_ARTIFACTS",
        show_envvar=True,
        parser=expand,
        metavar="FOLDER|URL",
        help="Where checkpoints and figures are kept: a folder, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX.",
        rich_help_panel=STORAGE,
    ),
]
ReuseOption = Annotated[
    bool,
    typer.Option(
        "--reuse/--no-reuse", help="Start trials from the checkpoints of other trials.", rich_help_panel=TRAINING
    ),
]
BudgetOption = Annotated[
    float,
    typer.Option(
        "--checkpoint-budget",
        min=0.01,
        max=MAX_GIGABYTES,
        callback=require_number,
        metavar="GB",
        help="Size of all checkpoints together, in gigabytes.",
        rich_help_panel=STORAGE,
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        max=MAX_WORKERS,
        metavar="N",
        help="Number of worker processes.",
        show_default="one per GPU, or per core",
        rich_help_panel=WORKERS,
    ),
]
LauncherOption = Annotated[
    LauncherChoice,
    typer.Option("--launcher", help="Run the workers on this machine or on a Ray cluster.", rich_help_panel=WORKERS),
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="ADDRESS",
        help="Ray cluster: HOST:PORT, auto or local.",
        show_default="RAY_ADDRESS, else local",
        rich_help_panel=WORKERS,
    ),
]
GpusOption = Annotated[
    float | None,
    typer.Option(
        "--gpus-per-worker",
        metavar="N",
        help="With Ray: 1, a part of a GPU, or 0.",
        show_default="1 if the cluster has GPUs",
        rich_help_panel=WORKERS,
    ),
]
StorageTimeoutOption = Annotated[
    float,
    typer.Option(
        "--storage-timeout",
        min=1,
        max=LONGEST_S,
        callback=require_number,
        metavar="SECONDS",
        help="Exit with 3 after this time without the database.",
        rich_help_panel=STORAGE,
    ),
]
LeaseOption = Annotated[
    float,
    typer.Option(
        "--lease",
        min=1,
        max=LONGEST_S,
        callback=require_number,
        metavar="SECONDS",
        help="Retry a trial after this time without a heartbeat of its worker.",
        rich_help_panel=WORKERS,
    ),
]
TimeoutOption = Annotated[
    float | None,
    typer.Option(
        "--timeout",
        min=1,
        max=LONGEST_S,
        callback=require_number,
        metavar="SECONDS",
        help="Stop after this time.",
        show_default="none",
        rich_help_panel=WORKERS,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
