"""What optuna-dashboard shows of a finished trial: a note on its recipe and outcome, and the figure of its curve."""

from __future__ import annotations

import logging
from dataclasses import replace

from hpo.artifacts import Artifacts
from hpo.database import overview
from hpo.database.attempt import Attempt, Outcome
from hpo.database.note_attrs import figure_attrs, figure_path, note_attrs
from hpo.errors import ArtifactsUnavailable
from hpo.recipes.recipe import Recipe
from hpo.recipes.schedule import CurvePoint
from hpo.results.notes import trial_note
from hpo.study import Study

log = logging.getLogger(__name__)


def publish_note_and_figure(
    study: Study, attempt: Attempt, outcome: Outcome, artifacts: Artifacts | None
) -> tuple[Outcome, str | None]:
    """Add a note and a figure for optuna-dashboard to an outcome.

    The curve must have been written. Where the figure cannot be drawn or stored, a warning says so and the trial
    finishes without it: a figure is not worth a trial.

    Args:
        artifacts: None to leave the figure out.

    Returns:
        The outcome, and the artifact id of the stored figure or None.

    Side effects:
        Writes one file to the artifact store; nothing refers to it until the outcome is written.
    """
    with study.storage.translated():
        trial = study.storage.optuna.get_trial(attempt.trial_id)
    recipe = study.recipe_of(trial) if trial.params or outcome.state != "failed" else None
    curve = overview.load_curve(study.storage, attempt.trial_id)
    figure_id = _store_figure(curve, recipe, attempt, artifacts) if artifacts and recipe and curve else None
    path = figure_path(study.study_id, attempt.trial_id, figure_id) if figure_id else None
    note = trial_note(recipe, study.base, outcome.attrs, study.settings.pruner, path)
    shown = replace(
        outcome,
        trial_system_attrs=figure_attrs(figure_id) if figure_id else {},
        study_system_attrs=note_attrs(note, attempt.trial_id),
    )
    return shown, figure_id


def delete_figure(figure_id: str | None, artifacts: Artifacts | None) -> None:
    """Delete a figure whose outcome was not written."""
    if figure_id is None or artifacts is None:
        return
    try:
        artifacts.remove(figure_id)
    except ArtifactsUnavailable as error:
        log.warning("%s; file %s is left over", error, figure_id)


def _store_figure(curve: list[CurvePoint], recipe: Recipe, attempt: Attempt, artifacts: Artifacts) -> str | None:
    from hpo.results.figures import to_png, training_figure  # slow to load, and only needed after training

    try:
        return artifacts.write(to_png(training_figure(curve, recipe))).artifact_id
    except ArtifactsUnavailable as error:
        log.warning("trial %d has no figure: %s", attempt.trial_number, error)
    except Exception:
        log.exception("trial %d has no figure: it could not be drawn", attempt.trial_number)
    return None
