"""The server of optuna-dashboard on a storage, read-only unless changes are allowed."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import optuna_dashboard
from waitress.server import BaseWSGIServer, MultiSocketServer, create_server

from hpo.artifacts import Artifacts
from hpo.dashboard.access import (
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
from hpo.dashboard.root_path import mount
from hpo.database.storage import Storage
from hpo.errors import BadInput
from hpo.settings import DEFAULT_DASHBOARD_PORT, LOOPBACK

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

THREADS = 8
PORTS = 20
"""How many ports are tried in turn before any free one is taken."""

CLOSE_S = 2.0
"""How long the server's thread, and then its requests, may take to end."""


def make_app(
    storage: Storage, artifacts: Artifacts, *, read_write: bool, root_path: str | None = None
) -> WSGIApplication:
    """Make the dashboard's WSGI application.

    Args:
        root_path: The path under which a proxy serves it; None for a site of its own.
    """
    app: WSGIApplication = optuna_dashboard.wsgi(storage.optuna, artifact_store=artifacts.store)
    app = app if root_path is None else mount(app, root_path)
    return refuse_foreign_changes(app) if read_write else read_only(app)


def read_only(app: WSGIApplication) -> WSGIApplication:
    """Allow only GET and HEAD: optuna-dashboard itself lets whoever reaches it delete studies."""

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer requests that could change something with 405."""
        if environ["REQUEST_METHOD"] in SAFE_METHODS:
            return app(environ, start_response)
        body = b'{"reason": "this dashboard is read-only; `hpo dashboard --read-write` allows changes"}'
        start_response("405 Method Not Allowed", [("Allow", "GET, HEAD"), ("Content-Type", "application/json")])
        return [body]

    return guarded


def guard(
    app: WSGIApplication, host: str, credentials: Credentials | None, allowed: Collection[str] = ()
) -> WSGIApplication:
    """Protect an application as its address requires: with a login, a check of the Host header, or both.

    Args:
        allowed: Further names for the Host header of requests to this machine alone, those of a proxy before it.

    Raises:
        BadInput: Others can reach the address, and there are no credentials, or names that mean nothing there.
    """
    if allowed and not is_loopback(host):
        raise BadInput(
            f"--allow-host {min(allowed)}: only valid with --host {LOOPBACK}, behind a proxy on this machine"
        )
    if credentials is not None:
        app = require_login(app, credentials, Failures())
    if is_loopback(host):
        return refuse_foreign_hosts(app, allowed)
    if credentials is None:
        raise BadInput(
            f"--host {host}: others can reach this address, and optuna-dashboard has no login; give --auth FILE "
            f"(one line USER:PASSWORD) or {USER_ENV} and {PASSWORD_ENV}, or stay on 127.0.0.1 behind an SSH tunnel"
        )
    return app


def bind(app: WSGIApplication, host: str, port: int) -> MultiSocketServer | BaseWSGIServer:
    """Listen on an address; the server's `run` answers requests until it is interrupted.

    Raises:
        BadInput: The address cannot be bound.
    """
    try:
        return create_server(app, host=host, port=port, threads=THREADS)
    except OSError as error:
        raise BadInput(f"--host {host} --port {port}: {error.strerror or error}") from error
    except ValueError as error:  # what waitress raises for an unknown host name
        raise BadInput(f"--host {host!r} --port {port}: not an address of this machine") from error


@contextmanager
def serve_beside(storage: Storage, artifacts: Artifacts, first_port: int = DEFAULT_DASHBOARD_PORT) -> Iterator[str]:
    """Serve read-only on this machine while the context lasts, on the first free port, and yield the URL.

    Side effects:
        Starts a thread; closes the storage at the end.
    """
    app = guard(make_app(storage, artifacts, read_write=False), LOOPBACK, credentials=None)
    server: Any = create_server(app, sockets=[_listen(first_port)], threads=THREADS)
    thread = threading.Thread(target=server.run, name="dashboard", daemon=True)
    thread.start()
    try:
        yield f"http://{LOOPBACK}:{server.effective_port}/"
    finally:
        # This runs in the server's thread, whose loop it ends.
        server.trigger.pull_trigger(lambda: server.asyncore.close_all(server._map))
        thread.join(CLOSE_S)
        server.task_dispatcher.shutdown(timeout=CLOSE_S)
        storage.close()


def _listen(first_port: int) -> socket.socket:
    """Listen on the first free port of a few, or else on any."""
    for port in (*range(first_port, first_port + PORTS), 0):
        try:
            return socket.create_server((LOOPBACK, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    raise AssertionError("unreachable: there is always some free port")
