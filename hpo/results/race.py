"""A race of recipes over seeds: which of them are clearly behind, and which one is best.

After each seed the recipes that a paired t-test finds worse than the leader drop out, so that no more seeds are spent
on them. Racing is from Maron & Moore 1994; the test is the `t-test` of irace (López-Ibáñez et al. 2016), which does not
correct for the number of recipes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from hpo.results.significance import judge, paired_difference


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """A recipe's validation accuracy in [0, 1] and loss in nats on one seed."""

    accuracy: float
    loss: float


Entry = Score | Literal["lost"] | None
"""A recipe's result on a seed: `lost` if its run ended without one, None if the run has not ended."""

Results = Mapping[str, Sequence[Entry]]
"""The results of each recipe by name, seed by seed, the same seeds for all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Race:
    """The state of a race after the seeds that are complete.

    Attributes:
        seeds: Indices of the seeds that count: those on which the base recipe has a result.
        dropped: For each recipe that dropped out, how many seeds had been run.
        ranking: The recipes that are left, the best first.
    """

    seeds: tuple[int, ...]
    dropped: Mapping[str, int]
    ranking: tuple[str, ...]


def race(results: Results, base: str) -> Race:
    """Run a race seed by seed, up to the first on which a recipe that is left has no result yet.

    The decision after a seed depends on the seeds up to it alone, so it is the same in whatever order runs end. A
    recipe whose run is lost drops out. The base recipe never does; a seed on which it is lost does not count.

    Args:
        base: Name of the base recipe.
    """
    left, seeds, dropped = list(results), list[int](), dict[str, int]()
    for index in range(max(map(len, results.values()), default=0)):
        row = {name: _entry(results[name], index) for name in left}
        if None in row.values():
            break
        if row[base] != "lost":
            seeds.append(index)
        out = {name for name in left if name != base and row[name] == "lost"}
        out |= _behind({name: _scores(results[name], seeds) for name in left if name not in out}, base)
        dropped |= dict.fromkeys((name for name in left if name in out), index + 1)
        left = [name for name in left if name not in out]
    ranking = sorted(left, key=lambda name: _rank(_scores(results[name], seeds)))
    return Race(seeds=tuple(seeds), dropped=dropped, ranking=tuple(ranking))


def _behind(scores: Mapping[str, Sequence[Score]], base: str) -> set[str]:
    """Find the recipes that are worse than the one in the lead."""
    leader = min(scores, key=lambda name: _rank(scores[name]))
    return {name for name in scores if name != base and _is_worse(scores[name], scores[leader])}


def _is_worse(ours: Sequence[Score], others: Sequence[Score]) -> bool:
    differences = [own.accuracy - other.accuracy for own, other in zip(ours, others, strict=True)]
    return judge(paired_difference(differences)) == "worse"


def _rank(scores: Sequence[Score]) -> tuple[float, float]:
    """Return what recipes are sorted by: the mean accuracy, the highest first, then the mean loss."""
    if not scores:
        return 0.0, 0.0
    return -fmean(score.accuracy for score in scores), fmean(score.loss for score in scores)


def _scores(entries: Sequence[Entry], seeds: Sequence[int]) -> list[Score]:
    return [entry for index in seeds if isinstance(entry := entries[index], Score)]


def _entry(entries: Sequence[Entry], index: int) -> Entry:
    return entries[index] if index < len(entries) else None
