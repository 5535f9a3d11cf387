"""Describe a study, and fill its queue."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from optuna.trial import TrialState
from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

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
from hpo.database.tables import AttemptRow, CurveRow, StudyRow, delete_of_trials, now_s, upsert
from hpo.errors import StudyNotFound

_OPTUNA_CHILDREN = (
    TrialParamModel,
    TrialIntermediateValueModel,
    TrialUserAttributeModel,
    TrialSystemAttributeModel,
)


@retried
def describe_study(storage: Storage, study_id: int, attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Give a study the user attributes that it does not have yet, and return all that it has then.

    Atomic across processes: of several that describe a study at once, one does, and the others get its words.
    """
    with storage.transaction() as session:
        _lock_study(session, study_id)
        attributes = StudyUserAttributeModel
        rows = session.execute(
            select(attributes.key, attributes.value_json).where(attributes.study_id == study_id)
        ).all()
        found: dict[str, Any] = {key: json.loads(value) for key, value in rows}
        session.add_all(
            StudyUserAttributeModel(study_id=study_id, key=key, value_json=json.dumps(value))
            for key, value in attrs.items()
            if key not in found
        )
    return dict(attrs) | found


@retried
def add_note(storage: Storage, study_id: int, body: str) -> None:
    """Give a study the note that optuna-dashboard shows, unless it has one: a person may have changed it."""
    attrs = note_attrs(body)
    with storage.transaction() as session:
        rows = [{"study_id": study_id, "key": key, "value_json": json.dumps(value)} for key, value in attrs.items()]
        upsert(session, StudySystemAttributeModel, rows, ("study_id", "key"), update=False)


@retried
def fill(storage: Storage, study_id: int, total: int, first: Mapping[str, Any]) -> None:
    """Add waiting trials, or take away those at the end, until the study has `total`.

    Atomic across processes. Failed trials count: the study holds `total` rows, not that many plus retries. TrialModel
    that are finished or running stay, and so do those before them.

    Args:
        first: Parameters that the study's first trial is to have.
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
        # SQLite gives the ids of deleted trials again, and other tools may delete without our tables.
        delete_of_trials(session, ids, (AttemptRow, CurveRow))
        if present == 0 and rows:
            session.add(_system_attr(ids[0], FIXED_PARAMS, dict(first)))
        made = {"study_id": study_id, "state": "running", "changed_s": now_s()}
        upsert(session, StudyRow, [made], ("study_id",), update=present == 0)  # the same holds for ids of studies


def _lock_study(session: Session, study_id: int) -> None:
    study: Select[Any] = select(StudyModel.study_id).where(StudyModel.study_id == study_id)
    if session.execute(study.with_for_update()).first() is None:
        raise StudyNotFound(f"the study with id {study_id} was deleted")


def _trim(session: Session, study_id: int, total: int) -> None:
    last_taken = session.scalar(
        select(func.max(TrialModel.number)).where(
            TrialModel.study_id == study_id, TrialModel.state != TrialState.WAITING
        )
    )
    keep = max(total, -1 if last_taken is None else last_taken + 1)
    ids = session.scalars(
        select(TrialModel.trial_id).where(TrialModel.study_id == study_id, TrialModel.number >= keep)
    ).all()
    delete_of_trials(session, ids, (AttemptRow, CurveRow, *_OPTUNA_CHILDREN, TrialModel))


def _system_attr(trial_id: int, key: str, value: Any) -> TrialSystemAttributeModel:
    return TrialSystemAttributeModel(trial_id=trial_id, key=key, value_json=json.dumps(value))
