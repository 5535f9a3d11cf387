"""Test what a file of options may hold."""

import subprocess
import sys

import pytest
import typer
from typer.core import TyperGroup
from typer.main import get_command

from hpo.cli import app
from hpo.cli.config_file import read_config
from hpo.errors import BadInput


@pytest.fixture
def context():
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    run = group.commands["run"]
    return typer.Context(run, info_name="run")


def defaults(context, path, text):
    path.write_text(text)
    read_config(context, path)
    return context.default_map


def test_values_are_read_as_on_the_command_line(context, tmp_path):
    text = "space: full\ntrials: 2e1\nstudy: 7\nlease: 90\nconfirm: false\nreuse: true\npruner: none\n"
    assert defaults(context, tmp_path / "s.yaml", text) == {
        "space_name": "full",
        "trials": "20",
        "study_name": "7",
        "lease": "90",
        "confirm": False,
        "reuse": True,
        "pruner": "none",
    }


def test_no_file_leaves_the_defaults_alone(context):
    read_config(context, None)
    assert context.default_map is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("space: full\ntrails: 3\n", "s.yaml: line 2: trails: unknown key; allowed keys: space, trials, study, "),
        ("config: other.yaml\n", "s.yaml: line 1: config: unknown key"),
        ("checkpoint_budget: 3\n", "s.yaml: line 1: checkpoint_budget: unknown key"),
        ("3: 4\n", "s.yaml: line 1: 3: unknown key"),
        ("trials: many\n", "s.yaml: line 1: trials is 'many': Input should be a valid integer"),
        ("trials: 0\n", "s.yaml: line 1: trials is 0: Input should be greater than or equal to 1"),
        ("trials: 2.5\n", "s.yaml: line 1: trials is 2.5: "),
        ("trials: true\n", "s.yaml: line 1: trials is True; allowed: a number or a text"),
        ("trials:\n", "s.yaml: line 1: trials is None; allowed: a number or a text"),
        ("\nspace: [full]\n", "s.yaml: line 2: space is ['full']; allowed: a number or a text"),
        ("confirm: maybe\n", "s.yaml: line 1: confirm is 'maybe'; allowed: true or false"),
        ("lease: .nan\n", "s.yaml: line 1: lease is nan: "),
        ("pruner: best\n", "s.yaml: line 1: pruner is 'best': 'best' is not one of 'asha'"),
        ("data-dir: $NO_SUCH_VARIABLE/x\n", "s.yaml: line 1: data-dir is '$NO_SUCH_VARIABLE/x': "),
        ("trials: 3\ntrials: 4\n", "s.yaml: line 2: duplicate key 'trials'"),
        ("trials: [3\n", "s.yaml: line 2, column 1: not YAML: "),
        ("- trials\n", "s.yaml: line 1: a file of options is a mapping; allowed keys: space"),
        ("", "s.yaml: line 1: a file of options is a mapping"),
    ],
)
def test_what_is_wrong_is_named_with_file_line_and_key(context, tmp_path, text, message):
    with pytest.raises(BadInput) as refused:
        defaults(context, tmp_path / "s.yaml", text)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert context.default_map is None


@pytest.mark.parametrize("content", [None, b"trials: \xff\n"])
def test_a_file_that_cannot_be_read_is_named(context, tmp_path, content):
    path = tmp_path / "s.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput, match=r"--config .*s\.yaml: cannot be read as UTF-8 text"):
        read_config(context, path)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("hpo stu", ["studies"]),
        ("hpo run --check", ["--checkpoint-budget"]),
        ("hpo run --pruner a", ["asha", "asha-stop"]),
        ("hpo run --space smo", ["smooth_lr"]),
        ("hpo run --dataset f", ["fashion_mnist"]),
        ("hpo spaces s", ["show", "schema"]),
    ],
)
def test_the_shell_completes_commands_options_and_values_without_loading_torch(typed, offered):
    code = (
        "import sys; sys.argv = ['hpo']; from hpo.cli import main\n"
        "try: main()\n"
        "finally: assert not {'torch', 'optuna', 'sqlalchemy'} & set(sys.modules)"
    )
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" ")), "_HPO_COMPLETE": "complete_bash"}
    done = subprocess.run([sys.executable, "-c", code], env=words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == offered
