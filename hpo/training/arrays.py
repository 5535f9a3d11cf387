"""Images and labels in one `.npz` file, under the names that Keras gives them."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpo.errors import BadInput, DataDamaged

NAMES = ("x_train", "y_train", "x_test", "y_test")
_READ_HEADER = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """Shape and type of an array in the file."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class ArrayFile:
    """What the headers of the arrays say, checked.

    Attributes:
        shape: Height, width and channels of the images.
        images: Number of images of all splits.
        tests: How many of them are of the test split; None if the file has no such split.
        passed_over: How many other arrays there are.
    """

    path: Path
    shape: tuple[int, int, int]
    images: int
    tests: int | None
    passed_over: int


def read_headers(path: Path) -> ArrayFile:
    """Check the arrays of a file without reading them.

    Raises:
        BadInput: An array is missing, or has another shape or type than allowed.
        DataDamaged: The file is no `.npz`, or cut short.
    """
    with _translated(path), zipfile.ZipFile(path) as archive:
        members = {name.removesuffix(".npy"): name for name in archive.namelist()}
        headers = {name: _read_header(path, archive, members[name]) for name in NAMES if name in members}
    has_test = "x_test" in headers or "y_test" in headers
    for name in NAMES if has_test else NAMES[:2]:
        if name not in headers:
            raise BadInput(f"{path}: has no array {name}; it has {', '.join(sorted(members)) or 'none'}")
    shapes = {part: _image_shape(path, part, headers) for part in (("train", "test") if has_test else ("train",))}
    if len(set(shapes.values())) > 1:
        raise BadInput(f"{path}: images of x_train are {shapes['train']}, of x_test {shapes['test']}; allowed: equal")
    tests = headers["x_test"].shape[0] if has_test else None
    return ArrayFile(
        path=path,
        shape=shapes["train"],
        images=headers["x_train"].shape[0] + (tests or 0),
        tests=tests,
        passed_over=len(members.keys() - set(NAMES)),
    )


def read_labels(file: ArrayFile) -> npt.NDArray[np.int64]:
    """Read the labels of all splits, those of the test split last.

    Raises:
        BadInput: They are not the numbers from 0 up to one less than the number of classes.
        DataDamaged: The file is cut short or altered.
    """
    parts = [_read(file.path, name).reshape(-1).astype(np.int64) for name in _names(file, "y")]
    present = np.unique(parts[0])
    if not np.array_equal(present, np.arange(len(present))):
        raise BadInput(f"{file.path}: labels of y_train are {_listed(present)}; allowed: 0 to n-1, each of them used")
    if len(present) < 2:
        raise BadInput(f"{file.path}: all labels of y_train are 0; allowed: two or more classes")
    for labels in parts[1:]:
        if not np.array_equal(np.unique(labels), present):
            raise BadInput(
                f"{file.path}: labels of y_test are {_listed(np.unique(labels))}, of y_train {_listed(present)}; "
                "allowed: the same"
            )
    return np.concatenate(parts)


def read_images(file: ArrayFile) -> npt.NDArray[np.uint8]:
    """Read the images of all splits as [N, H, W, C], those of the test split last.

    Raises:
        DataDamaged: The file is cut short or altered.
    """
    parts = [_read(file.path, name).reshape(-1, *file.shape) for name in _names(file, "x")]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _names(file: ArrayFile, letter: str) -> tuple[str, ...]:
    return (f"{letter}_train",) if file.tests is None else (f"{letter}_train", f"{letter}_test")


def _read(path: Path, name: str) -> npt.NDArray[Any]:
    with _translated(path), np.load(path, allow_pickle=False) as arrays:
        array: npt.NDArray[Any] = arrays[name]
        return array


def _read_header(path: Path, archive: zipfile.ZipFile, member: str) -> Header:
    with archive.open(member) as stream:
        read = _READ_HEADER.get(np.lib.format.read_magic(stream))
        if read is None:
            raise BadInput(f"{path}: {member} has another format version; allowed: 1.0 and 2.0")
        shape, _, dtype = read(stream)
    if dtype.hasobject:
        raise BadInput(f"{path}: {member} contains a pickle, which is never loaded; allowed: arrays of whole numbers")
    return Header(shape=shape, dtype=dtype)


def _image_shape(path: Path, part: str, headers: dict[str, Header]) -> tuple[int, int, int]:
    """Check the images and labels of one split, and return the shape of an image."""
    x, y = headers[f"x_{part}"], headers[f"y_{part}"]
    if x.dtype != np.uint8 or len(x.shape) not in (3, 4) or x.shape[3:] not in ((), (1,), (3,)):
        raise BadInput(
            f"{path}: x_{part} is {x.dtype} of shape {x.shape}; allowed: uint8 [N, H, W] or [N, H, W, 1 or 3]"
        )
    if y.dtype.kind not in "iu" or y.shape[1:] not in ((), (1,)):
        raise BadInput(f"{path}: y_{part} is {y.dtype} of shape {y.shape}; allowed: whole numbers [N] or [N, 1]")
    if x.shape[0] != y.shape[0]:
        raise BadInput(f"{path}: x_{part} has {x.shape[0]} images and y_{part} {y.shape[0]} labels; allowed: equal")
    return x.shape[1], x.shape[2], (*x.shape[3:], 1)[0]


def _listed(labels: npt.NDArray[np.int64]) -> str:
    shown = ", ".join(map(str, labels[:10]))
    return f"{shown}, ..." if len(labels) > 10 else shown or "none"


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Translate what numpy and zipfile raise about a file."""
    try:
        yield
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise DataDamaged(f"{path} cannot be read as .npz: {error}") from error
