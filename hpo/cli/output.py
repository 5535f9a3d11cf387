"""Print for people and for programs: results on stdout, all else on stderr."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType

if TYPE_CHECKING:
    from hpo.worker.stop import StopSignal

INTERRUPTED, TERMINATED = 130, 143


def exit_if_stopped(stop: StopSignal) -> None:
    """End the process with the code of the signal that stopped it, if one did.

    Side effects:
        Ends it at once: the interpreter would take a second of computing to take torch apart.
    """
    codes = {"interrupted": INTERRUPTED, "terminated": TERMINATED, "orphaned": TERMINATED}
    if stop.reason in codes:
        say(f"{stop.reason}; the same command continues")
        sys.stdout.flush()
        os._exit(codes[stop.reason])


def show(renderable: RenderableType) -> None:
    """Print a result for a person."""
    Console(highlight=False).print(renderable)


def print_json(document: object) -> None:
    """Print a result for a program."""
    json.dump(document, sys.stdout, indent=2)
    sys.stdout.write("\n")


def say(message: str) -> None:
    """Tell a person something; stdout stays for results."""
    print(message, file=sys.stderr)


def say_error(message: str) -> None:
    """Tell a person what went wrong, in one line; what a value may hold besides letters cannot steer the terminal."""
    line = " ".join(message.split())
    say("error: " + "".join(c if c.isprintable() else repr(c)[1:-1] for c in line))
