"""The schema: create our tables, check their revision and Optuna's, and upgrade older ones."""

from __future__ import annotations

from pathlib import Path

import alembic.command
import alembic.config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from optuna.storages import RDBStorage
from sqlalchemy import Connection, Engine

from hpo import DISTRIBUTION
from hpo.errors import BadInput

VERSION_TABLE = "hpo_alembic_version"
MIGRATIONS = Path(__file__).parent / "migrations"
UPGRADE = "`hpo storage upgrade` brings them up to date"
NEWER = f"they were made by a newer release: `pip install --upgrade {DISTRIBUTION}`"


def create_tables(engine: Engine, shown: str) -> None:
    """Create our tables if there are none, in one transaction.

    Args:
        shown: The storage's URL for messages.

    Raises:
        BadInput: There are tables of another revision.
    """
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('hpo'))")
        if find_revision(connection) is None:
            _upgrade(connection)
        require_revision(connection, shown)


def require_revision(connection: Connection, shown: str) -> None:
    """Refuse tables of another revision than this release's.

    Raises:
        BadInput: They are missing, older or newer; the message says what to do about it.
    """
    revision = require_tables(connection, shown)
    scripts = _scripts()
    head = scripts.get_current_head()
    if revision != head:
        remedy = UPGRADE if _knows(scripts, revision) else NEWER
        raise BadInput(f"storage {shown}: its tables are of revision {revision}, this release needs {head}; {remedy}")


def require_tables(connection: Connection, shown: str) -> str:
    """Return the revision of our tables.

    Raises:
        BadInput: There are none.
    """
    revision = find_revision(connection)
    if revision is None:
        raise BadInput(f"storage {shown}: has no hpo studies; create one with `hpo run`")
    return revision


def require_optuna_revision(backend: RDBStorage, shown: str) -> None:
    """Refuse Optuna's tables of another revision than the installed Optuna's.

    Raises:
        BadInput: They are older or newer; the message says what to do about it.
    """
    theirs = backend.get_current_version()
    if theirs != backend.get_head_version():
        newer = theirs not in backend.get_all_versions()
        remedy = f"a newer Optuna made them: `pip install --upgrade {DISTRIBUTION} optuna`" if newer else UPGRADE
        raise BadInput(f"storage {shown}: its tables belong to another release of Optuna; {remedy}")


def upgrade_tables(backend: RDBStorage, shown: str) -> list[str]:
    """Upgrade Optuna's tables and ours.

    Args:
        backend: Optuna's storage, opened without its own check.

    Returns:
        What was done, a line for each of the two.

    Raises:
        BadInput: The tables are missing, or newer than this release.
    """
    with backend.engine.connect() as connection:
        ours, wanted = require_tables(connection, shown), _scripts().get_current_head()
    theirs, head = backend.get_current_version(), backend.get_head_version()
    if theirs not in backend.get_all_versions():
        raise BadInput(f"storage {shown}: its tables are of Optuna's revision {theirs}; {NEWER}")
    if not _knows(_scripts(), ours):
        raise BadInput(f"storage {shown}: its tables are of revision {ours}; {NEWER}")
    if theirs != head:
        backend.upgrade()
    with backend.engine.begin() as connection:
        _upgrade(connection)
    return [_change("Optuna's tables", theirs, head), _change("the tables of hpo", ours, str(wanted))]


def find_revision(connection: Connection) -> str | None:
    """Find the revision of our tables; None if there are none."""
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    return context.get_current_revision()


def _change(what: str, before: str, after: str) -> str:
    return f"{what} are of revision {after}" + ("" if before == after else f", and were of {before}")


def _knows(scripts: ScriptDirectory, revision: str) -> bool:
    return revision in {script.revision for script in scripts.walk_revisions()}


def _upgrade(connection: Connection) -> None:
    config = _config()
    config.attributes["connection"] = connection
    alembic.command.upgrade(config, "head")


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


def _config() -> alembic.config.Config:
    config = alembic.config.Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config
