"""Serve optuna-dashboard on a study's storage, read-only unless told otherwise."""

from __future__ import annotations

import errno
import ipaddress
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import optuna_dashboard
from waitress.server import create_server

from hpo.artifacts import Artifacts
from hpo.errors import BadInput
from hpo.storage import Storage

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

THREADS = 8
LOOPBACK = "127.0.0.1"
PORTS = 20
"""How many ports are tried one after the other before any that is free is taken."""
CLOSE_S = 2.0


def make_app(storage: Storage, artifacts: Artifacts, *, read_write: bool) -> WSGIApplication:
    """Make the dashboard's WSGI application."""
    app: WSGIApplication = optuna_dashboard.wsgi(storage.optuna, artifact_store=artifacts.store)
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


def serve(storage: Storage, artifacts: Artifacts, *, host: str, port: int, read_write: bool) -> None:
    """Serve until interrupted.

    Raises:
        BadInput: The address is not one of this machine alone, or cannot be bound.
    """
    if not _is_loopback(host):
        raise BadInput(
            f"--host {host}: optuna-dashboard has no login, so only loopback addresses are allowed (127.0.0.1, ::1, "
            "localhost); reach it from elsewhere through an SSH tunnel"
        )
    app = make_app(storage, artifacts, read_write=read_write)
    try:
        server = create_server(app, host=host, port=port, threads=THREADS)
    except OSError as error:
        raise BadInput(f"--host {host} --port {port}: {error.strerror or error}") from error
    server.run()


@contextmanager
def serve_beside(storage: Storage, artifacts: Artifacts, first_port: int = 8080) -> Iterator[str]:
    """Serve read-only on this machine while the context lasts, on the first free port, and give the address.

    Side effects:
        Starts a thread; closes the storage at the end.
    """
    app = make_app(storage, artifacts, read_write=False)
    server: Any = create_server(app, sockets=[_listen(first_port)], threads=THREADS)
    thread = threading.Thread(target=server.run, name="dashboard", daemon=True)
    thread.start()
    try:
        yield f"http://{LOOPBACK}:{server.effective_port}/"
    finally:
        server.trigger.pull_trigger(lambda: server.asyncore.close_all(server._map))  # in the thread, whose loop ends
        thread.join(CLOSE_S)
        server.task_dispatcher.shutdown(timeout=CLOSE_S)
        storage.close()


def _listen(first_port: int) -> socket.socket:
    """Listen on the first port that is free among a few, or else on any."""
    for port in (*range(first_port, first_port + PORTS), 0):
        try:
            return socket.create_server((LOOPBACK, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    raise AssertionError("unreachable: there is always some free port")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
