"""Lay out the paths of a study's trials as a tree in which every stretch stands once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from hpo.trial.segments import Segment, shared_iterations

Path = Sequence[Segment]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stretch:
    """Be a part (start, end] of a trial's path, and how many trials walk it."""

    start: int
    end: int
    trials: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Branch:
    """Be what a trial adds to the tree of the trials before it.

    Attributes:
        parent: The earlier trial on whose path it begins, or None where it begins at iteration 0.
        start: Where it leaves that path.
        end: How far the trial came.
        stretches: Of (start, end], in their order.
    """

    trial: int
    parent: int | None
    start: int
    end: int
    stretches: tuple[Stretch, ...]


def grow(paths: Mapping[int, Path], ends: Mapping[int, int]) -> list[Branch]:
    """Make the tree of a study, from the top row down; no connection to a parent crosses another branch.

    Args:
        paths: Of the trials' recipes, by trial number.
        ends: How far each trial came.
    """
    numbers = sorted(paths)
    shared = {
        (a, b): min(shared_iterations(paths[a], paths[b]), ends[a], ends[b]) for a in numbers for b in numbers if b != a
    }
    branches = [_branch(number, numbers, shared, ends[number]) for number in numbers]
    return _rows(branches, None)


def distinct_iterations(branches: Sequence[Branch]) -> int:
    """Count the iterations of a tree, each stretch once."""
    return sum(branch.end - branch.start for branch in branches)


def _branch(number: int, numbers: Sequence[int], shared: Mapping[tuple[int, int], int], end: int) -> Branch:
    others = {other: shared[number, other] for other in numbers if other != number}
    parent = max((n for n in others if n < number and others[n]), key=lambda n: (others[n], -n), default=None)
    start = 0 if parent is None else others[parent]
    edges = sorted({start, end, *(at for at in others.values() if start < at < end)})
    stretches = tuple(
        Stretch(start=a, end=b, trials=1 + sum(at >= b for at in others.values())) for a, b in pairwise(edges)
    )
    return Branch(trial=number, parent=parent, start=start, end=end, stretches=stretches)


def _rows(branches: Sequence[Branch], parent: int | None) -> list[Branch]:
    """Put each branch above those that leave it; what leaves it last stands nearest."""
    own = [branch for branch in branches if branch.parent == parent]
    own.sort(key=lambda branch: (-branch.start, branch.trial))
    return [row for branch in own for row in (branch, *_rows(branches, branch.trial))]
