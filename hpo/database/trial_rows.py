"""What the worker of a trial writes for it, in Optuna's tables and in ours."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from optuna.trial import TrialState
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from hpo.database.attempt import Attempt, Outcome
from hpo.database.note_attrs import FIGURE_NAME
from hpo.database.optuna_tables import (
    ARTIFACT_PREFIX,
    StudySystemAttributeModel,
    TrialIntermediateValueModel,
    TrialModel,
    TrialParamModel,
    TrialSystemAttributeModel,
    TrialUserAttributeModel,
    TrialValueModel,
    utc_now,
)
from hpo.database.optuna_view import Draft, DraftParam
from hpo.database.tables import CurveRow, upsert
from hpo.recipes.schedule import CurvePoint

_STATES = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
    "refused": TrialState.FAIL,
    "waiting": TrialState.WAITING,
}


def write_params(session: Session, trial_id: int, params: Mapping[str, DraftParam]) -> None:
    """Write parameters in the place of those that a trial has under the same names."""
    rows = [
        {"trial_id": trial_id, "param_name": name, "param_value": param.value, "distribution_json": param.distribution}
        for name, param in params.items()
    ]
    upsert(session, TrialParamModel, rows, ("trial_id", "param_name"))


def write_draft(session: Session, trial_id: int, draft: Draft) -> None:
    """Write what a sampler or pruner wants to write for a trial."""
    write_params(session, trial_id, draft.params)
    _set_attrs(session, TrialSystemAttributeModel, {"trial_id": trial_id}, draft.system_attrs)


def write_points(session: Session, attempt: Attempt, points: Sequence[CurvePoint], values: Mapping[int, float]) -> None:
    """Write curve points, and values for Optuna by step, for the trial of an attempt."""
    curve = [{"trial_id": attempt.trial_id} | asdict(point) for point in points]
    upsert(session, CurveRow, curve, ("trial_id", "iteration"))
    model = TrialIntermediateValueModel
    finite = model.TrialIntermediateValueType.FINITE
    reported = [
        {
            "trial_id": attempt.trial_id,
            "step": step,
            "intermediate_value": value,
            "intermediate_value_type": finite,
        }
        for step, value in values.items()
    ]
    upsert(session, model, reported, ("trial_id", "step"))


def write_outcome(session: Session, trial_id: int, outcome: Outcome) -> None:
    """Write the state, value and attributes with which a trial ends, or waits at a rung."""
    completed = None if outcome.state == "waiting" else utc_now()
    session.execute(
        update(TrialModel)
        .where(TrialModel.trial_id == trial_id)
        .values(state=_STATES[outcome.state], _datetime_complete_utc=completed)
    )
    if outcome.value is not None:
        finite = TrialValueModel.TrialValueType.FINITE
        value = {"trial_id": trial_id, "objective": 0, "value": outcome.value, "value_type": finite}
        upsert(session, TrialValueModel, [value], ("trial_id", "objective"))
    study_id = session.scalar(select(TrialModel.study_id).where(TrialModel.trial_id == trial_id))
    _set_attrs(session, TrialUserAttributeModel, {"trial_id": trial_id}, outcome.attrs)
    if outcome.trial_system_attrs:
        _delete_figures(session, trial_id)
    _set_attrs(session, TrialSystemAttributeModel, {"trial_id": trial_id}, outcome.trial_system_attrs)
    _set_attrs(session, StudySystemAttributeModel, {"study_id": study_id}, outcome.study_system_attrs)


def _delete_figures(session: Session, trial_id: int) -> None:
    """Delete the attributes of the figures that a new one replaces."""
    files = TrialSystemAttributeModel
    figures = (files.key.startswith(ARTIFACT_PREFIX), files.value_json.contains(FIGURE_NAME))
    session.execute(delete(files).where(files.trial_id == trial_id, *figures))


def _set_attrs(session: Session, table: Any, owner: Mapping[str, Any], attrs: Mapping[str, Any]) -> None:
    rows = [{**owner, "key": key, "value_json": json.dumps(value)} for key, value in attrs.items()]
    upsert(session, table, rows, (*owner, "key"))
