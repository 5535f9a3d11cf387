"""A look at a database before it is used: whether it answers, what it holds, and what this user may do there."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from sqlalchemy import Connection, Table, delete, select, text, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from hpo.database.optuna_tables import StudyModel, TrialModel
from hpo.database.sqlite_file import check_file
from hpo.database.storage import find_tables, open_storage, parse_url, show_url
from hpo.database.tables import Base
from hpo.errors import BadInput, StorageUnavailable

ROUND_TRIPS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """What a database answered.

    Attributes:
        revision: Of the tables of this package; None where `hpo run` will create them.
        round_trip_s: Median time of a query that asks for nothing; None where there is no database yet.
    """

    shown_url: str
    revision: str | None
    round_trip_s: float | None


def probe_storage(url: str) -> Probe:
    """Look at a database, and make sure that this user may write to it; nothing in it is changed or created.

    Raises:
        BadInput: The URL is malformed, the tables are of another release, or the database refuses this user.
        StorageUnavailable: The database did not answer.
    """
    parsed = parse_url(url)
    shown = show_url(parsed)
    if parsed.get_backend_name() == "sqlite":
        check_file(path := Path(str(parsed.database)), "create")
        if not path.exists():
            return Probe(shown_url=shown, revision=None, round_trip_s=None)
    revision, round_trip_s = find_tables(url, _look)
    if revision is None:
        return Probe(shown_url=shown, revision=None, round_trip_s=round_trip_s)
    storage = open_storage(url, "write")
    try:
        with storage.transaction() as session:
            _require_writable(session)
    except StorageUnavailable as error:
        if isinstance(error.__cause__, OperationalError):  # the connection broke, or a file is locked
            raise
        raise BadInput(f"{error} (this user may not write)") from error
    finally:
        storage.close()
    return Probe(shown_url=shown, revision=revision, round_trip_s=round_trip_s)


def _look(connection: Connection, revision: str | None, shown: str) -> tuple[str | None, float]:
    """Time some round trips, and make sure that missing tables may be created."""
    times_s = []
    for _ in range(ROUND_TRIPS):
        begun = time.perf_counter()
        connection.execute(text("SELECT 1")).scalar_one()
        times_s.append(time.perf_counter() - begun)
    if revision is None and connection.dialect.name == "postgresql":
        query = text("SELECT has_schema_privilege(current_schema(), 'CREATE') AND NOT pg_is_in_recovery()")
        if not connection.scalar(query):
            raise BadInput(f"storage {shown}: this user may not create tables")
    return revision, median(times_s)


def _require_writable(session: Session) -> None:
    """Write to the tables what changes no row: databases refuse it as they would refuse a change."""
    for table in (StudyModel.__table__, TrialModel.__table__, *Base.metadata.tables.values()):
        assert isinstance(table, Table)
        never, first = text("1 = 0"), next(iter(table.columns))
        session.execute(table.insert().from_select(list(table.columns), select(table).where(never)))
        session.execute(update(table).where(never).values({first.name: first}))
        session.execute(delete(table).where(never))
