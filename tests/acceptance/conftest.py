"""Give acceptance tests a shell, and finished studies to look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from .support import Shell

SMALL = ("--space", "smooth_lr", "--dataset", "digits", "--iterations", "32")


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """Give a folder in which `hpo run` has finished a study of six trials in `hpo.db`."""
    shell = Shell(tmp_path_factory.mktemp("finished"))
    done = shell.hpo("run", *SMALL, "--trials", "6")
    assert done.code == 0, done.err
    return shell
