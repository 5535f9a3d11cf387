"""The tree of a study's trials: their paths, with each segment that they share in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from hpo.trial.segments import Segment, shared_iterations

Path = Sequence[Segment]


@dataclass(frozen=True, kw_only=True, slots=True)
class TreeSegment:
    """A part (start, end] of a path that a fixed set of trials shares.

    Unlike a segment of `hpo.trial.segments`, it ends where a trial leaves the path or ends, not where the learning rate
    changes.

    Attributes:
        trials: How many trials share it.
    """

    start: int
    end: int
    trials: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Branch:
    """The part of a trial's path that no earlier trial has: a row of the tree.

    Attributes:
        parent: The earlier trial on whose path it begins, or None if it begins at iteration 0.
        start: The iteration at which it leaves that path.
        end: The iteration that the trial reached.
        segments: The segments of (start, end], in their order.
    """

    trial: int
    parent: int | None
    start: int
    end: int
    segments: tuple[TreeSegment, ...]


def grow(paths: Mapping[int, Path], ends: Mapping[int, int]) -> list[Branch]:
    """Build the tree of a study, from the top row down; no connection to a parent crosses another branch.

    Args:
        paths: The paths of the trials' recipes, by trial number.
        ends: The iteration that each trial reached.
    """
    numbers = sorted(paths)
    shared = {
        (a, b): min(shared_iterations(paths[a], paths[b]), ends[a], ends[b]) for a in numbers for b in numbers if b != a
    }
    branches = [_branch(number, numbers, shared, ends[number]) for number in numbers]
    return _rows(branches, None)


def _branch(number: int, numbers: Sequence[int], shared: Mapping[tuple[int, int], int], end: int) -> Branch:
    others = {other: shared[number, other] for other in numbers if other != number}
    parent = max((n for n in others if n < number and others[n]), key=lambda n: (others[n], -n), default=None)
    start = 0 if parent is None else others[parent]
    edges = sorted({start, end, *(at for at in others.values() if start < at < end)})
    segments = tuple(
        TreeSegment(start=a, end=b, trials=1 + sum(at >= b for at in others.values())) for a, b in pairwise(edges)
    )
    return Branch(trial=number, parent=parent, start=start, end=end, segments=segments)


def _rows(branches: Sequence[Branch], parent: int | None) -> list[Branch]:
    """Put each branch above those that leave it; the last to leave it comes first."""
    own = [branch for branch in branches if branch.parent == parent]
    own.sort(key=lambda branch: (-branch.start, branch.trial))
    return [row for branch in own for row in (branch, *_rows(branches, branch.trial))]
