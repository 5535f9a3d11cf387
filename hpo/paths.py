"""Paths as people write them: a home folder as `~`, and variables."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from hpo.errors import BadInput

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})", re.ASCII)


def expand(text: str) -> str:
    """Replace `~`, `$NAME` and `${NAME}` in a path as a shell would; a file that is really called so is left alone.

    Raises:
        BadInput: There is no such home folder, or a variable is not set.
    """
    for variable in _VARIABLE.finditer(text):
        name = variable[1] or variable[2]
        if name not in os.environ and not _exists(text, variable.end()):
            raise BadInput(f"path {text!r}: the variable {name} is not set")
    expanded = os.path.expandvars(_expand_home(text))
    if text.startswith("~") and expanded.startswith("~"):
        raise BadInput(f"path {text!r}: the home folder does not exist; for a file with that name, write './{text}'")
    return expanded


def expand_path(text: str) -> Path:
    """Read a path of the command line."""
    return Path(expand(text))


def _exists(text: str, end: int) -> bool:
    """Return whether there is a file by the name that a path has up to the next slash."""
    return os.path.lexists(text[:end] + text[end:].partition("/")[0])


def _expand_home(text: str) -> str:
    try:
        return os.path.expanduser(text)  # noqa: PTH111 - it leaves alone what it cannot expand
    except ValueError:  # no user has such a name
        return text


def choose_log(name: str) -> Path:
    """Choose a log file in the working folder, or in a new temporary one where that cannot be written.

    Raises:
        BadInput: Neither can be written.

    Side effects:
        Creates the file.
    """
    path = Path(name).absolute()
    try:
        path.open("ab").close()
        return path
    except OSError as error:
        problem = error.strerror
    try:
        path = Path(tempfile.mkdtemp(prefix="hpo-"), name)
        path.open("ab").close()
    except OSError as error:
        raise BadInput(f"log {name}: cannot be written here ({problem}) nor in a temporary folder: {error}") from error
    return path
