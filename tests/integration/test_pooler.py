"""Check that studies run through a pooler that gives each transaction another session of the server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from optuna.trial import TrialState

from hpo import study
from hpo.database import overview
from hpo.database.storage import Storage
from hpo.errors import StorageUnavailable
from tests.conftest import PostgreSQL
from tests.integration.pooler import SESSIONS, pooling
from tests.integration.preloaded import Forked
from tests.integration.support import SPACE, START_S, make_study

Open = Callable[..., Storage]
Start = Callable[..., Forked]
RUN = (
    "run",
    "--no-confirm",
    "--space",
    "small.yaml",
    "--study",
    "small",
    "--dataset",
    "digits",
    "--iterations",
    "32",
    "--workers",
    "2",
)


@pytest.fixture(scope="module")
def pooler(postgresql: PostgreSQL) -> Iterator[PostgreSQL]:
    with pooling(postgresql) as pooled:
        yield pooled


@pytest.fixture
def pooled_url(postgresql: PostgreSQL, pooler: PostgreSQL) -> str:
    """Give the URL of an empty database behind the pooler."""
    return pooler.url(postgresql.make_database().rpartition("/")[2])


def look_into_sessions(url: str) -> list[dict[str, Any]]:
    """Give what clients left in the sessions of the server, which other clients would find there."""
    queries = {
        "settings": "SELECT name, setting FROM pg_settings WHERE source = 'session' AND name <> 'application_name'",
        "prepared": "SELECT statement FROM pg_prepared_statements",
        "locks": "SELECT objid FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
        "temporary": "SELECT relname FROM pg_class WHERE relpersistence = 't'",
        "channels": "SELECT pg_listening_channels()",
    }
    with ExitStack() as stack:
        # Transactions that are open at once have sessions of their own.
        opened = [stack.enter_context(closing(psycopg.connect(url))) for _ in range(SESSIONS)]
        pids = {connection.execute("SELECT pg_backend_pid()").fetchone() for connection in opened}
        assert len(pids) == SESSIONS
        return [{what: each.execute(query).fetchall() for what, query in queries.items()} for each in opened]


def test_a_study_runs_through_pgbouncer_and_leaves_nothing_in_the_sessions_of_the_server(
    pooled_url: str, opened: Open, start: Start, tmp_path: Path
) -> None:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SPACE))
    driver = start(*RUN, "--trials", "6", url=pooled_url)
    output = driver.communicate(timeout=2 * START_S)

    assert driver.returncode == 0, output
    made = study.load(opened(pooled_url, "read"), "small")
    assert {trial.state for trial in made.trials()} <= {TrialState.COMPLETE, TrialState.PRUNED}
    counts = overview.count(made.storage, made.study_id)
    assert (counts.finished, counts.total) == (6, 6)
    assert "the database answers again" not in (tmp_path / "small.log").read_text()
    for session in look_into_sessions(pooled_url):
        assert session == {"settings": [], "prepared": [], "locks": [], "temporary": [], "channels": []}


def test_read_access_cannot_write_through_a_pooler_and_lets_others_write(pooled_url: str, opened: Open) -> None:
    writer = opened(pooled_url)
    made = make_study(writer, 2)
    reader = opened(pooled_url, "read")
    for _ in range(2 * SESSIONS):
        assert overview.count(reader, made.study_id) == overview.Counts(waiting=2)
        with pytest.raises(StorageUnavailable, match="read-only"):
            make_study(reader, 5)
        make_study(writer, 2)
