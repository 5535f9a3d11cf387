"""The recipe of a training run, and the documented recipes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import cache
from importlib import resources
from itertools import pairwise
from typing import Any, Literal, Self, get_args

from hpo.errors import RecipeError

Head = Literal["linear", "dropout", "dense"]
"""The layers between the last residual block and the logits."""

HEADS: tuple[Head, ...] = get_args(Head)

REFERENCE_ITERATIONS = 64_000
"""The budget in whose iterations boundaries, patience and grids are written (He et al. 2015, §4.2)."""

BOUNDARY_GRID = 2_000
"""Reference iterations between two points at which a boundary may lie."""

MIN_ITERATIONS = REFERENCE_ITERATIONS // BOUNDARY_GRID
"""The smallest budget, in iterations, at which the grid's points remain distinct."""

MIN_DEPTH, MAX_DEPTH = 8, 1_202
"""The shallowest 6n + 2, and the deepest network of He et al. 2015, §4.2."""

MAX_BATCH_SIZE = 65_536
"""The largest batch that may be asked for, in images."""

MAX_BENCHMARK_SEEDS = 1_000
"""The largest number of seeds that a benchmark may have; a confirmation uses none of them."""

LATER_FIELDS = {"depth": 20, "nesterov": False, "label_smoothing": 0.0}
"""The fields that recipes of earlier releases did not have, with the values that were fixed then."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that determines one training run, apart from data and numerics.

    A new recipe is brought into one canonical form, so that recipes that train alike are equal: `dropout` with rate 0
    becomes `linear`, `linear` has rate 0, Nesterov's momentum of 0 is plain, and 1, 1.0 and 1e0 are one number.

    Attributes:
        depth: Number of layers, 6n + 2 (He et al. 2015, §4.2).
        boundaries: Reference iterations at which the learning rate changes, ascending.
        values: Learning rates, one more than boundaries.
        early_stopping: Patience in reference iterations, or None for no early stopping.
        batch_size: Images in an optimizer step; it does not change the number of steps.
        weight_decay: Applied to every parameter, biases and BatchNorm's included.
        label_smoothing: Fraction of a training image's label that is spread over all classes.
        iterations: Optimizer steps of the whole run; boundaries and patience are scaled to it.
        seed: Determines initial weights, batch order, augmentation and dropout masks.
    """

    head: Head
    dropout: float
    shortcut_norm: bool
    depth: int = 20
    boundaries: tuple[int, ...]
    values: tuple[float, ...]
    early_stopping: int | None = None
    batch_size: int = 128
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    iterations: int = REFERENCE_ITERATIONS
    seed: int = 0

    def __post_init__(self) -> None:
        for name in _RULES:
            object.__setattr__(self, name, _canonical(name, getattr(self, name)))
        _check(self)
        if self.head == "dropout" and self.dropout == 0:
            object.__setattr__(self, "head", "linear")
        if self.head == "linear":
            object.__setattr__(self, "dropout", 0.0)
        if self.momentum == 0:
            object.__setattr__(self, "nesterov", False)

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> Self:
        """Create a recipe from the result of `to_dict`, or from YAML.

        Raises:
            RecipeError: A field is missing, unknown, or has a value that is not allowed.
        """
        known = {field.name: field.default is MISSING for field in fields(cls)}
        for name in given:
            if name not in known:
                raise RecipeError(str(name), f"is unknown; allowed: {', '.join(known)}")
        for name, required in known.items():
            if required and name not in given:
                raise RecipeError(name, f"is missing; a recipe has {', '.join(known)}")
        return cls(**given)

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain JSON values."""
        return asdict(self) | {"boundaries": list(self.boundaries), "values": list(self.values)}

    def at(self, *, iterations: int, seed: int) -> Self:
        """Return the same recipe for another budget and seed."""
        return replace(self, iterations=iterations, seed=seed)


def as_whole(value: object) -> object:
    """Return a whole number as an int, however it is written, and anything else unchanged."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def check_field(name: str, value: object) -> None:
    """Check a value of one of a recipe's fields in its canonical form.

    Raises:
        RecipeError: It is not allowed.
    """
    holds, allowed = _RULES[name]
    if not holds(value):
        raise RecipeError(
            name, f"is {short_repr(list(value) if isinstance(value, tuple) else value)}; allowed: {allowed}"
        )


def short_repr(value: object) -> str:
    """Return the repr of a value that may not be used, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _check(recipe: Recipe) -> None:
    for name in _RULES:
        check_field(name, getattr(recipe, name))
    if len(recipe.values) != len(recipe.boundaries) + 1:
        raise RecipeError("values", f"has {len(recipe.values)} numbers; allowed: one more than boundaries")


def _is_number(value: Any) -> bool:
    return isinstance(value, float) and value - value == 0  # not of infinity or NaN


def _is_fraction(value: Any) -> bool:
    return _is_number(value) and 0 <= value < 1


def _is_whole(value: Any, low: int) -> bool:
    return type(value) is int and value >= low


def _are_boundaries(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and all(_is_whole(boundary, 1) for boundary in value)
        and all(a < b for a, b in pairwise((*value, REFERENCE_ITERATIONS)))
    )


_FRACTION = (_is_fraction, "a number of at least 0 and under 1")
_SWITCH = (lambda value: type(value) is bool, "true or false")

_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "head": (HEADS.__contains__, f"one of {', '.join(HEADS)}"),
    "dropout": _FRACTION,
    "shortcut_norm": _SWITCH,
    "depth": (
        lambda value: _is_whole(value, MIN_DEPTH) and value <= MAX_DEPTH and value % 6 == 2,
        f"6n + 2 from {MIN_DEPTH} to {MAX_DEPTH}, such as 20, 32, 44, 56 or 110",
    ),
    "boundaries": (_are_boundaries, f"a list of whole numbers, ascending, over 0 and under {REFERENCE_ITERATIONS}"),
    "values": (
        lambda value: isinstance(value, tuple) and all(_is_number(rate) and rate > 0 for rate in value),
        "a list of numbers over 0",
    ),
    "early_stopping": (lambda value: value is None or _is_whole(value, 1), "a whole number over 0, or none"),
    "batch_size": (
        lambda value: _is_whole(value, 1) and value <= MAX_BATCH_SIZE,
        f"a whole number from 1 to {MAX_BATCH_SIZE}",
    ),
    "momentum": _FRACTION,
    "nesterov": _SWITCH,
    "weight_decay": (lambda value: _is_number(value) and value >= 0, "a number of at least 0"),
    "label_smoothing": _FRACTION,
    "iterations": (lambda value: _is_whole(value, MIN_ITERATIONS), f"a whole number of at least {MIN_ITERATIONS}"),
    "seed": (lambda value: _is_whole(value, 0), "a whole number of at least 0"),
}
"""Whether a value in its canonical form may be that of a field, and in words which may."""

_NUMBERS = ("dropout", "momentum", "weight_decay", "label_smoothing", "values")


def _canonical(name: str, value: object) -> object:
    """Return a value with its numbers as ints where whole ones are wanted and else as floats, and lists as tuples."""
    if isinstance(value, list | tuple):
        return tuple(_canonical(name, member) for member in value)
    return _as_number(value) if name in _NUMBERS else as_whole(value)


def _as_number(value: object) -> object:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return value
    try:
        return float(value) + 0.0  # -0.0 becomes 0.0
    except OverflowError:
        return value


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
    from hpo.recipes.yaml_numbers import load_yaml  # which `hpo --help` does not wait for

    text = resources.files("hpo.recipes").joinpath("documented_runs.yaml").read_text(encoding="utf-8")
    return {entry["name"]: _documented_run(entry) for entry in load_yaml(text)}


def find_documented_run(recipe: Recipe) -> DocumentedRun | None:
    """Find the documented experiment that a recipe repeats, with whatever budget and seed."""
    plain = recipe.at(iterations=REFERENCE_ITERATIONS, seed=0)
    return next((run for run in documented_runs().values() if run.recipe == plain), None)


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
