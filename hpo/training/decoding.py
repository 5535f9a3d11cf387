"""The decoding of image files, on all cores. It imports little, because every process of the pool loads it."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from hpo.errors import DataDamaged

CHUNK = 256
"""Files that a process handles at a time."""

MIN_PARALLEL = 4 * CHUNK
"""Number of files below which starting processes takes longer than they save."""

GREY_MODES = ("1", "L", "LA", "La")
DEEP_MODES = ("I", "F")  # and those of 16 bits, such as I;16
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

Pixels = npt.NDArray[np.uint8]
Report = Callable[[int], None]
"""Told how many more files are done."""

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """What the header of an image file says."""

    width: int
    height: int
    grey: bool


def inspect_files(paths: Sequence[str], report: Report) -> list[Picture]:
    """Read the headers of image files.

    Raises:
        DataDamaged: A file is no image, or has more than 8 bits per channel.
    """
    return [picture for chunk in _map_chunks(_inspect_chunk, paths, report) for picture in chunk]


def decode_files(paths: Sequence[str], shape: tuple[int, int, int], report: Report) -> Pixels:
    """Decode image files to uint8 [N, H, W, C]; an image of another size is scaled, and cropped at its centre.

    Raises:
        DataDamaged: A file is cut short or altered.
    """
    pixels = np.empty((len(paths), *shape), dtype=np.uint8)
    start = 0
    for chunk in _map_chunks(partial(_decode_chunk, shape=shape), paths, report):
        pixels[start : start + len(chunk)] = chunk
        start += len(chunk)
    return pixels


def _map_chunks(function: Callable[[Sequence[str]], Result], paths: Sequence[str], report: Report) -> Iterator[Result]:
    """Apply a function to chunks of the paths in order, in this process if they are few."""
    chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    if len(paths) < MIN_PARALLEL:
        for chunk in chunks:
            yield function(chunk)
            report(len(chunk))
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads in an unknown state
    pool = ProcessPoolExecutor(len(os.sched_getaffinity(0)), context, initializer=_end_with_parent)
    try:
        for chunk, result in zip(chunks, pool.map(function, chunks), strict=True):
            yield result
            report(len(chunk))
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Leave Ctrl-C to the parent, and end when it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _inspect_chunk(paths: Sequence[str]) -> list[Picture]:
    return [_inspect(path) for path in paths]


def _decode_chunk(paths: Sequence[str], shape: tuple[int, int, int]) -> Pixels:
    return np.stack([_decode(path, shape) for path in paths])


def _inspect(path: str) -> Picture:
    with _opened(path) as image:
        if image.mode in DEEP_MODES or ";16" in image.mode:
            raise DataDamaged(f"{path}: its pixels are of mode {image.mode}; allowed: 8 bits per channel")
        return Picture(width=image.width, height=image.height, grey=image.mode in GREY_MODES)


def _decode(path: str, shape: tuple[int, int, int]) -> Pixels:
    height, width, channels = shape
    with _opened(path) as image:
        picture = ImageOps.fit(image.convert("L" if channels == 1 else "RGB"), (width, height))
    return np.asarray(picture).reshape(shape)


@contextmanager
def _opened(path: str) -> Iterator[Image.Image]:
    """Open an image file, and translate what Pillow raises while it is read."""
    try:
        with Image.open(path) as image:
            yield image
    except UnidentifiedImageError as error:
        raise DataDamaged(f"{path} is not an image that Pillow can read") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataDamaged(f"{path} cannot be decoded: {error}") from error
