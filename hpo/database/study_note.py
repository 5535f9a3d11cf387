"""The note of a study, which optuna-dashboard shows and people may edit there."""

from __future__ import annotations

import json
from collections.abc import Callable

from sqlalchemy import delete, select

from hpo.database.note_attrs import note_attrs, read_note
from hpo.database.optuna_tables import DASHBOARD_PREFIX, StudySystemAttributeModel
from hpo.database.retry import retried
from hpo.database.storage import Storage
from hpo.database.studies import lock_study
from hpo.database.tables import upsert


@retried
def add_note(storage: Storage, study_id: int, body: str) -> None:
    """Add the note that optuna-dashboard shows to a study, unless it has one: a person may have changed it."""
    attrs = note_attrs(body)
    with storage.transaction() as session:
        rows = [{"study_id": study_id, "key": key, "value_json": json.dumps(value)} for key, value in attrs.items()]
        upsert(session, StudySystemAttributeModel, rows, ("study_id", "key"), update=False)


@retried
def change_note(storage: Storage, study_id: int, change: Callable[[str], str]) -> None:
    """Change the text of a study's note, if that makes a difference.

    Raises:
        StudyNotFound: The study was deleted or renamed.
    """
    table = StudySystemAttributeModel
    of_note = (table.study_id == study_id, table.key.startswith(f"{DASHBOARD_PREFIX}note_"))
    with storage.transaction() as session:
        lock_study(session, study_id)
        rows = session.execute(select(table.key, table.value_json).where(*of_note))
        body, version = read_note({key: json.loads(value) for key, value in rows})
        changed = change(body)
        if changed == body:
            return
        session.execute(delete(table).where(*of_note))
        attrs = note_attrs(changed, version=version + 1)
        session.add_all(table(study_id=study_id, key=key, value_json=json.dumps(value)) for key, value in attrs.items())
