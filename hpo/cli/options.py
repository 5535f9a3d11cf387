"""Options that several commands take, and the values that may be chosen."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hpo.paths import expand, expand_path
from hpo.recipes.recipe import REFERENCE_ITERATIONS
from hpo.settings import DEFAULT_PRUNER, MAX_IMAGE_SIDE, MAX_WORKERS, MIN_IMAGE_SIDE

MAX_ITERATIONS = 100 * REFERENCE_ITERATIONS
"""The largest budget of a run that may be asked for."""


LONGEST_S = 10 * 365 * 86_400.0
"""The longest time that may be asked for: ten years. The system's clocks refuse waits of centuries."""

MAX_GIGABYTES = 1e9
"""The largest budget of checkpoints that may be asked for: an exabyte."""

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
    """What happens to training images."""

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
    """The points of their runs at which a pruner compares trials."""

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


StorageOption = Annotated[
    str, typer.Option("--storage", envvar="HPO_STORAGE", show_envvar=True, help="Database URL: SQLite or PostgreSQL.")
]
StudyOption = Annotated[str | None, typer.Option("--study", help="Name; needed where the storage holds several.")]
DatasetOption = Annotated[
    str,
    typer.Option(
        "--dataset",
        metavar="NAME|PATH",
        help="cifar10, cifar100, fashion_mnist, digits, a folder of images or an .npz file. "
        "auto: CIFAR-10 if it is available, else digits.",
    ),
]
ImageSizeOption = Annotated[
    int | None,
    typer.Option(
        "--image-size",
        min=MIN_IMAGE_SIDE,
        max=MAX_IMAGE_SIDE,
        help="Scale a folder's images to this shorter side, and crop the centre.",
    ),
]
AugmentOption = Annotated[
    AugmentChoice | None,
    typer.Option("--augment", help="What happens to training images. [crop,flip; crop where they have no colour]"),
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        envvar="HPO_DATA",
        show_envvar=True,
        parser=expand_path,
        metavar="PATH",
        help="Folder of the data sets. [~/.cache/hpo]",
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
        help="Where checkpoints and figures go: a folder, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX.",
    ),
]
ReuseOption = Annotated[
    bool, typer.Option("--reuse/--no-reuse", help="Start trials from checkpoints of other trials, or all from scratch.")
]
BudgetOption = Annotated[
    float,
    typer.Option(
        "--checkpoint-budget",
        min=0.01,
        max=MAX_GIGABYTES,
        callback=require_number,
        help="Gigabytes that all checkpoints together may take.",
    ),
]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", min=1, max=MAX_WORKERS, help="Processes. [one per GPU, or per core]")
]
LauncherOption = Annotated[
    LauncherChoice, typer.Option("--launcher", help="Where workers run: on this machine, or on a Ray cluster.")
]
AddressOption = Annotated[
    str | None,
    typer.Option("--address", help="Ray cluster address: HOST:PORT, auto or local. [RAY_ADDRESS, else local]"),
]
GpusOption = Annotated[
    float | None,
    typer.Option("--gpus-per-worker", help="With Ray: a GPU, a part of one, or 0. [1 where there are GPUs]"),
]
StorageTimeoutOption = Annotated[
    float,
    typer.Option(
        "--storage-timeout",
        min=1,
        max=LONGEST_S,
        callback=require_number,
        help="Give up after this many seconds without the database (exit code 3).",
    ),
]
LeaseOption = Annotated[
    float,
    typer.Option(
        "--lease",
        min=1,
        max=LONGEST_S,
        callback=require_number,
        help="Seconds without a heartbeat until a worker's trial is given to another.",
    ),
]
TimeoutOption = Annotated[
    float | None,
    typer.Option("--timeout", min=1, max=LONGEST_S, callback=require_number, help="Stop after this many seconds."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
