"""Expand paths, and choose where a log goes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.artifacts import absolute_artifacts
from hpo.database.storage import absolute_url
from hpo.errors import BadInput
from hpo.paths import choose_log, expand
from hpo.recipes.space_file import load_space
from hpo.settings import default_data_dir


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DATA", "/data")
    monkeypatch.delenv("NOPE", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("~", "/home/me"),
        ("~/x", "/home/me/x"),
        ("$DATA/x", "/data/x"),
        ("a/${DATA}x", "a//datax"),
        ("~/$DATA", "/home/me//data"),
        ("./~/x", "./~/x"),
        ("a~", "a~"),
        ("a/$/b", "a/$/b"),
        ("", ""),
        ("s3://team/hpo", "s3://team/hpo"),
    ],
)
def test_a_path_is_expanded_as_a_shell_does(text, expanded):
    assert expand(text) == expanded


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("$NOPE/x", "path '$NOPE/x': the variable NOPE is not set"),
        ("a/${NOPE}", "path 'a/${NOPE}': the variable NOPE is not set"),
        (
            "~nobody-here/x",
            "path '~nobody-here/x': the home folder does not exist; for a file with that name, write './~nobody",
        ),
        ("~\0", "path '~\\x00': the home folder does not exist; for a file with that name, write "),
    ],
)
def test_what_cannot_be_expanded_is_refused(text, problem):
    with pytest.raises(BadInput) as refused:
        expand(text)

    assert str(refused.value).startswith(problem)


def test_a_folder_whose_name_holds_a_dollar_sign_is_left_alone(tmp_path):
    (tmp_path / "$NOPE").mkdir()

    assert expand(f"{tmp_path}/$NOPE/x") == f"{tmp_path}/$NOPE/x"


@given(st.text(st.characters(exclude_characters="$~")))
def test_a_path_without_the_signs_stays_as_it_is(text):
    assert expand(text) == text


def test_without_a_home_folder_the_option_that_needs_none_is_named(monkeypatch):
    monkeypatch.setattr("os.path.expanduser", lambda text: text)  # as where neither HOME nor an account names one
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    with pytest.raises(BadInput, match=r"HOME is not set; use --data-dir"):
        default_data_dir()


def test_storage_artifacts_and_spaces_are_found_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "my.yaml").write_text("name: mine\nbase: dropout\nsearch:\n  head: [linear, dropout]\n")

    assert absolute_url("sqlite:///~/$DATA.db") == f"sqlite:///{tmp_path}/data.db"
    assert absolute_artifacts("x") == f"{tmp_path}/x"
    assert load_space("~/my.yaml").name == "mine"


def test_a_log_is_written_here_where_that_is_possible(tmp_path):
    assert choose_log("small.log") == tmp_path / "small.log"
    assert choose_log("small.log").read_bytes() == b""


def test_elsewhere_the_log_is_written_to_a_new_folder(monkeypatch, tmp_path):
    (tmp_path / "small.log").mkdir()  # a file of that name can be written by nobody, root neither
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    path = choose_log("small.log")

    assert (path.parent.parent, path.name, path.parent.stat().st_mode & 0o777) == (tmp_path, "small.log", 0o700)


def test_a_log_that_can_be_written_nowhere_is_refused(monkeypatch, tmp_path):
    (tmp_path / "small.log").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))

    with pytest.raises(
        BadInput, match=r"^log small\.log: cannot be written here \(Is a directory\) nor in a temporary"
    ):
        choose_log("small.log")
    assert [path.is_dir() for path in tmp_path.iterdir()] == [True]
