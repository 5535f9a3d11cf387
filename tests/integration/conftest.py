"""Share a few of the digits between the integration tests, and start the command line in processes."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from uuid import uuid4

import psycopg
import pytest
import torch
from psycopg import sql

from hpo.database.storage import open_storage
from hpo.training.data import Dataset, Split, split_dataset
from hpo.training.datasets import load_dataset
from tests.conftest import Kind, PostgreSQL
from tests.integration.preloaded import Forked, Forker, preloading


@pytest.fixture(scope="session")
def digits() -> Dataset:
    """Give 200 of the digits, trained on as workers do, with one thread."""
    torch.set_num_threads(1)
    whole = load_dataset("digits", Path("/nonexistent")).train
    return split_dataset(
        "digits",
        Split(images=whole.images[:200], labels=whole.labels[:200]),
        classes=tuple("0123456789"),
        augment="crop",
    )


@pytest.fixture(scope="session")
def make_with_tables(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Kind], str]:
    """Give a way to copy a database that has all tables, which takes a fraction of the time of making them."""

    @cache
    def original(kind: Kind) -> str:
        if kind == "sqlite":
            url = f"sqlite:///{tmp_path_factory.mktemp('original')}/hpo.db"
        else:
            url = request.getfixturevalue("postgresql").make_database()
        open_storage(url, "create").close()
        return url

    def copy(kind: Kind) -> str:
        if kind == "sqlite":
            folder = tmp_path_factory.mktemp("copy")
            shutil.copyfile(original(kind).removeprefix("sqlite:///"), folder / "hpo.db")
            return f"sqlite:///{folder}/hpo.db"
        server: PostgreSQL = request.getfixturevalue("postgresql")
        before, name = original(kind).rpartition("/")[2], f"test_{uuid4().hex}"
        query = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(before))
        with closing(psycopg.connect(server.url("postgres"), autocommit=True)) as connection:
            connection.execute(query)
        return server.url(name)

    return copy


@pytest.fixture
def storage_url(
    kind: Kind,
    request: pytest.FixtureRequest,
    make_url: Callable[[Kind], str],
    make_with_tables: Callable[[Kind], str],
) -> str:
    """Give the URL of a fresh database; it has tables at once where `storage` would make them before the test."""
    return make_with_tables(kind) if "storage" in request.fixturenames else make_url(kind)


Process = subprocess.Popen[str] | Forked
Start = Callable[..., Process]


@pytest.fixture(scope="session")
def forker() -> Iterator[Forker]:
    """Give a process that has imported `hpo`, to fork it from."""
    with preloading() as made:
        yield made


@pytest.fixture
def start(tmp_path: Path, request: pytest.FixtureRequest, forker: Forker) -> Iterator[Start]:
    """Start `hpo` in a process; what is left of it is killed at the end.

    It is forked, and may execute some Python before; where a program is given, that is started as any other.
    """
    with ExitStack() as stack:

        def start_hpo(
            *arguments: str,
            url: str | None = None,
            artifacts: str | None = None,
            before: str = "",
            program: Sequence[str] | None = None,
        ) -> Process:
            environment = _environment(url or request.getfixturevalue("storage_url"), tmp_path, artifacts)
            process: Process
            if program is None:
                output = [stack.enter_context(TemporaryFile("w+")) for _ in ("stdout", "stderr")]
                files = [file.fileno() for file in output]
                pid = forker.fork(arguments, environment=environment, folder=tmp_path, files=files, before=before)
                process = Forked(pid, output)
            else:
                process = subprocess.Popen(
                    [*program, *arguments],
                    cwd=tmp_path,
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    start_new_session=True,
                )
            stack.callback(_end, process)
            return process

        yield start_hpo


def _environment(storage_url: str, folder: Path, artifacts: str | None) -> Mapping[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HPO_")}
    ours = {"HPO_STORAGE": storage_url, "HPO_DATA": str(folder), "HPO_ARTIFACTS": artifacts or f"{folder}/artifacts"}
    return kept | ours


def _end(process: Process) -> None:
    if process.poll() is None:
        process.kill()
    process.communicate()
