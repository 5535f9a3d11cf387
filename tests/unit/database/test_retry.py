"""Test how long calls are tried again, and which errors are worth it."""

import sqlite3

import psycopg
import pytest
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from hpo.database.retry import CALL_S, RetryPolicy, is_refusal, is_transient, retried
from hpo.errors import BadInput, StorageUnavailable

GONE = OperationalError("SELECT 1", {}, sqlite3.OperationalError("the server is gone"))


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (GONE, True),
        (PoolTimeout("no connection is free"), True),
        (caused(StorageUnavailable("storage x: gone"), GONE), True),
        (caused(StorageInternalError("Optuna says"), GONE), True),
        (ProgrammingError("SELEC 1", {}, sqlite3.Error("syntax")), False),
        (IntegrityError("INSERT", {}, sqlite3.Error("taken")), False),
        (StorageUnavailable("storage x: syntax"), False),
        (caused(BadInput("storage x: password authentication failed"), GONE), False),
        (BadInput("storage: not a database URL"), False),
        (None, False),
    ],
)
def test_only_errors_of_reaching_the_database_are_worth_another_try(error, transient):
    assert is_transient(error) is transient


@pytest.mark.parametrize(
    ("message", "refused"),
    [
        ('FATAL:  password authentication failed for user "hpo"', True),
        ("fe_sendauth: no password supplied", True),
        ('FATAL:  database "none" does not exist', True),
        ('FATAL:  role "nobody" does not exist', True),
        ('FATAL:  role "hpo" is not permitted to log in', True),
        ('FATAL:  no pg_hba.conf entry for host "10.0.0.1", user "hpo", database "hpo", no encryption', True),
        ('FATAL:  Peer authentication failed for user "hpo"', True),
        ("FATAL: no such database: none", True),
        ("permission denied for schema public", True),
        ("connection refused", False),
        ("failed to resolve host 'nohost': [Errno -2] Name or service not known", False),
        ("FATAL:  the database system is starting up", False),
        ("FATAL:  sorry, too many clients already", False),
        ('relation "hpo_studies" does not exist', False),
    ],
)
def test_a_refusal_is_told_from_a_server_that_cannot_be_reached(message, refused):
    error = OperationalError("", {}, psycopg.OperationalError(f"connection failed: {message}"))

    assert is_refusal(error) is is_refusal(caused(StorageInternalError("Optuna says"), error)) is refused


def test_a_refusal_is_known_by_its_code_as_well():
    assert is_refusal(ProgrammingError("", {}, psycopg.errors.InsufficientPrivilege("verboten")))
    assert is_refusal(OperationalError("", {}, psycopg.errors.InvalidCatalogName("gibt es nicht")))
    assert not is_refusal(OperationalError("", {}, psycopg.errors.AdminShutdown("going down")))
    assert not is_refusal(None)


@pytest.mark.parametrize(("timeout_s", "call_s"), [(0.0, CALL_S), (600.0, CALL_S), (20.0, 5.0)])
def test_several_calls_fit_into_a_timeout(timeout_s, call_s):
    assert RetryPolicy(timeout_s).call_s == call_s


class Database:
    """Fail so many times, and count the calls."""

    def __init__(self, retry_policy, failures, error=GONE):
        self.retry_policy, self.failures, self.error, self.calls = retry_policy, failures, error, 0

    @retried
    def ask(self, question, *, polite):
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return question, polite


def test_a_call_is_made_again_until_it_is_answered(caplog):
    database = Database(RetryPolicy(30.0), failures=2)
    with caplog.at_level("INFO", "hpo"):
        assert (database.ask("who?", polite=True), database.calls) == (("who?", True), 3)
    warning, answered = [record.getMessage() for record in caplog.records]
    assert warning == "the server is gone; retrying for 30 s"
    assert answered.startswith("the database answers again, after ")


@pytest.mark.parametrize(
    ("retry_policy", "error"),
    [
        (RetryPolicy(), GONE),
        (RetryPolicy(0.001), GONE),
        (RetryPolicy(30.0, gives_up=lambda: True), GONE),
        (RetryPolicy(30.0), BadInput("no")),
    ],
)
def test_a_call_fails_with_its_own_error_where_no_other_try_is_left(retry_policy, error):
    database = Database(retry_policy, failures=10, error=error)
    with pytest.raises(type(error)) as failed:
        database.ask("who?", polite=False)
    assert failed.value is error
    assert database.calls <= 2


def test_a_call_that_can_be_done_without_is_left_out_while_the_database_is_silent():
    retry_policy = RetryPolicy(30.0)
    database = Database(retry_policy, failures=1)
    with pytest.raises(OperationalError):
        retry_policy.once(lambda: Database.ask.__wrapped__(database, "who?", polite=True))
    with pytest.raises(StorageUnavailable):
        retry_policy.once(lambda: Database.ask.__wrapped__(database, "who?", polite=True))
    assert database.calls == 1

    assert database.ask("who?", polite=True) == ("who?", True)
    assert retry_policy.once(lambda: "here") == "here"
