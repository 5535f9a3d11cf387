"""The description of a study, and its waiting trials."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from optuna.trial import TrialState
from sqlalchemy import Select, func, or_, select
from sqlalchemy.orm import Session

from hpo.database import rungs
from hpo.database.note_attrs import note_attrs
from hpo.database.optuna_tables import (
    FIXED_PARAMS,
    StudyModel,
    StudySystemAttributeModel,
    StudyUserAttributeModel,
    TrialIntermediateValueModel,
    TrialModel,
    TrialParamModel,
    TrialSystemAttributeModel,
    TrialUserAttributeModel,
)
from hpo.database.retry import retried
from hpo.database.storage import Storage
from hpo.database.tables import AttemptRow, CurveRow, RungRow, StudyRow, delete_of_trials, is_at_rung, now_s, upsert
from hpo.errors import StudyNotFound

_OPTUNA_CHILDREN = (
    TrialParamModel,
    TrialIntermediateValueModel,
    TrialUserAttributeModel,
    TrialSystemAttributeModel,
)


@retried
def describe_study(storage: Storage, study_id: int, attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Add the user attributes that a study does not have yet, and return all of its attributes.

    Atomic across processes: of several that describe a study at once, one writes, and the others get what it wrote.
    """
    with storage.transaction() as session:
        _lock_study(session, study_id)
        attributes = StudyUserAttributeModel
        rows = session.execute(
            select(attributes.key, attributes.value_json).where(attributes.study_id == study_id)
        ).all()
        stored: dict[str, Any] = {key: json.loads(value) for key, value in rows}
        session.add_all(
            StudyUserAttributeModel(study_id=study_id, key=key, value_json=json.dumps(value))
            for key, value in attrs.items()
            if key not in stored
        )
    return dict(attrs) | stored


@retried
def add_note(storage: Storage, study_id: int, body: str) -> None:
    """Add the note that optuna-dashboard shows to a study, unless it has one: a person may have changed it."""
    attrs = note_attrs(body)
    with storage.transaction() as session:
        rows = [{"study_id": study_id, "key": key, "value_json": json.dumps(value)} for key, value in attrs.items()]
        upsert(session, StudySystemAttributeModel, rows, ("study_id", "key"), update=False)


@retried
def fill(storage: Storage, study_id: int, total: int, first: Mapping[str, Any]) -> None:
    """Add waiting trials, or remove them from the end, until the study has `total` trials.

    Atomic across processes. Failed trials count: the study holds `total` rows, not that many plus retries. Trials that
    have finished, run or wait at a rung stay, and so do the trials before them. When trials are added, those that were
    pruned because they were not promoted wait at their rungs again.

    Args:
        first: Parameters of the study's first trial.
    """
    with storage.transaction() as session:
        _lock_study(session, study_id)
        present = session.scalar(select(func.count()).where(TrialModel.study_id == study_id)) or 0
        if present > total:
            _trim(session, study_id, total)
        rows = [
            TrialModel(study_id=study_id, number=number, state=TrialState.WAITING) for number in range(present, total)
        ]
        session.add_all(rows)
        session.flush()
        ids: list[int] = [row.trial_id for row in rows]  # type: ignore[misc]  # Optuna's models are untyped
        # SQLite reuses the ids of deleted trials, and other tools may delete trials without their rows in our tables.
        delete_of_trials(session, ids, (AttemptRow, CurveRow, RungRow))
        if rows:
            rungs.wait_again(session, study_id)
        if present == 0 and rows:
            session.add(_system_attr(ids[0], FIXED_PARAMS, dict(first)))
        state = {"study_id": study_id, "state": "running", "changed_s": now_s()}
        upsert(session, StudyRow, [state], ("study_id",), update=present == 0)  # SQLite reuses ids of studies, too


def _lock_study(session: Session, study_id: int) -> None:
    study: Select[Any] = select(StudyModel.study_id).where(StudyModel.study_id == study_id)
    if session.execute(study.with_for_update()).first() is None:
        raise StudyNotFound(f"the study with id {study_id} was deleted")


def _trim(session: Session, study_id: int, total: int) -> None:
    last_taken = session.scalar(
        select(func.max(TrialModel.number)).where(
            TrialModel.study_id == study_id, or_(TrialModel.state != TrialState.WAITING, is_at_rung())
        )
    )
    keep = max(total, -1 if last_taken is None else last_taken + 1)
    ids = session.scalars(
        select(TrialModel.trial_id).where(TrialModel.study_id == study_id, TrialModel.number >= keep)
    ).all()
    delete_of_trials(session, ids, (AttemptRow, CurveRow, RungRow, *_OPTUNA_CHILDREN, TrialModel))


def _system_attr(trial_id: int, key: str, value: Any) -> TrialSystemAttributeModel:
    return TrialSystemAttributeModel(trial_id=trial_id, key=key, value_json=json.dumps(value))
