"""Reach the dashboard through proxies that serve it under a path, as a person with a browser does."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Error, Page, expect

from tests.acceptance.support import PROGRAMS, Shell
from tests.acceptance.test_access import LOGIN, ask
from tests.acceptance.test_dashboard import STUDY, is_drawn, wait_until
from tests.conftest import PASSWORD, free_port

NGINX = Path("/usr/sbin/nginx")
SITE = "hpo.example.org"

# nginx leaves the path as it is and passes the site's name on; Caddy takes the path away, and asks for a login.
NGINX_CONF = """
daemon off;
user root;
pid nginx.pid;
error_log error.log;
events {}
http {
  access_log off;
  client_body_temp_path body; proxy_temp_path proxy;
  fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  server {
    listen 127.0.0.1:%(port)d;
    location /hpo/ { proxy_pass http://127.0.0.1:%(upstream)d; proxy_set_header Host hpo.example.org; }
  }
}
"""
CADDYFILE = """
{
  admin off
}
http://127.0.0.1:%(port)d {
  basic_auth {
    ada %(hash)s
  }
  handle_path /hpo/* {
    reverse_proxy 127.0.0.1:%(upstream)d
  }
}
"""


@contextmanager
def running(*command: str | Path, shell: Shell) -> Iterator[None]:
    with subprocess.Popen(command, cwd=shell.folder, env=shell.environment, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()


@contextmanager
def mounted(shell: Shell, *options: str) -> Iterator[int]:
    """Run a dashboard under /hpo, and give its port."""
    port = free_port()
    with running(PROGRAMS / "hpo", "dashboard", "--port", str(port), "--root-path", "/hpo", *options, shell=shell):
        wait_until(lambda: ask(port, "/hpo/api/studies")[0] == 200)
        yield port


def look_around(page: Page, port: int) -> None:
    """Go from the list of studies to a trial's figure, and see that all that was asked for lies under the path."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"http://127.0.0.1:{port}/hpo/")
    page.get_by_text(STUDY).first.click()
    expect(page.get_by_text("Hyperparameter Importance").first).to_be_visible(timeout=180_000)
    page.goto(f"http://127.0.0.1:{port}/hpo/dashboard/studies/1/trials?numbers=0")
    picture = page.locator("img[src*='/hpo/artifacts/']").first
    expect(picture).to_be_visible(timeout=180_000)
    wait_until(lambda: is_drawn(picture))
    own = [url for url in asked if url.startswith("http") and not url.endswith("/favicon.ico")]
    assert [url for url in own if not url.startswith(f"http://127.0.0.1:{port}/hpo/")] == []


def test_a_person_finds_a_trial_behind_nginx(finished: Shell, browser: Callable[..., Page], tmp_path: Path) -> None:
    if not NGINX.exists():
        pytest.skip(f"there is no {NGINX}: apt-get install nginx-light")
    port = free_port()
    with mounted(finished, "--allow-host", SITE) as upstream:
        config = tmp_path / "nginx.conf"
        config.write_text(NGINX_CONF % {"port": port, "upstream": upstream})
        with running(NGINX, "-p", tmp_path, "-e", "error.log", "-c", config, shell=finished):
            wait_until(lambda: ask(port, "/hpo/api/studies")[0] == 200)
            look_around(browser(), port)
            assert ask(port, "/dashboard")[0] == 404
            assert ask(port, "/hpo/api/studies/1", "DELETE")[0] == 405


def test_a_person_with_a_login_finds_a_trial_behind_caddy(
    finished: Shell, browser: Callable[..., Page], tmp_path: Path
) -> None:
    port, caddy = free_port(), PROGRAMS / "caddy"
    hashed = subprocess.run(
        [caddy, "hash-password", "--plaintext", PASSWORD], capture_output=True, text=True, check=True
    )
    with mounted(finished, "--allow-host", "127.0.0.1") as upstream:
        caddyfile = tmp_path / "Caddyfile"
        caddyfile.write_text(CADDYFILE % {"port": port, "upstream": upstream, "hash": hashed.stdout.strip()})
        with running(caddy, "run", "--adapter", "caddyfile", "--config", caddyfile, shell=finished):
            wait_until(lambda: ask(port, "/hpo/api/studies", Authorization=LOGIN)[0] == 200)
            assert ask(port, "/hpo/api/studies")[0] == 401
            with pytest.raises(Error, match="ERR_INVALID_AUTH_CREDENTIALS"):
                browser().goto(f"http://127.0.0.1:{port}/hpo/")
            look_around(browser(http_credentials={"username": "ada", "password": PASSWORD}), port)


@pytest.mark.parametrize("root", ["hpo", "/", "/a b", "http://127.0.0.1/hpo"])
def test_a_root_path_that_is_none_is_refused(finished: Shell, root: str) -> None:
    refused = finished.hpo("dashboard", "--root-path", root)
    assert (refused.code, refused.out, refused.err.count("\n")) == (2, "", 1)
    assert refused.err.startswith(f"error: --root-path {root}: allowed is a path of letters, digits, '.', '_', ")
