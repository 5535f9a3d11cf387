"""Figures that can be printed, and that a page can show in light and dark.

A figure is drawn once, in the light palette. As SVG inside a page its colours become CSS variables that the page sets.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from hpo.recipes.recipe import Recipe
from hpo.recipes.schedule import CurvePoint, phases

WIDTH_INCHES = 7.0
"""The text width of a printed page."""

PNG_DOTS_PER_INCH = 150

FEW_POINTS = 20
"""Up to this many points of a curve, each has a marker."""

RAMP = ("ramp-0", "ramp-1", "ramp-2", "ramp-3", "ramp-4")
"""Names of colours from poor to good, distinguished by lightness alone, so that everybody can tell them apart."""

LIGHT: Mapping[str, str] = {
    "paper": "#ffffff",
    "ink": "#1b1f24",
    "soft": "#57606a",
    "rule": "#d0d7de",
    "quiet": "#b4bcc5",
    "first": "#0072b2",  # blue and vermilion: distinct in every kind of colour blindness (Okabe and Ito 2008)
    "second": "#d55e00",
    "ramp-0": "#b7cfe6",
    "ramp-1": "#8ab3d8",
    "ramp-2": "#5591c5",
    "ramp-3": "#2a6aa6",
    "ramp-4": "#123f73",
}
"""The palette of print and of light pages, by the names of the CSS variables."""

DARK: Mapping[str, str] = {
    "paper": "#12161c",
    "ink": "#e6e9ed",
    "soft": "#a3acb6",
    "rule": "#343b45",
    "quiet": "#566070",
    "first": "#5cb8ee",
    "second": "#f5904a",
    "ramp-0": "#44627f",
    "ramp-1": "#4d7eab",
    "ramp-2": "#5a93c7",
    "ramp-3": "#8fbfe8",
    "ramp-4": "#d3e9fb",
}
"""The palette of dark pages, with the same names."""

_STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": LIGHT["soft"],
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": LIGHT["ink"],
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "axes.titlecolor": LIGHT["ink"],
    "figure.constrained_layout.use": True,
    "figure.facecolor": LIGHT["paper"],
    "font.family": ["DejaVu Sans"],  # comes with matplotlib: the same everywhere
    "font.size": 8,
    "grid.color": LIGHT["rule"],
    "grid.linewidth": 0.5,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.labelcolor": LIGHT["ink"],
    "lines.linewidth": 1.4,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "hpo",
    "text.color": LIGHT["ink"],
    "xtick.color": LIGHT["soft"],
    "ytick.color": LIGHT["soft"],
}


@contextmanager
def drawing(height_inches: float) -> Iterator[Figure]:
    """Create an empty figure, and keep its style in force while it is drawn."""
    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=(WIDTH_INCHES, height_inches))


def to_png(figure: Figure) -> bytes:
    """Write a figure as a PNG on a white background."""
    return _save(figure, "png", dpi=PNG_DOTS_PER_INCH, metadata={"Software": None})


def to_svg(figure: Figure) -> str:
    """Write a figure as an SVG element without a background, whose colours are CSS variables."""
    text = _save(figure, "svg", transparent=True, metadata={"Date": None, "Creator": None}).decode()
    element = re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    element = re.sub(r'(<g) id="[^"]*"', r"\1", element)  # the same in every figure, and nothing refers to them
    names = {colour: name for name, colour in LIGHT.items()}
    return re.sub("#[0-9a-f]{6}", lambda match: f"var(--{names[match[0]]})", element)


def css_variables(palette: Mapping[str, str]) -> str:
    """Write a palette as declarations of CSS variables."""
    return " ".join(f"--{name}: {colour};" for name, colour in palette.items())


def training_figure(curve: Sequence[CurvePoint], recipe: Recipe) -> Figure:
    """Draw a run's losses and accuracies over its iterations, and mark the changes of its learning rate."""
    with drawing(2.8) as figure:
        loss, accuracy = figure.subplots(1, 2)
        at = [point.iteration for point in curve]
        mark = {"marker": "o", "markersize": 2.5} if len(curve) <= FEW_POINTS else {}
        loss.plot(at, [p.train_loss for p in curve], color=LIGHT["second"], label="training", **mark)
        loss.plot(at, [p.val_loss for p in curve], color=LIGHT["first"], label="validation", **mark)
        use_log_scale(loss)
        loss.set_ylabel("cross-entropy (nats)")
        if any(p.train_accuracy is not None for p in curve):
            measured = [math.nan if p.train_accuracy is None else p.train_accuracy for p in curve]
            accuracy.plot(at, measured, color=LIGHT["second"], label="training", **mark)
        accuracy.plot(at, [p.val_accuracy for p in curve], color=LIGHT["first"], label="validation", **mark)
        accuracy.set_ylabel("accuracy")
        for axes, title in ((loss, "Training and validation loss"), (accuracy, "Training and validation accuracy")):
            axes.legend(loc="best")
            axes.set_title(title, pad=16)
            label_iterations(axes, recipe.iterations)
            mark_rates(axes, recipe, until=max(at))
        return figure


def label_iterations(axes: Axes, budget: int) -> None:
    """Make the horizontal axis show the iterations of a budget."""
    axes.set_xlim(0, budget)
    axes.set_xlabel("iteration (optimizer steps)")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")


def use_log_scale(axes: Axes) -> None:
    """Make the vertical axis logarithmic, with plain numbers at 1, 2 and 5."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())


def mark_rates(axes: Axes, recipe: Recipe, until: int) -> None:
    """Draw a line where each learning rate begins, and write the rate above it."""
    for phase in phases(recipe):
        if phase.start >= until:
            continue
        if phase.start:
            axes.axvline(phase.start, color=LIGHT["soft"], linewidth=0.7, linestyle=(0, (2, 2)))
        axes.annotate(
            f"{'' if phase.start else 'rate '}{phase.learning_rate:g}",
            (phase.start, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            color=LIGHT["soft"],
            fontsize=7,
        )


def _save(figure: Figure, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(buffer, format=kind, **options)
    return buffer.getvalue()
