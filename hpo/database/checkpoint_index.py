"""The index of checkpoints: find, add and evict their rows."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import TrialState
from sqlalchemy import and_, delete, func, or_, select, update
from sqlalchemy.orm import Session

from hpo.artifacts import Artifact
from hpo.database.attempt import Attempt
from hpo.database.optuna_tables import TrialModel, TrialValueModel
from hpo.database.overview import best_first
from hpo.database.storage import Storage
from hpo.database.tables import AttemptRow, CheckpointRow, SecretRow, is_trained, now_s, upsert
from hpo.recipes.schedule import CurvePoint
from hpo.settings import DEFAULT_CONFIRM_TOP


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A state in the artifact store, and the curve up to it."""

    checkpoint_id: int
    iteration: int
    curve: tuple[CurvePoint, ...]
    artifact: Artifact


def find_checkpoint(
    storage: Storage, reached: Sequence[tuple[str, int]], passed_over: Collection[str] = ()
) -> Checkpoint | None:
    """Find the deepest checkpoint on a path.

    Args:
        reached: The path: keys of segments, each with the last iteration on it to consider.
        passed_over: Ids of artifacts to ignore.
    """
    if not reached:
        return None
    on_path = [and_(CheckpointRow.segment == key, CheckpointRow.iteration <= last) for key, last in reached]
    query = select(CheckpointRow).where(or_(*on_path), CheckpointRow.artifact_id.not_in(passed_over))
    with storage.transaction() as session:
        row = session.scalars(query.order_by(CheckpointRow.iteration.desc()).limit(1)).first()
        return None if row is None else _checkpoint(row)


def find_checkpoint_of(storage: Storage, trial_id: int) -> Checkpoint | None:
    """Find the checkpoint that a trial's last attempt saved or continued from."""
    query = (
        select(CheckpointRow)
        .join(AttemptRow, AttemptRow.checkpoint_id == CheckpointRow.checkpoint_id)
        .where(AttemptRow.trial_id == trial_id)
        .order_by(AttemptRow.number.desc())
        .limit(1)
    )
    with storage.transaction() as session:
        row = session.scalars(query).first()
        return None if row is None else _checkpoint(row)


def add_checkpoint(storage: Storage, attempt: Attempt, row: Mapping[str, Any], budget_bytes: int) -> list[str]:
    """Add a checkpoint that an attempt has saved and continues from, or replace the one of the same state.

    Args:
        row: The columns of `CheckpointRow`, without its id and the time of its last use.
        budget_bytes: Cap on the total size of the files.

    Returns:
        The ids of the artifacts that no row refers to any more.
    """
    same = (CheckpointRow.segment == row["segment"], CheckpointRow.iteration == row["iteration"])
    replaced = select(CheckpointRow.artifact_id).where(*same, CheckpointRow.artifact_id != row["artifact_id"])
    with storage.transaction() as session:
        unnamed = list(session.scalars(replaced))
        upsert(session, CheckpointRow, [{**row, "last_used_s": now_s()}], ("segment", "iteration"))
        checkpoint_id = session.scalars(select(CheckpointRow.checkpoint_id).where(*same)).one()
        _set_needed(session, attempt, checkpoint_id)
        return unnamed + _evict(session, budget_bytes)


def note_use(storage: Storage, attempt: Attempt, checkpoint: Checkpoint) -> None:
    """Note that an attempt needs a checkpoint, so that it is kept.

    Hundreds of workers may continue from one checkpoint at once; one of them is enough to update its last use.
    """
    at = CheckpointRow.checkpoint_id == checkpoint.checkpoint_id
    unlocked = select(CheckpointRow.checkpoint_id).where(at).with_for_update(skip_locked=True)
    used = update(CheckpointRow).where(CheckpointRow.checkpoint_id.in_(unlocked)).values(last_used_s=now_s())
    with storage.transaction() as session:
        _set_needed(session, attempt, checkpoint.checkpoint_id)
        session.execute(used.execution_options(synchronize_session=False))


def drop_checkpoint(storage: Storage, artifact_id: str) -> None:
    """Delete the row of a checkpoint whose file cannot be used."""
    with storage.transaction() as session:
        session.execute(delete(CheckpointRow).where(CheckpointRow.artifact_id == artifact_id))


def evict(storage: Storage, budget_bytes: int) -> tuple[list[str], int]:
    """Delete the least recently used checkpoints over a budget, but none that a running trial or one of the best needs.

    Returns:
        The ids of the artifacts that no row refers to any more, and the size of the remaining files in bytes.
    """
    with storage.transaction() as session:
        unnamed = _evict(session, budget_bytes)
        left_bytes = int(session.scalar(select(func.sum(CheckpointRow.size_bytes))) or 0)
    return unnamed, left_bytes


def load_note_key(storage: Storage) -> bytes:
    """Load the key with which workers sign the notes that they leave in the artifact store."""
    with storage.transaction() as session:
        return bytes.fromhex(session.scalars(select(SecretRow.secret).where(SecretRow.name == "notes")).one())


def _checkpoint(row: CheckpointRow) -> Checkpoint:
    return Checkpoint(
        checkpoint_id=row.checkpoint_id,
        iteration=row.iteration,
        curve=tuple(CurvePoint(**point) for point in json.loads(row.curve)),
        artifact=Artifact(artifact_id=row.artifact_id, size_bytes=row.size_bytes, sha256=row.sha256),
    )


def _set_needed(session: Session, attempt: Attempt, checkpoint_id: int) -> None:
    at = AttemptRow.attempt_id == attempt.attempt_id
    session.execute(update(AttemptRow).where(at).values(checkpoint_id=checkpoint_id))


def _evict(session: Session, budget_bytes: int) -> list[str]:
    over = int(session.scalar(select(func.sum(CheckpointRow.size_bytes))) or 0) - budget_bytes
    if over <= 0:
        return []
    before = func.sum(CheckpointRow.size_bytes).over(order_by=(CheckpointRow.last_used_s, CheckpointRow.checkpoint_id))
    oldest = (
        select(CheckpointRow.artifact_id, (before - CheckpointRow.size_bytes).label("before"))
        .where(CheckpointRow.checkpoint_id.not_in(needed_checkpoints(session)))
        .subquery()
    )
    gone = list(session.scalars(select(oldest.c.artifact_id).where(oldest.c.before < over)))
    session.execute(delete(CheckpointRow).where(CheckpointRow.artifact_id.in_(gone)))
    return gone


def needed_checkpoints(session: Session) -> set[int]:
    """Return the ids of the checkpoints that running trials continue from, and of each study's best trials.

    A confirmation takes its winner from the best trials and the base recipe, which is the first trial.
    """
    has_one = AttemptRow.checkpoint_id.is_not(None)
    running = select(AttemptRow.checkpoint_id).where(AttemptRow.ended_s.is_(None), has_one)
    order = (*best_first(), AttemptRow.number.desc())
    ranked = (
        select(
            AttemptRow.checkpoint_id,
            TrialModel.number,
            func.row_number().over(partition_by=TrialModel.study_id, order_by=order).label("place"),
        )
        .join(TrialModel, TrialModel.trial_id == AttemptRow.trial_id)
        .join(TrialValueModel, TrialValueModel.trial_id == AttemptRow.trial_id)
        .where(TrialModel.state == TrialState.COMPLETE, is_trained(), has_one)
        .subquery()
    )
    best = select(ranked.c.checkpoint_id).where(or_(ranked.c.place <= DEFAULT_CONFIRM_TOP, ranked.c.number == 0))
    return {*session.scalars(running), *session.scalars(best)}
