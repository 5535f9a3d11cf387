"""The tables of hpo, in the same database as Optuna's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from optuna.trial import TrialState
from sqlalchemy import (
    ColumnElement,
    Double,
    ForeignKey,
    Index,
    String,
    Text,
    UniqueConstraint,
    and_,
    delete,
    exists,
    or_,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, aliased, mapped_column
from sqlalchemy.sql.functions import FunctionElement

from hpo.database.attempt import LOSSES
from hpo.database.optuna_tables import StudyModel, TrialModel, TrialValueModel
from hpo.errors import StudyNotFound
from hpo.settings import StudyState

UNCLAIMED: StudyState = "stopped"
"""The state of a study without a row in our table: a copy is left alone until somebody runs or resumes it."""


class Base(DeclarativeBase):
    """The collection of our tables; Optuna's have a collection of their own."""


class AttemptRow(Base):
    """A claim of a trial by one worker, which may write for the trial until the attempt has ended.

    All times are seconds since the epoch by the database's clock.
    """

    __tablename__ = "hpo_attempts"
    __table_args__ = (UniqueConstraint("trial_id", "number"), Index("ix_hpo_attempts_open", "ended_s", "lease_until_s"))

    attempt_id: Mapped[int] = mapped_column(primary_key=True)
    trial_id: Mapped[int] = mapped_column(ForeignKey(TrialModel.__table__.c.trial_id, ondelete="CASCADE"))
    number: Mapped[int]
    worker: Mapped[str]
    host: Mapped[str]
    device: Mapped[str]
    claimed_s: Mapped[float] = mapped_column(Double)
    lease_until_s: Mapped[float] = mapped_column(Double)
    ended_s: Mapped[float | None] = mapped_column(Double)
    outcome: Mapped[str | None]
    iteration: Mapped[int] = mapped_column(default=0)
    trained_iterations: Mapped[int] = mapped_column(default=0)
    val_accuracy: Mapped[float | None] = mapped_column(Double)
    checkpoint_id: Mapped[int | None]


class CurveRow(Base):
    """A point of a trial's curve."""

    __tablename__ = "hpo_curve_points"

    trial_id: Mapped[int] = mapped_column(
        ForeignKey(TrialModel.__table__.c.trial_id, ondelete="CASCADE"), primary_key=True
    )
    iteration: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    train_loss: Mapped[float] = mapped_column(Double)
    train_accuracy: Mapped[float | None] = mapped_column(Double)
    val_loss: Mapped[float] = mapped_column(Double)
    val_accuracy: Mapped[float] = mapped_column(Double)


class CheckpointRow(Base):
    """A saved training state that trials can resume from.

    Attributes:
        segment: Key of the segment that it lies on; with `iteration`, it identifies the state.
        curve: Points measured up to `iteration`, as JSON.
    """

    __tablename__ = "hpo_checkpoints"
    __table_args__ = (UniqueConstraint("segment", "iteration"),)

    checkpoint_id: Mapped[int] = mapped_column(primary_key=True)
    segment: Mapped[str] = mapped_column(String(64))
    iteration: Mapped[int]
    curve: Mapped[str] = mapped_column(Text)
    artifact_id: Mapped[str]
    size_bytes: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64))
    last_used_s: Mapped[float] = mapped_column(Double)


class SegmentRow(Base):
    """The lease of an attempt on the segment that it trains; valid as long as the attempt's own lease."""

    __tablename__ = "hpo_segments"

    segment: Mapped[str] = mapped_column(String(64), primary_key=True)
    attempt_id: Mapped[int] = mapped_column(ForeignKey("hpo_attempts.attempt_id", ondelete="CASCADE"))


class ParkedRow(Base):
    """A waiting trial that needs a segment, with last iteration `end`, which another worker is training."""

    __tablename__ = "hpo_parked"

    trial_id: Mapped[int] = mapped_column(
        ForeignKey(TrialModel.__table__.c.trial_id, ondelete="CASCADE"), primary_key=True
    )
    segment: Mapped[str] = mapped_column(String(64))
    end: Mapped[int]


class RungRow(Base):
    """A rung that a trial has reached; one that has not been promoted from it waits there.

    Attributes:
        rung: The trial's rungs count from 1.
        value: What trials are compared by.
        promoted: Whether the trial has been allowed to train beyond the rung.
    """

    __tablename__ = "hpo_rungs"

    trial_id: Mapped[int] = mapped_column(
        ForeignKey(TrialModel.__table__.c.trial_id, ondelete="CASCADE"), primary_key=True
    )
    rung: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    value: Mapped[float] = mapped_column(Double)
    promoted: Mapped[bool]


class LentRow(Base):
    """A running trial that none of our workers trains, since another client has asked Optuna for it.

    Attributes:
        signs: How much the client had written for the trial when it was last seen to write.
        until_s: When the trial is taken back without another sign of life, in seconds by the database's clock.
    """

    __tablename__ = "hpo_lent"

    trial_id: Mapped[int] = mapped_column(
        ForeignKey(TrialModel.__table__.c.trial_id, ondelete="CASCADE"), primary_key=True
    )
    signs: Mapped[int]
    until_s: Mapped[float] = mapped_column(Double)


class StudyRow(Base):
    """The state of a study, which decides whether its trials can be claimed.

    A study that has our settings, but no such row, is another client's copy. SQLite gives the ids of deleted
    studies out again, so a row with another name is that of a study which is gone.

    Attributes:
        changed_s: When the study was last created, paused, resumed or stopped, in seconds by the database's clock.
        name: Of the study; Optuna cannot rename one.
        target: The number of trials up to which workers add new ones.
        settings: The attributes that the study was created with, as JSON, since anybody may edit those that are shown.
        ends: When it ends before it has had all its trials, as JSON; None where it has no such end.
    """

    __tablename__ = "hpo_studies"

    study_id: Mapped[int] = mapped_column(
        ForeignKey(StudyModel.__table__.c.study_id, ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    state: Mapped[StudyState] = mapped_column(String(16))
    changed_s: Mapped[float] = mapped_column(Double)
    name: Mapped[str]
    target: Mapped[int]
    settings: Mapped[str] = mapped_column(Text)
    ends: Mapped[str | None] = mapped_column(Text)


class WorkerRow(Base):
    """A worker's heartbeat between trials; while it trains, its attempt's lease is its heartbeat.

    Attributes:
        study_id: Id of the study that it serves; None if it serves all.
        lease_s: How long the worker counts as alive after a heartbeat.
        seen_s: When the row was written; whatever the worker trains now was claimed later.
    """

    __tablename__ = "hpo_workers"

    name: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str]
    device: Mapped[str]
    study_id: Mapped[int | None]
    lease_s: Mapped[float] = mapped_column(Double)
    seen_s: Mapped[float] = mapped_column(Double)


class SecretRow(Base):
    """A secret of this database, which nothing shows.

    Attributes:
        secret: Random bytes, in hexadecimal.
    """

    __tablename__ = "hpo_secrets"

    name: Mapped[str] = mapped_column(String(16), primary_key=True)
    secret: Mapped[str] = mapped_column(String(64))


class now_s(FunctionElement[float]):  # noqa: N801 - reads as an SQL function
    """The database's clock in seconds since the epoch."""

    type = Double()
    inherit_cache = True


@compiles(now_s, "sqlite")
def _now_sqlite(*_: Any, **__: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now_s, "postgresql")
def _now_postgresql(*_: Any, **__: Any) -> str:
    return "extract(epoch from clock_timestamp())::double precision"


def is_at_rung() -> ColumnElement[bool]:
    """Return the condition that a trial has reached a rung from which it has not been promoted."""
    return exists().where(RungRow.trial_id == TrialModel.trial_id, ~RungRow.promoted)


def require_study(session: Session, study_id: int) -> None:
    """Refuse a study that is gone.

    Raises:
        StudyNotFound: Somebody deleted it, or renamed it outside this package, which makes another of it.
    """
    if session.scalar(select(StudyModel.study_id).where(StudyModel.study_id == study_id)) is None:
        raise StudyNotFound(f"the study with id {study_id} no longer exists: it was deleted or renamed")


def described(study_id: int) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions on the row of a study that is there.

    Other tools delete studies without our rows of them where the database is SQLite.
    """
    same = (StudyModel.study_id == StudyRow.study_id, StudyModel.study_name == StudyRow.name)
    return StudyRow.study_id == study_id, exists().where(*same)


def is_open() -> ColumnElement[bool]:
    """Return the condition that one of our workers holds a trial."""
    attempt = aliased(AttemptRow)
    return exists().where(attempt.trial_id == TrialModel.trial_id, attempt.ended_s.is_(None))


def is_trained() -> ColumnElement[bool]:
    """Return the condition that a trial has ended, and that one of our workers ended it.

    Other clients may end trials too. What they tell was not measured here: it is shown, but not compared.
    On SQLite they may replace a value in the moment in which it is written, so it must be the one that was measured.
    """
    attempt, measured = aliased(AttemptRow), aliased(TrialValueModel)
    same = (measured.trial_id == attempt.trial_id, measured.value == attempt.val_accuracy)
    complete = exists().where(attempt.trial_id == TrialModel.trial_id, attempt.outcome == "complete", *same)
    return or_(
        and_(TrialModel.state == TrialState.COMPLETE, complete),
        and_(TrialModel.state == TrialState.PRUNED, _has_attempt("pruned", "waiting")),
        and_(TrialModel.state == TrialState.FAIL, _has_attempt("failed", *LOSSES)),
    )


def _has_attempt(*outcomes: str) -> ColumnElement[bool]:
    attempt = aliased(AttemptRow)
    return exists().where(attempt.trial_id == TrialModel.trial_id, attempt.outcome.in_(outcomes))


def delete_of_trials(session: Session, trial_ids: Sequence[int], tables: Iterable[Any]) -> None:
    """Delete the rows of trials from tables that have a column `trial_id`."""
    for table in tables:
        session.execute(delete(table).where(table.trial_id.in_(trial_ids)))


def upsert(
    session: Session, table: Any, rows: list[dict[str, Any]], key: tuple[str, ...], *, update: bool = True
) -> None:
    """Insert rows; if a key exists already, update the other columns, or leave the row as it is."""
    if not rows:
        return
    dialects: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
    insert = dialects[session.get_bind().dialect.name](table)
    others = {name: insert.excluded[name] for name in rows[0] if name not in key}
    if update:
        insert = insert.on_conflict_do_update(index_elements=key, set_=others)
    else:
        insert = insert.on_conflict_do_nothing(index_elements=key)
    session.execute(insert.values(rows))
