"""Draw the validation curves of `hpo benchmark --all-documented` beside the documented ones, over shares of the budget.

    python benchmarks/documented_curves.py documented_validation_curves.csv --storage sqlite:///hpo.db --out beside.png

The file has a line for each epoch of each documented run: run, epoch, iteration, val_loss, val_accuracy.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from true_regret import read_documented

from hpo import study as studies
from hpo.artifacts import write_whole
from hpo.database.storage import open_storage
from hpo.recipes.recipe import REFERENCE_ITERATIONS
from hpo.recipes.schedule import CurvePoint
from hpo.results.figures import LIGHT, drawing, to_png
from hpo.results.report.facts import Facts, load_facts


def draw(facts: Facts, documented: dict[str, Sequence[CurvePoint]]) -> Figure:
    """Draw each recipe that is documented in axes of its own."""
    assert facts.compared is not None
    names = [name for name in facts.compared.runs if name in documented]
    with drawing(2.4) as figure:
        row: Any = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
        for axes, name in zip(row, names, strict=True):
            _plot(axes, documented[name], REFERENCE_ITERATIONS, "quiet", 0.7)
            for trial in facts.compared.runs[name]:
                _plot(axes, trial.curve, facts.settings.iterations, "first", 1.1)
            axes.set_title(name, fontsize=8)
            axes.set_xlabel("share of the budget")
        row[0].set_ylabel("validation accuracy")
        budgets = (f"{facts.settings.iterations:,} iterations", f"documented, {REFERENCE_ITERATIONS:,}")
        keys = [
            Line2D([], [], color=LIGHT[colour], label=label)
            for colour, label in zip(("first", "quiet"), budgets, strict=True)
        ]
        figure.legend(handles=keys, loc="outside upper right", ncols=2)
        return figure


def _plot(axes: Any, curve: Sequence[CurvePoint], budget: int, colour: str, width: float) -> None:
    shares = [point.iteration / budget for point in curve]
    axes.plot(shares, [point.val_accuracy for point in curve], color=LIGHT[colour], linewidth=width)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("documented", type=Path, help="the documented validation curves")
    parser.add_argument("--storage", default="sqlite:///hpo.db")
    parser.add_argument("--study", help="the only one if left out")
    parser.add_argument("--out", type=Path, default=Path("documented_curves.png"))
    arguments = parser.parse_args()

    facts = load_facts(studies.load(open_storage(arguments.storage, "read"), arguments.study))
    curves: dict[str, Sequence[CurvePoint]] = {
        recipe: run.curve for (recipe, _), run in read_documented(arguments.documented).runs.items()
    }
    write_whole(arguments.out, to_png(draw(facts, curves)))
    print(arguments.out)


if __name__ == "__main__":
    main()
