"""Take a finished study to other tools, and look at it there with a real browser."""

from __future__ import annotations

import csv
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest
from playwright.sync_api import Page, expect

from tests.acceptance.support import PROGRAMS, Shell
from tests.acceptance.test_dashboard import wait_until
from tests.conftest import free_port

SHOWN_MS = 90_000
STUDY = "smooth_lr-digits"


@contextmanager
def serving(*command: str | Path) -> Iterator[str]:
    """Run a tool's server, and return its address once it answers."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    program, *options = command
    line = [PROGRAMS / program, *options, "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            wait_until(lambda: answers(address))
            yield address
        finally:
            server.terminate()


def answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=5).close()
    except (urllib.error.URLError, OSError):
        return False
    return True


def read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_the_tables_hold_what_the_study_holds(finished: Shell, tmp_path: Path) -> None:
    done = finished.hpo("export", "--format", "csv", "--out", tmp_path / "csv")
    assert (done.code, done.out) == (0, "")
    assert done.err == f"wrote 6 trials of study {STUDY} to {tmp_path / 'csv'}\n"
    trials, curves = (read(tmp_path / "csv" / name) for name in ("trials.csv", "curves.csv"))
    assert [row["trial"] for row in trials] == [str(number) for number in range(6)]
    best = finished.hpo("best", "--json").json
    assert float(trials[best["trial"]]["val_accuracy"]) == best["value"]
    curve = [row for row in curves if row["trial"] == str(best["trial"])]
    assert float(curve[-1]["val_accuracy"]) == best["value"]
    figures = {path.stem for path in (tmp_path / "csv" / "figures").iterdir()}
    assert figures == {f"trial-{int(row['trial']):04d}" for row in curves}


def test_optunas_own_table_needs_nothing_but_pandas(finished: Shell) -> None:
    study = optuna.load_study(study_name=STUDY, storage=f"sqlite:///{finished.folder / 'hpo.db'}")
    table = study.trials_dataframe()
    assert list(table["number"]) == list(range(6))
    assert table["value_validation accuracy"].max() == finished.hpo("best", "--json").json["value"]


def test_tensorboard_shows_a_trials_curve_and_the_table_of_hyperparameters(
    finished: Shell, browser: Callable[..., Page], tmp_path: Path
) -> None:
    done = finished.hpo("export", "--format", "tensorboard", "--out", tmp_path / "events")
    assert done.err.endswith(f"; `tensorboard --logdir {tmp_path / 'events'}` shows them\n")

    with serving("tensorboard", "--logdir", tmp_path / "events") as address:
        page = browser()
        page.goto(f"{address}/#timeseries")
        expect(page.get_by_text("trial-0000").first).to_be_visible(timeout=SHOWN_MS)
        expect(page.locator("image-card img").first).to_be_visible(timeout=SHOWN_MS)
        expect(page.get_by_text("val_accuracy").first).to_be_attached(timeout=SHOWN_MS)
        page.goto(f"{address}/#hparams")
        page.reload()
        expect(page.locator("tf-hparams-table-view")).to_contain_text("final/val_accuracy", timeout=SHOWN_MS)
        expect(page.locator("tf-hparams-table-view")).to_contain_text("trial-0005", timeout=SHOWN_MS)
        page.close()


def test_mlflow_shows_the_runs_that_its_server_was_sent(
    finished: Shell, browser: Callable[..., Page], tmp_path: Path
) -> None:
    folder = tmp_path / "mlflow"
    done = finished.hpo("export", "--format", "mlflow", "--out", folder)
    assert done.err.endswith(f"; `mlflow server --backend-store-uri sqlite:///{folder}/mlflow.db` shows them\n")

    with serving(
        "mlflow", "server", "--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"
    ) as address:
        again = finished.hpo("export", "--format", "mlflow", "--out", address)
        assert (again.code, again.err.count("\n")) == (2, 1)
        assert again.err.startswith(f"error: --out {address}: ") and STUDY in again.err
        page = browser()
        page.goto(f"{address}/#/experiments/1/runs")
        expect(page.get_by_text("trial-0000").first).to_be_visible(timeout=SHOWN_MS)
        page.get_by_text("trial-0000").first.click()
        expect(page.get_by_text("val_accuracy").first).to_be_visible(timeout=SHOWN_MS)
        page.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--format", "xls", "--out", "new"), "'xls' is not one of 'csv', 'tensorboard', 'mlflow'"),
        (("--format", "csv", "--out", "."), "folder .: already exists and is not empty"),
        (("--format", "csv", "--out", "no/new"), "its parent folder"),
        (("--format", "csv", "--out", "http://x"), "only valid with --format mlflow"),
        (("--format", "csv", "--out", "new", "--study", "other"), "has no hpo study 'other'"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_a_line(
    finished: Shell, arguments: tuple[str, ...], message: str
) -> None:
    done = finished.hpo("export", *arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err and done.err.count("\n") == 1
    assert not (finished.folder / "new").exists()
