"""Put PgBouncer before a server, as the pools of hosted databases are."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.conftest import PASSWORD, PostgreSQL, free_port, server_account

PGBOUNCER = Path("/usr/sbin/pgbouncer")
SESSIONS = 3
"""Sessions of the server for each database: as few as creating the tables takes, so that clients meet in them."""

SETTINGS = """\
[databases]
* = host=127.0.0.1 port={server} password={password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {folder}/users
pool_mode = transaction
default_pool_size = {sessions}
"""
START_S = 30.0


@contextmanager
def pooling(server: PostgreSQL) -> Iterator[PostgreSQL]:
    """Run PgBouncer in transaction mode while the context lasts, and give what looks like a server of its own."""
    if not PGBOUNCER.exists():
        pytest.skip(f"there is no {PGBOUNCER}: apt-get install pgbouncer")
    account, pooled = server_account(), PostgreSQL(port=free_port())
    folder = Path(tempfile.mkdtemp(prefix="hpo-pgbouncer-", dir="/tmp"))
    try:
        settings = SETTINGS.format(
            server=server.port, port=pooled.port, folder=folder, sessions=SESSIONS, password=PASSWORD
        )
        (folder / "settings").write_text(settings)
        (folder / "users").write_text(f'"hpo" "{PASSWORD}"\n')
        if account:
            for path in (folder, *folder.iterdir()):
                os.chown(path, account["user"], account["group"])
        with (folder / "log").open("wb") as log:
            command = [PGBOUNCER, folder / "settings"]
            process = subprocess.Popen(command, cwd="/", stdout=log, stderr=subprocess.STDOUT, **account)
        try:
            _wait_until_it_answers(pooled, process, folder / "log")
            yield pooled
        finally:
            process.terminate()
            process.wait(START_S)
    finally:
        shutil.rmtree(folder)


def _wait_until_it_answers(pooled: PostgreSQL, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            psycopg.connect(pooled.url("postgres"), connect_timeout=5).close()
            return
        except psycopg.OperationalError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"pgbouncer did not start:\n{log.read_text()}") from error
            time.sleep(0.05)
