"""The tables of hpo, which stand beside Optuna's in one database."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Double, ForeignKey, Index, String, Text, UniqueConstraint, delete
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.sql.functions import FunctionElement

from hpo.database.optuna_tables import StudyModel, TrialModel
from hpo.settings import StudyState


class Base(DeclarativeBase):
    """Collect our tables; Optuna's are in a collection of their own."""


class AttemptRow(Base):
    """Be one claim of a trial by one worker; it may write for the trial while it has not ended.

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
    """Be one point of a trial's curve."""

    __tablename__ = "hpo_curve_points"

    trial_id: Mapped[int] = mapped_column(
        ForeignKey(TrialModel.__table__.c.trial_id, ondelete="CASCADE"), primary_key=True
    )
    iteration: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    train_loss: Mapped[float] = mapped_column(Double)
    val_loss: Mapped[float] = mapped_column(Double)
    val_accuracy: Mapped[float] = mapped_column(Double)


class CheckpointRow(Base):
    """Be a state on a trajectory that can be gone on from.

    Attributes:
        segment: Key of the stretch of one learning rate that it lies on; with `iteration` it names the state.
        curve: Points measured up to there, as JSON.
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
    """Say which attempt trains a segment now; it holds while the attempt's lease does."""

    __tablename__ = "hpo_segments"

    segment: Mapped[str] = mapped_column(String(64), primary_key=True)
    attempt_id: Mapped[int] = mapped_column(ForeignKey("hpo_attempts.attempt_id", ondelete="CASCADE"))


class ParkedRow(Base):
    """Say that a waiting trial waits for a segment that another worker trains, up to `end`."""

    __tablename__ = "hpo_parked"

    trial_id: Mapped[int] = mapped_column(
        ForeignKey(TrialModel.__table__.c.trial_id, ondelete="CASCADE"), primary_key=True
    )
    segment: Mapped[str] = mapped_column(String(64))
    end: Mapped[int]


class StudyRow(Base):
    """Say whether a study's trials are given out, and since when.

    Attributes:
        changed_s: When somebody made, paused, resumed or stopped the study, in seconds by the database's clock.
    """

    __tablename__ = "hpo_studies"

    study_id: Mapped[int] = mapped_column(
        ForeignKey(StudyModel.__table__.c.study_id, ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    state: Mapped[StudyState] = mapped_column(String(16))
    changed_s: Mapped[float] = mapped_column(Double)


class WorkerRow(Base):
    """Be a sign of life of a worker between trials; while it trains, its attempt's lease is one.

    Attributes:
        study_id: Of the study that it serves; None where it serves all.
        lease_s: How long after a sign of life the worker counts as alive.
        seen_s: When this was written; whatever it trains now was claimed later.
    """

    __tablename__ = "hpo_workers"

    name: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str]
    device: Mapped[str]
    study_id: Mapped[int | None]
    lease_s: Mapped[float] = mapped_column(Double)
    seen_s: Mapped[float] = mapped_column(Double)


class now_s(FunctionElement[float]):  # noqa: N801 - reads as an SQL function
    """Give the database's clock in seconds since the epoch."""

    type = Double()
    inherit_cache = True


@compiles(now_s, "sqlite")
def _now_sqlite(*_: Any, **__: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now_s, "postgresql")
def _now_postgresql(*_: Any, **__: Any) -> str:
    return "extract(epoch from clock_timestamp())::double precision"


def delete_of_trials(session: Session, trial_ids: Sequence[int], tables: Iterable[Any]) -> None:
    """Delete the rows of trials from tables that have a column `trial_id`."""
    for table in tables:
        session.execute(delete(table).where(table.trial_id.in_(trial_ids)))


def upsert(
    session: Session, table: Any, rows: list[dict[str, Any]], key: tuple[str, ...], *, update: bool = True
) -> None:
    """Insert rows; where the key is taken, update the other columns, or leave the row as it is."""
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
