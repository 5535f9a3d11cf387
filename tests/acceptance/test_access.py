"""Try to get into the dashboard without a login, with a real client and a real browser; and look for passwords."""

from __future__ import annotations

import base64
import http.client
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Error, Page, expect

from hpo.database.storage import Storage
from tests.acceptance.conftest import SMALL
from tests.acceptance.support import PROGRAMS, Shell
from tests.acceptance.test_dashboard import STUDY, wait_until
from tests.conftest import PASSWORD, PostgreSQL, free_port
from tests.integration.support import dump

LOGIN = "Basic " + base64.b64encode(f"ada:{PASSWORD}".encode()).decode()
WRONG = "Basic " + base64.b64encode(b"ada:battery-staple").decode()
PATHS = ("/", "/dashboard", "/dashboard/studies/1", "/api/studies", "/api/studies/1", "/api/meta", "/artifacts/1/1/x")
FILES = ("/static/bundle.js", "/favicon.ico", "/csv/1", "/nothing")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def ask(port: int, path: str, method: str = "GET", **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    except OSError:
        return 0, ""
    finally:
        connection.close()


@pytest.fixture(scope="module")
def auth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("access") / "auth"
    file.touch(0o600)
    file.write_text(f"ada:{PASSWORD}\n")
    return file


@pytest.fixture(scope="module")
def open_port(finished: Shell, auth: Path) -> Iterator[int]:
    """Serve the finished study to everybody who has the login, changes allowed."""
    port = free_port()
    command: list[str | Path] = [
        PROGRAMS / "hpo",
        "dashboard",
        "--host",
        "0.0.0.0",
        "--port",
        str(port),
        "--auth",
        auth,
        "--read-write",
    ]
    log = auth.with_name("dashboard.log")
    with (
        log.open("w") as output,
        subprocess.Popen(
            command, cwd=finished.folder, env=finished.environment, stdout=output, stderr=subprocess.STDOUT
        ) as process,
    ):
        wait_until(lambda: ask(port, "/api/studies", Authorization=LOGIN)[0] == 200)
        assert PASSWORD not in Path(f"/proc/{process.pid}/cmdline").read_text()
        yield port
        process.terminate()
    assert "HTTP does not encrypt the password" in log.read_text()
    assert PASSWORD not in log.read_text()


def test_nothing_is_answered_without_the_login(open_port: int) -> None:
    for path in (*PATHS, *FILES):
        for method in METHODS:
            status, body = ask(open_port, path, method)
            assert (status, body) == (401, "" if method == "HEAD" else "user and password are needed\n"), (method, path)
    assert ask(open_port, "/api/studies", Authorization=WRONG) == (401, "user and password are needed\n")


def test_with_the_login_the_study_is_there_and_other_web_sites_change_nothing(open_port: int) -> None:
    status, body = ask(open_port, "/api/studies", Authorization=LOGIN)
    assert status == 200
    assert STUDY in body
    evil = ask(open_port, "/api/studies/1", "DELETE", Authorization=LOGIN, Origin="http://evil.example")
    assert evil == (403, "changes from another web site are refused\n")
    assert ask(open_port, "/api/studies", Authorization=LOGIN) == (200, body)


def test_who_guesses_is_locked_out(finished: Shell, auth: Path) -> None:
    port = free_port()
    command: list[str | Path] = [PROGRAMS / "hpo", "dashboard", "--port", str(port), "--auth", auth]
    with subprocess.Popen(
        command, cwd=finished.folder, env=finished.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        wait_until(lambda: ask(port, "/api/studies", Authorization=LOGIN)[0] == 200)
        assert [ask(port, "/", Authorization=WRONG)[0] for _ in range(6)] == [401] * 5 + [429]
        assert ask(port, "/", Authorization=LOGIN) == (429, "too many wrong passwords\n")
        process.terminate()


def test_a_web_site_that_points_its_name_to_this_machine_reads_nothing(finished: Shell) -> None:
    port = free_port()
    command: list[str | Path] = [PROGRAMS / "hpo", "dashboard", "--port", str(port)]
    with subprocess.Popen(
        command, cwd=finished.folder, env=finished.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        wait_until(lambda: ask(port, "/api/studies")[0] == 200)
        rebound = ask(port, "/api/studies", Host=f"evil.example:{port}")
        assert rebound == (400, "the Host header names another machine\n")
        process.terminate()


def test_a_browser_shows_the_study_after_the_login_and_nothing_before(
    open_port: int, browser: Callable[..., Page]
) -> None:
    address = f"http://127.0.0.1:{open_port}/dashboard"
    with pytest.raises(Error, match="ERR_INVALID_AUTH_CREDENTIALS"):
        browser().goto(address)
    ada = browser(http_credentials={"username": "ada", "password": PASSWORD})
    ada.goto(address)
    expect(ada.get_by_text(STUDY).first).to_be_visible(timeout=180_000)


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        (
            [],
            {},
            "error: --host 0.0.0.0: others can reach this address, and optuna-dashboard has no login; ",
        ),
        (["--auth", "none"], {}, "error: --auth none: No such file or directory"),
        (
            ["--auth", "hpo.db"],
            {},
            "error: --auth hpo.db: other users may read it; make it private with `chmod 600 hpo.db`",
        ),
        ([], {"HPO_DASHBOARD_USER": "ada"}, "error: HPO_DASHBOARD_USER and HPO_DASHBOARD_PASSWORD: allowed: "),
    ],
)
def test_an_open_address_without_a_good_login_is_refused(
    copied: Shell, arguments: list[str], settings: dict[str, str], message: str
) -> None:
    (copied.folder / "hpo.db").chmod(0o644)
    refused = copied.hpo("dashboard", "--host", "0.0.0.0", *arguments, **settings)
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.startswith(message)
    assert refused.err.count("\n") == 1


@pytest.mark.slow
def test_a_run_shows_its_password_nowhere(postgresql: PostgreSQL, shell: Shell, opened: Callable[..., Storage]) -> None:
    url = postgresql.make_database()
    command = [str(PROGRAMS / "hpo"), "run", *SMALL, "--trials", "1", "--workers", "1", "--storage", url]
    seen: set[str] = set()
    with subprocess.Popen(
        command, cwd=shell.folder, env=shell.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as driver:
        while driver.poll() is None:
            titles = titles_of(driver.pid)
            if len(titles) == 2:  # the driver's own start is over
                seen |= titles
            time.sleep(0.1)
        output, _ = driver.communicate()
    assert driver.returncode == 0, output
    shown = "\n".join(seen)
    assert f"--storage {url.replace(PASSWORD, '***')}" in shown
    assert "hpo worker --study smooth_lr-digits" in shown
    log = (shell.folder / f"{STUDY}.log").read_text()
    for text in (shown, output, log, str(dump(opened(url, "read")))):
        assert text
        assert PASSWORD not in text


def titles_of(driver: int) -> set[str]:
    """Give what a process list shows of a process and its children."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            if driver in (parent, int(stat.parent.name)):
                found.add((stat.parent / "cmdline").read_text().replace("\0", " "))
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
    return found
