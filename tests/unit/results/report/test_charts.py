"""Test what the figures of a report decide: their scales and their labels."""

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from hpo.recipes.recipe import documented_runs
from hpo.results.report import charts
from hpo.results.report.charts import end_range, rows_with_room
from hpo.results.report.tree import Branch, TreeSegment


@pytest.mark.parametrize(
    ("ends", "shown"),
    [
        ([0.9, 0.94], (0.86, 0.952)),
        ([0.9] * 4, (0.88, 0.907)),
        ([0.0, 1.0], (0.0, 1.002)),
        ([0.1, *[0.9] * 6, 0.94], (0.86, 0.952)),
        ([0.1, 0.9], (0.0, 1.002)),
    ],
)
def test_a_scale_of_accuracies_stays_within_0_and_1_and_ignores_few_poor_trials(ends, shown):
    assert end_range(ends) == pytest.approx(shown)


@pytest.mark.parametrize(
    ("rows", "least", "labelled"),
    [([], 1.0, []), ([0, 1, 2, 7], 1.0, [0, 1, 2, 7]), ([0, 1, 2, 7], 1.5, [0, 2, 7]), ([3, 4, 5, 6], 2.5, [3, 6])],
)
def test_rows_without_room_for_a_label_have_none(rows, least, labelled):
    assert rows_with_room(rows, least) == labelled


BASE = documented_runs()["baseline"].recipe


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ([{}], ["linear"]),
        ([{"head": "dropout", "dropout": 0.5}, {}], ["dropout 0.5", "linear"]),
        ([{"weight_decay": 1e-4}, {}], ["decay 0.0001", "linear"]),
        (
            [{"weight_decay": 1e-4, "nesterov": True, "values": (0.05, 0.01, 0.001)}, {"label_smoothing": 0.1}],
            ["rate 0.05, decay 0.0001, Nesterov", "rate 0.1, smoothing 0.1"],
        ),
        (
            [{"depth": 32, "batch_size": 64, "shortcut_norm": True}, {}],
            [
                "shortcut norm, 32 layers, batch 64",
                "20 layers, batch 128",
            ],
        ),
    ],
    ids=["one", "heads", "decay", "optimizer and rate", "network"],
)
def test_the_roots_of_a_tree_are_told_apart_by_what_differs(changes, lines):
    assert charts.root_lines([replace(BASE, **change) for change in changes]) == lines


@pytest.mark.slow
@pytest.mark.parametrize("trials", [1, 55, 100, 300])
def test_no_label_of_a_tree_overlaps_the_next(trials):
    recipe = documented_runs()["smooth_lr"].recipe.at(iterations=160, seed=0)
    segment = TreeSegment(start=0, end=50, trials=1)
    facts = SimpleNamespace(
        branches=[Branch(trial=n, parent=None, start=0, end=50, segments=(segment,)) for n in range(trials)],
        trials=[SimpleNamespace(number=n, state="complete", value=0.9, recipe=recipe) for n in range(trials)],
        settings=SimpleNamespace(iterations=160),
        best=None,
    )

    figure = charts.tree(facts)
    FigureCanvasAgg(figure).draw()

    (axes,) = figure.axes
    for labels in (axes.get_yticklabels(), axes.texts):
        boxes = [label.get_window_extent() for label in labels]
        assert not any(above.overlaps(below) for above, below in pairwise(boxes))
    assert axes.get_yticklabels()
