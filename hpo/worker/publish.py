"""What optuna-dashboard shows of a trial after an attempt: a note on its recipe and outcome, and a figure."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace

from hpo.artifacts import Artifacts
from hpo.database import overview
from hpo.database.attempt import Attempt, Outcome
from hpo.database.note_attrs import figure_attrs, figure_path, find_figures, note_attrs
from hpo.errors import ArtifactsUnavailable
from hpo.recipes.recipe import Recipe
from hpo.recipes.schedule import CurvePoint
from hpo.results.notes import trial_note
from hpo.study import Study

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """An outcome with its note and figure.

    Attributes:
        figures: Artifact ids of the figures that were stored.
        replaced: Artifact ids of the figures that an earlier attempt stored, which are no longer needed.
    """

    outcome: Outcome
    figures: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()


def publish_note_and_figure(
    study: Study, attempt: Attempt, outcome: Outcome, recipe: Recipe | None, artifacts: Artifacts | None
) -> Published:
    """Add a note and a figure for optuna-dashboard to an outcome.

    The curve must have been written. Where the figure cannot be drawn or stored, a warning says so and the trial
    finishes without it: a figure is not worth a trial.

    Args:
        recipe: None if the trial ended before it had one.
        artifacts: None to leave the figure out.

    Side effects:
        Writes one file to the artifact store; nothing refers to it until the outcome is written.
    """
    curve = overview.load_curve(study.storage, attempt.trial_id)
    figure_id = _store_figure(curve, recipe, attempt, artifacts) if artifacts and recipe and curve else None
    path = figure_path(study.study_id, attempt.trial_id, figure_id) if figure_id else None
    note = trial_note(recipe, study.base, outcome.attrs, study.settings.pruner, path)
    shown = replace(
        outcome,
        trial_system_attrs=figure_attrs(figure_id) if figure_id else {},
        study_system_attrs=note_attrs(note, attempt.trial_id),
    )
    if figure_id is None:
        return Published(outcome=shown)
    return Published(outcome=shown, figures=(figure_id,), replaced=_find_replaced(study, attempt))


def _find_replaced(study: Study, attempt: Attempt) -> tuple[str, ...]:
    try:
        with study.storage.translated():
            return find_figures(study.storage.optuna.get_trial(attempt.trial_id).system_attrs)
    except KeyError:  # the study has just been deleted, which the end of the attempt notices
        return ()


def delete_figures(figure_ids: Iterable[str], artifacts: Artifacts | None) -> None:
    """Delete figures to which no trial refers."""
    if artifacts is None:
        return
    for figure_id in figure_ids:
        try:
            artifacts.remove(figure_id)
        except ArtifactsUnavailable as error:
            log.warning("%s; file %s could not be deleted", error, figure_id)


def _store_figure(curve: list[CurvePoint], recipe: Recipe, attempt: Attempt, artifacts: Artifacts) -> str | None:
    from hpo.results.figures import to_png, training_figure  # slow to load, and only needed after training

    try:
        return artifacts.write(to_png(training_figure(curve, recipe))).artifact_id
    except ArtifactsUnavailable as error:
        log.warning("trial %d has no figure: %s", attempt.trial_number, error)
    except Exception:
        log.exception("trial %d has no figure: it could not be drawn", attempt.trial_number)
    return None
