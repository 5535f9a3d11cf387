"""Serve what names its paths from a site's root under another path."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import optuna_dashboard
import pytest
from werkzeug.test import Client
from werkzeug.utils import redirect
from werkzeug.wrappers import Request, Response

from hpo.dashboard.root_path import check_root_path, mount, rewrite
from hpo.errors import BadInput

DASHBOARD = Path(optuna_dashboard.__file__).parent


@pytest.mark.parametrize(
    ("given", "root"), [("/hpo", "/hpo"), ("/hpo/", "/hpo"), ("/team/h.p-o_1~", "/team/h.p-o_1~"), ("/...", "/...")]
)
def test_a_root_path_is_a_path(given, root):
    assert check_root_path(given) == root


@pytest.mark.parametrize(
    "given", ["", "/", "hpo", "//", "/hpo//x", "/../x", "/.", "/a b", "/%20", '/"', "/$x", "http://x/hpo", "/é", "/a\n"]
)
def test_what_is_no_path_is_refused(given):
    with pytest.raises(BadInput, match="allowed is a path of letters, digits"):
        check_root_path(given)


@pytest.fixture
def client():
    """Ask an application that is served under /hpo and says which path it was asked for."""

    def answer(environ, start_response):
        path = Request(environ).path
        if path == "/":
            return redirect("http://127.0.0.1/dashboard")(environ, start_response)
        types = {"/page": "text/html", "/script": "text/javascript", "/notes": "application/json"}
        content = f'{path} "/static/x" ![curve](/artifacts/1/2/x)'
        return Response(content, mimetype=types.get(path, "text/plain"))(environ, start_response)

    return Client(mount(answer, "/hpo"))


@pytest.mark.parametrize("before", ["", "/hpo"])
@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/page", '/page "/hpo/static/x" ![curve](/hpo/artifacts/1/2/x)'),
        ("/script", '/script "/hpo/static/x" ![curve](/hpo/artifacts/1/2/x)'),
        ("/notes", '/notes "/hpo/static/x" ![curve](/hpo/artifacts/1/2/x)'),
        ("/picture", '/picture "/static/x" ![curve](/artifacts/1/2/x)'),
        ("/hpotheses", '/hpotheses "/static/x" ![curve](/artifacts/1/2/x)'),
    ],
)
def test_paths_are_those_of_the_proxy_whether_or_not_it_takes_its_own_away(client, before, path, answer):
    assert client.get(before + path).text == answer


@pytest.mark.parametrize("path", ["/hpo", "/hpo/", "/"])
def test_a_redirection_stays_under_the_path_and_names_no_host(client, path):
    assert client.get(path).headers["Location"] == "/hpo/dashboard"


def test_the_script_is_sent_compressed_to_those_that_take_it(client):
    packed = client.get("/hpo/script", headers={"Accept-Encoding": "gzip, br"})
    assert packed.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed.data) == client.get("/hpo/script").data
    assert int(packed.headers["Content-Length"]) == len(packed.data)


def test_headers_alone_are_those_of_the_whole(client):
    answer, whole = client.head("/hpo/page"), client.get("/hpo/page")
    assert (answer.status_code, answer.data) == (200, b"")
    assert answer.headers["Content-Length"] == str(len(whole.data))


def test_optuna_dashboard_names_its_paths_where_they_are_rewritten():
    page, script = (DASHBOARD / "index.html").read_bytes(), (DASHBOARD / "public" / "bundle.js").read_bytes()
    assert b'src="/hpo/static/bundle.js"' in rewrite(page, "/hpo")
    changed = rewrite(script, "/hpo")
    for path in (b'url_prefix:"/hpo/dashboard"', b"`/hpo/artifacts/${", b"`/hpo/csv/${", b"baseURL}/hpo/api/studies`"):
        assert path in changed
    assert changed.count(b"/hpo/api/") == script.count(b"/api/") - 1  # a link to the documentation
    left = set(re.findall(rb".{9}(?<!/hpo)(?<!/hpo/api)/artifacts/\$", changed))
    assert [place[-14:] for place in left] == [b"](/artifacts/$"]  # text of a note, which is rewritten when it is read
