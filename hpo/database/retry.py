"""Retries and deadlines: limit how long one call of the database may take, and retry it while there is no answer.

Calls are retried nowhere else. A function marked `retried` may run twice, since the answer to the first try may have
been lost, so it is written to have the same result then.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Generator
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import psycopg
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from hpo.errors import BadInput, StorageUnavailable
from hpo.waiting import wait

CONNECT_S = 10.0
"""The longest time to open a connection."""

CALL_S = 30.0
"""The longest time that one call may take."""

CALLS_PER_TIMEOUT = 4
"""Number of calls that a database which accepts connections and never answers gets within the timeout."""

FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 5.0

REFUSALS = ("28", "3D", "42501")
"""Beginnings of PostgreSQL's codes for a wrong user or password, a missing database, and missing rights."""

_REFUSAL = re.compile(
    "password authentication failed|no password supplied|no pg_hba.conf entry|is not permitted to log in"
    '|permission denied for (?:database|schema)|(?:database|role|user) "[^"]*" does not exist'
    "|no such (?:database|user)|(?:Peer|Ident|GSSAPI|LDAP|PAM|certificate) authentication failed"
)
"""What the server, or a pooler before it, says to a connection that it refuses; the driver passes on no code then."""

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class RetryPolicy:
    """How long a process tolerates a database that does not answer, and whether the database answers now.

    Args:
        timeout_s: How long a call is retried; 0 for a single try.
        gives_up: Called between two tries; returns whether to stop trying.
    """

    def __init__(self, timeout_s: float = 0.0, gives_up: Callable[[], bool] = lambda: False) -> None:
        self.timeout_s = timeout_s
        self.gives_up = gives_up
        self._silent_since_s: float | None = None
        self._warned = False

    @property
    def call_s(self) -> float:
        """Return the time after which a call without an answer has failed."""
        return min(CALL_S, self.timeout_s / CALLS_PER_TIMEOUT) if self.timeout_s else CALL_S

    def call(self, function: Callable[[], T]) -> T:
        """Retry a call until it succeeds, the timeout is over or `gives_up` returns True.

        Raises:
            Exception: The last error of the function.
        """
        retrying = Retrying(
            retry=retry_if_exception(is_transient),
            stop=lambda state: stop_after_delay(self.timeout_s)(state) or self.gives_up(),
            wait=wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S),  # full jitter
            sleep=lambda seconds: wait(seconds, self.gives_up),
            before_sleep=self._warn_once,
            reraise=True,
        )
        result: T = retrying(self._watched, function)
        return result

    def once(self, function: Callable[[], T]) -> T:
        """Try an optional call once, or not at all while the database is known not to answer.

        Raises:
            StorageUnavailable: The database does not answer.
        """
        if self._silent_since_s is not None:
            raise StorageUnavailable("the database does not answer")
        return self._watched(function)

    def _watched(self, function: Callable[[], T]) -> T:
        try:
            result = function()
        except Exception as error:
            if is_transient(error) and self._silent_since_s is None:
                self._silent_since_s = time.monotonic()
            raise
        since_s, self._silent_since_s = self._silent_since_s, None
        if since_s is not None and self._warned:
            self._warned = False
            log.info("the database answers again, after %.1f s", time.monotonic() - since_s)
        return result

    def _warn_once(self, state: RetryCallState) -> None:
        if not self._warned:
            error = state.outcome.exception() if state.outcome else None
            assert error is not None
            self._warned = True
            log.warning("%s; retrying for %g s", first_line(error), self.timeout_s)


class HasRetryPolicy(Protocol):
    """An object whose methods call the database."""

    @property
    def retry_policy(self) -> RetryPolicy:
        """Return how long its calls are retried."""


S = TypeVar("S", bound=HasRetryPolicy)


def retried(function: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """Retry a function according to its first argument's retry policy."""

    @wraps(function)
    def call(first: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call the function, and retry it."""
        return first.retry_policy.call(lambda: function(first, *args, **kwargs))

    return call


def is_transient(error: BaseException | None) -> bool:
    """Return whether an error, or its cause, is a failure to reach the database, so that a later call may succeed."""
    while error is not None and not isinstance(error, BadInput):
        if isinstance(error, OperationalError | InterfaceError | PoolTimeout):
            return True
        if isinstance(error, DBAPIError) and error.connection_invalidated:
            return True
        error = error.__cause__
    return False


def is_refusal(error: BaseException | None) -> bool:
    """Return whether an error, or its cause, is the server's refusal of a user, a password or a database."""
    while error is not None:
        if (getattr(error, "sqlstate", None) or "").startswith(REFUSALS) or _REFUSAL.search(str(error)):
            return True
        error = getattr(error, "orig", None) or error.__cause__
    return False


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, in the words of the database's driver if it has any."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, StorageUnavailable) and not getattr(cause, "orig", None):
        cause = cause.__cause__
    lines = str(getattr(cause, "orig", None) or cause or error.__cause__ or error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def connector(url: URL, call_s: float, *, autocommit: bool) -> Callable[[], psycopg.Connection[Any]]:
    """Return a function that opens connections to PostgreSQL with a deadline for every call.

    The server's own `statement_timeout` does not help if the server or the network is gone; TCP's timeouts do not help
    if the other end still acknowledges what is sent. A pooler in between, such as PgBouncer in transaction mode, gives
    each transaction another session of the server, so nothing is set for a session, and no statement is prepared.

    Args:
        autocommit: Whether the connection leaves it to its user to begin transactions.
    """
    connect_s = max(1, round(min(CONNECT_S, call_s)))
    _, named = url.get_dialect()().create_connect_args(url)
    named = dict(named) | {
        "connect_timeout": connect_s,
        "tcp_user_timeout": round(call_s * 1000),
        "keepalives_idle": connect_s,
        "application_name": "hpo",
        "autocommit": autocommit,
        "prepare_threshold": None,
    }

    class Connection(psycopg.Connection[Any]):
        """A connection with a deadline for every call."""

        def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
            """Wait for the server's answer, up to the deadline."""
            # A little later than the server, whose message says more.
            return super().wait(_until(time.monotonic() + call_s + 1, self, gen), *args, **kwargs)

    return lambda: Connection.connect(**named)


def _until(
    deadline_s: float, connection: psycopg.Connection[Any], gen: Generator[Any, Any, T]
) -> Generator[Any, Any, T]:
    """Wrap a generator of the driver with a deadline; the driver resumes it ten times a second, ready or not."""
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if not ready and time.monotonic() > deadline_s:
                connection.close()
                raise psycopg.OperationalError("the server did not answer within its deadline")
            wanted = gen.send(ready)
    except StopIteration as end:
        result: T = end.value
        return result
