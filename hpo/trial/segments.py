"""Segments of a recipe's trajectory, each with a key made of everything that determines its states."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hpo.recipes.recipe import LATER_FIELDS, Recipe
from hpo.recipes.schedule import Evaluation, learning_rate_runs
from hpo.training.data import Dataset
from hpo.training.numerics import Numerics

FORMAT = 2
"""Part of every key; raise it when a change to the training code changes its results."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """A range (start, end] of iterations with one learning rate, and the key of its states."""

    key: str
    start: int
    end: int


def segments(recipe: Recipe, dataset: Dataset, plan: Evaluation, numerics: Numerics) -> tuple[Segment, ...]:
    """Cut a recipe's path into segments.

    A key is the SHA-256 of the canonical JSON of everything that determines the states: architecture, dropout, data,
    batch size, optimizer, seed, numerics, the evaluations and their images, and the learning rates up to and on the
    segment. Early stopping and later learning rates are not part of it.
    """
    setting = {
        "data": [dataset.name, dataset.checksum, dataset.padding, dataset.flip],
        "numerics": asdict(numerics),
        "evaluation": asdict(plan),
    }
    return cut_path(recipe, setting)


def cut_path(recipe: Recipe, setting: Mapping[str, Any]) -> tuple[Segment, ...]:
    """Cut a recipe's path into segments, whose keys distinguish recipes within one setting.

    Args:
        setting: What determines the states besides the recipe, as JSON values.
    """
    same = {
        "format": FORMAT,
        "network": [f"resnet{recipe.depth}", recipe.head, recipe.dropout, recipe.shortcut_norm],
        "optimizer": ["sgd", recipe.momentum, recipe.weight_decay, recipe.batch_size],
        "seed": recipe.seed,
        **_later(recipe),
        **setting,
    }
    cut: list[Segment] = []
    runs = learning_rate_runs(recipe, recipe.iterations)
    for index, (end, rate) in enumerate(runs):
        text = json.dumps(same | {"before": runs[:index], "rate": rate}, sort_keys=True, separators=(",", ":"))
        start = runs[index - 1][0] if index else 0
        cut.append(Segment(key=hashlib.sha256(text.encode()).hexdigest(), start=start, end=end))
    return tuple(cut)


def _later(recipe: Recipe) -> dict[str, Any]:
    """Return what keys of earlier releases lack, where it is not as it always was then: their checkpoints stay."""
    later = {"nesterov": recipe.nesterov, "label_smoothing": recipe.label_smoothing}
    return {name: value for name, value in later.items() if value != LATER_FIELDS[name]}


def segment_at(path: Sequence[Segment], iteration: int) -> Segment:
    """Return the segment whose training continues from an iteration before the last."""
    return next(segment for segment in path if segment.start <= iteration < segment.end)


def segment_of(path: Sequence[Segment], iteration: int) -> Segment:
    """Return the segment that the state at an iteration of 1 or more lies on."""
    return path[bisect_left([segment.end for segment in path], iteration)]


def shared_iterations(one: Sequence[Segment], other: Sequence[Segment]) -> int:
    """Count the iterations that two paths have in common from their start."""
    shared = 0
    for a, b in zip(one, other, strict=False):
        if a.key != b.key:
            break
        shared = min(a.end, b.end)
        if a.end != b.end:
            break
    return shared
