"""Check the command line against its contract."""

from __future__ import annotations

import re
import resource
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from tests.acceptance.conftest import RECIPE, SMALL
from tests.acceptance.support import PROGRAMS, Shell
from tests.conftest import PASSWORD, free_port

STUDY = "smooth_lr-digits"
START_S = 300.0  # the machine may be busy


def test_status_says_what_the_contract_names(finished: Shell) -> None:
    found = finished.hpo("status", "--json").json
    best, trials, spent = found.pop("best"), found.pop("trials"), found.pop("iterations_spent")
    assert found == {
        "study": STUDY,
        "space": "smooth_lr",
        "dataset": "digits",
        "iterations": 32,
        "target": 6,
        "state": "done",
        "ended_because": None,
        "ends": {"budget": None, "stop_after": None, "target_accuracy": None},
        "waiting_at_rungs": {},
        "of_other_clients": {"lent": 0, "told": 0, "refused": 0},
        "recipes": {"tried": 6, "possible": 22_680},
        "confirmation": None,
    }
    assert list(trials) == ["complete", "pruned", "failed", "running", "waiting"]
    assert (trials["complete"] + trials["pruned"], trials["failed"], trials["running"], trials["waiting"]) == (
        6,
        0,
        0,
        0,
    )
    assert list(best) == ["trial", "value", "recipe"]
    assert best["recipe"].keys() == RECIPE.keys()
    assert spent["naive"] == 6 * 32
    assert 0 < spent["trained"] <= spent["requested"] <= spent["naive"]


def test_best_says_what_the_contract_names(finished: Shell) -> None:
    found, status = finished.hpo("best", "--json").json, finished.hpo("status", "--json").json
    assert list(found) == ["trial", "value", "standard_error", "recipe", "curve", "confirmation"]
    assert {name: found[name] for name in ("trial", "value", "recipe")} == status["best"]
    assert found["standard_error"] == pytest.approx((found["value"] * (1 - found["value"]) / 144) ** 0.5)
    assert [list(point) for point in found["curve"]] == [
        ["iteration", "train_loss", "train_accuracy", "val_loss", "val_accuracy"]
    ] * len(found["curve"])
    assert found["value"] in [point["val_accuracy"] for point in found["curve"]]


def test_what_people_read_names_the_best_trial_and_what_to_type_next(finished: Shell) -> None:
    before = finished.hpo("status", "--json").json
    again = finished.hpo("run", *SMALL, "--trials", "6")
    assert "optimizer steps" not in again.err, "what it took is known"
    assert again.code == 0
    assert f"(trial {before['best']['trial']})" in again.out
    for command in ("benchmark --study smooth_lr-digits", "report --study smooth_lr-digits --out report", "dashboard"):
        assert f"  hpo {command}\n" in again.out
    assert finished.hpo("status", "--json").json == before, "a finished study is left as it is"
    for command in ("status", "best"):
        assert str(before["best"]["trial"]) in finished.hpo(command).out


@pytest.mark.parametrize(
    "settings",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=["terminal", "locale"],
)
@pytest.mark.parametrize("command", [["best"], ["status", "--watch"]])
def test_every_character_has_a_plain_form_where_a_terminal_lacks_it(
    finished: Shell, settings: dict[str, str], command: list[str]
) -> None:
    done = finished.run("hpo", *command, **settings)

    assert (done.code, "Traceback" in done.err) == (0, False)
    assert (done.out + done.err).isascii()
    assert command != ["best"] or "+/-" in done.out


def test_a_home_folder_and_variables_in_paths_are_those_of_the_shell(copied: Shell) -> None:
    settings = {"HOME": str(copied.folder), "PLACE": "hpo"}

    done = copied.hpo("gc", "--storage", "sqlite:///~/$PLACE.db", "--artifacts", "~/${PLACE}-artifacts", **settings)
    refused = copied.hpo("report", "--out", "$NOPE/report", **settings)

    assert (done.code, done.err) == (0, "")
    assert not done.out.startswith("0.000 GB"), "the checkpoints are there"
    assert (refused.code, refused.err) == (2, "error: path '$NOPE/report': the variable NOPE is not set\n")
    assert not {"~", "$NOPE"} & {path.name for path in copied.folder.iterdir()}


@pytest.mark.slow
def test_one_trial_trains_the_documented_recipe_and_more_continue_the_study(shell: Shell) -> None:
    first = shell.hpo("run", *SMALL, "--trials", "1", "--workers", "1", "--json")
    assert first.json["best"] == {"trial": 0, "value": first.json["best"]["value"], "recipe": RECIPE}
    assert first.json["iterations_spent"] == {"naive": 32, "requested": 32, "trained": 32}
    assert shell.hpo("verify").out.endswith("and so are weights, momentum and BatchNorm statistics at its end\n")
    second = shell.hpo("run", *SMALL, "--trials", "3", "--json", "--workers", "1")
    assert (second.json["target"], second.json["trials"]["waiting"]) == (3, 0)
    assert sum(second.json["trials"].values()) == 3
    assert float(shell.hpo("gc", "--checkpoint-budget", "0.01").out.split()[0]) <= 0.01


def test_other_settings_do_not_continue_a_study(finished: Shell) -> None:
    refused = finished.hpo(
        "run",
        "--space",
        "smooth_lr",
        "--dataset",
        "digits",
        "--iterations",
        "64",
        "--seed",
        "7",
        "--trials",
        "9",
        "--no-confirm",
    )
    assert (refused.code, refused.out) == (2, "")
    assert refused.err == (
        f"error: study {STUDY} was created with other settings: iterations is 32 in the study and 64 here; "
        "seed is 0 in the study and 7 here. Use the study's settings, or another name with --study.\n"
    )
    assert finished.hpo("status", "--json").json["target"] == 6


@pytest.mark.slow
def test_a_worker_joins_from_another_process(shell: Shell) -> None:
    command: list[str | Path] = [PROGRAMS / "hpo", "run", *SMALL, "--trials", "4", "--workers", "1", "--json"]
    with subprocess.Popen(
        command, cwd=shell.folder, env=shell.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as driver:
        deadline = time.monotonic() + START_S
        while shell.hpo("status").code != 0 and time.monotonic() < deadline:
            time.sleep(0.2)
        joined = shell.hpo("worker", "--study", STUDY)
        driver.communicate(timeout=START_S)
    assert (driver.returncode, joined.code) == (0, 0)
    assert re.search(r"finished \d trials? of smooth_lr-digits", joined.err)
    assert sum(shell.hpo("status", "--json").json["trials"].values()) == 4


def test_a_submitted_study_waits_for_a_worker(shell: Shell) -> None:
    submitted = shell.hpo("run", *SMALL, "--trials", "1", "--submit", "--json")
    waiting = {"complete": 0, "pruned": 0, "failed": 0, "running": 0, "waiting": 1}
    assert (submitted.code, submitted.json["trials"]) == (0, waiting)
    sketch, created = submitted.err.splitlines()
    about = r"about [\d,]+ optimizer steps, \d+% of 1 full trial of 32; `hpo plan` .*"
    assert re.fullmatch(f"study {STUDY}: {about}", sketch)
    assert created == f"study {STUDY}: created; train it with `hpo worker --study {STUDY}` on any machine"
    assert shell.hpo("worker").code == 0
    assert shell.hpo("status", "--json").json["trials"] == waiting | {"complete": 1, "waiting": 0}


def test_a_search_space_that_is_used_up_ends_the_study_with_a_sentence(shell: Shell) -> None:
    space = "name: two\nbase: baseline\nsearch: {shortcut_norm: [true, false]}\n"
    shell.folder.joinpath("two.yaml").write_text(space)
    command = ("run", "--space", "two.yaml", "--dataset", "digits", "--iterations", "32", "--trials", "5")
    submitted = shell.hpo(*command, "--submit")
    assert (submitted.code, submitted.err.splitlines()[-1]) == (
        0,
        "study two-digits: 2 trials instead of 5, because its search space has no more distinct recipes",
    )
    worked = shell.hpo("worker")
    assert (worked.code, worked.err.splitlines()[-1]) == (
        0,
        "the search space of study two-digits is used up: all 2 recipes have been tried",
    )
    assert "2 of 2 tried: the search space is used up" in shell.hpo("status").out


BAD = "name: bad\nbase: smooth_lr\nsearch:\n  dropout: [0.5, 1.5]\n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--trials", "0"], 2, "Invalid value for '--trials'"),
        (["--trials", "many"], 2, "Invalid value for '--trials'"),
        (["--space", "nope"], 2, "space 'nope' is neither a file nor a shipped space; shipped: baseline, dense, "),
        (["--space", "bad.yaml"], 2, "bad.yaml: line 4: search.dropout.1 is 1.5: Input should be less than 1"),
        (
            ["--dataset", "mnist"],
            2,
            "--dataset mnist: allowed: auto, cifar10, cifar100, fashion_mnist, digits, or the path of",
        ),
        (["--study", "../x"], 2, "study name '../x': allowed: 1 to 100 letters, digits, '.', '_' and '-'"),
        (["--iterations", "31"], 2, "Invalid value for '--iterations'"),
        (["--workers", "0"], 2, "Invalid value for '--workers'"),
        (["--storage", "nonsense"], 2, "storage: not a database URL; allowed: sqlite:///FILE or postgresql://"),
        (["--storage", "mysql://root:correct-horse@host/db"], 2, "storage mysql://root:***@host/db: 'mysql'"),
        (["--storage", "sqlite:///no/such/folder/x.db"], 2, "no/such/folder/x.db is not a usable database path"),
        (
            ["--storage", "postgresql://u:correct-horse@127.0.0.1:PORT/db"],
            3,
            "storage postgresql+psycopg://u:***@127.0.0.1:PORT",
        ),
        (
            ["--artifacts", "ftp://host"],
            2,
            "artifacts 'ftp://host': allowed: a folder, or s3://BUCKET or gs://BUCKET",
        ),
        (["--unknown"], 2, "No such option: --unknown"),
    ],
)
def test_bad_input_gets_one_line_and_leaves_nothing(
    shell: Shell, arguments: list[str], code: int, message: str
) -> None:
    (shell.folder / "bad.yaml").write_text(BAD)
    port = str(free_port())
    arguments = [argument.replace("PORT", port) for argument in arguments]
    given = dict(zip(SMALL[:-1:2], SMALL[1::2], strict=True)) | {"--trials": "1"}
    given |= dict(zip(arguments[::2], arguments[1::2], strict=False))
    line = [part for pair in given.items() for part in pair] + (arguments if len(arguments) == 1 else [])
    refused = shell.hpo("run", *line)
    assert (refused.code, refused.out) == (code, "")
    assert message.replace("PORT", port) in refused.err
    assert refused.err.startswith("error: ")
    assert refused.err.count("\n") == 1
    assert PASSWORD not in refused.err
    assert {path.name for path in shell.folder.iterdir()} == {"bad.yaml"}


@pytest.mark.parametrize(
    "command", ["status", "best", "confirm", "worker", "verify", "report", "gc", "dashboard", "workers"]
)
def test_commands_that_read_make_no_database(shell: Shell, command: str) -> None:
    refused = shell.run("hpo", command)
    assert (refused.code, refused.out) == (2, "")
    assert refused.err == (
        "error: storage: the database hpo.db does not exist; "
        "create it with `hpo run`, or choose another with --storage\n"
    )
    assert not (shell.folder / "hpo.db").exists()


def test_a_damaged_copy_of_cifar10_is_named(shell: Shell) -> None:
    folder = shell.folder / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    (folder / "data_batch_1").write_bytes(b"cut short")
    for dataset in ("cifar10", "auto"):
        refused = shell.hpo("run", "--space", "baseline", "--trials", "1", "--dataset", dataset)
        assert (refused.code, refused.out) == (2, "")
        assert f"{folder}/data_batch_1 is damaged: its md5 is" in refused.err
    checked = shell.hpo("data", "check")
    assert checked.code == 2
    assert "cifar10: damaged: " in checked.out
    assert "digits: complete: 1293 training and 144 validation images" in checked.out


def test_digits_in_place_of_cifar10_come_with_a_notice(shell: Shell) -> None:
    # A proxy that nobody serves stands for a network without CIFAR-10.
    proxy = f"http://127.0.0.1:{free_port()}"
    done = shell.hpo(
        "run",
        "--space",
        "baseline",
        "--trials",
        "1",
        "--iterations",
        "32",
        "--workers",
        "1",
        "--json",
        https_proxy=proxy,
        http_proxy=proxy,
    )
    assert done.json["dataset"] == "digits"
    assert done.json["study"] == "baseline-digits"
    assert "NOTICE: digits in place of CIFAR-10" in done.err
    assert "cifar10 could not be downloaded" in done.err


def test_help_is_instant(shell: Shell) -> None:
    def once() -> float:
        """Return the processor's seconds, which other tests at the same time hardly change."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert shell.run("hpo", "--help").code == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(once() for _ in range(10)) < 0.5


def test_spaces_are_listed_shown_and_checked(shell: Shell) -> None:
    listed = shell.hpo("spaces", "list", "--json").json
    names = [entry["name"] for entry in listed]
    assert names == ["baseline", "dense", "dense_early_stopping", "dropout", "full", "modern", "smooth_lr"]
    documented = {"baseline", "dense_early_stopping", "dense", "dropout", "smooth_lr"}
    named = {entry["base"] for entry in listed if entry["name"] != "modern"}  # which writes its base recipe out
    assert named == documented, "every documented run is the base of a shipped space"
    for name in names:
        (shell.folder / f"{name}.yaml").write_text(shell.hpo("spaces", "show", name).out)
        assert shell.hpo("spaces", "check", f"{name}.yaml").code == 0
    (shell.folder / "bad.yaml").write_text(BAD)
    refused = shell.hpo("spaces", "check", "bad.yaml")
    assert (refused.code, refused.out) == (2, "")
    assert refused.err == "error: bad.yaml: line 4: search.dropout.1 is 1.5: Input should be less than 1\n"
    assert shell.hpo("spaces", "schema").json["title"] == "SearchSpace"


def test_the_readmes_space_is_a_good_one(shell: Shell) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    [example] = re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)
    assert yaml.safe_load(example)["name"] == "mine"
    (shell.folder / "mine.yaml").write_text(example)
    checked = shell.hpo("spaces", "check", "mine.yaml")
    assert (checked.code, checked.err) == (0, "")


def test_the_layer_table_ends_with_the_documented_totals(shell: Shell) -> None:
    lines = shell.hpo("model", "--head", "dropout", "--shortcut-norm").out.splitlines()
    assert lines[-3:] == ["Total params: 272170", "Trainable params: 270602", "Non-trainable params: 1568"]
    assert lines[1].split() == ["input_1", "(InputLayer)", "[(None,", "32,", "32,", "3)]", "0"]
    assert len(lines) == 1 + 74 + 4 + 1


@pytest.mark.slow
def test_a_study_that_is_timed_out_continues(shell: Shell) -> None:
    line = ("run", "--space", "smooth_lr", "--dataset", "digits", "--iterations", "64000", "--trials", "2", "--json")
    stopped = shell.run("hpo", *line, "--pruner", "none", "--workers", "1", "--timeout", "6")
    assert stopped.code == 0
    assert stopped.json["trials"]["waiting"] == 2
    assert "stopped after 6 s; the same command continues" in stopped.err
    assert not list(shell.folder.glob("hpo.db-*")), "SQLite keeps nothing beside a database that nobody has open"


@pytest.fixture
def listener() -> Iterator[int]:
    import socket

    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def test_the_dashboard_refuses_a_taken_port(finished: Shell, listener: int) -> None:
    taken = finished.hpo("dashboard", "--port", str(listener))
    assert (taken.code, taken.err.splitlines()[-1]) == (
        2,
        f"error: --host 127.0.0.1 --port {listener}: Address already in use",
    )
