"""Look at our storage with the tools that others made for Optuna's, and with a real browser."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from hpo.artifacts import open_artifacts
from hpo.dashboard.server import serve_beside
from hpo.database.storage import open_storage
from tests.acceptance.conftest import SMALL
from tests.acceptance.support import PROGRAMS, Shell
from tests.conftest import KINDS, PostgreSQL, free_port

START_S = 300.0
GROWTH_S = 300.0  # a trial takes seconds, but the machine may be busy
STUDY = "smooth_lr-digits"
PARAMETERS = {"boundary_1", "boundary_2", "boundary_3", "learning_rate_2", "learning_rate_3", "learning_rate_4"}


@pytest.fixture(scope="module", params=KINDS)
def study(
    request: pytest.FixtureRequest, finished: Shell, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Shell, str]:
    """Give a finished study in either kind of database: its folder, and its URL as SQLAlchemy wants it."""
    if request.param == "sqlite":
        return finished, f"sqlite:///{finished.folder}/hpo.db"
    server: PostgreSQL = request.getfixturevalue("postgresql")
    url = server.make_database()
    shell = Shell(tmp_path_factory.mktemp("shared"))
    for command in (("run", *SMALL, "--trials", "6", "--submit"), ("worker",)):
        done = shell.hpo(*command, "--storage", url)
        assert done.code == 0, done.err
    return shell, url.replace("postgresql://", "postgresql+psycopg://")


@pytest.fixture(scope="module")
def address(study: tuple[Shell, str]) -> Iterator[str]:
    """Serve our dashboard of the study to all tests that look at it."""
    shell, url = study
    with serving(shell, "hpo", "dashboard", "--storage", url) as served:
        yield served


@contextmanager
def serving(shell: Shell, *command: str) -> Iterator[str]:
    """Run a dashboard while the context lasts, and give its address."""
    port = free_port()
    line = [str(PROGRAMS / command[0]), *command[1:], "--port", str(port)]
    with subprocess.Popen(
        line, cwd=shell.folder, env=shell.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            address = f"http://127.0.0.1:{port}"
            wait_until(lambda: ask(f"{address}/api/studies")[0] == 200)
            yield address
        finally:
            process.terminate()


def is_drawn(picture: Locator) -> bool:
    return bool(picture.evaluate("image => image.naturalWidth") == 1050)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_S
    while not holds():
        assert time.monotonic() < deadline, "it did not start"
        time.sleep(0.2)


def ask(url: str, method: str = "GET", body: bytes | None = None) -> tuple[int, Any]:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.loads(response.read() or "null")
    except urllib.error.HTTPError as error:
        return error.code, None
    except OSError:
        return 0, None


def test_the_optuna_command_line_shows_names_parameters_values_and_states(study: tuple[Shell, str]) -> None:
    shell, url = study
    [listed] = shell.run("optuna", "studies", "--storage", url, "-f", "json").json
    assert (listed["name"], listed["direction"], listed["n_trials"]) == (STUDY, ["MAXIMIZE"], 6)
    trials = shell.run("optuna", "trials", "--storage", url, "--study-name", STUDY, "-f", "json").json
    assert [trial["number"] for trial in trials] == list(range(6))
    assert {trial["state"] for trial in trials} <= {"COMPLETE", "PRUNED"}
    found = shell.hpo("best", "--storage", url, "--json").json
    best = shell.run("optuna", "best-trial", "--storage", url, "--study-name", STUDY, "-f", "json").json
    assert best["value"] == {"validation accuracy": found["value"]}
    assert all(trial["params"].keys() >= PARAMETERS for trial in trials)
    assert all(trial["user_attrs"]["iterations"] > 0 for trial in trials if trial["state"] == "COMPLETE")


def test_optuna_dashboard_as_installed_opens_the_storage(study: tuple[Shell, str]) -> None:
    shell, url = study
    with serving(shell, "optuna-dashboard", url) as address:
        [summary] = ask(f"{address}/api/studies")[1]["study_summaries"]
        assert summary["study_name"] == STUDY
        detail = ask(f"{address}/api/studies/{summary['study_id']}")[1]
    assert detail["objective_names"] == ["validation accuracy"]
    assert len(detail["trials"]) == 6
    for trial in detail["trials"]:
        assert {parameter["name"] for parameter in trial["params"]} >= PARAMETERS
        steps = [value["step"] for value in trial["intermediate_values"]]
        # Every iteration of 32 is a step; a trial with a first phase of half the length begins at the second.
        assert steps[0] in (1, 2)
        assert steps == list(range(steps[0], steps[0] + len(steps)))
    names = {attribute["key"] for attribute in detail["user_attrs"]}
    assert names >= {"data set", "iterations", "seed", "sampler", "pruner", "trials"}


def test_a_person_finds_study_history_and_trials_in_a_browser(address: str, browser: Callable[[], Page]) -> None:
    page = browser()
    page.set_default_timeout(180_000)
    open_study(page, address)
    for heading in ("History", "Study User Attributes", "Intermediate values"):
        expect(page.get_by_role("heading", name=heading)).to_be_visible()
    expect(page.locator(".js-plotly-plot").first).to_be_visible()
    save_picture(page, "dashboard")
    page.goto(f"{page.url.rstrip('/')}/trials?numbers=0")
    expect(page.get_by_role("heading", name=re.compile("Trial 0 "))).to_be_visible()
    for line in ("learning_rate_2 0.02", "outcome complete", "iterations 32"):
        expect(page.get_by_text(line, exact=True)).to_be_visible()
    expect(page.get_by_text("Complete.", exact=True)).to_be_visible()
    expect(page.get_by_role("cell", name="20,000, 32,000, 56,000").first).to_be_visible()
    pictures = page.locator("img[src*='/artifacts/']")
    expect(pictures).to_have_count(2)  # in the note, and among the artifacts
    for picture in pictures.all():
        picture.scroll_into_view_if_needed()
        wait_until(partial(is_drawn, picture))
    expect(page.get_by_text("training and validation.png")).to_be_visible()
    save_picture(page, "trial")
    page.goto(f"{page.url.partition('/trials')[0]}/note")
    expect(page.get_by_text("hpo run --space smooth_lr --trials N --study smooth_lr-digits")).to_be_visible()
    expect(page.get_by_role("cell", name=re.compile("32 iterations, (fp32|bf16)"))).to_be_visible()
    page.close()


def open_study(page: Page, address: str) -> None:
    page.goto(f"{address}/dashboard")
    page.get_by_text(STUDY).first.click()
    expect(page).to_have_url(re.compile(r"/dashboard/studies/\d+"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_study_grows_in_the_browser_while_it_runs(
    kind: str, make_url: Callable[[str], str], shell: Shell, browser: Callable[[], Page]
) -> None:
    url = make_url(kind)
    page = browser()
    page.set_default_timeout(180_000)
    command = [
        *SMALL,
        "--trials",
        "100",  # the page asks now and then, and the run must not end before; it is stopped when all is seen
        "--pruner",
        "none",
        "--workers",
        "1",
        "--dashboard",
        "--storage",
        url,
    ]
    with subprocess.Popen(
        [PROGRAMS / "hpo", "run", *command],
        cwd=shell.folder,
        env=shell.environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            assert "`hpo plan` with the same options" in process.stderr.readline()
            announced = re.fullmatch(
                r"optuna-dashboard on (http://127\.0\.0\.1:\d+)/ \(read-only\) until the run ends\n",
                process.stderr.readline(),
            )
            assert announced is not None
            open_study(page, announced[1])
            page.goto(f"{page.url.rstrip('/')}/trials?numbers=0")
            slow = GROWTH_S * 1000
            expect(page.get_by_text("Running", exact=True).first).to_be_visible(timeout=slow)
            expect(page.get_by_role("button", name="Trial 0 Complete")).to_be_visible(timeout=slow)
            expect(page.get_by_text("Complete.", exact=True)).to_be_visible(timeout=slow)  # its note came too
            assert page.get_by_role("button", name="Trial 99 Complete").count() == 0, "it is still under way"
            assert ask(f"{announced[1]}/api/studies", "POST", b"{}")[0] == 405
            assert shell.hpo("stop", "--storage", url).code == 0
            process.stderr.read()
            assert process.wait() == 0
            assert ask(f"{announced[1]}/api/studies")[0] == 0, "it ends with the run"
        finally:
            process.terminate()
    page.close()


def test_a_dashboard_beside_a_run_takes_the_next_free_port(finished: Shell) -> None:
    storage = open_storage(f"sqlite:///{finished.folder}/hpo.db", "read")
    artifacts = open_artifacts(str(finished.folder / "hpo-artifacts"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with serve_beside(storage, artifacts, first_port=port) as address:
            assert address.startswith("http://127.0.0.1:")
            assert address != f"http://127.0.0.1:{port}/"
            [summary] = ask(f"{address}api/studies")[1]["study_summaries"]
            assert summary["study_name"] == STUDY
    assert ask(f"{address}api/studies")[0] == 0
    assert [thread.name for thread in threading.enumerate() if thread.name == "dashboard"] == []


def save_picture(page: Page, name: str) -> None:
    if "HPO_PICTURES" in os.environ:
        page.wait_for_timeout(3000)
        page.screenshot(path=str(Path(os.environ["HPO_PICTURES"]) / f"{name}.png"))


@pytest.mark.parametrize("method", ["DELETE", "POST", "PUT", "PATCH"])
def test_our_dashboard_lets_nobody_change_anything(address: str, method: str) -> None:
    [before] = ask(f"{address}/api/studies")[1]["study_summaries"]
    target = f"{address}/api/studies/{before['study_id']}"
    assert ask(target, method)[0] == 405
    assert ask(f"{address}/api/studies", method, b'{"study_name": "x", "directions": ["minimize"]}')[0] == 405
    [after] = ask(f"{address}/api/studies")[1]["study_summaries"]
    assert after == before


def test_changes_are_possible_where_they_were_asked_for(copied: Shell) -> None:
    with serving(copied, "hpo", "dashboard", "--read-write") as address:
        made = ask(f"{address}/api/studies", "POST", b'{"study_name": "x", "directions": ["minimize"]}')
        assert made[0] == 201
        study_id = made[1]["study_summary"]["study_id"]
        assert ask(f"{address}/api/studies/{study_id}", "DELETE")[0] == 204
