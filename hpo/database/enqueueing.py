"""Trials that people put at the head of the queue: recipes of their own, and trials that failed."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from optuna.trial import TrialState
from sqlalchemy import delete, exists, func, select, update
from sqlalchemy.orm import Session

from hpo.database import attempt_rows, losses, recipe_index, rungs, studies
from hpo.database.optuna_tables import (
    DASHBOARD_PREFIX,
    FIXED_PARAMS,
    RECORD,
    StudySystemAttributeModel,
    TrialModel,
    TrialParamModel,
    TrialSystemAttributeModel,
    TrialUserAttributeModel,
    TrialValueModel,
)
from hpo.database.recipe_index import RECIPE_KEY
from hpo.database.retry import retried
from hpo.database.storage import Storage
from hpo.database.tables import AttemptRow, StudyRow, delete_of_trials, is_trained, now_s, upsert
from hpo.errors import BadInput
from hpo.settings import MAX_TRIALS


@dataclass(frozen=True, kw_only=True, slots=True)
class Enqueued:
    """A trial that was enqueued: its number, and how many trials its study is to have now."""

    trial: int
    target: int


@retried
def enqueue(
    storage: Storage,
    study_id: int,
    params: Mapping[str, Any],
    key: str | None,
    key_of: recipe_index.KeyOf,
    *,
    add: bool,
) -> Enqueued:
    """Give parameters to the next trial that has not begun, or to one more.

    Atomic across processes: no trial is claimed, added or given a recipe meanwhile.

    Args:
        key: The key of the recipe; None if some parameters are left to the sampler.
        key_of: Returns the keys of recipes of earlier trials that have none.
        add: Whether the study is to have one trial more.

    Raises:
        BadInput: A trial has the recipe, or every trial has begun; nothing is changed.
        StudyNotFound: The study was deleted or renamed.
    """
    with storage.transaction() as session:
        studies.lock_study(session, study_id)
        recipe_index.add_missing_keys(session, study_id, key_of)
        session.flush()
        if key is not None:
            _require_untried(session, study_id, key)
        target = max(studies.find_target(session, study_id), studies.count_trials(session, study_id)) + add
        if target > MAX_TRIALS:
            raise BadInput(f"--add: the study has {MAX_TRIALS} trials, the most that a study may have")
        trial_id, number = _find_open(session, study_id) or _add(session, study_id, target)
        attrs = {FIXED_PARAMS: dict(params)} | ({} if key is None else {RECIPE_KEY: key})
        rows = [{"trial_id": trial_id, "key": name, "value_json": json.dumps(value)} for name, value in attrs.items()]
        upsert(session, TrialSystemAttributeModel, rows, ("trial_id", "key"))
        if add:
            studies.write_target(session, study_id, target)
            rungs.wait_again(session, study_id)
    return Enqueued(trial=number, target=target)


@retried
def retry_failed(storage: Storage, study_id: int, numbers: Collection[int] = ()) -> list[int]:
    """Put failed trials back in the queue, with their parameters, and count their lost attempts anew.

    Trials that other clients ended, or whose parameters were refused, would end alike, and stay. Trials that were
    pruned because they were not promoted wait at their rungs again.

    Args:
        numbers: Of the trials; none for all that failed.

    Returns:
        The numbers of the trials that were put back.

    Raises:
        BadInput: A trial has not failed, or cannot be tried again; nothing is changed.
        StudyNotFound: The study was deleted or renamed.
    """
    with storage.transaction() as session:
        studies.lock_study(session, study_id)
        failed = (TrialModel.study_id == study_id, TrialModel.state == TrialState.FAIL, is_trained())
        query = select(TrialModel.number, TrialModel.trial_id).where(*failed).order_by(TrialModel.number)
        found: dict[int, int] = {number: trial_id for number, trial_id in session.execute(query)}  # noqa: C416
        for number in numbers:
            if number not in found:
                raise BadInput(f"--trial {number}: {_why_not(session, study_id, number)}")
        chosen = {number: trial_id for number, trial_id in found.items() if not numbers or number in numbers}
        for trial_id in chosen.values():
            _put_back(session, study_id, trial_id)
        if chosen:
            rungs.wait_again(session, study_id)
            changed = update(StudyRow).where(StudyRow.study_id == study_id)
            session.execute(changed.values(changed_s=now_s()))  # workers that gave the study up see another
    return list(chosen)


def _why_not(session: Session, study_id: int, number: int) -> str:
    """Say why a trial cannot be tried again."""
    query = select(TrialModel.state).where(TrialModel.study_id == study_id, TrialModel.number == number)
    state = session.scalar(query)
    if state is None:
        return "the study has no trial with that number yet"
    if state == TrialState.FAIL:
        return "another client ended it, or chose parameters for it that were refused"
    return f"it has not failed: it is {state.name.lower()}"


def _put_back(session: Session, study_id: int, trial_id: int) -> None:
    """Put a failed trial back in the queue, and delete what says that it failed."""
    attempt_rows.clear_progress(session, trial_id)
    last = session.scalar(select(func.max(AttemptRow.number)).where(AttemptRow.trial_id == trial_id))
    mark = {"trial_id": trial_id, "key": losses.RETRIED, "value_json": json.dumps(last)}
    upsert(session, TrialSystemAttributeModel, [mark], ("trial_id", "key"))
    attributes, notes = TrialSystemAttributeModel, StudySystemAttributeModel
    session.execute(delete(attributes).where(attributes.trial_id == trial_id, attributes.key == RECORD))
    note = (notes.study_id == study_id, notes.key.startswith(f"{DASHBOARD_PREFIX}{trial_id}:note_"))
    session.execute(delete(notes).where(*note))
    delete_of_trials(session, [trial_id], (TrialValueModel, TrialUserAttributeModel))
    waiting = update(TrialModel).where(TrialModel.trial_id == trial_id)
    session.execute(waiting.values(state=TrialState.WAITING, _datetime_complete_utc=None))


def _require_untried(session: Session, study_id: int, key: str) -> None:
    number = recipe_index.find_holder(session, study_id, key)
    if number is not None:
        raise BadInput(f"trial {number} of the study has this recipe already; no recipe is tried twice")


def _find_open(session: Session, study_id: int) -> tuple[int, int] | None:
    """Find the oldest trial in the queue that has not begun, and for which nobody has chosen parameters."""
    attributes = TrialSystemAttributeModel
    taken = (
        exists().where(AttemptRow.trial_id == TrialModel.trial_id),
        exists().where(TrialParamModel.trial_id == TrialModel.trial_id),
        exists().where(attributes.trial_id == TrialModel.trial_id, attributes.key.in_((FIXED_PARAMS, RECIPE_KEY))),
    )
    waiting = (TrialModel.study_id == study_id, TrialModel.state == TrialState.WAITING)
    query = select(TrialModel.trial_id, TrialModel.number).where(*waiting, *(~each for each in taken))
    row = session.execute(query.order_by(TrialModel.number).limit(1).with_for_update(skip_locked=True)).first()
    return None if row is None else (row.trial_id, row.number)


def _add(session: Session, study_id: int, target: int) -> tuple[int, int]:
    added = studies.add_trial(session, study_id, target)
    if added is None:
        raise BadInput(f"all {target} trials of the study have begun; --add makes it one more")
    return added
