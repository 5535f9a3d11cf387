"""The settings of a study, the defaults and limits of what a user may type, and exit codes."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self

from hpo.errors import BadInput, StudyMismatch
from hpo.recipes.schedule import Align

DatasetName = Literal["cifar10", "fashion_mnist", "digits"]
SamplerName = Literal["tpe", "random", "qmc", "gp", "cmaes"]
PrunerName = Literal["asha", "asha-stop", "hyperband", "median", "wilcoxon", "none"]
Precision = Literal["fp32", "tf32", "bf16"]
LauncherName = Literal["local", "ray"]
StudyState = Literal["running", "paused", "finishing", "stopped"]
"""Running trials of a paused or finishing study finish; those of a stopped study are handed back."""

EXIT_INTERRUPTED, EXIT_TERMINATED = 130, 143
"""Exit codes after SIGINT and SIGTERM: 128 plus the number of the signal, as in shells. `hpo.errors` has the others."""

GIGABYTE = 10**9  # bytes
LOOPBACK = "127.0.0.1"
MAX_WORKERS = 512

PROMOTING: PrunerName = "asha"
"""The pruner under which trials wait at rungs and are promoted; the others are Optuna's."""

DEFAULT_STORAGE = "sqlite:///hpo.db"
DEFAULT_ARTIFACTS = "hpo-artifacts"
DEFAULT_CHECKPOINT_GB = 10.0
DEFAULT_STORAGE_TIMEOUT_S = 600.0
DEFAULT_LEASE_S = 60.0
DEFAULT_DATASET: DatasetName | Literal["auto"] = "auto"
DEFAULT_ITERATIONS: dict[DatasetName, int] = {"cifar10": 64_000, "fashion_mnist": 64_000, "digits": 640}
DEFAULT_SAMPLER: SamplerName = "tpe"
DEFAULT_PRUNER: PrunerName = "asha-stop"
DEFAULT_ALIGN: Align = "phase"
DEFAULT_PRECISION: Precision | Literal["auto"] = "auto"
DEFAULT_SEED = 0
DEFAULT_REUSE = True
DEFAULT_LAUNCHER: LauncherName = "local"
DEFAULT_DEVICE = "auto"
DEFAULT_BENCHMARK_SEEDS = 5
DEFAULT_DASHBOARD_PORT = 8080

VALIDATION_LOSS = "validation loss"
"""The user attribute that holds a completed trial's loss; of equally accurate trials, the lowest is best."""

_PASSWORDS = re.compile(r"(://[^:/?#@\s]*:)\S*(?=@)|([?&]password=)[^\s&]*")
_STUDY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, kw_only=True, slots=True)
class StudySettings:
    """Everything that determines a study's trials, decisions and values, except the number of trials.

    Attributes:
        space: The search space as its YAML would load.
        split: SHA-256 of the data set's training and validation splits.
        align: Whether pruners compare trials at equal phase time or at equal iterations.
    """

    space: dict[str, Any]
    dataset: DatasetName
    split: str
    iterations: int
    seed: int
    precision: Precision
    sampler: SamplerName
    pruner: PrunerName
    align: Align

    @classmethod
    def from_attrs(cls, attrs: dict[str, Any]) -> Self:
        """Read the settings back from the attributes that `to_attrs` returned.

        Raises:
            BadInput: An earlier release made the study with an option that no longer exists.
        """
        if attrs.get("compiled"):
            raise BadInput("the study was made with --compile, which was withdrawn: its results could not be repeated")
        return cls(**{field.name: attrs[_title(field.name)] for field in fields(cls)})

    def to_attrs(self) -> dict[str, Any]:
        """Return the settings as a study's user attributes, under names that a person can read."""
        return {_title(field.name): getattr(self, field.name) for field in fields(self)}

    def require(self, stored: StudySettings, study: str) -> None:
        """Refuse to continue a study that was created with other settings.

        Raises:
            StudyMismatch: Some settings differ; each is named with both values.
        """
        pairs = [(f.name, getattr(stored, f.name), getattr(self, f.name)) for f in fields(self)]
        differ = [_difference(name, old, new) for name, old, new in pairs if old != new]
        if differ:
            raise StudyMismatch(
                f"study {study} was made with other settings: {'; '.join(differ)}. "
                "Give the settings of the study, or another name with --study."
            )


def _title(name: str) -> str:
    return {"space": "search space", "dataset": "data set", "split": "split checksum"}.get(name, name)


def _difference(name: str, stored: object, asked: object) -> str:
    if isinstance(stored, dict) and isinstance(asked, dict):
        keys = sorted(key for key in stored.keys() | asked.keys() if stored.get(key) != asked.get(key))
        return f"the {_title(name)} differs in {', '.join(keys)}"
    return f"{_title(name)} is {stored} in the study and {asked} here"


def mask_passwords(text: str) -> str:
    """Replace the passwords of all URLs in a text by `***`."""
    return _PASSWORDS.sub(r"\1\2***", text)


def check_study_name(name: str) -> str:
    """Return the name if it can be part of a file name and a URL.

    Raises:
        BadInput: It is empty, too long, or has other characters than letters, digits, '.', '_' and '-'.
    """
    if not _STUDY_NAME.fullmatch(name):
        raise BadInput(
            f"study name {name!r}: allowed are 1 to 100 letters, digits, '.', '_' and '-', the first a letter or digit"
        )
    return name


def default_data_dir() -> Path:
    """Return the folder in which data sets are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hpo"
