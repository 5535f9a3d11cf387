"""Test which revisions of the tables are taken, and what is said of the others."""

import pytest
from sqlalchemy import create_engine, text

from hpo.database import schema
from hpo.database.schema import NEWER, UPGRADE, VERSION_TABLE
from hpo.errors import BadInput


@pytest.fixture
def engine(tmp_path):
    engine = create_engine(f"sqlite:///{tmp_path}/tables.db")
    yield engine
    engine.dispose()


def revise(engine, revision):
    with engine.begin() as connection:
        connection.execute(text(f"CREATE TABLE {VERSION_TABLE} (version_num VARCHAR(32) NOT NULL)"))
        connection.execute(text(f"INSERT INTO {VERSION_TABLE} VALUES ('{revision}')"))


@pytest.mark.parametrize(("revision", "remedy"), [("0001", UPGRADE), ("9999", NEWER)], ids=["older", "newer"])
def test_tables_of_another_revision_are_refused_with_what_to_do(engine, revision, remedy):
    revise(engine, revision)

    with engine.connect() as connection, pytest.raises(BadInput) as refused:
        schema.require_revision(connection, "sqlite:///hpo.db")

    head = schema._scripts().get_current_head()
    assert str(refused.value) == (
        f"storage sqlite:///hpo.db: its tables are of revision {revision}, this release needs {head}; {remedy}"
    )


def test_tables_of_this_revision_are_taken(engine):
    revise(engine, schema._scripts().get_current_head())

    with engine.connect() as connection:
        schema.require_revision(connection, "sqlite:///hpo.db")


def test_a_database_without_our_tables_is_named(engine):
    with engine.connect() as connection, pytest.raises(BadInput, match="has no hpo studies; create one with `hpo run`"):
        schema.require_tables(connection, "sqlite:///hpo.db")


def test_the_revisions_form_one_line():
    assert [script.revision for script in schema._scripts().walk_revisions()] == [
        "0007",
        "0006",
        "0005",
        "0004",
        "0003",
        "0002",
        "0001",
    ]
