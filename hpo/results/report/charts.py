"""The figures of a study."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from statistics import median, quantiles
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from hpo.recipes.recipe import Recipe
from hpo.recipes.schedule import phases
from hpo.results.figures import LIGHT, RAMP, drawing, label_iterations, use_log_scale
from hpo.results.formatting import show_value
from hpo.results.report.facts import Facts, Trial
from hpo.results.report.tree import Branch
from hpo.wording import counted

COLUMNS = 4
"""Parameters per row in the figure of slices."""

RECIPES_PER_ROW = 3
"""Compared recipes per row in the figure of their curves."""

ROW_INCHES = 0.16
"""Height of a row of the tree."""

MAX_TREE_INCHES = 9.5
"""Maximum height of the tree, so that it fits on a printed page."""

MAX_LABELLED = 55
"""Rows of a tree that still have room for a label each."""

MANY_ENDS = 8
"""From this many trials on, the lowest quarter does not stretch the scale of accuracies."""

LABEL_POINTS = 6.5
"""Size of the type of a tree's roots where rows have room for it."""

LINE_HEIGHT = 1.3
"""Height of a line in sizes of its type."""

BESIDE = 0.04
"""How far apart, as a fraction of the rate, schedules of the same rate are drawn, so that each can be seen."""


def history(facts: Facts) -> Figure:
    """Draw each trial's accuracy, and the best so far; accuracies far below the rest are drawn at the edge."""
    with drawing(2.6) as figure:
        axes = figure.subplots()
        floor, top = _end_range(facts)
        pruned = [(trial.number, trial.value) for trial in facts.pruned if trial.value is not None]
        complete = [(trial.number, trial.value or 0.0) for trial in facts.complete]
        hollow = {"facecolors": "none", "edgecolors": LIGHT["quiet"], "linewidths": 1.0, "clip_on": False}
        _dots(axes, [dot for dot in pruned if dot[1] >= floor], label="pruned: last value", s=14, **hollow)
        below = [(number, floor) for number, value in pruned if value < floor]
        _dots(axes, below, label=f"pruned under {floor:.2f}", marker="v", s=18, **hollow)
        failing = [(number, floor) for number, value in complete if value < floor]
        _dots(axes, failing, label=f"complete under {floor:.2f}", marker="v", s=18, color=LIGHT["first"], clip_on=False)
        best = [*zip((n for n, _ in complete), accumulate((value for _, value in complete), max), strict=True)]
        if best:
            best.append((facts.trials[-1].number, best[-1][1]))
            axes.step(*zip(*best, strict=True), where="post", color=LIGHT["second"], label="best so far", zorder=1)
        _dots(axes, [dot for dot in complete if dot[1] >= floor], label="complete", s=18, color=LIGHT["first"])
        axes.set_ylim(floor, top)
        axes.set_xlabel("trial")
        axes.set_ylabel("validation accuracy")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="lower right", ncols=5, bbox_to_anchor=(1, 1.02), borderaxespad=0.2)
        return figure


def learning_curves(facts: Facts) -> Figure:
    """Draw the validation accuracy of all trials over their iterations: the whole range, and the top enlarged."""
    with drawing(3.0) as figure:
        whole, top = figure.subplots(1, 2)
        for axes in (whole, top):
            for trial in (*facts.pruned, *facts.complete):
                _curve(axes, trial, trial == facts.best)
            label_iterations(axes, facts.settings.iterations)
            axes.set_ylabel("validation accuracy")
        whole.set_title("all trials")
        top.set_title("where they end")
        top.set_ylim(*_end_range(facts))
        top.set_xlim(facts.settings.iterations / 3, facts.settings.iterations)
        lines = [
            Line2D([], [], color=LIGHT["second"], linewidth=1.8, label="best"),
            Line2D([], [], color=LIGHT["first"], linewidth=0.8, label="complete"),
            Line2D([], [], color=LIGHT["quiet"], linewidth=0.8, label="pruned"),
        ]
        whole.legend(handles=lines, loc="lower right")
        return figure


def compared_curves(facts: Facts) -> Figure:
    """Draw the validation accuracy of each compared recipe in axes of its own, above those of the others."""
    assert facts.compared is not None
    runs = facts.compared.runs
    rows = math.ceil(len(runs) / RECIPES_PER_ROW)
    with drawing(0.4 + 1.7 * rows) as figure:
        grid = figure.subplots(rows, RECIPES_PER_ROW, sharex=True, sharey=True, squeeze=False)
        for axes, name in zip(grid.flat, runs, strict=False):
            for trial in facts.trials:
                own = trial in runs[name]
                at, values = [p.iteration for p in trial.curve], [p.val_accuracy for p in trial.curve]
                axes.plot(at, values, color=LIGHT["first" if own else "quiet"], linewidth=0.9, zorder=2 + own)
            axes.set_title(name, fontsize=8)
        for axes in grid.flat[len(runs) :]:
            axes.set_visible(False)
        for axes in grid[-1]:
            label_iterations(axes, facts.settings.iterations)
        figure.supylabel("validation accuracy", fontsize=8)
        return figure


def importances(facts: Facts) -> Figure:
    """Draw how much of the difference between trials each parameter explains."""
    with drawing(0.7 + 0.2 * len(facts.importances)) as figure:
        axes = figure.subplots()
        names = [readable(name) for name in facts.importances]
        bars = axes.barh(names, list(facts.importances.values()), color=LIGHT["first"], height=0.6)
        axes.bar_label(bars, fmt="{:.2f}", padding=3, color=LIGHT["soft"], fontsize=7)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("importance (fractions of their sum)")
        return figure


def slices(facts: Facts) -> Figure:
    """Draw the accuracy over each searched parameter, with a dot for each completed trial and each value's median."""
    names = [name for name in _parameters(facts) if any(name in trial.params for trial in facts.complete)]
    rows = math.ceil(len(names) / COLUMNS)
    with drawing(0.3 + 1.45 * rows) as figure:
        grid = figure.subplots(rows, COLUMNS, sharey=True, squeeze=False)
        for axes, name in zip(grid.flat, names, strict=False):
            _slice(axes, name, [trial for trial in facts.complete if name in trial.params], facts.best)
        for axes in grid.flat[len(names) :]:
            axes.set_visible(False)
        figure.supylabel("validation accuracy", fontsize=8)
        return figure


def schedules(facts: Facts) -> Figure:
    """Draw the learning rates that were tried, coloured by result."""
    with drawing(3.0) as figure:
        axes = figure.subplots()
        edges, ranked = _fifths(facts.complete), sorted(facts.complete, key=lambda trial: trial.value or 0.0)
        drawn = [(trial, LIGHT["quiet"], 0.6) for trial in facts.pruned]
        drawn += [(trial, LIGHT[RAMP[_class(trial, edges)]], 1.1) for trial in ranked if trial != facts.best]
        drawn += [(facts.best, LIGHT["second"], 1.8)] if facts.best else []
        for place, (trial, colour, width) in enumerate(drawn):
            beside = 1 + BESIDE * (2 * place / len(drawn) - 1)
            schedule = phases(trial.recipe)
            at = [phase.start for phase in schedule] + [facts.settings.iterations]
            rates = [phase.learning_rate * beside for phase in schedule]
            axes.step(at, [*rates, rates[-1]], where="post", color=colour, linewidth=width)
        use_log_scale(axes)
        axes.set_ylabel("learning rate")
        label_iterations(axes, facts.settings.iterations)
        axes.legend(handles=_result_keys(facts, edges), loc="center left", bbox_to_anchor=(1, 0.5))
        return figure


def tree(facts: Facts) -> Figure:
    """Draw the paths of all trials, each segment once, on the row of the first trial that has it."""
    rows = {branch.trial: row for row, branch in enumerate(facts.branches)}
    trials = {trial.number: trial for trial in facts.trials}
    height_inches = min(MAX_TREE_INCHES, 0.7 + ROW_INCHES * len(rows))
    with drawing(height_inches) as figure:
        axes = figure.subplots()
        most = max(segment.trials for branch in facts.branches for segment in branch.segments)
        for branch in facts.branches:
            _branch(axes, branch, rows, most)
            _end(axes, branch, rows[branch.trial], trials[branch.trial], facts, labelled=len(rows) <= MAX_LABELLED)
        label_iterations(axes, facts.settings.iterations)
        axes.set_ylim(len(rows) - 0.2, -0.8)
        row_points = 72 * (height_inches - 0.7) / (len(rows) + 0.6)
        roots = {rows[branch.trial]: branch.trial for branch in facts.branches if branch.parent is None}
        size = max(LABEL_POINTS - 2, min(LABEL_POINTS, row_points / LINE_HEIGHT))
        labelled = rows_with_room(list(roots), size * LINE_HEIGHT / row_points)
        titles = dict(zip(roots, root_lines([trials[number].recipe for number in roots.values()]), strict=True))
        axes.set_yticks(labelled, [titles[row] for row in labelled], fontsize=size)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.legend(handles=_tree_keys(most), loc="lower right", bbox_to_anchor=(1, 1), ncols=5, borderaxespad=0.2)
        return figure


def rows_with_room(rows: Sequence[int], least: float) -> list[int]:
    """Choose, from the top, the rows whose labels lie at least some number of rows apart."""
    chosen: list[int] = []
    for row in rows:
        if not chosen or row - chosen[-1] >= least:
            chosen.append(row)
    return chosen


def readable(name: str) -> str:
    """Write a parameter's name for people."""
    return name.replace("_", " ")


def head_line(recipe: Recipe) -> str:
    """Write a recipe's head with its dropout rate, if it has any."""
    return f"{recipe.head} {show_value(recipe.dropout)}" if recipe.dropout else recipe.head


def root_lines(recipes: Sequence[Recipe]) -> list[str]:
    """Write each recipe by what the first segment depends on and in which the recipes differ, else by its head."""
    columns = zip(*map(_root_parts, recipes), strict=True)
    varied = [column for column in columns if len(set(column)) > 1]
    lines = [", ".join(filter(None, parts)) for parts in zip(*varied, strict=True)] or [""] * len(recipes)
    return [line or head_line(recipe) for line, recipe in zip(lines, recipes, strict=True)]


def _root_parts(recipe: Recipe) -> tuple[str, ...]:
    """Write what a recipe's first segment depends on, a field each; what is switched off is empty."""
    return (
        head_line(recipe),
        "shortcut norm" if recipe.shortcut_norm else "",
        f"{recipe.depth} layers",
        f"batch {recipe.batch_size}",
        f"rate {show_value(phases(recipe)[0].learning_rate)}",
        f"decay {show_value(recipe.weight_decay)}" if recipe.weight_decay else "",
        f"momentum {show_value(recipe.momentum)}",
        "Nesterov" if recipe.nesterov else "",
        f"smoothing {show_value(recipe.label_smoothing)}" if recipe.label_smoothing else "",
    )


def _dots(axes: Axes, dots: Sequence[tuple[int, float]], **options: Any) -> None:
    if dots:
        axes.scatter(*zip(*dots, strict=True), zorder=3, **options)


def _curve(axes: Axes, trial: Trial, is_best: bool) -> None:
    colour, width, order = ("first", 0.8, 2) if trial.state == "complete" else ("quiet", 0.7, 1)
    if is_best:
        colour, width, order = "second", 1.8, 3
    at, values = [p.iteration for p in trial.curve], [p.val_accuracy for p in trial.curve]
    axes.plot(at, values, color=LIGHT[colour], linewidth=width, zorder=order)


def _end_range(facts: Facts) -> tuple[float, float]:
    """Return the range of the accuracies at which trials end, as `end_range` does."""
    return end_range([trial.value for trial in facts.complete or facts.trials if trial.value is not None] or [0.0, 1.0])


def end_range(ends: Sequence[float]) -> tuple[float, float]:
    """Return a range, within 0 and 1, that shows the upper three quarters of some accuracies, with a margin."""
    low = quantiles(ends, n=4, method="inclusive")[0] if len(ends) >= MANY_ENDS else min(ends)
    margin = max(0.01, (max(ends) - low) / 2)
    return max(0.0, low - 2 * margin), min(1.0, max(ends) + margin / 2) + 0.002


def _parameters(facts: Facts) -> list[str]:
    """List the parameters, the most important first if importances are known."""
    names = dict.fromkeys(name for trial in facts.complete for name in trial.params)
    return sorted(names, key=lambda name: -facts.importances.get(name, 0.0))


def _slice(axes: Axes, name: str, trials: Sequence[Trial], best: Trial | None) -> None:
    chosen = sorted({trial.params[name] for trial in trials})
    places = {value: place for place, value in enumerate(chosen)}
    by_value: Mapping[Any, list[Trial]] = {
        value: [trial for trial in trials if trial.params[name] == value] for value in chosen
    }
    dots = []
    for value, group in by_value.items():
        spread = 0.5 / max(1, len(group) - 1)
        dots += [(places[value] + spread * (i - (len(group) - 1) / 2), trial) for i, trial in enumerate(group)]
        middle = median(trial.value or 0.0 for trial in group)
        axes.hlines(middle, places[value] - 0.32, places[value] + 0.32, color=LIGHT["soft"], linewidth=1.0, zorder=2)
    colours = [LIGHT["second" if trial == best else "first"] for _, trial in dots]
    axes.scatter(
        [at for at, _ in dots], [trial.value or 0.0 for _, trial in dots], c=colours, s=11, linewidths=0, zorder=3
    )
    axes.set_xlim(-0.6, len(chosen) - 0.4)
    axes.set_xticks(range(len(chosen)), [_short(value) for value in chosen], fontsize=6.5)
    axes.grid(visible=False, axis="x")
    axes.set_title(readable(name), fontsize=8)


def _short(value: object) -> str:
    return f"{value / 1_000:g}k" if isinstance(value, int) and value >= 1_000 else show_value(value)


def _fifths(trials: Sequence[Trial]) -> list[float]:
    """Return the accuracies that divide the trials into fifths of equal size."""
    values = [trial.value for trial in trials if trial.value is not None]
    return sorted(set(quantiles(values, n=len(RAMP), method="inclusive"))) if len(values) > 1 else []


def _class(trial: Trial, edges: Sequence[float]) -> int:
    return len(RAMP) - 1 - len(edges) + bisect_right(edges, trial.value or 0.0)


def _result_keys(facts: Facts, edges: Sequence[float]) -> list[Line2D]:
    """Explain the colours of results, the best on top."""
    values = [trial.value for trial in facts.complete if trial.value is not None]
    bounds = [min(values), *edges, max(values)] if values else []
    keys = []
    if facts.best:
        label = f"best: {facts.best.value:.3f}"
        keys.append(Line2D([], [], color=LIGHT["second"], linewidth=1.8, label=label))
    for index in reversed(range(len(bounds) - 1)):
        colour = LIGHT[RAMP[len(RAMP) - len(bounds) + 1 + index]]
        ends = dict.fromkeys(f"{bound:.3f}" for bound in bounds[index : index + 2])
        keys.append(Line2D([], [], color=colour, label=" to ".join(ends)))
    if facts.pruned:
        keys.append(Line2D([], [], color=LIGHT["quiet"], linewidth=0.6, label="pruned"))
    return keys


def _branch(axes: Axes, branch: Branch, rows: Mapping[int, int], most: int) -> None:
    row = rows[branch.trial]
    if branch.parent is not None:
        axes.plot([branch.start] * 2, [rows[branch.parent], row], color=LIGHT["quiet"], linewidth=0.6, zorder=1)
    for segment in branch.segments:
        colour, width = _shared_look(segment.trials, most)
        axes.plot([segment.start, segment.end], [row, row], color=colour, linewidth=width, solid_capstyle="butt")


def _shared_look(trials: int, most: int) -> tuple[str, float]:
    """Return the colour and the width, in points, of a segment that a number of trials share."""
    depth = math.log2(trials) / max(1.0, math.log2(most))
    return LIGHT[RAMP[round(depth * (len(RAMP) - 1))]], 1.2 + 3.2 * depth


def _end(axes: Axes, branch: Branch, row: int, trial: Trial, facts: Facts, *, labelled: bool) -> None:
    is_best = facts.best is not None and trial.number == facts.best.number
    colour = LIGHT["second" if is_best else "soft"]
    marker = {"complete": "o", "pruned": "|", "failed": "x"}[trial.state]
    axes.plot(branch.end, row, marker, color=colour, markersize=4, zorder=4, clip_on=False)
    if labelled:
        value = "" if trial.value is None else f"  {trial.value:.3f}"
        axes.annotate(
            f"{trial.number}{value if trial.state == 'complete' else ''}",
            (branch.end, row),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=6,
            color=colour,
            annotation_clip=False,
        )


def _tree_keys(most: int) -> list[Line2D]:
    keys = []
    for trials in sorted({1, max(1, most // 4), most}):
        colour, width = _shared_look(trials, most)
        keys.append(Line2D([], [], color=colour, linewidth=width, label=counted(trials, "trial")))
    keys.append(Line2D([], [], color=LIGHT["soft"], marker="o", linestyle="", markersize=4, label="complete"))
    keys.append(Line2D([], [], color=LIGHT["soft"], marker="|", linestyle="", markersize=5, label="pruned"))
    return keys
