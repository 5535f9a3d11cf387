"""The index of recipes: which recipe each trial of a study has, so that none is tried twice.

A trial's key is one of Optuna's system attributes, so it is copied and deleted together with the trial by any tool.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Set
from typing import Any

from optuna.trial import TrialState
from sqlalchemy import ColumnElement, func, or_, select
from sqlalchemy.orm import Session, aliased

from hpo.database.optuna_tables import (
    FIXED_PARAMS,
    StudyModel,
    TrialModel,
    TrialParamModel,
    TrialSystemAttributeModel,
)
from hpo.database.optuna_view import read_trials
from hpo.database.retry import retried
from hpo.database.storage import Storage
from hpo.database.tables import AttemptRow

RECIPE_KEY = "hpo:recipe"
"""The trial's system attribute that holds the key of its recipe."""

KeyOf = Callable[[Mapping[str, Any]], str]
"""A function from a trial's parameters to the key of its recipe."""


def lock_recipes(session: Session, trial_id: int) -> int | None:
    """Let no other transaction write parameters in a trial's study until this one ends, and return the study's id.

    Returns:
        None if the trial was deleted.
    """
    query = select(StudyModel.study_id).join(TrialModel, TrialModel.study_id == StudyModel.study_id)
    locked = query.where(TrialModel.trial_id == trial_id).with_for_update(of=StudyModel, key_share=True)
    return session.scalar(locked)


def find_holder(session: Session, study_id: int, key: str, besides: int | None = None) -> int | None:
    """Find the number of the first trial of a study that has a recipe; None if no trial has it.

    Args:
        besides: The id of a trial that does not count.
    """
    others = (TrialModel.study_id == study_id, *([] if besides is None else [TrialModel.trial_id != besides]))
    holders = _keys(TrialModel.number).where(*others, TrialSystemAttributeModel.value_json == json.dumps(key))
    number: int | None = session.scalar(holders.order_by(TrialModel.number).limit(1))
    return number


def find_enqueued(session: Session, trial_id: int) -> Set[str]:
    """Return the names of the parameters that were enqueued for a trial."""
    attributes = TrialSystemAttributeModel
    fixed = (attributes.trial_id == trial_id, attributes.key == FIXED_PARAMS)
    enqueued = session.scalar(select(attributes.value_json).where(*fixed))
    return frozenset() if enqueued is None else frozenset(json.loads(enqueued))


def add_missing_keys(session: Session, study_id: int, key_of: KeyOf) -> None:
    """Add the keys of trials that were given their parameters by a release that added none."""
    begun = select(AttemptRow.trial_id).where(AttemptRow.trial_id == TrialModel.trial_id).exists()
    with_params = select(TrialParamModel.trial_id).where(TrialParamModel.trial_id == TrialModel.trial_id).exists()
    query = select(TrialModel.trial_id).where(TrialModel.study_id == study_id, begun, with_params, ~_has(RECIPE_KEY))
    for trial_id, trial in read_trials(session, session.scalars(query).all(), with_reports=False).items():
        key = json.dumps(key_of(trial.params))
        session.add(TrialSystemAttributeModel(trial_id=trial_id, key=RECIPE_KEY, value_json=key))


@retried
def list_keys(storage: Storage, study_id: int) -> set[str]:
    """List the keys of the recipes that a study's trials have."""
    with storage.transaction() as session:
        return {json.loads(value) for value in session.scalars(_keys().where(TrialModel.study_id == study_id))}


@retried
def count_keys(storage: Storage, study_id: int) -> int:
    """Count the distinct recipes that a study's trials have."""
    with storage.transaction() as session:
        keys = _keys().where(TrialModel.study_id == study_id).distinct().subquery()
        return session.scalar(select(func.count()).select_from(keys)) or 0


@retried
def count_settled(storage: Storage, study_id: int, key_of: KeyOf) -> tuple[int, int]:
    """Count the trials of a study that need no untried recipe, and the distinct recipes that its trials have."""
    with storage.transaction() as session:
        add_missing_keys(session, study_id, key_of)
    with storage.transaction() as session:
        settled = session.scalar(select(func.count()).where(TrialModel.study_id == study_id, _is_settled())) or 0
    return settled, count_keys(storage, study_id)


def list_unsettled_tail(session: Session, study_id: int) -> list[int]:
    """List the ids of the trials after the last that is finished, has a recipe, or has enqueued parameters."""
    last = select(func.max(TrialModel.number)).where(TrialModel.study_id == study_id, _is_settled())
    after = TrialModel.number > func.coalesce(last.scalar_subquery(), -1)
    return list(session.scalars(select(TrialModel.trial_id).where(TrialModel.study_id == study_id, after)))


def _is_settled() -> ColumnElement[bool]:
    """Return the condition that a trial needs no untried recipe."""
    return or_(
        TrialModel.state.in_((TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)), _has(RECIPE_KEY, FIXED_PARAMS)
    )


def _has(*keys: str) -> ColumnElement[bool]:
    attributes = aliased(TrialSystemAttributeModel)
    return (
        select(attributes.trial_id).where(attributes.trial_id == TrialModel.trial_id, attributes.key.in_(keys)).exists()
    )


def _keys(column: Any = TrialSystemAttributeModel.value_json) -> Any:
    """Select the keys of trials, as JSON, or another column of those that have one."""
    attributes = TrialSystemAttributeModel
    query = select(column).select_from(attributes).join(TrialModel, TrialModel.trial_id == attributes.trial_id)
    return query.where(attributes.key == RECIPE_KEY)
