"""Folders of images: one folder per class, as torchvision's ImageFolder has them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hpo.errors import BadInput

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Names of image files end with one of these, in any case, as for torchvision's ImageFolder."""

TRAIN, TEST = "train", "test"


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """The image files of a folder.

    Attributes:
        classes: Names of the classes, sorted.
        files: Paths, first those to train and validate on, then those of the test split, in a fixed order. As
            text, which takes a fifth of the time of objects.
        labels: The class of each file, as an index.
        tests: How many of the files are of the test split; None if the folder has no such split.
        passed_over: How many other files there are.
    """

    classes: tuple[str, ...]
    files: tuple[str, ...]
    labels: tuple[int, ...]
    tests: int | None
    passed_over: int


def list_images(root: Path) -> Listing:
    """List the images of `train/CLASS/...` and `test/CLASS/...`, or of `CLASS/...` alone.

    Raises:
        BadInput: The layout is another one, a class has no image, or a link leads in a loop.
    """
    try:
        return _list_images(root)
    except OSError as error:
        raise BadInput(f"{error.filename or root}: cannot be read: {error.strerror or error}") from error


def _list_images(root: Path) -> Listing:
    folders, others = _folders(root)
    if not {TRAIN, TEST} <= folders.keys():
        if folders.keys() & {TRAIN, TEST}:
            raise BadInput(f"{root}: has only one of {TRAIN}/ and {TEST}/; allowed: both, or one folder per class")
        files, passed_over = _classes_of(root, folders)
        return _listing(list(files), [files], None, others + passed_over)
    if extra := sorted(folders.keys() - {TRAIN, TEST}):
        raise BadInput(f"{root / extra[0]}: not allowed next to {TRAIN}/ and {TEST}/")
    parts = []
    for part in (TRAIN, TEST):
        inner, loose = _folders(root / part)
        files, passed_over = _classes_of(root / part, inner)
        parts.append(files)
        others += loose + passed_over
    train, test = parts
    if unequal := sorted(train.keys() ^ test.keys()):
        where = TRAIN if unequal[0] in train else TEST
        raise BadInput(f"{root / where / unequal[0]}: {TRAIN}/ and {TEST}/ must have the same classes")
    return _listing(list(train), parts, sum(map(len, test.values())), others)


def _listing(classes: list[str], parts: list[dict[str, list[str]]], tests: int | None, passed_over: int) -> Listing:
    rows = [(file, classes.index(name)) for part in parts for name in classes for file in part[name]]
    return Listing(
        classes=tuple(classes),
        files=tuple(file for file, _ in rows),
        labels=tuple(label for _, label in rows),
        tests=tests,
        passed_over=passed_over,
    )


def _folders(root: Path) -> tuple[dict[str, Path], int]:
    """Return the folders in a folder by name, sorted, and the number of files next to them; hidden folders are left."""
    entries = _entries(root)
    folders = {entry.name: Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith(".")}
    return folders, sum(not entry.is_dir() for entry in entries)


def _classes_of(root: Path, folders: dict[str, Path]) -> tuple[dict[str, list[str]], int]:
    """List the images of each class, and count the other files."""
    if len(folders) < 2:
        held = f"only the class {next(iter(folders))}" if folders else "no class"
        raise BadInput(f"{root}: has {held}; allowed: two or more folders of images")
    images: dict[str, list[str]] = {}
    passed_over = 0
    for name, folder in folders.items():
        files = list(_walk(str(folder), (os.path.realpath(root),)))
        images[name] = [file for file in files if file.lower().endswith(IMAGE_SUFFIXES)]
        passed_over += len(files) - len(images[name])
        if not images[name]:
            raise BadInput(f"{folder}: the class has no image; names of images end with {' '.join(IMAGE_SUFFIXES)}")
    return images, passed_over


def _walk(folder: str, above: tuple[str, ...]) -> Iterator[str]:
    """List all files below a folder, links followed.

    Args:
        above: The real paths of the folders that hold it.
    """
    real = os.path.realpath(folder, strict=True)
    if real in above:
        raise BadInput(f"{folder}: a link leads back to {real}, which contains it")
    for entry in _entries(folder):
        if entry.is_dir():
            yield from _walk(entry.path, (*above, real))
        else:
            yield entry.path


def _entries(folder: Path | str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)
