"""Output for people and for programs: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Never

from rich.console import Console, RenderableType

from hpo.errors import DeviceLost
from hpo.worker.stop import EXIT_CODES, StopSignal, end_at_once

if TYPE_CHECKING:
    from hpo.study import Study


def exit_if_stopped(stop: StopSignal) -> None:
    """End the process with the code of the signal that stopped it, if one did.

    Side effects:
        Ends it without the interpreter's clean-up, which would take a second of computing to unload torch.
    """
    if stop.reason in EXIT_CODES:
        say(f"{stop.reason}; the same command continues")
        end_at_once(EXIT_CODES[stop.reason])


def exit_without_device(error: DeviceLost) -> Never:
    """Print why a device is lost, and end the process before anything tidies up on that device.

    Side effects:
        Ends it without the interpreter's clean-up.
    """
    say_error(str(error))
    end_at_once(error.exit_code)


def show(renderable: RenderableType) -> None:
    """Print a result for a person."""
    Console(highlight=False).print(renderable)


def print_json(document: object) -> None:
    """Print a result for a program."""
    json.dump(document, sys.stdout, indent=2)
    sys.stdout.write("\n")


def say(message: str) -> None:
    """Print a message for a person on stderr; stdout is kept for results."""
    print(message, file=sys.stderr)


def say_unfinished(study: Study, then: str) -> None:
    """Tell a person if trials of a study are not finished, and what follows from it."""
    from hpo.database import overview

    counts = overview.count(study.storage, study.study_id)
    if left := counts.waiting + counts.running:
        say(f"study {study.name} has {left} trials that are not finished; {then}")


def say_error(message: str) -> None:
    """Print an error in one line; control characters are escaped so that they cannot steer the terminal."""
    line = " ".join(message.split())
    say("error: " + "".join(c if c.isprintable() else repr(c)[1:-1] for c in line))
