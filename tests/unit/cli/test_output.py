"""Print in encodings that lack characters, and look for secrets in what is printed and logged."""

import io
import logging
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.cli import _hide_secrets
from hpo.cli.output import MaskingFormatter, plain, prepare_output, say, say_error, say_who_trains, show

URL = "postgresql://u:S3cret@tail@host/d"


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("0.9 ± 0.1", "0.9 +/- 0.1"),
        ("a · b → c – d…", "a * b -> c - d..."),
        ("─━│", "--|"),
        ("é ☃ \udcff", "\\xe9 \\u2603 \\udcff"),
        ("plain", "plain"),
    ],
)
def test_what_ascii_lacks_has_a_plain_form(text, written):
    assert plain(text) == written


@given(st.text(st.characters()))
def test_the_plain_form_of_any_text_is_ascii(text):
    assert plain(text).isascii()


@pytest.mark.parametrize(
    ("encoding", "written"), [("ascii", "+/- -> \\u2603"), ("latin-1", "± -> \\u2603"), ("utf-8", "± → ☃")]
)
def test_a_stream_prints_what_its_encoding_has_and_the_rest_plainly(monkeypatch, encoding, written):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    monkeypatch.setattr(logging, "lastResort", logging.StreamHandler())

    prepare_output()
    show("± → ☃")
    say("± → ☃")

    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        assert stream.buffer.getvalue().decode(encoding) == f"{written}\n"


def test_messages_and_errors_show_no_secret(capsys):
    say(f"serving {URL}")
    say_error(f"storage {URL}: no\nsuch host")

    assert capsys.readouterr().err == (
        "serving postgresql://u:***@host/d\nerror: storage postgresql://u:***@host/d: no such host\n"
    )


def test_log_lines_and_their_tracebacks_show_no_secret():
    try:
        raise RuntimeError(URL)
    except RuntimeError:
        record = logging.LogRecord("hpo", logging.WARNING, "", 1, "at %s", (URL,), sys.exc_info())

    shown = MaskingFormatter("%(levelname)s %(message)s").format(record)

    assert shown.startswith("WARNING at postgresql://u:***@host/d\nTraceback")
    assert "S3cret" not in shown and "tail" not in shown


@pytest.mark.parametrize(
    ("command", "title"),
    [
        (["hpo", "status", "--storage", URL], "hpo status --storage postgresql://u:***@host/d"),
        (["hpo", "status", "--storage=u:S3 cret@h"], "hpo status --storage=u:***@h"),
        (["hpo", "gc", "--storage", "host=h password='S3 cret'"], "hpo gc --storage host=h_password=***"),
        (["hpo", "status", "--study", "a b"], None),
    ],
)
def test_a_process_list_shows_no_secret(monkeypatch, command, title):
    titles = []
    monkeypatch.setattr("setproctitle.setproctitle", titles.append)

    _hide_secrets(command)

    assert titles == ([] if title is None else [title])


@pytest.mark.parametrize(
    ("state", "command"),
    [
        ("running", "`hpo worker --study mine`"),
        ("paused", "`hpo resume --study mine`"),
        ("stopped", "`hpo resume --study mine`"),
        ("ended", "`hpo run` with more"),
    ],
)
def test_whoever_enqueues_a_trial_is_told_what_trains_it(state, command, monkeypatch, capsys):
    monkeypatch.setattr("hpo.database.study_state.find_state", lambda *_: state)
    say_who_trains(SimpleNamespace(name="mine", storage=None, study_id=1))
    assert command in capsys.readouterr().err
