"""Notes and figures as the attributes from which optuna-dashboard reads them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from hpo.database.optuna_tables import ARTIFACT_PREFIX, DASHBOARD_PREFIX

NOTE_PIECE = 2045
"""Characters that optuna-dashboard puts into one attribute."""

_STUDY_NOTE = f"{DASHBOARD_PREFIX}note_str:"
_TRIAL_NOTE = re.compile(rf"{DASHBOARD_PREFIX}(\d+):note_str:")
_FIGURES_OF = re.compile(r"/artifacts/\d+/\d+/")

FIGURE_NAME = "training and validation.png"
"""The name under which optuna-dashboard offers a trial's figure."""


def note_attrs(body: str, trial_id: int | None = None, version: int = 1) -> dict[str, Any]:
    """Return a note as the study's system attributes from which optuna-dashboard reads it.

    Args:
        trial_id: None for the note of the study itself.
        version: One more than that of the note that it replaces.
    """
    owner = DASHBOARD_PREFIX if trial_id is None else f"{DASHBOARD_PREFIX}{trial_id}:"
    pieces = [body[start : start + NOTE_PIECE] for start in range(0, len(body), NOTE_PIECE)]
    return {f"{owner}note_ver": version} | {f"{owner}note_str:{index}": piece for index, piece in enumerate(pieces)}


def read_note(system_attrs: Mapping[str, Any]) -> tuple[str, int]:
    """Return a study's own note among its system attributes, and its version; without one, no text and 0."""
    pieces = sorted((int(key.removeprefix(_STUDY_NOTE)), key) for key in system_attrs if key.startswith(_STUDY_NOTE))
    return "".join(system_attrs[key] for _, key in pieces), system_attrs.get(f"{DASHBOARD_PREFIX}note_ver", 0)


def figure_attrs(artifact_id: str) -> dict[str, Any]:
    """Return a stored figure as the trial's system attribute by which Optuna finds artifacts."""
    about = {"artifact_id": artifact_id, "filename": FIGURE_NAME, "mimetype": "image/png", "encoding": None}
    return {f"{ARTIFACT_PREFIX}{artifact_id}": json.dumps(about)}


def find_figures(system_attrs: Mapping[str, Any]) -> tuple[str, ...]:
    """List the artifact ids of the figures among a trial's system attributes; people may have added other files."""
    files = (json.loads(value) for key, value in system_attrs.items() if key.startswith(ARTIFACT_PREFIX))
    return tuple(about["artifact_id"] for about in files if about["filename"] == FIGURE_NAME)


def point_to_copy(key: str, value_json: str, study_id: int) -> str:
    """Return an attribute of a copied study, with the path of the copy's figure in the note of a trial."""
    owner = _TRIAL_NOTE.match(key)
    return value_json if owner is None else _FIGURES_OF.sub(figure_path(study_id, int(owner[1]), ""), value_json)


def figure_path(study_id: int, trial_id: int, artifact_id: str) -> str:
    """Return the URL path at which optuna-dashboard serves a trial's figure."""
    return f"/artifacts/{study_id}/{trial_id}/{artifact_id}"
