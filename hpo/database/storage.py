"""The shared database: one engine, Optuna's tables and ours."""

from __future__ import annotations

import random
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage, get_storage
from sqlalchemy import (
    Connection,
    Engine,
    NullPool,
    create_engine,
    event,
    text,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from hpo.database.optuna_view import OptunaView
from hpo.database.retry import RetryPolicy, connector, first_line, is_refusal, retried
from hpo.database.schema import (
    create_tables,
    find_revision,
    require_optuna_revision,
    require_revision,
    require_tables,
    upgrade_tables,
)
from hpo.database.sqlite_file import check_file, file_options, place_options, warn_of_network
from hpo.errors import BadInput, StorageUnavailable
from hpo.masking import mask_secrets
from hpo.paths import expand

ESCAPES = "in a user or a password, @ is written as %40, % as %25, : as %3A and / as %2F"
"""A hint for whoever writes a URL by hand."""

R = TypeVar("R")

CREATE_TRIES = 10
"""Number of tries to create the tables in an SQLite file that other processes are creating, too."""


@dataclass(frozen=True, slots=True)
class Storage:
    """An open database.

    Attributes:
        url: For messages, without the password.
        optuna: The storage of Optuna's studies; its calls are retried, like functions marked `retried`.
        view: The same for the trials that a worker holds.
    """

    url: str
    engine: Engine = field(repr=False)
    optuna: BaseStorage = field(repr=False)
    view: OptunaView = field(repr=False)
    retry_policy: RetryPolicy = field(repr=False)

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """Run one short transaction, committed at the end.

        Raises:
            StorageUnavailable: The database did not answer within its deadline.
        """
        with self.translated(), Session(self.engine) as session, session.begin():
            yield session

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turn the errors of SQLAlchemy and Optuna's storage into ours."""
        try:
            yield
        except (DBAPIError, StorageInternalError, PoolTimeout) as error:
            raise _unavailable(self.url, error) from error

    def with_empty_cache(self) -> Storage:
        """Return the same database with empty caches, as SQLite reuses the ids of deleted studies and trials."""
        backend = self.view._backend
        return replace(self, optuna=get_storage(backend), view=OptunaView(backend, self.retry_policy))

    @contextmanager
    def opened_to_write(self) -> Iterator[Storage]:
        """Open the same database once more, to write although this one may only read."""
        other = open_storage(self.engine.url.render_as_string(hide_password=False), "write", self.retry_policy)
        try:
            yield other
        finally:
            other.close()

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def open_storage(
    url: str,
    access: Literal["create", "write", "read"] = "write",
    retry_policy: RetryPolicy | None = None,
    *,
    one_connection: bool = False,
) -> Storage:
    """Open a database by URL, in one try.

    Args:
        access: `create` creates what is missing; the others require an existing database. `read` cannot write.
        retry_policy: How long later calls are retried; None for a single try.
        one_connection: Let all threads of a process share one connection to PostgreSQL, as a worker's do: there may be
            hundreds of workers, and each connection is a process of the server.

    Raises:
        BadInput: The URL is malformed, of another kind of database, or names a file that does not exist; or the tables
            are of another release; or the server refuses the user, the password or the database.
        StorageUnavailable: The database did not answer within its deadline.

    Side effects:
        With `create`, creates the SQLite file, Optuna's tables and ours.
    """
    parsed = parse_url(url)
    shown = show_url(parsed)
    retry_policy = retry_policy or RetryPolicy()
    if parsed.get_backend_name() == "sqlite":
        check_file(Path(str(parsed.database)), access)
        if access != "read":
            warn_of_network(Path(str(parsed.database)))
    try:
        if access != "create":
            _look_into(parsed, shown, retry_policy, require_revision)
        backend = _open_with_retries(parsed, access, retry_policy, one_connection)
        with _closed_if_refused(backend.engine):
            require_optuna_revision(backend, shown)
            if access == "create":
                create_tables(backend.engine, shown)
    except (SQLAlchemyError, StorageInternalError) as error:
        raise _opening_error(url, shown, error) from error
    # Closed at the latest when the process ends: SQLite then leaves a single file, which people may copy.
    weakref.finalize(backend.engine, backend.engine.pool.dispose)
    return Storage(
        url=shown,
        engine=backend.engine,
        optuna=get_storage(backend),
        view=OptunaView(backend, retry_policy),
        retry_policy=retry_policy,
    )


def upgrade_storage(url: str) -> list[str]:
    """Upgrade the tables of a database, Optuna's and ours.

    No other process may use the database meanwhile.

    Returns:
        What was done, a line for each of the two.

    Raises:
        BadInput: The URL is malformed, or the database has no hpo studies, or newer tables than this release.
        StorageUnavailable: The database did not answer within its deadline.
    """
    parsed = parse_url(url)
    shown = show_url(parsed)
    if parsed.get_backend_name() == "sqlite":
        check_file(Path(str(parsed.database)), "write")
    try:
        _look_into(parsed, shown, RetryPolicy(), require_tables)
        options = {} if parsed.get_backend_name() == "sqlite" else _postgresql_options(parsed, RetryPolicy())
        plain_url = parsed.render_as_string(hide_password=False)
        backend = _RetriedStorage(plain_url, options, retry_policy=RetryPolicy(), skip_table_creation=True)
        try:
            return upgrade_tables(backend, shown)
        finally:
            backend.engine.dispose()
    except (SQLAlchemyError, StorageInternalError) as error:
        raise _opening_error(url, shown, error) from error


def find_tables(url: str, look: Callable[[Connection, str | None, str], R]) -> R:
    """Connect to a database as it is, and look at it.

    Args:
        look: Gets the connection, the revision of our tables, None if there are none, and the URL for messages.

    Raises:
        BadInput: The URL is malformed, or the server refuses the user, the password or the database.
        StorageUnavailable: The database did not answer within its deadline.
    """
    parsed = parse_url(url)
    shown = show_url(parsed)
    try:
        return _look_into(parsed, shown, RetryPolicy(), lambda c, shown: look(c, find_revision(c), shown))
    except SQLAlchemyError as error:
        raise _opening_error(url, shown, error) from error


def parse_url(url: str) -> URL:
    """Parse a storage URL, and add the driver if it is left out.

    Raises:
        BadInput: It is not the URL of an SQLite file or a PostgreSQL database.
    """
    allowed = "sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE"
    try:
        parsed = make_url(url)
    except (ArgumentError, NoSuchModuleError, ValueError):
        hint = f" ({ESCAPES})" if "@" in url else ""
        raise BadInput(f"storage: not a database URL{hint}; allowed: {allowed}") from None
    server = "" if parsed.get_backend_name() == "sqlite" else f"{parsed.host}{parsed.database}"
    if "@" in server:
        raise BadInput(f"storage {mask_secrets(url)}: more than one @, or a / before it; {ESCAPES}")
    if isinstance(hidden := parsed.query.get("password"), str):  # messages would show it there
        parsed = parsed.set(password=hidden).difference_update_query(["password"])
    shown = show_url(parsed)
    if parsed.drivername in ("postgres", "postgresql"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "postgresql+psycopg"):
        raise BadInput(f"storage {shown}: {parsed.drivername!r} is not supported; allowed: {allowed}")
    if not parsed.database or (parsed.drivername == "sqlite" and parsed.database.startswith((":memory:", "file:"))):
        raise BadInput(f"storage {shown}: not a database that processes can share; allowed: {allowed}")
    return parsed.set(database=expand(parsed.database)) if parsed.drivername == "sqlite" else parsed


def show_url(url: URL) -> str:
    """Write a URL for messages, without its secrets."""
    return mask_secrets(url.render_as_string(hide_password=True))


def is_one_file(url: str) -> bool:
    """Return whether a storage is a file on this machine.

    Raises:
        BadInput: It is not the URL of an SQLite file or a PostgreSQL database.
    """
    return parse_url(url).get_backend_name() == "sqlite"


def absolute_url(url: str) -> str:
    """Return the URL of the same database for a process with another working directory."""
    if not is_one_file(url):
        return url
    parsed = parse_url(url)
    return parsed.set(database=str(Path(str(parsed.database)).absolute())).render_as_string(hide_password=False)


class _RetriedStorage(RDBStorage):
    """Optuna's storage with retried calls, which leaves no connection open if it refuses a database."""

    def __init__(
        self, url: str, engine_kwargs: dict[str, Any], *, retry_policy: RetryPolicy, skip_table_creation: bool = False
    ) -> None:
        self.retry_policy = retry_policy
        try:
            # Optuna's check prints a lot, and opens a second connection; `require_optuna_revision` is ours.
            super().__init__(url, engine_kwargs, skip_compatibility_check=True, skip_table_creation=skip_table_creation)
        except Exception:
            if hasattr(self, "engine"):
                self.engine.dispose()
            raise


for _name in BaseStorage.__abstractmethods__:
    setattr(_RetriedStorage, _name, retried(getattr(RDBStorage, _name)))


def _open_with_retries(url: URL, access: str, retry_policy: RetryPolicy, one_connection: bool) -> RDBStorage:
    """Open Optuna's storage; of several processes that create the tables at once, all but one must retry."""
    for remaining in reversed(range(CREATE_TRIES)):
        try:
            return _open_optuna(url, access, retry_policy, one_connection)
        except (SQLAlchemyError, StorageInternalError):
            if not remaining or access != "create" or url.get_backend_name() != "sqlite":
                raise
            time.sleep(random.uniform(0.05, 0.2))
    raise AssertionError("unreachable")


def _open_optuna(url: URL, access: str, retry_policy: RetryPolicy, one_connection: bool) -> RDBStorage:
    # If calls are retried, a connection that broke while it was idle needs no test of its own.
    pool: dict[str, Any] = {"pool_pre_ping": not retry_policy.timeout_s}
    plain_url = url.render_as_string(hide_password=False)
    if url.get_backend_name() == "sqlite":
        kwargs = pool | file_options(Path(str(url.database)), access)
        backend = _RetriedStorage(plain_url, kwargs, skip_table_creation=access != "create", retry_policy=retry_policy)
        _begin_with(backend.engine, _sqlite_begin(access))
        return backend
    if access == "create":
        with _creation_lock(url, retry_policy):
            _RetriedStorage(
                plain_url, _postgresql_options(url, retry_policy), retry_policy=retry_policy
            ).engine.dispose()
    if one_connection:
        pool |= {"pool_size": 1, "max_overflow": 0, "pool_timeout": retry_policy.call_s}
    kwargs = pool | _postgresql_options(url, retry_policy, autocommit=True)
    backend = _RetriedStorage(plain_url, kwargs, skip_table_creation=True, retry_policy=retry_policy)
    _begin_with(backend.engine, _postgresql_begin(access, retry_policy))
    return backend


def _begin_with(engine: Engine, statements: str) -> None:
    """Begin the transactions of an engine whose connections begin none themselves.

    On SQLite, a transaction that reads first and writes later would fail at once if another has written in between,
    whatever the busy timeout, so the write lock is taken at the start. On PostgreSQL, what would otherwise be set for a
    session is set for each transaction, in the same round trip.
    """

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        """Begin a transaction."""
        connection.exec_driver_sql(statements)


def _sqlite_begin(access: str) -> str:
    return "BEGIN" if access == "read" else "BEGIN IMMEDIATE"


def _postgresql_begin(access: str, retry_policy: RetryPolicy) -> str:
    call_ms = round(retry_policy.call_s * 1000)
    settings = (f"statement_timeout = {call_ms}", f"idle_in_transaction_session_timeout = {call_ms}")
    begin = "BEGIN READ ONLY" if access == "read" else "BEGIN"
    return "; ".join([begin, *(f"SET LOCAL {setting}" for setting in settings)])


def _postgresql_options(url: URL, retry_policy: RetryPolicy, *, autocommit: bool = False) -> dict[str, Any]:
    """Return an engine's options; with `autocommit`, its transactions are begun by `_begin_with`."""
    return {"creator": connector(url, retry_policy.call_s, autocommit=autocommit)}


@contextmanager
def _creation_lock(url: URL, retry_policy: RetryPolicy) -> Iterator[None]:
    """Let one process at a time create tables."""
    engine = create_engine(url, **_postgresql_options(url, retry_policy, autocommit=True))
    _begin_with(engine, _postgresql_begin("create", retry_policy))
    try:
        with engine.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('hpo'))"))
            yield
    finally:
        engine.dispose()


@contextmanager
def _closed_if_refused(engine: Engine) -> Iterator[None]:
    try:
        yield
    except Exception:
        engine.dispose()
        raise


def _look_into(url: URL, shown: str, retry_policy: RetryPolicy, look: Callable[[Connection, str], R]) -> R:
    sqlite = url.get_backend_name() == "sqlite"
    options = place_options(Path(str(url.database))) if sqlite else _postgresql_options(url, retry_policy)
    engine = create_engine(url, **options | {"poolclass": NullPool})
    with engine.connect() as connection:
        return look(connection, shown)


def _opening_error(url: str, shown: str, error: Exception) -> BadInput | StorageUnavailable:
    """Translate an error of a database that is opened: a refusal is final, and all else may pass."""
    if not is_refusal(error):
        return _unavailable(shown, error)
    return BadInput(f"storage {shown}: {first_line(error)}{f' ({ESCAPES})' if '%' in url else ''}")


def _unavailable(shown: str, error: Exception) -> StorageUnavailable:
    return StorageUnavailable(f"storage {shown}: {first_line(error)}")
