"""Users' own data sets: images that are decoded once into a file of tensors, which every process maps."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hpo.errors import BadInput
from hpo.settings import MAX_IMAGE_SIDE, MIN_IMAGE_SIDE, DatasetName
from hpo.training import arrays, folders
from hpo.training.data import VALIDATION_SHARE, stratified_positions
from hpo.training.decoding import Picture, Pixels, Report, decode_files, inspect_files
from hpo.training.tensor_file import FORMAT, find_decoded, write_tensors
from hpo.wording import counted

TEST_SHARE = 0.2
"""Fraction of the images that becomes the test split where they come without one."""

MEMORY_FACTOR = 3
"""How many times the decoded images are in memory at once: as read, as split, and as written."""

_STATISTICS_CHUNK = 1000  # images

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Collection:
    """Images of somebody's own, not decoded yet.

    Attributes:
        labels: The class of each image; those of the test split come last.
        tests: Number of images of the test split; None where one must be set aside.
        shape: Height, width and channels of a decoded image.
        decode: Returns all images, and reports how many more are done.
    """

    classes: tuple[str, ...]
    labels: Labels
    tests: int | None
    shape: tuple[int, int, int]
    decode: Callable[[Report], Pixels]


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A file of tensors that is ready to be loaded.

    Attributes:
        passed_over: How many files or arrays of the source are no images.
    """

    name: str
    checksum: str
    passed_over: int


def name_of(path: Path) -> str:
    """Return the name of a data set: that of its folder or file, with `-` for what cannot be part of a study's name.

    Raises:
        BadInput: Nothing is left of it, or a known data set has the name.
    """
    base = Path(os.path.abspath(path))  # noqa: PTH100 - a link keeps its own name
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", base.stem if _is_array_file(path) else base.name).strip("._-")[:60]
    if not name:
        raise BadInput(
            f"--dataset {path}: its name needs a letter (a to z) or a digit, because studies are named after it"
        )
    if name in get_args(DatasetName):
        raise BadInput(f"--dataset {path}: {name} is the name of a known data set; rename the folder or file")
    return name


def prepare(
    path: Path,
    data_dir: Path,
    *,
    name: str,
    image_size: int | None,
    report: Callable[[int, int], None],
    available_bytes: int | None = None,
) -> Prepared:
    """Decode somebody's images into a file of tensors, unless that was done before and the images are unchanged.

    Args:
        image_size: Side to which images are scaled and cropped; None for images of one size.
        report: Told how many more of how many images are done; each counts when it is inspected and when decoded.
        available_bytes: Memory that may be used; None for what the system has left.

    Raises:
        BadInput: The images cannot be a data set; what is wrong is named with its path.
        DataDamaged: A file is cut short or altered.

    Side effects:
        Writes below `data_dir`, and starts a process per core while it decodes many files.
    """
    source = folders.list_images(path) if path.is_dir() else _array_file(path)
    files = source.files if isinstance(source, folders.Listing) else (str(path),)
    fingerprint = _fingerprint(path, files, name, image_size)
    checksum = find_decoded(data_dir, name, fingerprint)
    if checksum is None:
        total = 2 * len(files) if isinstance(source, folders.Listing) else source.images
        collection = _collect(path, source, image_size, lambda done: report(done, total))
        _require_memory(path, collection, _available_bytes() if available_bytes is None else available_bytes)
        parts = cut(path, collection)
        tensors = _tensors(parts, collection.labels, collection.decode(lambda done: report(done, total)))
        checksum = write_tensors(data_dir, name, tensors, collection.classes, fingerprint)
    return Prepared(name=name, checksum=checksum, passed_over=source.passed_over)


def cut(path: Path, collection: Collection) -> dict[str, Labels]:
    """Decide which images are for training, validation and test, as positions.

    Raises:
        BadInput: A class has too few images for the splits.
    """
    everything = np.arange(len(collection.labels))
    rest, test = everything, everything[:0]
    needed = min_images(with_test=collection.tests is not None)
    if collection.tests is not None:
        rest, test = np.split(everything, [len(everything) - collection.tests])
    counts = np.bincount(collection.labels[rest], minlength=len(collection.classes))
    if counts.min() < needed:
        least = int(counts.argmin())
        raise BadInput(
            f"{path}: class {collection.classes[least]} has {counted(counts[least], 'image')} "
            f"{'to train on' if collection.tests is not None else 'in all'}; the splits need {needed} of each class"
        )
    if collection.tests is None:
        rest, test = stratified_positions(collection.labels, TEST_SHARE)
    train, validation = stratified_positions(collection.labels[rest], VALIDATION_SHARE)
    return {"train": rest[train], "validation": rest[validation], "test": test}


def min_images(*, with_test: bool) -> int:
    """Return the number of images of a class at which each split surely gets one."""
    for_validation = math.ceil(1 / VALIDATION_SHARE)
    if with_test:
        return for_validation
    return next(n for n in count(for_validation) if n - math.ceil(n * TEST_SHARE) >= for_validation)


def common_shape(files: Sequence[str], pictures: Sequence[Picture], image_size: int | None) -> tuple[int, int, int]:
    """Decide the height, width and channels to which images are decoded.

    Raises:
        BadInput: They have different sizes and no size is given, or are too small or too large.
    """
    channels = 1 if all(picture.grey for picture in pictures) else 3
    if image_size is not None:
        return image_size, image_size, channels
    first = pictures[0]
    for file, picture in zip(files, pictures, strict=True):
        if (picture.width, picture.height) != (first.width, first.height):
            raise BadInput(
                f"{files[0]} is {first.width}x{first.height} and {file} {picture.width}x{picture.height}; "
                "--image-size N scales and crops all images to one size"
            )
    _require_side(files[0], first.width, first.height)
    return first.height, first.width, channels


def _is_array_file(path: Path) -> bool:
    return path.suffix.lower() == ".npz" and not path.is_dir()


def _array_file(path: Path) -> arrays.ArrayFile:
    if not _is_array_file(path):
        raise BadInput(f"--dataset {path}: allowed: a folder of images and an .npz file")
    return arrays.read_headers(path)


def _collect(
    path: Path, source: folders.Listing | arrays.ArrayFile, image_size: int | None, report: Report
) -> Collection:
    """Inspect the images, so that everything but the pixels is known."""
    if isinstance(source, arrays.ArrayFile):
        return _collect_arrays(source, image_size)
    files = source.files
    shape = common_shape(files, inspect_files(files, report), image_size)
    return Collection(
        classes=source.classes,
        labels=np.array(source.labels, dtype=np.int64),
        tests=source.tests,
        shape=shape,
        decode=lambda told: decode_files(files, shape, told),
    )


def _collect_arrays(file: arrays.ArrayFile, image_size: int | None) -> Collection:
    height, width, _ = file.shape
    if image_size not in (None, height) or (image_size is not None and height != width):
        raise BadInput(f"--image-size {image_size}: the images of {file.path} are {width}x{height}, and are not scaled")
    _require_side(file.path, width, height)
    labels = arrays.read_labels(file)

    def decode(report: Report) -> Pixels:
        """Read all images."""
        images = arrays.read_images(file)
        report(len(images))
        return images

    classes = tuple(map(str, range(int(labels.max()) + 1)))
    return Collection(classes=classes, labels=labels, tests=file.tests, shape=file.shape, decode=decode)


def _require_side(path: Path | str, width: int, height: int) -> None:
    if min(width, height) < MIN_IMAGE_SIDE or max(width, height) > MAX_IMAGE_SIDE:
        raise BadInput(
            f"{path}: images are {width}x{height}; allowed: {MIN_IMAGE_SIDE} to {MAX_IMAGE_SIDE} pixels a side, "
            "to which --image-size N scales the images of a folder"
        )


def _require_memory(path: Path, collection: Collection, available_bytes: int) -> None:
    images_bytes = len(collection.labels) * math.prod(collection.shape)
    if MEMORY_FACTOR * images_bytes > available_bytes:
        height, width, channels = collection.shape
        raise BadInput(
            f"{path}: {len(collection.labels):,} images of {height}x{width}x{channels} are {images_bytes:,} bytes; "
            f"decoding them takes {MEMORY_FACTOR * images_bytes:,} bytes of memory, and {available_bytes:,} are free"
        )


def _available_bytes() -> int:
    """Read how much memory a process of this machine, or of its container, may still take."""
    lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and (text := limit.read_text("utf-8").strip()) != "max":
        free = min(free, int(text) - int(used.read_text("utf-8")))
    return free


def _fingerprint(path: Path, files: Sequence[str], name: str, image_size: int | None) -> str:
    """Return a digest of what decoding depends on, with the files' sizes and times in place of their content."""
    digest = hashlib.sha256(json.dumps([FORMAT, name, image_size]).encode())
    for file in files:
        try:
            status = os.stat(file)  # noqa: PTH116 - there may be many, and objects take longer than the call
        except OSError as error:
            raise BadInput(f"{file}: cannot be read: {error.strerror}") from error
        digest.update(os.fsencode(file.removeprefix(str(path))))
        digest.update(f"\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def _tensors(parts: dict[str, Labels], labels: Labels, images: Pixels) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for split, positions in parts.items():
        tensors[f"{split}_images"] = torch.from_numpy(images[positions])
        tensors[f"{split}_labels"] = torch.from_numpy(labels[positions])
    tensors["mean"], tensors["std"] = _statistics(tensors["train_images"].numpy())
    return tensors


def _statistics(images: Pixels) -> tuple[Tensor, Tensor]:
    """Compute mean and standard deviation per channel from whole numbers, so that every machine gets the same."""
    counts = np.zeros((images.shape[3], 256), dtype=np.int64)
    for start in range(0, len(images), _STATISTICS_CHUNK):
        for channel in range(len(counts)):
            counts[channel] += np.bincount(
                images[start : start + _STATISTICS_CHUNK, ..., channel].reshape(-1), minlength=256
            )
    values, n = np.arange(256), counts[0].sum()
    mean = (counts * values).sum(1) / n
    variance = ((counts * values**2).sum(1) / n - mean**2) * n / (n - 1)
    std = np.sqrt(np.maximum(variance, 1.0))  # a channel of one value stays as it is
    return torch.from_numpy(mean).to(torch.float32), torch.from_numpy(std).to(torch.float32)
