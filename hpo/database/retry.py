"""Bound how long one call of the database may take, and make it again while the database does not answer.

This is the one place that tries again. What is marked `retried` may be done twice, as the answer to the first try
may have been lost on its way, so it is written to come to the same end then.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import psycopg
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from hpo.errors import StorageUnavailable
from hpo.waiting import wait

CONNECT_S = 10.0
CALL_S = 30.0
CALLS_PER_TIMEOUT = 4  # of a database that accepts and never answers, before it is given up
FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 5.0

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class RetryPolicy:
    """Say how long a process bears a database that does not answer, and remember whether it answers now.

    Attributes:
        timeout_s: How long one call is made again and again; 0 makes it once.
        gives_up: Asked between two tries whether to stop trying.
    """

    timeout_s: float = 0.0
    gives_up: Callable[[], bool] = lambda: False
    _silent_since_s: float | None = field(default=None, init=False)
    _warned: bool = field(default=False, init=False)

    @property
    def call_s(self) -> float:
        """Give how long one call may take before it has failed."""
        return min(CALL_S, self.timeout_s / CALLS_PER_TIMEOUT) if self.timeout_s else CALL_S

    def call(self, function: Callable[[], T]) -> T:
        """Make a call until it is answered, the timeout is over or `gives_up` says so.

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
        """Make a call that can be done without: a single time, and not at all while the database is known to be silent.

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
            log.warning("%s; it is tried again for %g s", first_line(error), self.timeout_s)


class HasRetryPolicy(Protocol):
    """Be something whose calls reach the database."""

    @property
    def retry_policy(self) -> RetryPolicy:
        """Give how long its calls are tried again."""


S = TypeVar("S", bound=HasRetryPolicy)


def retried(function: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """Let a function be tried again for as long as the retry policy of its first argument allows."""

    @wraps(function)
    def call(first: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return first.retry_policy.call(lambda: function(first, *args, **kwargs))

    return call


def is_transient(error: BaseException | None) -> bool:
    """Tell whether an error, or what caused it, is one of reaching the database: the same call may succeed later."""
    while error is not None:
        if isinstance(error, OperationalError | InterfaceError | PoolTimeout):
            return True
        if isinstance(error, DBAPIError) and error.connection_invalidated:
            return True
        error = error.__cause__
    return False


def first_line(error: BaseException) -> str:
    """Say in one line what went wrong, in the words of the database's driver where these are part of it."""
    said: BaseException | None = error
    while said is not None and not isinstance(said, StorageUnavailable) and not getattr(said, "orig", None):
        said = said.__cause__
    lines = str(getattr(said, "orig", None) or said or error.__cause__ or error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def connector(url: URL, call_s: float, options: str) -> Callable[[], psycopg.Connection[Any]]:
    """Make connections to PostgreSQL whose every call has a deadline.

    The server's own `statement_timeout` does not help where the server, or the way to it, is gone; TCP's timeouts do
    not where the other end still takes what is sent.

    Args:
        options: Of the session, as on the command line of `postgres`.
    """
    connect_s = max(1, round(min(CONNECT_S, call_s)))
    call_ms = round(call_s * 1000)
    _, named = url.get_dialect()().create_connect_args(url)
    named = dict(named) | {
        "connect_timeout": connect_s,
        "tcp_user_timeout": call_ms,
        "keepalives_idle": connect_s,
        "application_name": "hpo",
        "options": f"{named.get('options', '')} -c statement_timeout={call_ms} "
        f"-c idle_in_transaction_session_timeout={call_ms} {options}",
    }

    class Connection(psycopg.Connection[Any]):
        def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
            # A little later than the server, whose message says more.
            return super().wait(_until(time.monotonic() + call_s + 1, self, gen), *args, **kwargs)

    return lambda: Connection.connect(**named)


def _until(
    deadline_s: float, connection: psycopg.Connection[Any], gen: Generator[Any, Any, T]
) -> Generator[Any, Any, T]:
    """Pass on what a generator of the driver waits for; it is resumed ten times a second, ready or not."""
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
