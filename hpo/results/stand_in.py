"""Learning curves that stand in for real ones when a search is replayed before anything is trained.

They have what decides how far trials are trained: how well a rung tells who will be best, how much of a difference
comes from the recipe and how much from chance, and how long early stopping waits. These were measured on the curves of
`benchmarks/truth/digits-640.json.gz` (32 recipes, 5 seeds each; space `smooth_lr`, 640 iterations of the digits):

- Within a seed, the rank correlation between what trials are compared by and their final accuracy is 0.3 at 9% of the
  distance from the first drop of the rate to the end, 0.4 at 14%, 0.5 at 27% and 0.7 at 50%. That is the square root
  of the distance, as in a random walk that begins at the drop.
- The recipe explains about a fifth of the variance of the final accuracy; the rest is that walk.
- As long as the rate is high, the loss falls with a power of the iteration, and each evaluation differs by a factor of
  about 1.7. Later it hardly does, but wanders. A patience of 7,020 (14,040) reference iterations ends runs at iteration
  235 (393) on average; with the constants below, at 255 (400).

As in training, recipes share their curves up to where they part. The values themselves mean nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from hpo.recipes.promotion import first_drop
from hpo.recipes.recipe import Recipe, derive_seed
from hpo.recipes.schedule import CurvePoint, stops_early
from hpo.recipes.space import Param
from hpo.trial.segments import Segment

EXPLAINED = 0.2
"""The share of the variance of final accuracies that recipes explain."""

LEVEL, SPREAD = 0.9, 0.02
"""Accuracy after the first drop of the rate, and how much recipes differ there at their ends."""

DECAY, NOISE, FALL, WANDER = 0.9, 0.55, 0.6, 1.0
"""Of the logarithm of the loss: how it falls with that of the iteration, how evaluations differ as long as the rate is
high, how far it falls as the rate drops, and how far it wanders afterwards, over a whole budget."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StandIn:
    """An imagined outcome of all recipes of a space.

    Attributes:
        seed: Determines which values of which parameters are good, and all noise.
    """

    distributions: Mapping[str, BaseDistribution]
    seed: int

    def curve(
        self, recipe: Recipe, params: Mapping[str, Param], path: Sequence[Segment], evaluated: Sequence[int]
    ) -> list[CurvePoint]:
        """Imagine the curve of a recipe, up to where early stopping ends it.

        Args:
            path: The recipe's segments, by whose keys curves are shared.
            evaluated: The iterations of the evaluations, ascending.
        """
        drop, quality = first_drop(recipe), self.quality(params)
        curve: list[CurvePoint] = []
        lost, gained = 0.0, 0.0
        noise = self._noise(path, evaluated)
        for (before, iteration), (first, second) in zip(pairwise((0, *evaluated)), noise, strict=True):
            since = max(0, iteration - max(before, drop)) / recipe.iterations
            lost += WANDER * math.sqrt(since) * first
            gained += math.sqrt(EXPLAINED) * quality * since + math.sqrt((1 - EXPLAINED) * since) * second
            if iteration > drop:
                loss, accuracy = (
                    -DECAY * math.log(max(drop, 1) / recipe.iterations) - FALL + lost,
                    LEVEL + SPREAD * gained,
                )
            else:
                loss = -DECAY * math.log(iteration / recipe.iterations) + NOISE * first
                accuracy = LEVEL * iteration / (iteration + drop / 10) - SPREAD * (2 + abs(second))
            curve.append(
                CurvePoint(
                    iteration=iteration, train_loss=0.0, val_loss=math.exp(loss), val_accuracy=min(1.0, accuracy)
                )
            )
            if stops_early(curve, recipe):
                break
        return curve

    def quality(self, params: Mapping[str, Param]) -> float:
        """Return how good a recipe is, with mean 0 and standard deviation of about 1 over the space."""
        effects = [self._effect(name, value) for name, value in params.items()]
        return sum(effects) / math.sqrt(len(effects) or 1)

    def _effect(self, name: str, value: Param) -> float:
        """Return what a parameter adds: choices by chance, a range with one best value somewhere in it."""
        generator = np.random.default_rng(derive_seed(f"effect of {name}", self.seed))
        match self.distributions[name]:
            case CategoricalDistribution(choices=choices):
                return float(generator.normal(size=len(choices))[choices.index(value)])
            case IntDistribution(low=low, high=high, log=log) | FloatDistribution(low=low, high=high, log=log):
                place = _place(float(value), low, high, log=log)
                return float(generator.normal() * 2 * math.cos(math.pi * (place - generator.uniform())))
        raise AssertionError(name)

    def _noise(self, path: Sequence[Segment], evaluated: Sequence[int]) -> list[tuple[float, float]]:
        """Draw two normal numbers for each evaluation, which are the same for all recipes that share its segment."""
        drawn: list[tuple[float, float]] = []
        for segment in path:
            count = sum(segment.start < iteration <= segment.end for iteration in evaluated)
            generator = np.random.default_rng([self.seed, int(segment.key[:15], 16)])
            drawn += [(float(one), float(other)) for one, other in generator.normal(size=(count, 2))]
        return drawn


def _place(value: float, low: float, high: float, *, log: bool) -> float:
    """Return where a value lies in a range, from 0 to 1."""
    if log:
        value, low, high = math.log(value), math.log(low), math.log(high)
    return (value - low) / (high - low)
