"""Output for people and for programs: results on stdout, everything else on stderr."""

from __future__ import annotations

import codecs
import io
import json
import logging
import sys
from typing import TYPE_CHECKING, Never

from hpo.errors import DeviceLost
from hpo.masking import mask_secrets
from hpo.worker.stop import EXIT_CODES, StopSignal, end_at_once

if TYPE_CHECKING:
    from rich.console import RenderableType

    from hpo.study import Study

PLAIN = {"±": "+/-", "·": "*", "×": "x", "→": "->", "–": "-", "—": "-", "…": "...", "━": "-", "─": "-", "│": "|"}
"""What takes the place of characters that a terminal's encoding lacks."""


class MaskingFormatter(logging.Formatter):
    """A format of log lines that shows no secret, in tracebacks neither."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record without its secrets."""
        return mask_secrets(super().format(record))


def log_to_stderr(line_format: str) -> None:
    """Log everything to stderr, in a line format of the standard library's."""
    handler = logging.StreamHandler()
    handler.setFormatter(MaskingFormatter(line_format))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def prepare_output() -> None:
    """Let the process print every text, whatever its encoding, and warn without secrets.

    Side effects:
        Sets how stdout and stderr write what their encoding lacks, and the format of the last resort of logging.
    """
    codecs.register_error("plain", _write_plainly)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(MaskingFormatter())


def plain(text: str) -> str:
    """Write a text in ASCII: with a sign that reads alike, or else as Python escapes it."""
    return "".join(character if character.isascii() else _plain_sign(character) for character in text)


def _plain_sign(character: str) -> str:
    return PLAIN.get(character) or ascii(character)[1:-1]


def _write_plainly(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError), "only output is written so"
    return plain(error.object[error.start : error.end]), error.end


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
    from rich.console import Console

    Console(highlight=False).print(renderable)


def print_json(document: object) -> None:
    """Print a result for a program."""
    json.dump(document, sys.stdout, indent=2)
    sys.stdout.write("\n")


def say(message: str) -> None:
    """Print a message for a person on stderr; stdout is kept for results."""
    print(mask_secrets(message), file=sys.stderr)


def say_unfinished(study: Study, then: str) -> None:
    """Tell a person if trials of a study are not finished, and what follows from it."""
    from hpo.database import overview

    counts = overview.count(study.storage, study.study_id)
    if left := counts.waiting + counts.running:
        say(f"study {study.name} has {left} unfinished trials; {then}")


def say_who_trains(study: Study) -> None:
    """Say who trains the trials that were just put into the queue of a study."""
    from hpo.database import study_state

    state = study_state.find_state(study.storage, study.study_id)
    if state == "running":
        say(f"the study's workers train it next; if there are none, `hpo worker --study {study.name}` is one")
    elif state == "ended":
        say("the study has ended; `hpo run` with more, or with 0 for no end, continues it")
    else:
        say(f"the study is {state}; `hpo resume --study {study.name}` continues it")


def say_error(message: str) -> None:
    """Print an error in one line; control characters are escaped so that they cannot steer the terminal."""
    line = " ".join(message.split())
    say("error: " + "".join(c if c.isprintable() else repr(c)[1:-1] for c in line))
