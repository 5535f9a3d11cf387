"""Share a few of the digits between the integration tests, and start the command line in processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from hpo.training.data import Dataset, Split, split_dataset
from hpo.training.datasets import load_dataset


@pytest.fixture(scope="session")
def digits() -> Dataset:
    """Give 200 of the digits, trained on as workers do, with one thread."""
    torch.set_num_threads(1)
    whole = load_dataset("digits", Path("/nonexistent")).train
    return split_dataset("digits", Split(images=whole.images[:200], labels=whole.labels[:200]), padding=1, flip=False)


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Start]:
    """Start `hpo` in a process; what is left of it is killed at the end."""
    with ExitStack() as stack:

        def start_hpo(
            *arguments: str,
            url: str | None = None,
            artifacts: str | None = None,
            program: Sequence[str] = (sys.executable, "-m", "hpo"),
        ) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [*program, *arguments],
                cwd=tmp_path,
                env=_environment(url or request.getfixturevalue("storage_url"), tmp_path, artifacts),
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


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.kill()
    process.communicate()
