"""The files of tensors that hold somebody's own decoded images, which every process maps into its memory."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hpo.errors import BadInput, DataDamaged, DataUnavailable
from hpo.settings import Augment, default_augment
from hpo.training.data import Dataset, Split, padding_for

FORMAT = 1
"""Raise it when the same images would be decoded or split otherwise."""

FOLDER = "images"
"""Where the files are, in the folder of the data sets."""

SPLITS = ("train", "validation", "test")
TENSORS = (*(f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels")), "mean", "std")


def load_own(name: str, checksum: str, data_dir: Path, augment: Augment | None) -> Dataset:
    """Map a data set's file of tensors.

    Args:
        augment: None for crops, and mirroring if the images have colour.

    Raises:
        BadInput: The folder of the data sets has another data set of that name.
        DataDamaged: The file is cut short or altered.
        DataUnavailable: The folder of the data sets has none of that name.
    """
    tensors, classes = _map(_require_file(name, checksum, data_dir), checksum)
    train, validation = (Split(images=tensors[f"{s}_images"], labels=tensors[f"{s}_labels"]) for s in SPLITS[:2])
    height, width, channels = train.images.shape[1:]
    chosen = augment or default_augment(name, channels)
    return Dataset(
        name=name,
        classes=classes,
        train=train,
        validation=validation,
        mean=tensors["mean"],
        std=tensors["std"],
        padding=padding_for(chosen, height, width),
        flip=chosen == "crop,flip",
        checksum=checksum,
    )


def read_own_test(name: str, checksum: str, data_dir: Path) -> Split:
    """Map the test split of a data set's file of tensors.

    Raises:
        BadInput, DataDamaged, DataUnavailable: As `load_own`.
    """
    tensors, _ = _map(_require_file(name, checksum, data_dir), checksum)
    return Split(images=tensors["test_images"], labels=tensors["test_labels"])


def list_own(data_dir: Path) -> list[tuple[str, str]]:
    """List the name and checksum of each file of tensors, sorted by name.

    Raises:
        DataDamaged: A file is cut short or altered.
    """
    metadata = [_metadata(file) for file in sorted((data_dir / FOLDER).glob("*.safetensors"))]
    return [(facts["name"], facts["checksum"]) for facts in metadata]


def _checksum(tensors: Mapping[str, Tensor], classes: Sequence[str]) -> str:
    digest = hashlib.sha256(json.dumps([FORMAT, *classes]).encode())
    for name in TENSORS:
        digest.update(json.dumps([name, list(tensors[name].shape)]).encode())
        digest.update(tensors[name].numpy().data)
    return digest.hexdigest()


def write_tensors(
    data_dir: Path, name: str, tensors: Mapping[str, Tensor], classes: Sequence[str], fingerprint: str
) -> str:
    """Write the file of tensors, which appears whole, and return its checksum."""
    checksum = _checksum(tensors, classes)
    facts = {"name": name, "checksum": checksum, "source": fingerprint, "classes": json.dumps(classes)}
    path = _file(data_dir, name, checksum)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(dict(tensors), beside, metadata=facts)
        beside.chmod(0o644)  # the library leaves it to its owner alone, but workers of others map it too
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    except (OSError, SafetensorError) as error:
        raise BadInput(f"--data-dir {data_dir}: {path} cannot be written: {error}") from error
    finally:
        if beside.exists():
            beside.unlink()
    return checksum


def _file(data_dir: Path, name: str, checksum: str) -> Path:
    return data_dir / FOLDER / f"{name}-{checksum[:12]}.safetensors"


def find_decoded(data_dir: Path, name: str, fingerprint: str) -> str | None:
    """Return the checksum of the file that was decoded from unchanged images, or None."""
    for file in (data_dir / FOLDER).glob(f"{name}-*.safetensors"):
        facts = _metadata(file)
        if facts["source"] == fingerprint:
            return facts["checksum"]
    return None


def _require_file(name: str, checksum: str, data_dir: Path) -> Path:
    file = _file(data_dir, name, checksum)
    if file.is_file():
        return file
    others = [other for title, other in list_own(data_dir) if title == name]
    if others:
        raise BadInput(
            f"data set {name} in {data_dir}: its checksum is {', '.join(other[:12] for other in others)}, "
            f"the study was created with {checksum[:12]}"
        )
    raise DataUnavailable(
        f"data set {name} is not in {data_dir}; `hpo worker --dataset PATH` decodes its folder or .npz file"
    )


def _metadata(file: Path) -> dict[str, str]:
    with _open(file) as tensors:
        facts: dict[str, str] = tensors.metadata() or {}
    if missing := {"name", "checksum", "source", "classes"} - facts.keys():
        raise DataDamaged(f"{file} is damaged: it does not state its {', '.join(sorted(missing))}; remove it")
    return facts


def _map(file: Path, checksum: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Map the tensors of a file into memory, and check them."""
    facts = _metadata(file)
    with _open(file) as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is not a mapping
    classes = tuple(json.loads(facts["classes"]))
    actual = _checksum(tensors, classes) if tensors.keys() == set(TENSORS) else "of other tensors"
    if actual != checksum:
        raise DataDamaged(
            f"{file} is damaged: its checksum is {actual}, expected {checksum}; remove it, and decode the images again"
        )
    return tensors, classes


def _open(file: Path) -> Any:
    try:
        return safe_open(file, "pt")
    except (OSError, SafetensorError) as error:
        raise DataDamaged(f"{file} cannot be read: {error}; remove it, and decode the images again") from error
