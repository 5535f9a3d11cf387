"""Serve optuna-dashboard on a study's storage, read-only unless told otherwise."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import TYPE_CHECKING

import optuna_dashboard
from waitress.server import create_server

from hpo.errors import BadInput
from hpo.storage import Storage

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

THREADS = 8


def make_app(storage: Storage, *, read_write: bool) -> WSGIApplication:
    """Make the dashboard's WSGI application."""
    app: WSGIApplication = optuna_dashboard.wsgi(storage.optuna)
    return app if read_write else read_only(app)


def read_only(app: WSGIApplication) -> WSGIApplication:
    """Let only GET and HEAD through: optuna-dashboard itself lets whoever reaches it delete studies."""

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return app(environ, start_response)
        body = b'{"reason": "this dashboard is read-only; `hpo dashboard --read-write` allows changes"}'
        start_response("405 Method Not Allowed", [("Allow", "GET, HEAD"), ("Content-Type", "application/json")])
        return [body]

    return guarded


def serve(storage: Storage, *, host: str, port: int, read_write: bool) -> None:
    """Serve until interrupted.

    Raises:
        BadInput: The address is not one of this machine alone, or cannot be bound.
    """
    if not _is_loopback(host):
        raise BadInput(
            f"--host {host}: optuna-dashboard has no login, so only loopback addresses are allowed (127.0.0.1, ::1, "
            "localhost); reach it from elsewhere through an SSH tunnel"
        )
    app = make_app(storage, read_write=read_write)
    try:
        server = create_server(app, host=host, port=port, threads=THREADS)
    except OSError as error:
        raise BadInput(f"--host {host} --port {port}: {error.strerror or error}") from error
    server.run()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
