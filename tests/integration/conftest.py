"""Share a few of the digits between the integration tests, and start the command line in processes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile

import pytest
import torch

from hpo.training.data import Dataset, Split, split_dataset
from hpo.training.datasets import load_dataset
from integration.preloaded import Forked, Forker, preloading


@pytest.fixture(scope="session")
def digits() -> Dataset:
    """Give 200 of the digits, trained on as workers do, with one thread."""
    torch.set_num_threads(1)
    whole = load_dataset("digits", Path("/nonexistent")).train
    return split_dataset("digits", Split(images=whole.images[:200], labels=whole.labels[:200]), padding=1, flip=False)


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
