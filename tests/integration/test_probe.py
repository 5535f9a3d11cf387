"""Let `hpo doctor` look at databases in every condition, and see that it changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import text

from hpo.database.schema import VERSION_TABLE
from hpo.database.storage import Storage
from hpo.launch.doctor import Finding, check_storage
from tests.conftest import PASSWORD, Kind, PostgreSQL, free_port
from tests.integration.support import dump, make_study
from tests.integration.test_read_only import folder, forbid_writing, unprivileged
from tests.integration.test_storage import HEAD, _downgrade

__all__ = ["folder"]

Open = Callable[..., Storage]
Prepare = Callable[[Storage], None]


def look(url: str) -> Finding:
    [finding] = check_storage(url)
    assert PASSWORD not in f"{finding.text}{finding.remedy}"
    return finding


def test_a_database_that_is_ready_is_named_with_its_revision_and_left_as_it_is(storage_url: str, opened: Open) -> None:
    storage = opened(storage_url)
    make_study(storage, 1)
    before = dump(storage)

    finding = look(storage_url)

    assert (finding.status, finding.remedy) == ("ok", None)
    assert f" can be written, tables of revision {HEAD}, round trip " in finding.text
    assert dump(storage) == before


def test_a_database_that_does_not_exist_yet_is_not_created(storage_url: str, kind: Kind, tmp_path: Path) -> None:
    finding = look(storage_url)

    assert finding.status == "ok"
    expected = "does not exist yet; `hpo run` will create it" if kind == "sqlite" else "has no studies yet; `hpo run`"
    assert expected in finding.text
    assert list(tmp_path.iterdir()) == []
    assert look(storage_url).text.partition(", round")[0] == finding.text.partition(", round")[0]


def make_newer(storage: Storage) -> None:
    with storage.transaction() as session:
        session.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))


@pytest.mark.parametrize(
    ("change", "revision", "remedy"),
    [
        (make_newer, "9999", "they were made by a newer release: `pip install"),
        (lambda storage: _downgrade(storage, "0001"), "0001", "`hpo storage upgrade` brings them up to date"),
    ],
    ids=["newer", "older"],
)
def test_tables_of_another_release_are_a_failure_with_the_command_that_mends_it(
    storage_url: str, opened: Open, change: Prepare, revision: str, remedy: str
) -> None:
    storage = opened(storage_url)
    change(storage)

    finding = look(storage_url)

    assert finding.status == "failed"
    assert finding.text.endswith(f"its tables are of revision {revision}, this release needs {HEAD}")
    assert finding.remedy is not None and finding.remedy.startswith(remedy)


def test_a_server_that_does_not_answer_is_a_failure() -> None:
    finding = look(f"postgresql://hpo:{PASSWORD}@127.0.0.1:{free_port()}/hpo")

    assert (finding.status, finding.remedy) == ("failed", "start the database, or correct --storage")


def test_a_wrong_password_is_a_failure(postgresql: PostgreSQL) -> None:
    finding = look(postgresql.make_database().replace(PASSWORD, "wrong"))

    assert (finding.status, finding.remedy) == ("failed", "correct --storage, or the rights of its user")


@pytest.mark.parametrize("right", ["SELECT", "SELECT, INSERT, UPDATE"], ids=["reads", "may not delete"])
def test_a_user_of_a_server_who_may_not_write_is_a_failure(postgresql: PostgreSQL, opened: Open, right: str) -> None:
    url = postgresql.make_database()
    opened(url)
    name = f"reader_{url.rpartition('_')[2]}"
    with closing(psycopg.connect(url, autocommit=True)) as connection:
        user = sql.Identifier(name)
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(user, sql.Literal(PASSWORD)))
        connection.execute(sql.SQL(f"GRANT {right} ON ALL TABLES IN SCHEMA public TO {{}}").format(user))

    finding = look(url.replace("//hpo:", f"//{name}:"))

    assert (finding.status, finding.remedy) == ("failed", "correct --storage, or the rights of its user")
    assert "permission denied" in finding.text and finding.text.endswith("(this user may not write)")


@pytest.mark.parametrize("exists", [True, False])
def test_a_file_that_may_not_be_written_is_a_failure(folder: Path, opened: Open, exists: bool) -> None:
    url = f"sqlite:///{folder}/hpo.db"
    if exists:
        opened(url).close()
    forbid_writing(folder, "both")

    with unprivileged():
        finding = look(url)

    assert [path.name for path in folder.iterdir()] == (["hpo.db"] if exists else [])
    assert finding.status == "failed"
    assert "cannot be written" in finding.text
