"""Finished trials of one study that another begins with: copied with all that was measured, and nothing trained."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import TrialState
from sqlalchemy import ColumnElement, select, update
from sqlalchemy.orm import Session

from hpo.database import copies, studies
from hpo.database.copies import AT_ONCE
from hpo.database.note_attrs import note_attrs
from hpo.database.optuna_tables import (
    COMPLETED_RUNG_PREFIX,
    RECORD,
    StudySystemAttributeModel,
    StudyUserAttributeModel,
    TrialIntermediateValueModel,
    TrialModel,
    TrialSystemAttributeModel,
    TrialUserAttributeModel,
    TrialValueModel,
)
from hpo.database.optuna_view import DraftParam
from hpo.database.recipe_index import RECIPE_KEY
from hpo.database.retry import retried
from hpo.database.storage import Storage
from hpo.database.tables import (
    AttemptRow,
    CurveRow,
    LentRow,
    ParkedRow,
    RungRow,
    delete_of_trials,
    upsert,
)
from hpo.database.trial_rows import write_params
from hpo.errors import StudyMismatch

ORIGIN = "begun from"
"""The user attribute of a study that names the study which it was begun from, and of a trial that names the trial."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Taken:
    """A finished trial that is taken over.

    Attributes:
        trial_id: Its id in the study where it was trained.
        origin: That study and its number there, for people.
        params: Its parameters in the new study's space.
        key: The key of its recipe.
        note: What optuna-dashboard shows about it, in Markdown.
    """

    trial_id: int
    origin: str
    params: Mapping[str, DraftParam]
    key: str
    note: str


@retried
def take_over(
    storage: Storage, study_id: int, source: str, trials: Sequence[Taken], first: Mapping[str, Any] | None
) -> int:
    """Copy finished trials into a study that has none, unless it was begun from the same study before.

    Atomic across processes.

    Args:
        source: Name of the study from which they come.
        first: System attributes of the study's first trial, which is still to be trained; None if it is among `trials`.

    Returns:
        The number of trials that were copied; fewer if some are no longer finished.

    Raises:
        StudyMismatch: The study has trials, and was not begun from that study; nothing is changed.
        StudyNotFound: The study was deleted or renamed.
    """
    with storage.transaction() as session:
        studies.lock_study(session, study_id)
        present = studies.count_trials(session, study_id)
        if present:
            _require_origin(session, study_id, source)
            return 0
        if first is not None:
            studies.add_first(session, study_id, first)
        copied = 0
        for start in range(0, len(trials), AT_ONCE):
            copied += _copy_trials(session, study_id, trials[start : start + AT_ONCE])
        studies.write_target(session, study_id, studies.count_trials(session, study_id))
        shown = {"study_id": study_id, "key": ORIGIN, "value_json": json.dumps(source)}
        upsert(session, StudyUserAttributeModel, [shown], ("study_id", "key"))
    return copied


def _require_origin(session: Session, study_id: int, source: str) -> None:
    table = StudyUserAttributeModel
    origin = session.scalar(select(table.value_json).where(table.study_id == study_id, table.key == ORIGIN))
    if origin is None or json.loads(origin) != source:
        raise StudyMismatch(
            f"--from {source}: the study has trials, and was not begun from that one; choose another name with --study"
        )


def _copy_trials(session: Session, study_id: int, trials: Sequence[Taken]) -> int:
    """Copy trials that are still finished, in their order, with their rows in all tables."""
    by_id = {trial.trial_id: trial for trial in trials}
    finished = (TrialModel.trial_id.in_(by_id), TrialModel.state.in_((TrialState.COMPLETE, TrialState.PRUNED)))
    held = session.scalars(select(TrialModel).where(*finished).with_for_update(read=True)).all()
    rows: dict[int, Any] = {int(row.trial_id): row for row in held}
    new_ids: dict[int, int] = {}
    number = studies.count_trials(session, study_id)
    for trial_id in filter(rows.__contains__, by_id):
        new_ids[trial_id] = _add_copy(session, study_id, number, rows[trial_id])
        number += 1
    delete_of_trials(session, list(new_ids.values()), (AttemptRow, CurveRow, RungRow, ParkedRow, LentRow))
    _copy_rows(session, TrialValueModel, ("objective", "value", "value_type"), new_ids)
    reported = ("step", "intermediate_value", "intermediate_value_type")
    _copy_rows(session, TrialIntermediateValueModel, reported, new_ids)
    _copy_rows(session, TrialUserAttributeModel, ("key", "value_json"), new_ids)
    notes = TrialSystemAttributeModel
    _copy_rows(session, notes, ("key", "value_json"), new_ids, notes.key.startswith(COMPLETED_RUNG_PREFIX))
    _copy_rows(session, RungRow, ("rung", "value", "promoted"), new_ids)
    for trial_id, new_id in new_ids.items():
        _describe(session, study_id, by_id[trial_id], new_id)
    copies.restore(session, list(new_ids.values()))
    for trial_id, new_id in new_ids.items():
        _keep_checkpoint(session, trial_id, new_id)
    return len(new_ids)


def _add_copy(session: Session, study_id: int, number: int, row: Any) -> int:
    times = {"_datetime_start_utc": row._datetime_start_utc, "_datetime_complete_utc": row._datetime_complete_utc}
    added = TrialModel(study_id=study_id, number=number, state=row.state, **times)
    session.add(added)
    session.flush()
    trial_id: int = added.trial_id  # type: ignore[assignment]  # Optuna's models are untyped
    return trial_id


def _copy_rows(
    session: Session, table: Any, names: Sequence[str], new_ids: Mapping[int, int], *conditions: ColumnElement[bool]
) -> None:
    """Copy the columns `names` of the trials' rows of a table."""
    columns = [getattr(table, name) for name in names]
    query = select(table.trial_id, *columns).where(table.trial_id.in_(new_ids), *conditions)
    session.add_all(
        table(trial_id=new_ids[trial_id], **dict(zip(names, values, strict=True)))
        for trial_id, *values in session.execute(query).all()
    )
    session.flush()


def _describe(session: Session, study_id: int, taken: Taken, new_id: int) -> None:
    """Write the parameters of a copy, the key of its recipe, where it comes from, and its record without steps."""
    write_params(session, new_id, taken.params)
    record = copies.load_record(session, taken.trial_id) | {"trained_iterations": 0}
    for table, attrs in (
        (TrialSystemAttributeModel, {RECIPE_KEY: taken.key, RECORD: record}),
        (TrialUserAttributeModel, {ORIGIN: taken.origin}),
    ):
        rows = [{"trial_id": new_id, "key": name, "value_json": json.dumps(value)} for name, value in attrs.items()]
        upsert(session, table, rows, ("trial_id", "key"))
    note = note_attrs(taken.note, new_id)
    rows = [{"study_id": study_id, "key": name, "value_json": json.dumps(value)} for name, value in note.items()]
    upsert(session, StudySystemAttributeModel, rows, ("study_id", "key"))


def _keep_checkpoint(session: Session, trial_id: int, new_id: int) -> None:
    """Let a copy need the checkpoint that the trial needs, so that the winner's is kept here too."""
    session.flush()
    query = select(AttemptRow.checkpoint_id).where(AttemptRow.trial_id == trial_id).order_by(AttemptRow.number.desc())
    needed = session.scalar(query.limit(1))
    session.execute(update(AttemptRow).where(AttemptRow.trial_id == new_id).values(checkpoint_id=needed))
