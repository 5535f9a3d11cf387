"""A review of a search space before it is searched: what cannot make a difference, and what leaves no room."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from hpo.recipes.recipe import REFERENCE_ITERATIONS
from hpo.recipes.schedule import evaluation, scale
from hpo.recipes.space import SearchSpace
from hpo.wording import counted


def review_space(space: SearchSpace, iterations: int, training_images: int, validation_images: int) -> list[str]:
    """List what a space searches in vain, one sentence each.

    Args:
        iterations: The budget of a full trial.
        training_images: Size of the training split.
        validation_images: Size of the validation split.
    """
    return [
        *_without_room(space),
        *_between_equal_rates(space),
        *_patience_that_cannot_matter(space, iterations, validation_images),
        *_batches_that_are_equal(space, training_images),
    ]


def _without_room(space: SearchSpace) -> Iterator[str]:
    for name, value in space.unsearched().items():
        yield f"{name} is not searched: its only value is {value}"


def _between_equal_rates(space: SearchSpace) -> Iterator[str]:
    """Find boundaries between two phases that always have the same rate."""
    values = space.every_value()
    rates = [allowed for name, allowed in values.items() if name.startswith("learning_rate_")]
    for number, (before, after) in enumerate(pairwise(rates), start=1):
        if len(values[f"boundary_{number}"]) > 1 and len(set(before) | set(after)) == 1:
            yield f"boundary_{number} never matters: the learning rate is {before[0]} on both sides of it"


def _patience_that_cannot_matter(space: SearchSpace, iterations: int, validation_images: int) -> Iterator[str]:
    """Find values of the patience that stop nothing, or at the same evaluations as another."""
    allowed = space.every_value()["patience"] if "patience" in space.distributions() else []
    plan = evaluation(iterations, space.base_recipe.batch_size, validation_images)
    first = plan.iterations[0]
    idle = [value for value in allowed if scale(value, iterations) > iterations - first]
    if idle:
        yield f"patience {_listed(idle)} never stops a trial: the budget of {REFERENCE_ITERATIONS:,} ends before"
    waits = {value: -(-scale(value, iterations) // first) for value in allowed if value not in idle}
    yield from _equal(waits, "patience", f"evaluations are {counted(first, 'iteration')} apart")


def _batches_that_are_equal(space: SearchSpace, training_images: int) -> Iterator[str]:
    sizes = space.every_value()["batch_size"] if "batch_size" in space.distributions() else []
    used = {size: min(size, training_images) for size in sizes}
    yield from _equal(used, "batch_size", f"there are {training_images:,} training images")


def _equal(effects: dict[Any, int], name: str, why: str) -> Iterator[str]:
    """Say which values of a parameter have the same effect."""
    for effect in dict.fromkeys(effects.values()):
        values = [value for value, own in effects.items() if own == effect]
        if len(values) > 1:
            yield f"{name} {_listed(values)} train the same: {why}"


def _listed(values: Sequence[object]) -> str:
    """Write values in a row, of many only the ends."""
    if len(values) > 4:
        return f"{values[0]} to {values[-1]} ({len(values)} values)"
    return ", ".join(map(str, values[:-1])) + f" and {values[-1]}" if len(values) > 1 else str(values[0])
