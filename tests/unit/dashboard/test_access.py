"""Check who is let through to the dashboard, and where user and password are read from."""

from __future__ import annotations

import base64

import pytest
from werkzeug.test import Client, EnvironBuilder, run_wsgi_app
from werkzeug.wrappers import Response

from hpo.dashboard.access import (
    LOCK_S,
    MAX_ADDRESSES,
    MAX_FAILURES,
    Credentials,
    Failures,
    check_host,
    find_credentials,
    refuse_foreign_changes,
    refuse_foreign_hosts,
    require_login,
)
from hpo.dashboard.server import guard
from hpo.errors import BadInput

PASSWORD = "correct-horse"
LOGIN = Credentials(user="ada", password=PASSWORD)
MISSING = "allowed: one line USER:PASSWORD, neither of them empty"


class Clock:
    """Stand still until it is moved."""

    now = 1_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def private(tmp_path):
    """Write a file that only its owner may read."""

    def write(content):
        file = tmp_path / "auth"
        file.touch(0o600)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return file

    return write


def hello(environ, start_response):
    return Response(f"hello from {environ['PATH_INFO']}")(environ, start_response)


def basic(user, password):
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def ask(app, method="GET", path="/api/studies", address="10.0.0.1", **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    builder = EnvironBuilder(path=path, method=method, headers=named, environ_overrides={"REMOTE_ADDR": address})
    _, status, _ = run_wsgi_app(app, builder.get_environ(), buffered=True)
    return int(status.split()[0])


# Where user and password are read from


def test_the_file_holds_user_and_password_on_one_line(private):
    assert find_credentials(private("ada:correct:horse\n"), {}) == Credentials(user="ada", password="correct:horse")


def test_the_environment_serves_where_no_file_is_given():
    environment = {"HPO_DASHBOARD_USER": "ada", "HPO_DASHBOARD_PASSWORD": PASSWORD}
    assert find_credentials(None, environment) == LOGIN
    assert find_credentials(None, {}) is None


def test_the_file_counts_where_both_are_given(private):
    environment = {"HPO_DASHBOARD_USER": "eve", "HPO_DASHBOARD_PASSWORD": "battery-staple"}
    assert find_credentials(private(f"ada:{PASSWORD}"), environment) == LOGIN


@pytest.mark.parametrize(
    "content", ["", "\n", "ada", "ada:", f":{PASSWORD}", f"ada:{PASSWORD}\nbob:{PASSWORD}", f"ada:\0{PASSWORD}"]
)
def test_a_file_of_another_form_is_refused(private, content):
    file = private(content)
    with pytest.raises(BadInput) as refused:
        find_credentials(file, {})
    assert str(refused.value) == f"--auth {file}: {MISSING}"


def test_a_file_that_is_no_text_is_refused(private):
    file = private(b"ada:\xff\xfe\xfd\xfc\xfb\xfa\xf9\xf8")
    with pytest.raises(BadInput) as refused:
        find_credentials(file, {})
    assert str(refused.value) == f"--auth {str(file)!r}: allowed: a text file with one line USER:PASSWORD"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_a_file_that_others_may_open_is_refused(private, mode):
    file = private(f"ada:{PASSWORD}")
    file.chmod(mode)
    with pytest.raises(BadInput) as refused:
        find_credentials(file, {})
    assert str(refused.value) == f"--auth {file}: other users may read it; make it private with `chmod 600 {file}`"


def test_a_file_that_is_not_there_or_a_folder_is_refused(tmp_path):
    for path, why in ((tmp_path / "none", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(BadInput) as refused:
            find_credentials(path, {})
        assert str(refused.value) == f"--auth {path}: {why}"


def test_a_short_password_is_refused_without_showing_it(private):
    file = private("ada:secret")
    with pytest.raises(BadInput) as refused:
        find_credentials(file, {})
    assert str(refused.value) == f"--auth {file}: the password has 6 characters; allowed: 8 or more"


@pytest.mark.parametrize("given", ["HPO_DASHBOARD_USER", "HPO_DASHBOARD_PASSWORD"])
def test_half_of_the_environment_is_refused(given):
    with pytest.raises(BadInput) as refused:
        find_credentials(None, {given: PASSWORD})
    assert str(refused.value) == f"HPO_DASHBOARD_USER and HPO_DASHBOARD_PASSWORD: {MISSING}"


def test_no_text_of_the_credentials_shows_the_password():
    assert PASSWORD not in f"{LOGIN} {LOGIN!r}"


# Who is let through


def test_only_the_right_login_is_let_through(clock):
    app = require_login(hello, LOGIN, Failures(clock))
    right = basic("ada", PASSWORD)
    encoded = right.removeprefix("Basic ")
    cases = {
        right: 200,
        "": 401,
        "Basic": 401,
        "Basic !!!": 401,
        f"Bearer {encoded}": 401,
        f"Digest {encoded}": 401,
        basic("ada", PASSWORD + "x"): 401,
        basic("Ada", PASSWORD): 401,
        basic("", ""): 401,
        basic("ada", "caffè"): 401,
    }
    found = {}
    for number, header in enumerate(cases):
        found[header] = ask(app, address=f"10.0.0.{number}", Authorization=header)
    assert found == cases
    assert ask(app) == 401, "without the header"


def test_a_password_in_any_script_lets_through(clock):
    app = require_login(hello, Credentials(user="ängström", password="пароль-и-код"), Failures(clock))
    assert ask(app, Authorization=basic("ängström", "пароль-и-код")) == 200


def test_the_refusal_asks_the_browser_for_a_login(clock):
    answer = Client(require_login(hello, LOGIN, Failures(clock))).get("/dashboard")
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (
        401,
        'Basic realm="hpo dashboard", charset="UTF-8"',
    )
    assert answer.text == "user and password are needed\n"


def test_who_guesses_too_often_is_locked_out_for_a_while_even_with_the_right_password(clock):
    app = require_login(hello, LOGIN, Failures(clock))
    wrong, right = basic("ada", "wrong-horse"), basic("ada", PASSWORD)

    assert [ask(app, Authorization=wrong) for _ in range(MAX_FAILURES)] == [401] * MAX_FAILURES
    assert ask(app, Authorization=right) == 429
    assert ask(app, Authorization=right, address="10.0.0.2") == 200, "others are not locked out"

    clock.now += LOCK_S
    assert ask(app, Authorization=wrong) == 401, "and the count starts anew"
    assert ask(app, Authorization=right) == 200


def test_asking_without_a_login_is_no_guess_and_a_right_one_clears_the_count(clock):
    app = require_login(hello, LOGIN, Failures(clock))
    wrong, right = basic("ada", "wrong-horse"), basic("ada", PASSWORD)

    assert {ask(app) for _ in range(2 * MAX_FAILURES)} == {401}
    for _ in range(3):
        assert {ask(app, Authorization=wrong) for _ in range(MAX_FAILURES - 1)} == {401}
        assert ask(app, Authorization=right) == 200


def test_the_addresses_that_are_remembered_do_not_fill_the_memory(clock):
    failures = Failures(clock)
    for number in range(MAX_ADDRESSES + 10):
        failures.add(str(number))
    assert len(failures._by_address) == MAX_ADDRESSES


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8080", 200),
        ("127.0.0.1:8080", 200),
        ("127.0.0.1", 200),
        ("127.0.0.2:8080", 200),
        ("[::1]:8080", 200),
        ("[::1", 400),
        ("evil.example:8080", 400),
        ("127.0.0.1.evil.example", 400),
        ("localhost.evil.example", 400),
        ("127.0.0.1@evil.example", 400),
        ("", 400),
    ],
)
def test_only_names_of_this_machine_are_let_through(host, status):
    assert ask(refuse_foreign_hosts(hello), Host=host) == status


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("hpo.example.org", 200),
        ("HPO.example.org:443", 200),
        ("127.0.0.1:8080", 200),
        ("hpo.example.org.evil.example", 400),
        ("evil.example", 400),
        ("evil.example/hpo.example.org", 400),
        ("hpo.example.org@evil.example", 400),
    ],
)
def test_names_of_a_proxy_that_were_allowed_are_let_through_too(host, status):
    app = guard(hello, "127.0.0.1", None, [check_host("hpo.example.org")])

    assert ask(app, Host=host) == status


@pytest.mark.parametrize(
    "name", ["", "*", "*.example.org", "https://hpo.example.org", "hpo.example.org:443", "a/b", "u@h", "[::1", "a b"]
)
def test_what_is_no_name_of_a_host_is_not_allowed(name):
    with pytest.raises(BadInput) as refused:
        check_host(name)

    assert str(refused.value) == (
        f"--allow-host {name}: allowed: a host's name without scheme, port and path: hpo.example.org"
    )


@pytest.mark.parametrize(("name", "host"), [("HPO.Example.org", "hpo.example.org"), ("[2001:DB8::1]", "2001:db8::1")])
def test_a_name_of_a_host_is_compared_in_small_letters(name, host):
    assert check_host(name) == host


def test_names_of_a_proxy_mean_nothing_at_an_address_that_others_reach():
    with pytest.raises(BadInput, match=r"^--allow-host hpo\.example\.org: only valid with --host 127\.0\.0\.1"):
        guard(hello, "0.0.0.0", Credentials(user="me", password="correct-horse"), ["hpo.example.org"])


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://localhost:8080", "Sec_Fetch_Site": "same-origin"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://localhost:9090"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site"}, 403),
    ],
)
def test_changes_from_another_web_site_are_refused(headers, status):
    app = refuse_foreign_changes(hello)
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert ask(app, method, Host="localhost:8080", **headers) == status
    assert ask(app, "GET", Host="localhost:8080", **headers) == 200
