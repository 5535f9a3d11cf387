"""The description of a study, and its new trials."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import TrialState
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from hpo.database import rungs
from hpo.database.copies import adopt_trials
from hpo.database.optuna_tables import (
    FIXED_PARAMS,
    METRIC_NAMES,
    StudyModel,
    StudySystemAttributeModel,
    StudyUserAttributeModel,
    TrialIntermediateValueModel,
    TrialModel,
    TrialParamModel,
    TrialSystemAttributeModel,
    TrialUserAttributeModel,
)
from hpo.database.recipe_index import RECIPE_KEY
from hpo.database.retry import retried
from hpo.database.storage import Storage
from hpo.database.tables import (
    UNCLAIMED,
    AttemptRow,
    CurveRow,
    LentRow,
    RungRow,
    StudyRow,
    delete_of_trials,
    described,
    now_s,
    require_study,
    upsert,
)
from hpo.errors import BadInput
from hpo.settings import MAX_TRIALS, METRIC, StudySettings, StudyState

_OPTUNA_CHILDREN = (
    TrialParamModel,
    TrialIntermediateValueModel,
    TrialUserAttributeModel,
    TrialSystemAttributeModel,
)

TARGET = "trials"
"""The study's user attribute that shows how many trials it is to have."""


@retried
def describe_study(storage: Storage, study_id: int, attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Add the user attributes that a study does not have yet, and return all with which it was made.

    Atomic across processes: of several that describe a study at once, one writes, and the others get what it wrote.
    A study's settings stay in our own table, whatever other clients do to its attributes.
    """
    with storage.transaction() as session:
        lock_study(session, study_id)
        present = _load_attrs(session, study_id)
        session.add_all(
            StudyUserAttributeModel(study_id=study_id, key=key, value_json=json.dumps(value))
            for key, value in attrs.items()
            if key not in present
        )
        session.flush()
        row = update(StudyRow).where(StudyRow.study_id == study_id)
        if not count_trials(session, study_id):  # it is new, and may have the id of one that was deleted
            session.execute(row.values(name=""))
        made_with = dict(attrs) | _adopt(session, study_id, "running")
        session.execute(row.values(settings=json.dumps(made_with)))
    return made_with


@retried
def find_settings(storage: Storage, study_id: int) -> dict[str, Any] | None:
    """Find the attributes with which a study was made; None for a copy that another client has made."""
    with storage.transaction() as session:
        return _find_settings(session, study_id)


@retried
def adopt_copy(storage: Storage, study_id: int, name: str) -> dict[str, Any]:
    """Make a copy that another client has made one of our studies, which is stopped, and return its settings.

    Raises:
        BadInput: The copy lacks some of them, or has others.
        StudyNotFound: The study was deleted or renamed.
    """
    with storage.transaction() as session:
        lock_study(session, study_id)
        _require_settings(session, study_id, name)  # the client may still be about to copy them
        return _adopt(session, study_id, UNCLAIMED)


@retried
def set_target(
    storage: Storage, study_id: int, total: int, first: Mapping[str, Any], first_key: str | None = None
) -> None:
    """Set how many trials a study is to have; workers add them as they begin them.

    Atomic across processes. Every trial counts, whoever added it, and whether it failed. Those that a study has already
    stay. If it is to have more than before, the trials that were pruned because they were not promoted wait at their
    rungs again.

    Args:
        first: Parameters of the study's first trial.
        first_key: The key of its recipe; None in a study that may repeat recipes.

    Raises:
        StudyNotFound: The study was deleted or renamed.
    """
    with storage.transaction() as session:
        lock_study(session, study_id)
        before = find_target(session, study_id)
        present = count_trials(session, study_id)
        if not present and total:
            add_first(session, study_id, first_attrs(first, first_key))
        target = max(total, present)
        write_target(session, study_id, target)
        if target > before:
            rungs.wait_again(session, study_id)


def find_target(session: Session, study_id: int) -> int:
    """Return how many trials a study is to have.

    Raises:
        StudyNotFound: The study was deleted or renamed.
    """
    target = session.scalar(select(StudyRow.target).where(*described(study_id)))
    if target is None:
        require_study(session, study_id)
    return target or 0


def add_trial(session: Session, study_id: int, target: int) -> tuple[int, int] | None:
    """Add a waiting trial to a study that has fewer than `target`, and return its id and number.

    Optuna numbers a new trial by how many there are, under the same lock.
    """
    if count_trials(session, study_id) >= target:
        return None
    _lock_trials(session, study_id)
    number = count_trials(session, study_id)
    if number >= target:
        return None
    row = TrialModel(study_id=study_id, number=number, state=TrialState.WAITING)
    session.add(row)
    session.flush()
    # SQLite gives the ids of deleted trials out again, and other tools delete trials without their rows in our tables.
    trial_id: int = row.trial_id  # type: ignore[assignment]  # Optuna's models are untyped
    delete_of_trials(session, [trial_id], (AttemptRow, CurveRow, RungRow, LentRow))
    return trial_id, number


def remove_trials(session: Session, study_id: int, trial_ids: Sequence[int]) -> None:
    """Remove trials from the end of a study, which is locked, and lower its target to the rest."""
    delete_of_trials(session, trial_ids, (AttemptRow, CurveRow, RungRow, LentRow, *_OPTUNA_CHILDREN, TrialModel))
    write_target(session, study_id, count_trials(session, study_id))


def lock_study_of(session: Session, trial_id: int) -> int | None:
    """Let no trial be claimed or added to a trial's study until the transaction ends, and return the study's id.

    Returns:
        None if the trial was deleted.
    """
    study_id = session.scalar(select(TrialModel.study_id).where(TrialModel.trial_id == trial_id))
    if study_id is not None:
        lock_study(session, study_id)
    return study_id


def write_target(session: Session, study_id: int, target: int) -> None:
    """Write how many trials a study, which is locked, is to have, and show it."""
    session.execute(update(StudyRow).where(StudyRow.study_id == study_id).values(target=target))
    shown = {"study_id": study_id, "key": TARGET, "value_json": json.dumps(target)}
    upsert(session, StudyUserAttributeModel, [shown], ("study_id", "key"))


def first_attrs(params: Mapping[str, Any], key: str | None) -> dict[str, Any]:
    """Return the system attributes of the first trial: its parameters, and the key of its recipe if it has one."""
    return {FIXED_PARAMS: dict(params)} | ({} if key is None else {RECIPE_KEY: key})


def add_first(session: Session, study_id: int, attrs: Mapping[str, Any]) -> None:
    """Add the first trial of a study, which is locked and has none, with system attributes."""
    added = add_trial(session, study_id, target=1)
    assert added is not None, "the study has no trial, and is locked"
    session.add_all(
        TrialSystemAttributeModel(trial_id=added[0], key=key, value_json=json.dumps(value))
        for key, value in attrs.items()
    )


def lock_study(session: Session, study_id: int) -> None:
    """Let no trial be claimed or added until the transaction ends; claims take these locks in the same order.

    A study without a row gets one without a name, which says nothing of the study yet.
    """
    require_study(session, study_id)
    row = {"study_id": study_id, "state": UNCLAIMED, "changed_s": now_s(), "name": "", "target": 0, "settings": "{}"}
    upsert(session, StudyRow, [row], ("study_id",), update=False)
    session.execute(select(StudyRow.state).where(StudyRow.study_id == study_id).with_for_update())
    _lock_trials(session, study_id)


def _lock_trials(session: Session, study_id: int) -> None:
    """Let no trial be added until the transaction ends; Optuna takes the same lock."""
    session.execute(select(StudyModel.study_id).where(StudyModel.study_id == study_id).with_for_update())


def _find_settings(session: Session, study_id: int) -> dict[str, Any] | None:
    """Find the settings of a study; a row with another name is of one whose id SQLite has reused."""
    settings = session.scalar(select(StudyRow.settings).where(*described(study_id)))
    return None if settings is None else dict(json.loads(settings))


def _require_settings(session: Session, study_id: int, name: str) -> None:
    try:
        StudySettings.from_attrs(_load_attrs(session, study_id))
    except BadInput as error:
        raise BadInput(f"study {name}: {error}") from error


def _adopt(session: Session, study_id: int, state: StudyState) -> dict[str, Any]:
    """Describe a study in our table unless it is described there, and return the attributes with which it was made.

    Otherwise it is new, or a copy that another client has made.
    """
    if (settings := _find_settings(session, study_id)) is not None:
        return settings
    adopt_trials(session, study_id)
    settings = _load_attrs(session, study_id)
    target = settings.get(TARGET)
    row = {
        "study_id": study_id,
        "state": state,
        "changed_s": now_s(),
        "name": session.scalar(select(StudyModel.study_name).where(StudyModel.study_id == study_id)),
        "target": max(count_trials(session, study_id), target if type(target) is int and target <= MAX_TRIALS else 0),
        "settings": json.dumps(settings),
        "ends": None,
    }
    upsert(session, StudyRow, [row], ("study_id",))
    shown = {"study_id": study_id, "key": METRIC_NAMES, "value_json": json.dumps([METRIC])}
    upsert(session, StudySystemAttributeModel, [shown], ("study_id", "key"), update=False)
    return settings


def _load_attrs(session: Session, study_id: int) -> dict[str, Any]:
    table = StudyUserAttributeModel
    rows = session.execute(select(table.key, table.value_json).where(table.study_id == study_id))
    return {key: json.loads(value) for key, value in rows}


def count_trials(session: Session, study_id: int) -> int:
    """Count the trials that a study has already."""
    return session.scalar(select(func.count()).where(TrialModel.study_id == study_id)) or 0
