"""Records that finished trials carry, so that copies which other clients make of them keep their curves.

Optuna's dashboard renames a study by copying its trials into a new one and deleting the old, together with our rows of
it. A copy of a trial has its system attributes, so what our rows say of a finished trial is kept in one of these too.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from optuna.trial import TrialState
from pydantic import Field, TypeAdapter, ValidationError
from sqlalchemy import exists, func, select, update
from sqlalchemy.orm import Session

from hpo.database.note_attrs import point_to_copy
from hpo.database.optuna_tables import (
    DASHBOARD_PREFIX,
    RECORD,
    StudySystemAttributeModel,
    TrialModel,
    TrialSystemAttributeModel,
)
from hpo.database.tables import AttemptRow, CurveRow, LentRow, ParkedRow, RungRow, delete_of_trials, now_s, upsert
from hpo.recipes.schedule import CurvePoint

AT_ONCE = 500
"""Number of trials that are read or deleted in one statement."""

log = logging.getLogger(__name__)

Count = Annotated[int, Field(ge=0, lt=1 << 31)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """How a trial was trained.

    Attributes:
        outcome: How its last attempt ended.
        val_accuracy: What was measured last.
        trained_iterations: By all of its attempts.
    """

    outcome: Literal["complete", "pruned", "failed", "refused", "waiting"]
    iteration: Count
    trained_iterations: Count
    val_accuracy: float | None
    curve: tuple[CurvePoint, ...]


_RECORD = TypeAdapter(Record)


def write_record(session: Session, trial_id: int) -> None:
    """Write the record of a trial whose attempt has just ended."""
    row = {"trial_id": trial_id, "key": RECORD, "value_json": json.dumps(load_record(session, trial_id))}
    upsert(session, TrialSystemAttributeModel, [row], ("trial_id", "key"))


def load_record(session: Session, trial_id: int) -> dict[str, Any]:
    """Load the record of a trial whose last attempt has ended, as JSON values."""
    attempts = session.scalars(select(AttemptRow).where(AttemptRow.trial_id == trial_id).order_by(AttemptRow.number))
    *_, last = all_of = attempts.all()
    return {
        "outcome": last.outcome,
        "iteration": last.iteration,
        "trained_iterations": sum(attempt.trained_iterations for attempt in all_of),
        "val_accuracy": last.val_accuracy,
        "curve": [asdict(point) for point in load_points(session, trial_id)],
    }


def adopt_trials(session: Session, study_id: int) -> None:
    """Make our rows of the trials of another client's copy again, put those back that ran, and correct their notes.

    Rows of deleted trials, whose ids SQLite has reused, go. Attempts at deleted trials end, or the copies of
    these would wait for what they were training.
    """
    ids = session.scalars(select(TrialModel.trial_id).where(TrialModel.study_id == study_id)).all()
    for start in range(0, len(ids), AT_ONCE):
        some = ids[start : start + AT_ONCE]
        delete_of_trials(session, some, (AttemptRow, CurveRow, RungRow, ParkedRow, LentRow))
        restore(session, some)
    gone = (AttemptRow.ended_s.is_(None), ~exists().where(TrialModel.trial_id == AttemptRow.trial_id))
    session.execute(update(AttemptRow).where(*gone).values(ended_s=now_s(), outcome="overtaken"))
    running = (TrialModel.study_id == study_id, TrialModel.state == TrialState.RUNNING)
    session.execute(update(TrialModel).where(*running).values(state=TrialState.WAITING))
    notes = (StudySystemAttributeModel.study_id == study_id, StudySystemAttributeModel.key.startswith(DASHBOARD_PREFIX))
    for note in session.scalars(select(StudySystemAttributeModel).where(*notes)):
        note.value_json = point_to_copy(str(note.key), str(note.value_json), study_id)


def load_points(session: Session, trial_id: int) -> list[CurvePoint]:
    """Load a trial's curve, in the order of iterations."""
    rows = session.scalars(select(CurveRow).where(CurveRow.trial_id == trial_id).order_by(CurveRow.iteration))
    return [
        CurvePoint(
            iteration=row.iteration,
            train_loss=row.train_loss,
            train_accuracy=row.train_accuracy,
            val_loss=row.val_loss,
            val_accuracy=row.val_accuracy,
        )
        for row in rows
    ]


def restore(session: Session, trial_ids: Sequence[int]) -> None:
    """Make our rows of finished trials from their records."""
    attributes = TrialSystemAttributeModel
    kept = (attributes.trial_id.in_(trial_ids), attributes.key == RECORD)
    now = session.scalar(select(func.max(now_s())))
    for trial_id, text in session.execute(select(attributes.trial_id, attributes.value_json).where(*kept)).all():
        try:
            record = _RECORD.validate_json(text, strict=True)
        except ValidationError as error:
            log.warning("ignoring the changed record of the trial with id %d: %s", trial_id, error)
            continue
        done = {"trial_id": trial_id, "number": 1, "worker": "", "host": "", "device": ""}
        times = {"claimed_s": now, "lease_until_s": now, "ended_s": now}
        how = {name: getattr(record, name) for name in ("outcome", "iteration", "trained_iterations", "val_accuracy")}
        session.add(AttemptRow(**done, **times, **how))
        session.add_all(CurveRow(trial_id=trial_id, **asdict(point)) for point in record.curve)
