"""The recipe of a training run, and the documented recipes."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib import resources
from itertools import pairwise
from typing import Any, Literal, Self, get_args

import yaml

from hpo.errors import BadInput

Head = Literal["linear", "dropout", "dense"]
"""The layers between the last residual block and the logits."""

HEADS: tuple[Head, ...] = get_args(Head)

REFERENCE_ITERATIONS = 64_000
"""The budget in whose iterations boundaries, patience and grids are written (He et al. 2015, §4.2)."""

BOUNDARY_GRID = 2_000
"""Reference iterations between two points at which a boundary may lie."""

MIN_ITERATIONS = REFERENCE_ITERATIONS // BOUNDARY_GRID
"""The smallest budget, in iterations, at which the grid's points remain distinct."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that determines one training run, apart from data and numerics.

    A dropout rate of 0 and the `linear` head are the same network, so a new recipe is brought into one
    canonical form: `dropout` with rate 0 becomes `linear`, and `linear` has rate 0.

    Attributes:
        boundaries: Reference iterations at which the learning rate changes, ascending.
        values: Learning rates, one more than boundaries.
        early_stopping: Patience in reference iterations, or None for no early stopping.
        iterations: Optimizer steps of the whole run; boundaries and patience are scaled to it.
        seed: Determines initial weights, batch order, augmentation and dropout masks.
    """

    head: Head
    dropout: float
    shortcut_norm: bool
    boundaries: tuple[int, ...]
    values: tuple[float, ...]
    early_stopping: int | None = None
    batch_size: int = 128
    momentum: float = 0.9
    weight_decay: float = 0.0
    iterations: int = REFERENCE_ITERATIONS
    seed: int = 0

    def __post_init__(self) -> None:
        if self.head == "dropout" and self.dropout == 0:
            object.__setattr__(self, "head", "linear")
        if self.head == "linear":
            object.__setattr__(self, "dropout", 0.0)
        _check(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """Create a recipe from the result of `to_dict`, or from YAML.

        Raises:
            BadInput: A field is missing, unknown, or has a value that is not allowed.
        """
        known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        try:
            return cls(**known)
        except TypeError as error:
            raise BadInput(f"recipe {fields}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain JSON values."""
        return asdict(self) | {"boundaries": list(self.boundaries), "values": list(self.values)}

    def at(self, *, iterations: int, seed: int) -> Self:
        """Return the same recipe for another budget and seed."""
        return replace(self, iterations=iterations, seed=seed)


def _check(recipe: Recipe) -> None:
    edges = (0, *recipe.boundaries, REFERENCE_ITERATIONS)
    whole = {name: getattr(recipe, name) for name in ("early_stopping", "batch_size", "iterations", "seed")}
    rules = (
        *((name, value is None or type(value) is int, "a whole number") for name, value in whole.items()),
        ("boundaries", all(type(b) is int for b in recipe.boundaries), "whole numbers"),
        ("head", recipe.head in HEADS, f"one of {', '.join(HEADS)}"),
        ("dropout", 0 <= recipe.dropout < 1, "at least 0 and under 1"),
        (
            "boundaries",
            all(a < b for a, b in pairwise(edges)),
            f"ascending, over 0 and under {REFERENCE_ITERATIONS}",
        ),
        ("values", len(recipe.values) == len(recipe.boundaries) + 1, "one more than boundaries"),
        ("values", all(0 < v < float("inf") for v in recipe.values), "positive and finite"),
        ("early_stopping", recipe.early_stopping is None or recipe.early_stopping > 0, "positive, or none"),
        ("batch_size", recipe.batch_size > 0, "positive"),
        ("momentum", 0 <= recipe.momentum < 1, "at least 0 and under 1"),
        ("weight_decay", recipe.weight_decay >= 0, "at least 0"),
        ("iterations", recipe.iterations >= MIN_ITERATIONS, f"at least {MIN_ITERATIONS}"),
        ("seed", recipe.seed >= 0, "at least 0"),
    )
    for name, holds, allowed in rules:
        if not holds:
            raise BadInput(f"recipe: {name} is {getattr(recipe, name)!r}; allowed: {allowed}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterCounts:
    """Numbers of parameters as Keras counts them: the moving statistics of BatchNorm are the non-trainable ones."""

    total: int
    trainable: int
    non_trainable: int


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentedRun:
    """One of the five documented experiments.

    Attributes:
        params: Numbers of parameters for 32x32x3 inputs and 10 classes.
        test_loss: Mean cross-entropy on the CIFAR-10 test split, None where none was documented.
        test_accuracy: In [0, 1], None where none was documented.
    """

    name: str
    section: int
    title: str
    recipe: Recipe
    params: ParameterCounts
    test_loss: float | None
    test_accuracy: float | None


@cache
def documented_runs() -> dict[str, DocumentedRun]:
    """Load the five documented experiments by name, in their documented order."""
    text = resources.files("hpo.recipes").joinpath("documented_runs.yaml").read_text(encoding="utf-8")
    return {entry["name"]: _documented_run(entry) for entry in yaml.safe_load(text)}


def _documented_run(entry: dict[str, Any]) -> DocumentedRun:
    test = entry["test"] or {"loss": None, "accuracy": None}
    return DocumentedRun(
        name=entry["name"],
        section=entry["section"],
        title=entry["title"],
        recipe=Recipe.from_dict(entry["recipe"]),
        params=ParameterCounts(**entry["params"]),
        test_loss=test["loss"],
        test_accuracy=test["accuracy"],
    )


def derive_seed(purpose: str, *counters: int) -> int:
    """Hash a purpose and counters to a seed of 63 bits, the same on every machine."""
    text = ":".join((purpose, *map(str, counters)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
