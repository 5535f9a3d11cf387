"""The removal of a study with its trials and their figures, but nothing that another study may use."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, delete, func, select
from sqlalchemy.orm import Session

from hpo.artifacts import Artifacts
from hpo.database.optuna_tables import (
    ARTIFACT_PREFIX,
    StudyDirectionModel,
    StudyModel,
    StudySystemAttributeModel,
    StudyUserAttributeModel,
    TrialHeartbeatModel,
    TrialIntermediateValueModel,
    TrialModel,
    TrialParamModel,
    TrialSystemAttributeModel,
    TrialUserAttributeModel,
    TrialValueModel,
)
from hpo.database.retry import retried
from hpo.database.storage import Storage
from hpo.database.tables import AttemptRow, CurveRow, LentRow, ParkedRow, RungRow, SegmentRow, StudyRow
from hpo.database.workers import workers_on
from hpo.errors import ArtifactsUnavailable, BadInput

log = logging.getLogger(__name__)

_OF_TRIALS: tuple[Any, ...] = (
    CurveRow,
    ParkedRow,
    RungRow,
    LentRow,
    AttemptRow,
    TrialParamModel,
    TrialValueModel,
    TrialIntermediateValueModel,
    TrialUserAttributeModel,
    TrialSystemAttributeModel,
    TrialHeartbeatModel,
)
"""The tables with a column `trial_id`, in the order of deletion."""

_OF_STUDIES: tuple[Any, ...] = (
    StudyRow,
    TrialModel,
    StudyDirectionModel,
    StudyUserAttributeModel,
    StudySystemAttributeModel,
    StudyModel,
)
"""The tables with a column `study_id`, in the order of deletion."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Removed:
    """Numbers of trials and files deleted with a study.

    Attributes:
        files: Figures, and files that people have uploaded to trials.
        missing_files: Files that were not in the artifact store, or could not be deleted.
    """

    trials: int
    files: int
    missing_files: int


def require_unused(storage: Storage, study_id: int, name: str) -> None:
    """Refuse a study that still has active workers.

    Raises:
        BadInput: There are active workers; the message names them.
    """
    with storage.transaction() as session:
        _require_unused(session, study_id, name)


def delete_study(storage: Storage, study_id: int, name: str, artifacts: Artifacts) -> Removed:
    """Delete a study, its trials, our rows about them, and their files; checkpoints stay, as they belong to no study.

    The files are deleted last: a file without a row only takes space, but a row without its file would be an error.

    Raises:
        BadInput: The study still has active workers; nothing is deleted.
        StorageUnavailable: The database did not answer within its deadline.
    """
    trials, artifact_ids = _delete_rows(storage, study_id, name)
    files = _delete_files(artifacts, artifact_ids)
    return Removed(trials=trials, files=files, missing_files=len(artifact_ids) - files)


@retried
def _delete_rows(storage: Storage, study_id: int, name: str) -> tuple[int, list[str]]:
    with storage.transaction() as session:
        # Claims hold this lock, so none can happen between the check of the workers and the commit.
        session.execute(select(StudyRow.state).where(StudyRow.study_id == study_id).with_for_update())
        _require_unused(session, study_id, name)
        trials = select(TrialModel.trial_id).where(TrialModel.study_id == study_id)
        number = session.scalar(select(func.count()).select_from(trials.subquery())) or 0
        artifact_ids = _list_files(session, study_id, trials)
        attempts = select(AttemptRow.attempt_id).where(AttemptRow.trial_id.in_(trials))
        session.execute(_delete(SegmentRow).where(SegmentRow.attempt_id.in_(attempts)))
        for table in _OF_TRIALS:
            session.execute(_delete(table).where(table.trial_id.in_(trials)))
        for table in _OF_STUDIES:
            session.execute(_delete(table).where(table.study_id == study_id))
    return number, artifact_ids


def _delete(table: Any) -> Any:
    return delete(table).execution_options(synchronize_session=False)


def _require_unused(session: Session, study_id: int, name: str) -> None:
    if workers := workers_on(session, study_id):
        raise BadInput(
            f"study {name} still has active workers: {', '.join(workers)}; stop them with `hpo stop --study {name}`"
        )


def _list_files(session: Session, study_id: int, trials: Select[Any]) -> list[str]:
    of_trials, of_studies = TrialSystemAttributeModel, StudySystemAttributeModel
    keys = (
        select(of_trials.value_json).where(of_trials.trial_id.in_(trials), of_trials.key.startswith(ARTIFACT_PREFIX)),
        select(of_studies.value_json).where(
            of_studies.study_id == study_id, of_studies.key.startswith(ARTIFACT_PREFIX)
        ),
    )
    return [_artifact_id(value) for query in keys for value in session.scalars(query)]


def _artifact_id(value_json: str) -> str:
    about = json.loads(value_json)  # Optuna nests JSON text in JSON
    return str((json.loads(about) if isinstance(about, str) else about)["artifact_id"])


def _delete_files(artifacts: Artifacts, artifact_ids: Iterable[str]) -> int:
    """Delete files, and count those that existed."""
    deleted = 0
    for artifact_id in artifact_ids:
        try:
            deleted += artifacts.remove(artifact_id)
        except ArtifactsUnavailable as error:
            log.warning("%s; file %s could not be deleted", error, artifact_id)
    return deleted
