"""Access to the dashboard: a login, and the refusal of requests that other web sites make a browser send."""

from __future__ import annotations

import hmac
import ipaddress
import os
import re
import stat
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from werkzeug.wrappers import Request, Response

from hpo.errors import BadInput

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

USER_ENV, PASSWORD_ENV = "HPO_DASHBOARD_USER", "HPO_DASHBOARD_PASSWORD"
MIN_PASSWORD = 8  # characters
MAX_FAILURES = 5
"""Wrong passwords after which an address is locked out."""

LOCK_S = 30.0
"""How long an address is locked out after its last wrong password."""

MAX_ADDRESSES = 10_000
"""Addresses with failures that are remembered; one more replaces the oldest."""

SAFE_METHODS = ("GET", "HEAD")


_HOST = re.compile(r"[a-z0-9._:-]+")
"""A host's name or address in small letters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Credentials:
    """The user and the password that the dashboard asks for."""

    user: str
    password: str = field(repr=False)

    def match(self, user: str, password: str) -> bool:
        """Compare with a user and a password, in a time that does not depend on where they differ."""
        right_user = hmac.compare_digest(user.encode(), self.user.encode())
        return hmac.compare_digest(password.encode(), self.password.encode()) and right_user


def find_credentials(file: Path | None, environment: Mapping[str, str]) -> Credentials | None:
    """Read user and password from a file with one line USER:PASSWORD, else from the environment; None without either.

    Raises:
        BadInput: The file cannot be read, others may read it, or its text is malformed; no password is shown.
    """
    if file is not None:
        user, colon, password = _read_private(file).partition(":")
        return _checked(f"--auth {file}", user, password if colon else None)
    user, password = environment.get(USER_ENV, ""), environment.get(PASSWORD_ENV, "")
    return _checked(f"{USER_ENV} and {PASSWORD_ENV}", user, password) if user or password else None


def _read_private(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            status = os.fstat(opened.fileno())
            if stat.S_IMODE(status.st_mode) & 0o077:
                raise BadInput(f"--auth {file}: other users may read it; make it private with `chmod 600 {file}`")
            return opened.read(1_000).decode().strip("\r\n")
    except OSError as error:
        raise BadInput(f"--auth {file}: {error.strerror}") from error
    except ValueError as error:  # not UTF-8, or a name that no file can have
        raise BadInput(f"--auth {str(file)!r}: allowed: a text file with one line USER:PASSWORD") from error


def _checked(place: str, user: str, password: str | None) -> Credentials:
    if not user or not password or ":" in user or not f"{user}{password}".isprintable():
        raise BadInput(f"{place}: allowed: one line USER:PASSWORD, neither of them empty")
    if len(password) < MIN_PASSWORD:
        raise BadInput(f"{place}: the password has {len(password)} characters; allowed: {MIN_PASSWORD} or more")
    return Credentials(user=user, password=password)


class Failures:
    """The wrong passwords of each address, which lock it out when there are too many.

    Args:
        clock: Returns seconds since any fixed point in time.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._by_address: dict[str, tuple[int, float]] = {}

    def locked_s(self, address: str) -> float:
        """Return for how many more seconds an address is locked out."""
        count, last = self._by_address.get(address, (0, 0.0))
        return max(0.0, last + LOCK_S - self.clock()) if count >= MAX_FAILURES else 0.0

    def add(self, address: str) -> None:
        """Count a wrong password; the count starts again once the last one is `LOCK_S` old."""
        count, last = self._by_address.pop(address, (0, 0.0))
        expired = self.clock() - last >= LOCK_S
        self._by_address[address] = (1 if expired else count + 1, self.clock())
        while len(self._by_address) > MAX_ADDRESSES:
            del self._by_address[next(iter(self._by_address))]

    def forget(self, address: str) -> None:
        """Reset the count of an address that sent the right password."""
        self._by_address.pop(address, None)


def require_login(app: WSGIApplication, credentials: Credentials, failures: Failures) -> WSGIApplication:
    """Allow only requests with the credentials (HTTP Basic, RFC 7617)."""

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer requests without the credentials with 401, and those of a locked address with 429."""
        request = Request(environ)
        address, given = request.remote_addr or "", request.authorization
        if wait_s := failures.locked_s(address):
            refused = _refusal(HTTPStatus.TOO_MANY_REQUESTS, "too many wrong passwords")
            refused.headers["Retry-After"] = str(int(wait_s) + 1)
            return refused(environ, start_response)
        if given is not None and given.type == "basic":
            if credentials.match(given.username or "", given.password or ""):
                failures.forget(address)
                return app(environ, start_response)
            failures.add(address)
        refused = _refusal(HTTPStatus.UNAUTHORIZED, "user and password are needed")
        refused.headers["WWW-Authenticate"] = 'Basic realm="hpo dashboard", charset="UTF-8"'
        return refused(environ, start_response)

    return guarded


def refuse_foreign_hosts(app: WSGIApplication, allowed: Collection[str] = ()) -> WSGIApplication:
    """Allow only requests that were sent to this machine under one of its own names.

    Otherwise a web site whose name resolves to 127.0.0.1 could read, in a browser here, what only this machine may.

    Args:
        allowed: Names in small letters by which a proxy is reached that passes on the Host header.
    """

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer requests to other hosts with 400."""
        host = _host_of(f"//{environ.get('HTTP_HOST', '')}")
        if is_loopback(host) or host in allowed:
            return app(environ, start_response)
        return _refusal(HTTPStatus.BAD_REQUEST, "the Host header names another machine")(environ, start_response)

    return guarded


def refuse_foreign_changes(app: WSGIApplication) -> WSGIApplication:
    """Refuse changes that another web site makes a browser ask for, with the login that the browser sends by itself."""

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer changes from other web sites with 403."""
        if environ["REQUEST_METHOD"] in SAFE_METHODS or _is_own(environ):
            return app(environ, start_response)
        return _refusal(HTTPStatus.FORBIDDEN, "changes from another web site are refused")(environ, start_response)

    return guarded


def check_host(name: str) -> str:
    """Return a host's name as in a Host header, in small letters.

    Raises:
        BadInput: It is more than a name or an address, such as a URL or a pattern.
    """
    host = _host_of(f"//{name}")
    if _HOST.fullmatch(host) is None or name.lower().strip("[]") != host:
        raise BadInput(f"--allow-host {name}: allowed: a host's name without scheme, port and path: hpo.example.org")
    return host


def is_loopback(host: str) -> bool:
    """Return whether a name or address reaches this machine only from itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # brackets around something other than an address
        return ""


def _is_own(environ: WSGIEnvironment) -> bool:
    """Return whether a request comes from the dashboard's own pages, or from a program, which sends neither header."""
    origin, site = environ.get("HTTP_ORIGIN"), environ.get("HTTP_SEC_FETCH_SITE")
    own_origin = origin is None or urlsplit(origin).netloc == environ.get("HTTP_HOST")
    return own_origin and site in (None, "same-origin", "none")


def _refusal(status: HTTPStatus, why: str) -> Response:
    return Response(f"{why}\n", status=status, mimetype="text/plain")
