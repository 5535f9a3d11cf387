"""The dashboard under a path of a proxy: optuna-dashboard's pages and script name their paths from a site's root."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

from werkzeug.wrappers import Request, Response

from hpo.errors import BadInput

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

SCRIPT = "javascript"
_ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+")
_FROM_ROOT = re.compile(
    rb'(?<=["`}])(?=/(?:dashboard"|static/|artifacts/\$|csv/\$))'  # the page and the script
    rb"|(?<=\$\{this\.baseURL\})(?=/api/)"
    rb"|(?<=\]\()(?=/artifacts/\d)"  # the figures in notes
)
"""The places in what optuna-dashboard answers at which a path begins that a browser is to ask for."""


def check_root_path(path: str) -> str:
    """Return the path under which a proxy serves the dashboard, without a slash at its end.

    Raises:
        BadInput: It does not begin with a slash, or has characters that would have to be escaped.
    """
    root = path.removesuffix("/")
    if not _ROOT_PATH.fullmatch(root) or {".", ".."} & set(root.split("/")):
        raise BadInput(f"--root-path {path}: allowed is a path of letters, digits, '.', '_', '~' and '-', such as /hpo")
    return root


def mount(app: WSGIApplication, root: str) -> WSGIApplication:
    """Serve optuna-dashboard under a path, whether or not the proxy before it takes that path away."""

    def mounted(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request with paths that begin with the root path."""
        asked = Request(environ)
        below = {"PATH_INFO": _below(root, environ["PATH_INFO"]), "HTTP_ACCEPT_ENCODING": "identity"}
        if asked.method == "HEAD":
            below["REQUEST_METHOD"] = "GET"  # its headers are those of what is rewritten
        response = Response.from_app(app, dict(environ) | below)
        location = response.headers.get("Location")
        if location is not None:
            response.headers["Location"] = root + re.sub(r"^[a-z]+://[^/]*", "", location)
        kind = response.mimetype or ""
        if kind in ("text/html", "application/json") or SCRIPT in kind:
            _rewrite(response, root, compress=SCRIPT in kind and asked.accept_encodings.quality("gzip") > 0)
        return response(environ, start_response)

    return mounted


def rewrite(content: bytes, root: str) -> bytes:
    """Put a root path before the paths in a page, a script or notes."""
    return _FROM_ROOT.sub(root.encode(), content)


def _below(root: str, path: str) -> str:
    if path == root:
        return "/"
    return path.removeprefix(root) if path.startswith(f"{root}/") else path


def _rewrite(response: Response, root: str, *, compress: bool) -> None:
    content = response.get_data()
    response.set_data(_compress(content, root) if compress else rewrite(content, root))
    response.headers["Vary"] = "Accept-Encoding"
    if compress:
        response.headers["Content-Encoding"] = "gzip"


@lru_cache(maxsize=1)  # there is one script, of several megabytes
def _compress(content: bytes, root: str) -> bytes:
    return gzip.compress(rewrite(content, root))
