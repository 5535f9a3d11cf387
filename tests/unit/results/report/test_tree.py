"""Test the tree of paths: every segment once, and no connection across a branch."""

from hypothesis import given
from hypothesis import strategies as st

from hpo.results.report.tree import Branch, TreeSegment, grow
from hpo.trial.segments import Segment, shared_iterations

BUDGET = 60


def path(*edges):
    """Make a path from (end, rate) pairs, with keys as telling as the real ones."""
    cut, key, start = [], "", 0
    for end, rate in edges:
        cut.append(Segment(key=f"{key}{rate}", start=start, end=end))
        key, start = f"{key}{rate}until{end};", end
    return tuple(cut)


def test_two_paths_share_what_comes_before_they_differ():
    assert shared_iterations(path((20, "a"), (60, "b")), path((20, "a"), (60, "b"))) == 60
    assert shared_iterations(path((20, "a"), (60, "b")), path((20, "a"), (60, "c"))) == 20
    assert shared_iterations(path((20, "a"), (60, "b")), path((30, "a"), (60, "b"))) == 20
    assert shared_iterations(path((20, "a"), (60, "b")), path((20, "c"), (60, "b"))) == 0


def test_a_tree_draws_each_segment_once_on_the_row_of_the_first_trial_that_has_it():
    paths = {
        0: path((20, "a"), (60, "b")),
        1: path((40, "a"), (60, "b")),
        3: path((40, "a"), (60, "c")),
        4: path((20, "x"), (60, "b")),
    }

    assert grow(paths, {0: 60, 1: 60, 3: 50, 4: 10}) == [
        Branch(
            trial=0,
            parent=None,
            start=0,
            end=60,
            segments=(TreeSegment(start=0, end=20, trials=3), TreeSegment(start=20, end=60, trials=1)),
        ),
        Branch(
            trial=1,
            parent=0,
            start=20,
            end=60,
            segments=(TreeSegment(start=20, end=40, trials=2), TreeSegment(start=40, end=60, trials=1)),
        ),
        Branch(trial=3, parent=1, start=40, end=50, segments=(TreeSegment(start=40, end=50, trials=1),)),
        Branch(trial=4, parent=None, start=0, end=10, segments=(TreeSegment(start=0, end=10, trials=1),)),
    ]


def test_a_trial_that_adds_nothing_is_a_branch_of_no_length():
    same = path((20, "a"), (60, "b"))

    first, second = grow({0: same, 1: same}, {0: 60, 1: 30})

    assert first.segments == (TreeSegment(start=0, end=30, trials=2), TreeSegment(start=30, end=60, trials=1))
    assert second == Branch(trial=1, parent=0, start=30, end=30, segments=())


PATHS = st.lists(
    st.tuples(
        st.lists(st.sampled_from(range(10, BUDGET, 10)), unique=True, max_size=3).map(sorted),
        st.lists(st.sampled_from("ab"), min_size=4, max_size=4),
        st.integers(1, BUDGET),
    ),
    min_size=1,
    max_size=12,
)


def merged(edges, rates):
    """Cut a path as `cut_path` does: neighbours of one rate are one segment."""
    runs = []
    for end, rate in zip((*edges, BUDGET), rates, strict=False):
        if runs and runs[-1][1] == rate:
            runs.pop()
        runs.append((end, rate))
    return path(*runs)


def rate_at(cut, iteration):
    return next(segment.key[-1] for segment in cut if segment.start <= iteration < segment.end)


@given(drawn=PATHS)
def test_a_tree_is_as_long_as_there_are_different_states(drawn):
    paths = {number: merged(edges, rates) for number, (edges, rates, _) in enumerate(drawn)}
    ends = {number: end for number, (_, _, end) in enumerate(drawn)}
    states = {
        tuple(rate_at(paths[number], i) for i in range(at)) for number in paths for at in range(1, ends[number] + 1)
    }

    assert sum(branch.end - branch.start for branch in grow(paths, ends)) == len(states)


@given(drawn=PATHS)
def test_no_connection_to_a_parent_crosses_another_branch(drawn):
    rows = grow(
        {number: merged(edges, rates) for number, (edges, rates, _) in enumerate(drawn)},
        {number: end for number, (_, _, end) in enumerate(drawn)},
    )
    row_of = {branch.trial: row for row, branch in enumerate(rows)}

    assert sorted(row_of) == list(range(len(drawn)))
    for row, branch in enumerate(rows):
        if branch.parent is not None:
            between = rows[row_of[branch.parent] + 1 : row]
            assert [other for other in between if other.start < branch.start] == []
            parent = rows[row_of[branch.parent]]
            assert parent.start <= branch.start <= parent.end
