"""The finished trials of a study, as other tools take them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from optuna.trial import FrozenTrial

from hpo.database import overview
from hpo.errors import StudyNotFound
from hpo.recipes.recipe import Recipe
from hpo.recipes.schedule import CurvePoint
from hpo.results.figures import to_png, training_figure
from hpo.study import Study

MEASURES = tuple(field.name for field in fields(CurvePoint) if field.name != "iteration")
"""The names of what an evaluation measures, as curves and scalars are called."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportedTrial:
    """A finished trial on its way to another tool.

    Attributes:
        val_accuracy: In [0, 1]; for a pruned trial, the last one measured.
        params: What the sampler chose.
        attrs: User attributes.
        recipe: None if the trial failed before it had one.
    """

    number: int
    state: str
    val_accuracy: float | None
    started: datetime | None
    ended: datetime | None
    params: Mapping[str, Any]
    attrs: Mapping[str, Any]
    recipe: Recipe | None
    curve: tuple[CurvePoint, ...]

    @property
    def title(self) -> str:
        """Return the trial's name in tools that sort names as text."""
        return f"trial-{self.number:04d}"

    @property
    def last_iteration(self) -> int:
        """Return the last iteration that was evaluated, or 0 if none was."""
        return self.curve[-1].iteration if self.curve else 0


def load_trials(study: Study) -> list[ExportedTrial]:
    """Load the finished trials that were trained here, in the order of their numbers.

    Raises:
        StudyNotFound: No trial is finished yet.
    """
    trials = [_load_trial(study, trial) for trial in study.trained_trials()]
    if not trials:
        raise StudyNotFound(f"study {study.name} has no finished trial yet")
    return trials


def recipe_fields(trial: ExportedTrial) -> dict[str, Any]:
    """Return the fields of a trial's recipe; none if it failed before it had one."""
    return {} if trial.recipe is None else trial.recipe.to_dict()


def write_value(value: Any) -> Any:
    """Write lists with spaces, so that no cell of a table needs quotes, and what has parts of its own as JSON."""
    match value:
        case list() | tuple():
            return " ".join(map(str, value))
        case dict():
            return json.dumps(value)
        case _:
            return value


def draw(trial: ExportedTrial) -> bytes | None:
    """Draw a trial's curve as PNG; None if it was never evaluated."""
    if trial.recipe is None or not trial.curve:
        return None
    return to_png(training_figure(trial.curve, trial.recipe))


def _load_trial(study: Study, trial: FrozenTrial) -> ExportedTrial:
    return ExportedTrial(
        number=trial.number,
        state=trial.state.name.lower(),
        val_accuracy=trial.value,
        started=trial.datetime_start and trial.datetime_start.astimezone(),  # Optuna's are in local time
        ended=trial.datetime_complete and trial.datetime_complete.astimezone(),
        params=trial.params,
        attrs=trial.user_attrs,
        recipe=study.find_recipe(trial),
        curve=tuple(overview.load_curve(study.storage, trial._trial_id)),
    )
