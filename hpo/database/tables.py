"""The tables of hpo, in the same database as Optuna's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Double, ForeignKey, Index, String, Text, UniqueConstraint, delete, exists
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.sql.functions import FunctionElement

from hpo.database.optuna_tables import StudyModel, TrialModel
from hpo.settings import StudyState


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


class StudyRow(Base):
    """The state of a study, which decides whether its trials can be claimed.

    Attributes:
        changed_s: When the study was last created, paused, resumed or stopped, in seconds by the database's clock.
    """

    __tablename__ = "hpo_studies"

    study_id: Mapped[int] = mapped_column(
        ForeignKey(StudyModel.__table__.c.study_id, ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    state: Mapped[StudyState] = mapped_column(String(16))
    changed_s: Mapped[float] = mapped_column(Double)


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
