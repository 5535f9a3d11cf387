"""Throw malformed spaces and arguments at the command line: no traceback, one line, and nothing half-made."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

import pytest
import typer
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hpo import cli
from hpo.cli import run
from hpo.recipes.recipe import documented_runs
from hpo.recipes.shipped import shipped_dir

PASSWORD = "correct-horse"
SHIPPED = yaml.safe_load((shipped_dir() / "full.yaml").read_text())
SHIPPED["base"] = documented_runs()["smooth_lr"].recipe.to_dict() | {"weight_decay": 1e-4}
SHIPPED["search"] |= {
    "depth": [20, 32],
    "batch_size": {"low": 32, "high": 512, "step": 32, "log": True},
    "momentum": {"low": 0.8, "high": 0.9, "step": 0.1},
    "nesterov": [False, True],
    "weight_decay": {"low": 1e-5, "high": 1e-3, "log": True},
    "label_smoothing": [0, 0.1],
}

KEYS = st.sampled_from(["low", "high", "step", "x"])
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70_000),
    st.floats(),
    st.sampled_from([0.1, "0.1", "1e400", "linear", "../x", "", "\x1b[2J", "☃", "9" * 5_000, 10**400]),
    st.text(max_size=20),
    st.dates(),
)
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | scalars, inner, max_size=4),
    max_leaves=12,
)
NUMBERS = ("", " ", "-1", "0", "1", "nan", "inf", "-inf", "1e400", "9" * 30, "1_0", "٣")
NAMES = ("../x", "/", ".", "..", "~", "a/../../b", "\x1b[2J", "a\nb", "\udcff", "x" * 300, "full", "%", "--help=")
PATHS = ("/proc/none/x", "/dev/null", "/etc/passwd/x", "full.yaml", "s3://", "gs://a//b", "0.0.0.0", "[::1]")
URLS = (
    *("sqlite:///", "sqlite:///.", "sqlite:///x.db?a=%", "sqlite:////proc/x.db", "sqlite://host/x.db", "postgresql://"),
    *("sqlite:////dev/null", "file:x?mode=memory", "sqlite:///:memory:", "sqlite:///a\x1b/b.db", "sqlite:///a%00b"),
    *(f"postgresql://u:{PASSWORD}@[::1/d", f"postgresql://u:{PASSWORD}@h:99999999/d", f"mysql://u:{PASSWORD}@h/d"),
    *(f"u:{PASSWORD}@h", f"postgresql://u:{PASSWORD}@h/d?x=\n", f"postgresql://u:{PASSWORD}@127.0.0.1:1/d"),
)
texts = st.text(st.characters(exclude_characters="\0"), max_size=30)
words = st.sampled_from((*NUMBERS, *NAMES, *PATHS)) | texts
urls = st.sampled_from(URLS) | words
PLACES = ("--storage", "--artifacts", "--data-dir")
RUN = (
    "space",
    "trials",
    "study",
    "iterations",
    "workers",
    "sampler",
    "pruner",
    "align",
    "precision",
    "seed",
    "timeout",
    "launcher",
    "address",
    "gpus-per-worker",
)
COMMANDS = {
    ("run",): (*(f"--{name}" for name in RUN), "--checkpoint-budget", "--bogus", *PLACES),
    ("worker",): ("--study", "--device", "--checkpoint-budget", *PLACES),
    ("status",): ("--study", "--storage"),
    ("workers",): ("--storage",),
    ("pause",): ("--study", "--storage"),
    ("stop",): ("--study", "--timeout", "--storage"),
    ("delete",): ("--study", "--storage", "--artifacts"),
    ("best",): ("--study", "--storage"),
    ("confirm",): ("--study", "--top", "--seeds", "--workers", "--timeout", *PLACES),
    ("verify",): ("--trial", "--study", *PLACES),
    ("gc",): ("--checkpoint-budget", "--storage", "--artifacts"),
    ("dashboard",): ("--host", "--port", "--auth", "--storage"),
    ("storage", "upgrade"): ("--storage",),
    ("spaces", "show"): (),
    ("spaces", "check"): (),
    ("model",): ("--head", "--depth"),
    ("data", "check"): ("--data-dir",),
    ("none",): (),
}
SETTING = ("HPO_STORAGE", "HPO_ARTIFACTS", "HPO_DATA", "HPO_DRIVER_PID", "HPO_DASHBOARD_USER", "HPO_DASHBOARD_PASSWORD")
COMMAND = typer.main.get_command(cli.app)  # `cli.app` makes it anew in each call
PATIENT = settings(suppress_health_check=list(HealthCheck))


def hpo(*arguments, **environment):
    """Run the command line in this process: exit code, stdout, stderr."""
    out, err = io.StringIO(), io.StringIO()
    ours = {name: value for name, value in os.environ.items() if not name.startswith("HPO_")}
    with (
        patch.object(sys, "argv", ["hpo", *arguments]),
        patch.object(cli, "app", COMMAND),
        patch.dict(os.environ, ours | environment, clear=True),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = cli._run()
    return code, out.getvalue(), err.getvalue()


@contextlib.contextmanager
def empty_folder(**files):
    """Work in a folder of its own, which holds so many files."""
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        for file, content in files.items():
            Path(f"{file}.yaml").write_bytes(content)
        yield Path(name)


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check(done, before, after):
    """Check what an answer to bad input is like; good input is none of our business here."""
    code, out, err = done
    assert code in (0, 2, 3), done
    if code:
        assert out == "", done
        assert err.startswith("error: "), done
        assert err.count("\n") == 1 and err.endswith("\n"), done
        assert err[:-1].isprintable(), done
        assert after == before
    assert PASSWORD not in out + err


@st.composite
def mutated(draw):
    """Put something else in a place or two of a shipped space."""
    space = copy.deepcopy(SHIPPED)
    for _ in range(draw(st.integers(1, 2))):
        node = space
        while True:
            key = draw(st.sampled_from(list(node) if isinstance(node, dict) else range(len(node))))
            if not isinstance(node[key], dict | list) or not node[key] or draw(st.booleans()):
                break
            node = node[key]
        node[key] = draw(trees)
    return space


@pytest.mark.slow
@settings(PATIENT, max_examples=60)
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode(errors="surrogatepass")))
@example(b"")
@example(b"\xef\xbb\xbfname: x")
@example(b"name: !!python/object/apply:os.system ['touch owned']")
@example(b"a: &a [*a]")
@example(b"? [a]\n: b")
@example(b"[" * 5_000)
@example(b"name: mine\nbase: smooth_lr\nsearch: {values: [[" + b"9" * 5_000 + b"]]}")
def test_any_bytes_in_the_place_of_a_space_are_refused_in_one_line(content_of_file):
    with empty_folder(space=content_of_file) as folder:
        before = content(folder)
        done = hpo("spaces", "check", "space.yaml")
        check(done, before, content(folder))
        assert done[0] == 2


@pytest.mark.slow
@settings(PATIENT, max_examples=60)
@given(mutated() | trees)
def test_any_tree_in_the_place_of_a_space_is_read_or_refused_in_one_line(tree):
    with empty_folder(space=yaml.safe_dump(tree, allow_unicode=False).encode()) as folder:
        before = content(folder)
        check(hpo("spaces", "check", "space.yaml"), before, content(folder))


def values_of(name):
    return urls if "storage" in name.lower() else words


@st.composite
def command_lines(draw):
    """Draw a command with options of which some make no sense, and an environment."""
    command = draw(st.sampled_from(sorted(COMMANDS)))
    line = list(command)
    if command == ("run",):
        line += ["--space", "full", "--trials", "2", "--iterations", "32", "--dataset", "digits", "--precision", "fp32"]
    for _ in range(draw(st.integers(1, 3))):
        if COMMANDS[command]:
            line.append(draw(st.sampled_from(COMMANDS[command])))
        line.append(draw(values_of(line[-1])))
    names = draw(st.lists(st.sampled_from(SETTING), max_size=2, unique=True))
    return line, {name: draw(values_of(name)) for name in names}


@settings(PATIENT, max_examples=150)
@given(command_lines())
@example((["worker"], {"HPO_DRIVER_PID": "many"}))
@example((["dashboard", "--host", "0.0.0.0"], {}))
@example((["spaces", "show", "../search_spaces/full"], {}))
def test_any_arguments_and_environment_are_refused_in_one_line_or_do_what_they_say(drawn):
    line, environment = drawn
    listening = patch("hpo.dashboard.server.create_server", side_effect=OSError(98, "Address already in use"))
    with empty_folder() as folder, patch.object(run, "drive"), listening:
        before = content(folder)
        check(hpo(*line, **environment), before, content(folder))


@pytest.mark.parametrize("name", [*NUMBERS[:2], *NAMES, "a\0b", "a b", "-x", ".x", "a/b", "ä"])
def test_a_study_name_that_could_leave_its_folder_is_refused(name):
    accepted = name == "full"
    with empty_folder() as folder:
        done = hpo(
            "run", "--space", "full", "--trials", "1", "--dataset", "digits", f"--study={name}", "--artifacts=a://b"
        )
        assert (done[0], done[1], content(folder)) == (2, "", {})
        assert done[2].startswith("error: artifacts" if accepted else "error: study name "), done


def list_number_options(command=COMMAND, path=()):
    """List the options of all commands whose values are numbers, each behind its command."""
    for name, inner in getattr(command, "commands", {}).items():
        yield from list_number_options(inner, (*path, name))
    for parameter in command.params:
        if parameter.type_descriptor.annotation in (int, float) and parameter.opts[0].startswith("--"):
            yield (*path, parameter.opts[0])


NUMBER_OPTIONS = sorted(list_number_options())


@pytest.mark.parametrize("option", NUMBER_OPTIONS, ids=" ".join)
def test_no_option_takes_what_is_no_number_or_out_of_all_proportion(option):
    needed = ("--space=full", "--trials=1") if option[0] in ("run", "plan") else ()
    with empty_folder() as folder:
        for value in ("nan", "-inf", "inf", "1e309", "1e300", "-1", "9" * 30):
            code, out, err = hpo(*option[:-1], *needed, f"{option[-1]}={value}")
            assert (code, out, err.count("\n")) == (2, "", 1), value
            assert err.startswith("error: ") and option[-1] in err, value
        assert content(folder) == {}


def test_all_options_with_numbers_are_known():
    assert len(NUMBER_OPTIONS) >= 20
    assert {("gc", "--checkpoint-budget"), ("run", "--trials"), ("stop", "--timeout")} <= set(NUMBER_OPTIONS)


@pytest.mark.parametrize("depth", [-4, 2, 21, 1_208])
def test_a_depth_that_no_network_has_is_refused_in_one_line(depth):
    assert hpo("model", "--depth", str(depth)) == (
        2,
        "",
        f"error: --depth is {depth}; allowed: 6n + 2 from 8 to 1202, such as 20, 32, 44, 56 or 110\n",
    )


def test_a_deeper_network_is_shown_with_its_counts():
    code, out, _ = hpo("model", "--depth", "56", "--json")

    assert code == 0
    assert json.loads(out)["params"] == {"total": 859_114, "trainable": 855_050, "non_trainable": 4_064}


def test_a_shipped_space_is_valid_as_written_for_this_test():
    with empty_folder(space=yaml.safe_dump(SHIPPED).encode()):
        assert hpo("spaces", "check", "space.yaml") == (
            0,
            "space.yaml: valid: full, 18 parameters around a recipe of its own\n",
            "",
        )


TAGS = (
    "!!python/object/apply:os.system ['touch owned']",
    "!!python/object/new:os.mkdir ['owned']",
    "!!python/name:os.x",
)


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("command", [["spaces", "check"], ["spaces", "show"], ["run", "--trials", "1", "--space"]])
def test_a_space_file_runs_no_code(command, tag):
    with empty_folder(space=f"name: {tag}\nbase: smooth_lr\n".encode()) as folder:
        code, _, err = hpo(*command, "space.yaml")
        assert (code, [path.name for path in folder.iterdir()]) == (2, ["space.yaml"])
        assert "could not determine a constructor for the tag" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--address", "auto"], "--address auto: only valid with --launcher ray"),
        (["--gpus-per-worker", "0.5"], "--gpus-per-worker 0.5: only valid with --launcher ray"),
        (
            ["--launcher", "ray", "--submit"],
            "--submit: only valid without --launcher ray; it leaves training to `hpo worker`",
        ),
        (["--launcher", "ray", "--gpus-per-worker", "2"], "--gpus-per-worker 2: allowed: 0, and from 0.01 to 1"),
        (
            ["--launcher", "ray", "--address", "ray://h:1"],
            "Ray address 'ray://h:1': allowed: auto, local, or HOST:PORT of a running cluster",
        ),
    ],
)
def test_options_of_ray_that_make_no_sense_are_refused_in_one_line(options, message):
    with empty_folder() as folder:
        done = hpo("run", "--space", "full", "--trials", "1", "--dataset", "digits", *options)
        assert done == (2, "", f"error: {message}\n")
        assert content(folder) == {}


def test_a_missing_ray_is_named_with_what_brings_it():
    hidden = dict.fromkeys([name for name in sys.modules if name.split(".")[0] == "ray"]) | {"ray": None}
    with empty_folder() as folder, patch.dict(sys.modules, hidden):
        sys.modules.pop("hpo.launch.ray", None)
        code, out, err = hpo("run", "--space", "full", "--trials", "1", "--dataset", "digits", "--launcher", "ray")
        assert (code, out, content(folder)) == (2, "", {})
        assert err.startswith("error: --launcher ray: needs `pip install 'hpo-trajectories[ray]'` (")
        assert err.count("\n") == 1
