"""Full learning curves of recipes on several seeds, in compact files from which searches are replayed."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import starmap
from pathlib import Path
from typing import Any

from hpo.artifacts import write_whole
from hpo.recipes.comparison import BASELINE
from hpo.recipes.recipe import Recipe
from hpo.recipes.schedule import CurvePoint

FIGURES = ("train_loss", "val_loss", "val_accuracy")
DIGITS = 6
"""Decimal places that are kept: enough to tell accuracies of 100,000 images apart."""


SAME = ("space", "dataset", "split", "iterations")
"""What truths have in common that can be put together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """The run of a recipe to its end on one seed.

    Attributes:
        accuracy: Of its final weights on the whole validation split.
        loss: Of its final weights on the whole validation split.
        curve: All evaluations; early stopping may have cut it short.
    """

    recipe: str
    seed: int
    accuracy: float
    loss: float
    curve: tuple[CurvePoint, ...]

    @property
    def length(self) -> int:
        """Return the number of optimizer steps."""
        return self.curve[-1].iteration


@dataclass(frozen=True, kw_only=True, slots=True)
class Truth:
    """The runs of every recipe on every seed.

    Attributes:
        source: Where the runs come from: command, date, versions, processor, data set, seeds. `others` are the
            sources of other seeds that were trained separately.
        recipes: By name, at the budget of the runs; `baseline` is the base recipe of the space.
        runs: By recipe and seed.
    """

    source: dict[str, Any]
    recipes: dict[str, Recipe]
    runs: dict[tuple[str, int], Run]

    @property
    def base(self) -> Recipe:
        """Return the base recipe."""
        return self.recipes[BASELINE]

    @property
    def seeds(self) -> tuple[int, ...]:
        """List the seeds in the order of training."""
        return tuple(dict.fromkeys(seed for _, seed in self.runs))

    def accuracy(self, recipe: str, seed: int) -> float:
        """Return the final accuracy of a recipe on a seed."""
        return self.runs[recipe, seed].accuracy


def save(truth: Truth, path: Path) -> None:
    """Write a truth to a file, which is the same for the same runs."""
    content = {
        "source": truth.source,
        "recipes": {name: recipe.to_dict() for name, recipe in truth.recipes.items()},
        "runs": [_run_to_dict(run) for run in truth.runs.values()],
    }
    text = json.dumps(content, separators=(",", ":"))
    write_whole(path, gzip.compress(text.encode(), mtime=0))


def merge(earlier: Truth, later: Truth) -> Truth:
    """Put the seeds of two truths of the same recipes together; where both have a run, the later one counts.

    Raises:
        ValueError: They differ in what they train.
    """
    for name in SAME:
        if earlier.source[name] != later.source[name]:
            raise ValueError(f"{name} is {earlier.source[name]} there, and {later.source[name]} here")
    if earlier.recipes != later.recipes:
        raise ValueError("it has other recipes")
    known = [earlier.source | {"others": []}, *earlier.source.get("others", [])]
    others = [source for source in known if not set(source["seeds"]) <= set(later.seeds)]
    return Truth(source=later.source | {"others": others}, recipes=later.recipes, runs={**earlier.runs, **later.runs})


def load(path: Path) -> Truth:
    """Read a truth from a file."""
    content = json.loads(gzip.decompress(path.read_bytes()))
    runs = [_run_from_dict(fields) for fields in content["runs"]]
    return Truth(
        source=content["source"],
        recipes={name: Recipe.from_dict(fields) for name, fields in content["recipes"].items()},
        runs={(run.recipe, run.seed): run for run in runs},
    )


def _run_to_dict(run: Run) -> dict[str, Any]:
    columns = {name: [round(getattr(point, name), DIGITS) for point in run.curve] for name in FIGURES}
    return {
        "recipe": run.recipe,
        "seed": run.seed,
        "accuracy": round(run.accuracy, DIGITS),
        "loss": round(run.loss, DIGITS),
        "iteration": [point.iteration for point in run.curve],
        **columns,
    }


def _run_from_dict(fields: Mapping[str, Any]) -> Run:
    columns = zip(fields["iteration"], *(fields[name] for name in FIGURES), strict=True)
    return Run(
        recipe=fields["recipe"],
        seed=fields["seed"],
        accuracy=fields["accuracy"],
        loss=fields["loss"],
        curve=tuple(starmap(_point, columns)),
    )


def _point(iteration: int, train_loss: float, val_loss: float, val_accuracy: float) -> CurvePoint:
    return CurvePoint(iteration=iteration, train_loss=train_loss, val_loss=val_loss, val_accuracy=val_accuracy)
