"""The trials of a study as CSV tables, with their figures beside them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hpo.artifacts import new_folder
from hpo.results.exchange.trials import MEASURES, ExportedTrial, draw, recipe_fields, write_value

_GROUPS = ("params", "recipe", "attrs")
"""The columns of trials.csv whose names have a group before a dot, in their order, after those without."""


def write(trials: Sequence[ExportedTrial], folder: Path) -> None:
    """Write `trials.csv`, one row per trial, `curves.csv`, one row per evaluation, and figures to a new folder.

    Raises:
        BadInput: The folder is neither new nor empty, or cannot be written.
    """
    with new_folder(folder) as unfinished:
        (unfinished / "trials.csv").write_text(trials_csv(trials))
        (unfinished / "curves.csv").write_text(curves_csv(trials))
        (unfinished / "figures").mkdir()
        for trial in trials:
            if (figure := draw(trial)) is not None:
                (unfinished / "figures" / f"{trial.title}.png").write_bytes(figure)


def trials_csv(trials: Sequence[ExportedTrial]) -> str:
    """Write trials as a CSV table: outcome, parameters, every field of the recipe, and user attributes.

    A cell is empty where a trial has no such value.
    """
    rows = [_trial_row(trial) for trial in trials]
    names = dict.fromkeys(name for row in rows for name in row)
    columns = sorted(names, key=lambda name: _GROUPS.index(name.partition(".")[0]) if "." in name else -1)
    return _table(columns, ([row.get(name) for name in columns] for row in rows))


def curves_csv(trials: Iterable[ExportedTrial]) -> str:
    """Write all curves as one CSV table in the long form, one row per trial and evaluation."""
    rows = (
        [trial.number, point.iteration, *(getattr(point, name) for name in MEASURES)]
        for trial in trials
        for point in trial.curve
    )
    return _table(("trial", "iteration", *MEASURES), rows)


def _trial_row(trial: ExportedTrial) -> dict[str, Any]:
    return {
        "trial": trial.number,
        "state": trial.state,
        "val_accuracy": trial.val_accuracy,
        "started": trial.started and trial.started.isoformat(),
        "ended": trial.ended and trial.ended.isoformat(),
        "duration_s": (trial.ended - trial.started).total_seconds() if trial.started and trial.ended else None,
        **{f"params.{name}": write_value(value) for name, value in trial.params.items()},
        **{f"recipe.{name}": write_value(value) for name, value in recipe_fields(trial).items()},
        **{f"attrs.{name}": write_value(value) for name, value in trial.attrs.items()},
    }


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns)
    table.writerows(rows)
    return text.getvalue()
