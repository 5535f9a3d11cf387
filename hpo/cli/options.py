"""Name the options that several commands take, and what may be chosen."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


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


class LauncherChoice(StrEnum):
    """Be where workers are started."""

    local = "local"
    ray = "ray"


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
        "--artifacts",
        envvar="HPO_ARTIFACTS",
        show_envvar=True,
        help="Where checkpoints and figures go: a folder, s3:// or gs://.",
    ),
]
ReuseOption = Annotated[
    bool, typer.Option("--reuse/--no-reuse", help="Start trials from checkpoints of others, or all from scratch.")
]
BudgetOption = Annotated[
    float, typer.Option("--checkpoint-budget", min=0.01, help="Gigabytes that checkpoints may take in all.")
]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", min=1, max=512, help="Processes. [one per GPU, or per core]")
]
LauncherOption = Annotated[
    LauncherChoice, typer.Option("--launcher", help="Where workers are: on this machine, or on a Ray cluster.")
]
AddressOption = Annotated[
    str | None, typer.Option("--address", help="Of a Ray cluster: HOST:PORT, auto or local. [RAY_ADDRESS, else local]")
]
GpusOption = Annotated[
    float | None,
    typer.Option("--gpus-per-worker", help="With Ray: a GPU, a part of one, or 0. [1 where there are GPUs]"),
]
StorageTimeoutOption = Annotated[
    float,
    typer.Option("--storage-timeout", min=1, help="Seconds to bear a database that does not answer, before exit 3."),
]
LeaseOption = Annotated[
    float,
    typer.Option("--lease", min=1, help="Seconds without a sign of life until a worker's trial is given to another."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
