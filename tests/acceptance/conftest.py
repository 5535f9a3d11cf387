"""Give acceptance tests a shell, and finished studies to look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.acceptance.support import Forking, Shell
from tests.conftest import fill_once

expect.set_options(timeout=60_000)  # the machine may be busy

CHROMIUM = Path("/usr/bin/chromium")
SMALL = ("--space", "smooth_lr", "--dataset", "digits", "--iterations", "32", "--no-confirm")
RECIPE = {
    "head": "dropout",
    "dropout": 0.5,
    "shortcut_norm": True,
    "depth": 20,
    "boundaries": [20000, 32000, 56000],
    "values": [0.1, 0.02, 0.005, 0.001],
    "early_stopping": None,
    "batch_size": 128,
    "momentum": 0.9,
    "nesterov": False,
    "weight_decay": 0.0,
    "label_smoothing": 0.0,
    "iterations": 32,
    "seed": 0,
}


@pytest.fixture(scope="session", autouse=True)
def _forking() -> Iterator[None]:
    with Forking.ended():
        yield


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """Give a folder in which `hpo run` has finished a study of six trials in `hpo.db`; many tests read it."""

    def finish(folder: Path) -> None:
        done = Shell(folder).run("hpo", "run", *SMALL, "--trials", "6")
        assert done.code == 0, done.err

    shell = Shell(fill_once(tmp_path_factory, "finished", finish)).copy_to(tmp_path_factory.mktemp("finished") / "copy")
    held = files_in(shell.folder)
    yield shell
    assert files_in(shell.folder) == held, "a test wrote where others read: it wants a copy"


def files_in(folder: Path) -> set[Path]:
    """Name the files under a folder, without those that SQLite keeps beside an open database."""
    return {path for path in folder.rglob("*") if path.is_file() and not path.match("hpo.db-*")}


@pytest.fixture
def copied(finished: Shell, tmp_path: Path) -> Shell:
    """Give a copy of the finished study that may be spoilt."""
    return finished.copy_to(tmp_path / "copy")


@pytest.fixture(scope="session")
def browser() -> Iterator[Callable[..., Page]]:
    """Give a way to open pages in a real browser."""
    if not CHROMIUM.exists():
        pytest.skip(f"there is no browser {CHROMIUM}: apt-get install chromium")
    quiet = ["no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"]
    options = [f"--{option}" for option in (*quiet, "disable-component-update", "disable-sync")]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=options)
        yield lambda **context: chromium.new_page(**({"viewport": {"width": 1280, "height": 900}} | context))
        chromium.close()
