"""Serve optuna-dashboard on a study's storage, read-only unless told otherwise."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import optuna_dashboard
from waitress.server import BaseWSGIServer, MultiSocketServer, create_server

from hpo.access import (
    PASSWORD_ENV,
    SAFE_METHODS,
    USER_ENV,
    Credentials,
    Failures,
    is_loopback,
    refuse_foreign_changes,
    refuse_foreign_hosts,
    require_login,
)
from hpo.errors import BadInput
from hpo.storage import Storage

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

THREADS = 8


def make_app(storage: Storage, *, read_write: bool) -> WSGIApplication:
    """Make the dashboard's WSGI application."""
    app: WSGIApplication = optuna_dashboard.wsgi(storage.optuna)
    return refuse_foreign_changes(app) if read_write else read_only(app)


def read_only(app: WSGIApplication) -> WSGIApplication:
    """Let only GET and HEAD through: optuna-dashboard itself lets whoever reaches it delete studies."""

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in SAFE_METHODS:
            return app(environ, start_response)
        body = b'{"reason": "this dashboard is read-only; `hpo dashboard --read-write` allows changes"}'
        start_response("405 Method Not Allowed", [("Allow", "GET, HEAD"), ("Content-Type", "application/json")])
        return [body]

    return guarded


def guard(app: WSGIApplication, host: str, credentials: Credentials | None) -> WSGIApplication:
    """Put what an address needs in front of an application: a login, a check of the Host header, or both.

    Raises:
        BadInput: Others can reach the address, and there are no credentials.
    """
    if credentials is not None:
        app = require_login(app, credentials, Failures())
    if is_loopback(host):
        return refuse_foreign_hosts(app)
    if credentials is None:
        raise BadInput(
            f"--host {host}: others can reach this address, and optuna-dashboard has no login; give --auth FILE "
            f"(one line USER:PASSWORD) or {USER_ENV} and {PASSWORD_ENV}, or stay on 127.0.0.1 behind an SSH tunnel"
        )
    return app


def bind(app: WSGIApplication, host: str, port: int) -> MultiSocketServer | BaseWSGIServer:
    """Listen on an address; the server's `run` answers until it is interrupted.

    Raises:
        BadInput: The address cannot be bound.
    """
    try:
        return create_server(app, host=host, port=port, threads=THREADS)
    except OSError as error:
        raise BadInput(f"--host {host} --port {port}: {error.strerror or error}") from error
    except ValueError as error:  # waitress's word for a name that nobody knows
        raise BadInput(f"--host {host!r} --port {port}: not an address of this machine") from error
