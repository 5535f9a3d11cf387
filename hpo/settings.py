"""The settings of a study, the defaults and limits of what a user may type, and exit codes."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from hpo.errors import BadInput, StudyMismatch, short
from hpo.paths import expand
from hpo.recipes.recipe import REFERENCE_ITERATIONS
from hpo.recipes.schedule import Align

DatasetName = Literal["cifar10", "cifar100", "fashion_mnist", "digits"]
"""A data set that is known by name; a study may also be on the user's own images, under the name of their folder."""

Augment = Literal["crop,flip", "crop", "none"]
"""What happens to training images: random crops after zero padding, and mirroring of every other one."""

SamplerName = Literal["tpe", "random", "qmc", "gp", "cmaes"]
PrunerName = Literal["asha", "asha-stop", "hyperband", "median", "wilcoxon", "none"]
Precision = Literal["fp32", "tf32", "bf16"]
LauncherName = Literal["local", "ray"]
StudyState = Literal["running", "paused", "finishing", "stopped", "ended"]
"""Running trials of a paused or finishing study finish; those of a stopped study, or an ended one, are handed back."""

EXIT_INTERRUPTED, EXIT_TERMINATED = 130, 143
"""Exit codes after SIGINT and SIGTERM: 128 plus the number of the signal, as in shells. `hpo.errors` has the others."""

GIGABYTE = 10**9  # bytes
LOOPBACK = "127.0.0.1"
MAX_WORKERS = 512
MAX_TRIALS = 1_000_000
MIN_IMAGE_SIDE, MAX_IMAGE_SIDE = 8, 96  # pixels

PROMOTING: PrunerName = "asha"
"""The pruner under which trials wait at rungs and are promoted; the others are Optuna's."""

METRIC = "validation accuracy"
"""The name under which Optuna shows a trial's value."""

DEFAULT_STORAGE = "sqlite:///hpo.db"
DEFAULT_ARTIFACTS = "hpo-artifacts"
DEFAULT_CHECKPOINT_GB = 10.0
DEFAULT_STORAGE_TIMEOUT_S = 600.0
DEFAULT_LEASE_S = 60.0
DEFAULT_DATASET: DatasetName | Literal["auto"] = "auto"
DEFAULT_ITERATIONS = REFERENCE_ITERATIONS
DEFAULT_ITERATIONS_DIGITS = 640
DEFAULT_SAMPLER: SamplerName = "tpe"
DEFAULT_PRUNER: PrunerName = "asha"
DEFAULT_ALIGN: Align = "phase"
DEFAULT_PRECISION: Precision | Literal["auto"] = "auto"
DEFAULT_SEED = 0
DEFAULT_REUSE = True
DEFAULT_LAUNCHER: LauncherName = "local"
DEFAULT_DEVICE = "auto"
DEFAULT_BENCHMARK_SEEDS = 5
DEFAULT_CONFIRM = True
DEFAULT_CONFIRM_TOP = 3  # recipes next to the base recipe
DEFAULT_CONFIRM_SEEDS = 3
DEFAULT_DASHBOARD_PORT = 8080

SPACE = "search space"
"""The study's user attribute that makes it one of ours."""

STANDARD_ERROR = "standard error"
"""The user attribute that holds the standard error of a completed trial's value."""

VALIDATION_LOSS = "validation loss"
"""The user attribute that holds a completed trial's loss; of equally accurate trials, the lowest is best."""

_EARLIER_SHAPES: dict[str, tuple[int, int, int]] = {
    "cifar10": (32, 32, 3),
    "fashion_mnist": (28, 28, 1),
    "digits": (8, 8, 1),
}
"""The image shapes of studies that do not state them: all that could be searched, each of 10 classes."""

_ALLOWED: dict[Any, str] = {
    str: "text",
    int: "whole numbers from 0",
    dict: "the fields of a space",
    tuple: "three whole numbers from 0",
}
_STUDY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, kw_only=True, slots=True)
class StudySettings:
    """Everything that determines a study's trials, decisions and values, except the number of trials.

    Attributes:
        space: The search space as its YAML would load.
        dataset: A known name, or the name of a folder or file of the user's own images.
        split: The data set's checksum.
        image_shape: Height, width and channels.
        classes: Number of classes.
        align: Whether pruners compare trials at equal phase time or at equal iterations.
    """

    space: dict[str, Any]
    dataset: str
    split: str
    image_shape: tuple[int, int, int]
    classes: int
    augment: Augment
    iterations: int
    seed: int
    precision: Precision
    sampler: SamplerName
    pruner: PrunerName
    align: Align

    @classmethod
    def from_attrs(cls, attrs: Mapping[str, Any]) -> Self:
        """Read the settings back from the attributes that `to_attrs` returned, which anybody may have edited since.

        Raises:
            BadInput: One is missing or not what it may be, or an earlier release made the study with an option that no
                longer exists.
        """
        if attrs.get("compiled"):
            raise BadInput(
                "the study was created with --compile, which was withdrawn because its results could not be repeated"
            )
        name = attrs.get(_title("dataset"))
        stated = (_facts_of_earlier(name) if isinstance(name, str) else {}) | dict(attrs)
        hints = get_type_hints(cls)
        return cls(**{field.name: _checked(stated, _title(field.name), hints[field.name]) for field in fields(cls)})

    def differences(self, stored: StudySettings, besides: Collection[str] = ()) -> list[str]:
        """Describe the settings that differ from those of a study, each with both values.

        Args:
            besides: Names of settings that may differ.
        """
        pairs = [(f.name, getattr(stored, f.name), getattr(self, f.name)) for f in fields(self)]
        return [_difference(name, old, new) for name, old, new in pairs if old != new and name not in besides]

    def to_attrs(self) -> dict[str, Any]:
        """Return the settings as a study's user attributes, under names that a person can read."""
        values = {_title(field.name): getattr(self, field.name) for field in fields(self)}
        return values | {_title("image_shape"): list(self.image_shape)}

    def require(self, stored: StudySettings, study: str) -> None:
        """Refuse to continue a study that was created with other settings.

        Raises:
            StudyMismatch: Some settings differ; each is named with both values.
        """
        if differ := self.differences(stored):
            raise StudyMismatch(
                f"study {study} was created with other settings: {'; '.join(differ)}. "
                "Use the study's settings, or another name with --study."
            )


def default_iterations(dataset: str) -> int:
    """Return the budget of a trial that gives none."""
    return DEFAULT_ITERATIONS_DIGITS if dataset == "digits" else DEFAULT_ITERATIONS


def default_augment(dataset: str, channels: int) -> Augment:
    """Return how a data set is augmented by default: crops for all, mirroring for colour and for Fashion-MNIST."""
    return "crop,flip" if channels == 3 or dataset == "fashion_mnist" else "crop"


def _facts_of_earlier(dataset: str) -> dict[str, Any]:
    """Return the attributes that studies did not have before the user's own images could be searched."""
    if dataset not in _EARLIER_SHAPES:
        return {}
    shape = _EARLIER_SHAPES[dataset]
    facts = {"image_shape": shape, "classes": 10, "augment": default_augment(dataset, shape[2])}
    return {_title(name): value for name, value in facts.items()}


def _title(name: str) -> str:
    titles = {"space": SPACE, "dataset": "data set", "split": "split checksum", "image_shape": "image shape"}
    return titles.get(name, name)


def _checked(attrs: Mapping[str, Any], title: str, hint: Any) -> Any:
    """Return the attribute with a title if it may be a setting with a type hint.

    Raises:
        BadInput: It is missing or not what it may be.
    """
    choices, kind = get_args(hint) if get_origin(hint) is Literal else (), get_origin(hint) or hint
    allowed = ", ".join(choices) or _ALLOWED[kind]
    if title not in attrs:
        raise BadInput(f"it has no attribute {title!r}, so hpo did not create it, or somebody deleted the attribute")
    value = tuple(attrs[title]) if isinstance(attrs[title], list) else attrs[title]
    numbers = value if kind is tuple else [value] if kind is int else []
    fits = value in choices if choices else type(value) is kind and (kind is not tuple or len(value) == 3)
    if not fits or any(type(number) is not int or number < 0 for number in numbers):
        raise BadInput(f"its attribute {title!r} is {short(value)}; allowed: {allowed}")
    return value


def _difference(name: str, stored: object, asked: object) -> str:
    if isinstance(stored, dict) and isinstance(asked, dict):
        keys = sorted(key for key in stored.keys() | asked.keys() if stored.get(key) != asked.get(key))
        return f"the {_title(name)} differs in {', '.join(keys)}"
    return f"{_title(name)} is {_shown(stored)} in the study and {_shown(asked)} here"


def _shown(value: object) -> str:
    return " x ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def check_study_name(name: str) -> str:
    """Return the name if it can be part of a file name and a URL.

    Raises:
        BadInput: It is empty, too long, or has other characters than letters, digits, '.', '_' and '-'.
    """
    if not _STUDY_NAME.fullmatch(name):
        raise BadInput(
            f"study name {name!r}: allowed: 1 to 100 letters, digits, '.', '_' and '-', the first a letter or digit"
        )
    return name


def default_data_dir() -> Path:
    """Return the folder in which data sets are kept between runs.

    Raises:
        BadInput: The user has no home folder.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or expand("~/.cache")) / "hpo"
    except BadInput:
        raise BadInput("data sets: you have no home folder, as HOME is not set; use --data-dir or HPO_DATA") from None
