"""Test that figures hold what they were given, and can be read in light, in dark and in print."""

import math
import re
from dataclasses import replace
from itertools import pairwise

import pytest

from hpo.recipes.recipe import Recipe
from hpo.recipes.schedule import CurvePoint
from hpo.results.figures import DARK, LIGHT, RAMP, css_variables, to_png, to_svg, training_figure

RECIPE = Recipe(
    head="linear", dropout=0, shortcut_norm=False, boundaries=(32_000, 48_000), values=(0.1, 0.01, 0.001), iterations=64
)
CURVE = [
    CurvePoint(iteration=i, train_loss=2 / i, train_accuracy=1 - 1 / i, val_loss=3 / i, val_accuracy=1 - 1 / (i + 1))
    for i in range(4, 65, 4)
]


def lightness(colour):
    """Give the relative luminance of a colour, as the Web Content Accessibility Guidelines define it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    light, dark = sorted((lightness(one), lightness(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def drawn(axes):
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    lines = {line.get_label(): line.get_xydata() for line in axes.lines if line.get_label() in legend}
    return {name: points.tolist() for name, points in lines.items()}


def test_the_training_figure_draws_both_losses_and_both_accuracies():
    loss, accuracy = training_figure(CURVE, RECIPE).axes

    assert drawn(loss) == {
        "training": [[p.iteration, p.train_loss] for p in CURVE],
        "validation": [[p.iteration, p.val_loss] for p in CURVE],
    }
    assert drawn(accuracy) == {
        "training": [[p.iteration, p.train_accuracy] for p in CURVE],
        "validation": [[p.iteration, p.val_accuracy] for p in CURVE],
    }
    assert [axes.get_ylabel() for axes in (loss, accuracy)] == ["cross-entropy (nats)", "accuracy"]


@pytest.mark.parametrize(("missing", "labels"), [(16, ["validation"]), (10, ["training", "validation"])])
def test_the_training_figure_leaves_out_training_accuracies_that_were_not_measured(missing, labels):
    curve = [replace(p, train_accuracy=None) for p in CURVE[:missing]] + CURVE[missing:]

    lines = drawn(training_figure(curve, RECIPE).axes[1])

    assert list(lines) == labels
    if "training" in lines:
        assert [math.isnan(value) for _, value in lines["training"]] == [True] * missing + [False] * (16 - missing)


def test_the_training_figure_marks_each_change_of_the_rate_that_was_reached():
    loss, accuracy = training_figure([p for p in CURVE if p.iteration <= 40], RECIPE).axes

    for axes in (loss, accuracy):
        assert [text.get_text() for text in axes.texts] == ["rate 0.1", "0.01"]
        assert [text.xy[0] for text in axes.texts] == [0, 32]
        assert axes.get_xlim() == (0, 64)


@pytest.mark.parametrize("curve", [CURVE[:1], CURVE])
def test_a_figure_is_written_in_both_forms_and_the_same_each_time(curve):
    elements = [to_svg(training_figure(curve, RECIPE)) for _ in range(2)]

    assert elements[0] == elements[1]
    assert elements[0].startswith("<svg") and elements[0].rstrip().endswith("</svg>")
    assert to_png(training_figure(curve, RECIPE)).startswith(b"\x89PNG")


def test_the_colours_of_an_svg_are_those_of_the_page():
    element = to_svg(training_figure(CURVE, RECIPE))

    assert re.findall("#[0-9a-fA-F]{6}", re.sub(r'#[mp][0-9a-f]{10}"', '"', element)) == []
    assert set(re.findall(r"var\(--([a-z0-9-]+)\)", element)) <= set(LIGHT)
    assert "rate 0.1" in element, "text stays text"


def test_both_palettes_name_the_same_colours_and_none_stands_twice():
    assert list(LIGHT) == list(DARK)
    assert len(set(LIGHT.values())) == len(LIGHT)
    assert css_variables({"ink": "#000000", "paper": "#ffffff"}) == "--ink: #000000; --paper: #ffffff;"


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_lines_stand_out_from_the_paper(palette):
    assert min(contrast(palette[name], palette["paper"]) for name in ("ink", "soft")) >= 4.5
    assert min(contrast(palette[name], palette["paper"]) for name in ("first", "second")) >= 3


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_better_results_stand_out_more(palette):
    against_paper = [contrast(palette[name], palette["paper"]) for name in RAMP]

    assert all(b / a > 1.2 for a, b in pairwise(against_paper))
