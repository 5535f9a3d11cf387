"""Do what the documentation says, as a reader would."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.conftest import SMALL
from tests.acceptance.support import Shell, check_document

README = Path(__file__).parents[2] / "README.md"

ENDLESS = ("dashboard",)  # test_dashboard.py serves it
SMALLER = {"run": (*SMALL, "--trials", "6"), "benchmark": ("--seeds", "1", "--workers", "1")}
"""Options with which a command of the quickstart trains in seconds; of an option that comes twice, the last counts."""


def quickstart() -> Iterator[list[str]]:
    """List the commands on the digits, without `hpo`."""
    [section] = re.findall(r"^## Quickstart$(.*?)^## ", README.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    lines = re.findall(r"^hpo (.*)$", section, re.MULTILINE)
    return (line.split() for line in lines if "cifar10" not in line)


def test_the_quickstart_runs(copied: Shell) -> None:
    commands = [words for words in quickstart() if words[0] not in ENDLESS]
    assert [words[0] for words in commands] == ["run", "status", "benchmark", "report"]

    for words in commands:
        done = copied.hpo(*words, *SMALLER.get(words[0], ()))

        assert done.code == 0, done.err
    assert (copied.folder / "report" / "report.html").is_file()


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (("status",), "status"),
        (("best",), "best"),
        (("workers",), "workers"),
        (("spaces", "list"), "spaces_list"),
        (("model",), "model"),
        (("data", "check"), "data_check"),
    ],
)
def test_json_output_is_as_the_reference_says(command: tuple[str, ...], name: str, finished: Shell) -> None:
    check_document(finished.hpo(*command, "--json").json, name)
