"""The self-check of a worker: whether its device keeps the promise of equal bits; looked at once and remembered."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from collections.abc import Callable
from pathlib import Path

import torch

from hpo import __version__
from hpo.artifacts import write_whole
from hpo.errors import BadInput
from hpo.settings import Precision, default_data_dir
from hpo.training.numerics import Numerics, numerics, prepare_torch
from hpo.trial.checkpoints import Checkpoints
from hpo.trial.promise import SHORT, find_broken
from hpo.trial.segments import FORMAT

FOLDER = "self-check"
"""The folder in the user's cache that has an empty file for each check that has passed."""

Check = Callable[[], str | None]
"""A function that returns what breaks the promise, or None."""

log = logging.getLogger(__name__)


def checkpoints_if_sound(
    device: torch.device, precision: Precision, checkpoints: Checkpoints | None
) -> Checkpoints | None:
    """Return the checkpoints if training on a device continues from them with equal bits; else warn and return None.

    Where there is no memory for the check, the trials will tell; nothing speaks against sharing.

    Side effects:
        Sets torch up as `prepare_torch` does. Trains for some iterations, once per machine, device and release.
    """
    if checkpoints is None:
        return None
    prepare_torch(precision)
    name = key_of(numerics(device, precision), platform.node(), _describe(device))
    try:
        broken = check_once(name, find_cache(), lambda: find_broken(device, precision, SHORT))
    except torch.OutOfMemoryError as error:
        log.warning("device %s: no memory for the self-check (%s)", device, str(error).partition("\n")[0])
        return checkpoints
    if broken is None:
        return checkpoints
    log.warning(
        "device %s does not repeat training bit for bit in %s (%s); trials are trained from their start here, without "
        "checkpoints; `hpo doctor` checks the machine",
        device,
        precision,
        broken,
    )
    return None


def check_once(name: str, folder: Path | None, check: Check) -> str | None:
    """Return what a check says, unless it is known to have passed; only a passed check is remembered.

    Args:
        name: Stands for everything that the result depends on.
        folder: Where passed checks are remembered; None for nowhere.

    Side effects:
        Creates the folder, and an empty file in it. That it cannot be written is no error: the next worker checks anew.
    """
    if folder is None:
        return check()
    try:
        if (folder / name).is_file():
            return None
    except OSError as error:
        log.debug("self-check: %s", error)
    broken = check()
    if broken is None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / name, b"")
        except OSError as error:
            log.debug("self-check: %s", error)
    return broken


def key_of(how: Numerics, host: str, device: str) -> str:
    """Name a check after everything that decides its result."""
    facts = [__version__, FORMAT, how.to_dict(), host, device]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def find_cache() -> Path | None:
    """Find the folder of passed checks; None for a user without a home folder."""
    try:
        return default_data_dir() / FOLDER
    except BadInput:
        return None


def _describe(device: torch.device) -> str:
    """Distinguish a GPU from its equals; a machine has one CPU."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else device.type
