"""The named data sets: load them, and download those that are not on this machine."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import pickle
import shutil
import socket
import tarfile
import tempfile
import threading
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeGuard, get_args

import numpy as np
import torch
from torch import Tensor

from hpo.errors import DataDamaged, DataUnavailable
from hpo.settings import Augment, DatasetName, default_augment
from hpo.training.data import Dataset, Split, split_dataset, stratified_split
from hpo.training.tensor_file import list_own, load_own

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10

DIGITS_TEST_SHARE = 0.2  # scikit-learn's digits come without a test split of their own
DOWNLOAD_START_S = 10.0
"""Seconds until the first byte of a download, and between two bytes, before it is abandoned."""

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""The folder of Debian's package dataset-fashion-mnist."""

FASHION_MNIST_TRAIN = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
}
"""SHA-256 of the uncompressed files, since the compressed ones differ between distributors."""


DIGIT_NAMES = tuple("0123456789")
CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FASHION_MNIST_NAMES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetState:
    """Whether a data set is on this machine."""

    title: str
    state: Literal["complete", "missing", "damaged"]
    detail: str


@dataclass(frozen=True, slots=True)
class _Source:
    """How a known data set is loaded and fetched.

    Attributes:
        load: Returns the images for training and validation.
        classes: Returns the names of the classes.
    """

    load: Callable[[Path], Split]
    classes: Callable[[Path], tuple[str, ...]]
    fetch: Callable[[Path], None] | None


def load_dataset(name: str, data_dir: Path, *, checksum: str | None = None, augment: Augment | None = None) -> Dataset:
    """Load a known data set from this machine and split it, or one's own images from their file of tensors.

    Args:
        checksum: Which of the images of that name; needed for one's own alone.
        augment: None for the data set's usual augmentation.

    Raises:
        BadInput: There are only other images of that name.
        DataDamaged: A file is missing, cut short or altered.
        DataUnavailable: The data set is not on this machine.
    """
    if not is_known(name):
        assert checksum is not None
        return load_own(name, checksum, data_dir, augment)
    source = _SOURCES[name]
    whole = source.load(data_dir)
    chosen = augment or default_augment(name, whole.images.shape[3])
    return split_dataset(name, whole, classes=source.classes(data_dir), augment=chosen)


def list_states(data_dir: Path) -> list[DatasetState]:
    """Load each data set of a folder, and say whether it is there and whole.

    Raises:
        DataDamaged: A file of one's own images is cut short or altered.
    """
    known = [(name, name, None) for name in get_args(DatasetName)]
    own = [(f"{name} ({checksum[:12]})", name, checksum) for name, checksum in list_own(data_dir)]
    return [_find_state(title, name, data_dir, checksum) for title, name, checksum in (*known, *own)]


def _find_state(title: str, name: str, data_dir: Path, checksum: str | None) -> DatasetState:
    try:
        dataset = load_dataset(name, data_dir, checksum=checksum)
    except DataUnavailable as error:
        return DatasetState(title=title, state="missing", detail=str(error))
    except DataDamaged as error:
        return DatasetState(title=title, state="damaged", detail=str(error))
    images = f"{len(dataset.train)} training and {len(dataset.validation)} validation images"
    return DatasetState(title=title, state="complete", detail=images)


def is_known(name: str) -> TypeGuard[DatasetName]:
    """Return whether this is the name of a data set that needs no path."""
    return name in get_args(DatasetName)


def fetch_dataset(name: DatasetName, data_dir: Path) -> None:
    """Download a data set, with a progress bar on stderr, unless it is on this machine.

    Raises:
        DataDamaged: A file of a data set on this machine is missing, cut short or altered.
        DataUnavailable: The download did not start within 10 seconds, or failed.

    Side effects:
        Writes below `data_dir`.
    """
    source = _SOURCES[name]
    try:
        source.load(data_dir)
    except DataUnavailable:
        assert source.fetch is not None
        source.fetch(data_dir)


def choose_dataset(name: DatasetName | Literal["auto"], data_dir: Path) -> tuple[DatasetName, str | None]:
    """Resolve `auto`: CIFAR-10 if it is on this machine or can be downloaded, else digits.

    Returns:
        The data set; and if digits replace CIFAR-10, why CIFAR-10 is not available, else None.

    Raises:
        DataDamaged: A file of a data set on this machine is missing, cut short or altered.
        DataUnavailable: A data set requested by name is neither on this machine nor can it be downloaded.
    """
    if name != "auto":
        fetch_dataset(name, data_dir)
        return name, None
    try:
        fetch_dataset("cifar10", data_dir)
    except DataUnavailable as error:
        return "digits", str(error)
    return "cifar10", None


def read_digits() -> tuple[Split, Split]:
    """Read scikit-learn's digits: the split for training and validation, and the test split."""
    from sklearn.datasets import load_digits  # here, as a worker that maps its images does without it

    bunch = load_digits()
    images = torch.from_numpy(np.rint(bunch.images * (255 / 16)).astype(np.uint8))[..., None]
    whole = Split(images=images, labels=torch.from_numpy(bunch.target.astype(np.int64)))
    return stratified_split(whole, DIGITS_TEST_SHARE)


def read_cifar(name: Literal["cifar10", "cifar100"], data_dir: Path, files: Sequence[Sequence[str]]) -> Split:
    """Read files of CIFAR-10 or CIFAR-100, each given by name and MD5 checksum.

    The official archive is taken if it is in the folder of the data sets.

    Raises:
        DataDamaged: A file is missing, cut short or altered.
        DataUnavailable: The data set is not on this machine.
    """
    folder = _require_cifar(name, data_dir)
    pixels, labels = [], []
    for file, md5 in files:
        batch = pickle.loads(_read_checked(folder / file, "md5", md5), encoding="latin1")
        pixels.append(batch["data"])
        labels += batch["labels" if name == "cifar10" else "fine_labels"]
    images = np.concatenate(pixels).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Split(images=torch.from_numpy(np.ascontiguousarray(images)), labels=torch.tensor(labels))


def read_fashion_mnist(data_dir: Path, files: Mapping[str, str]) -> Split:
    """Read the two files of a split of Fashion-MNIST, images and labels, each given by name and SHA-256 checksum.

    Raises:
        DataDamaged: A file is missing, cut short or altered.
        DataUnavailable: The data set is not on this machine.
    """
    folders = (data_dir / "FashionMNIST" / "raw", DEBIAN_FASHION_MNIST)
    folder = next((folder for folder in folders if _is_folder(folder)), None)
    if folder is None:
        raise DataUnavailable(f"fashion_mnist is in none of {', '.join(map(str, folders))}")
    images, labels = (_read_idx(folder / f"{name}.gz", sha256) for name, sha256 in files.items())
    return Split(images=images[..., None], labels=labels.to(torch.int64))


def _is_file(path: Path) -> bool:
    """Return whether a path is a file that this process can see."""
    try:
        return path.is_file()
    except OSError:  # as for a folder
        return False


def _is_folder(path: Path) -> bool:
    """Return whether a path is a folder that this process can read."""
    try:
        return path.is_dir()
    except OSError:  # the name is too long, or a parent folder cannot be read
        return False


def _load_digits(_data_dir: Path) -> Split:
    return read_digits()[0]


def _cifar(name: Literal["cifar10", "cifar100"]) -> type[CIFAR10]:
    """Return torchvision's class, which knows the addresses and checksums."""
    from torchvision.datasets import CIFAR10, CIFAR100  # here, as importing them takes a third of a worker's start

    kind: type[CIFAR10] = CIFAR10 if name == "cifar10" else CIFAR100
    return kind


def _require_cifar(name: Literal["cifar10", "cifar100"], data_dir: Path) -> Path:
    """Return the folder of the files, after unpacking the official archive if there is only that."""
    kind = _cifar(name)
    folder, archive = Path(data_dir, kind.base_folder), Path(data_dir, kind.filename)
    if not _is_folder(folder) and _is_file(archive):
        _unpack(archive, kind.tgz_md5, folder)
    if not _is_folder(folder):
        raise DataUnavailable(f"{name} is not in {data_dir}: the folder {folder} does not exist")
    return folder


def _unpack(archive: Path, md5: str, folder: Path) -> None:
    """Unpack an archive's only folder, which appears whole, even if several processes do so at once."""
    _read_checked(archive, "md5", md5, remedy="download it again")
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unpacking-") as beside:
            with tarfile.open(archive) as files:
                files.extractall(beside, filter="data")
            (Path(beside) / folder.name).replace(folder)
    except OSError as error:
        if not _is_folder(folder):  # else another process was faster
            raise DataDamaged(f"{archive} cannot be unpacked: {error}") from error


def _load_cifar10(data_dir: Path) -> Split:
    return read_cifar("cifar10", data_dir, _cifar("cifar10").train_list)


def _load_cifar100(data_dir: Path) -> Split:
    return read_cifar("cifar100", data_dir, _cifar("cifar100").train_list)


def _cifar100_names(data_dir: Path) -> tuple[str, ...]:
    meta = _cifar("cifar100").meta
    content = _read_checked(_require_cifar("cifar100", data_dir) / meta["filename"], "md5", meta["md5"])
    return tuple(pickle.loads(content, encoding="latin1")[meta["key"]])


def _load_fashion_mnist(data_dir: Path) -> Split:
    return read_fashion_mnist(data_dir, FASHION_MNIST_TRAIN)


def _read_idx(path: Path, sha256: str) -> Tensor:
    content = _read_checked(path, "sha256", sha256, opener=gzip.open)
    dimensions = content[3]
    shape = np.frombuffer(content, dtype=">u4", count=dimensions, offset=4)
    pixels = np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * dimensions)
    return torch.from_numpy(pixels.reshape(shape).copy())


def _read_checked(
    path: Path, algorithm: str, expected: str, opener: Callable[..., object] = open, remedy: str = ""
) -> bytes:
    remedy = remedy or f"remove {path.parent} to fetch the data set again"
    try:
        with opener(path, "rb") as file:  # type: ignore[attr-defined]
            content: bytes = file.read()
    except FileNotFoundError as error:
        raise DataDamaged(f"{path} is missing; {remedy}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataDamaged(f"{path} cannot be read: {error}") from error
    checksum = hashlib.new(algorithm, content).hexdigest()
    if checksum != expected:
        raise DataDamaged(f"{path} is damaged: its {algorithm} is {checksum}, expected {expected}; {remedy}")
    return content


def _fetch_cifar(name: Literal["cifar10", "cifar100"], data_dir: Path) -> None:
    kind = _cifar(name)
    with _download(name, kind.url), _staging(data_dir) as folder:
        kind(str(folder), download=True)
        (folder / kind.base_folder).replace(data_dir / kind.base_folder)


def _fetch_fashion_mnist(data_dir: Path) -> None:
    from torchvision.datasets import FashionMNIST
    from torchvision.datasets.utils import download_url

    mirror = FashionMNIST.mirrors[0]
    with _download("fashion_mnist", mirror + FashionMNIST.resources[0][0]), _staging(data_dir) as folder:
        for filename, md5 in FashionMNIST.resources:
            download_url(mirror + filename, str(folder / "raw"), filename, md5)
        (data_dir / "FashionMNIST").mkdir(exist_ok=True)
        (folder / "raw").replace(data_dir / "FashionMNIST" / "raw")


@contextmanager
def _staging(data_dir: Path) -> Iterator[Path]:
    """Provide a folder to download into, so that a data set appears whole; its files survive a failed download."""
    folder = data_dir / ".fetching"
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    shutil.rmtree(folder)


@contextmanager
def _download(name: str, url: str) -> Iterator[None]:
    """Translate the errors of a download, and abandon it if it does not start or stalls."""
    require_reachable(name, url)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_START_S)  # torchvision sets none
    try:
        yield
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        _close(error)
        raise DataUnavailable(f"{name} could not be downloaded: {str(error).strip()}") from error
    finally:
        socket.setdefaulttimeout(before)


def require_reachable(name: str, url: str, limit_s: float = DOWNLOAD_START_S) -> None:
    """Wait for the first byte of a download, at most `limit_s` seconds including name resolution.

    Raises:
        DataUnavailable: No byte arrived, or the request failed.
    """
    answer: list[Exception | None] = []

    def probe() -> None:
        """Request the first byte, and append None or the error to `answer`."""
        try:
            with urllib.request.urlopen(url, timeout=limit_s) as response:
                response.read(1)
            answer.append(None)
        except (OSError, ValueError, http.client.HTTPException) as error:
            _close(error)
            answer.append(error)

    # A thread, because name resolution has no timeout.
    prober = threading.Thread(target=probe, daemon=True)
    prober.start()
    prober.join(limit_s)
    if not answer:
        raise DataUnavailable(f"{name} could not be downloaded: no answer within {limit_s:g} s")
    if answer[0] is not None:
        raise DataUnavailable(f"{name} could not be downloaded: {str(answer[0]).strip()}") from answer[0]


def _close(error: Exception) -> None:
    """Close the connection that an HTTP error holds."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()


_SOURCES: dict[DatasetName, _Source] = {
    "cifar10": _Source(_load_cifar10, lambda _: CIFAR10_NAMES, partial(_fetch_cifar, "cifar10")),
    "cifar100": _Source(_load_cifar100, _cifar100_names, partial(_fetch_cifar, "cifar100")),
    "fashion_mnist": _Source(_load_fashion_mnist, lambda _: FASHION_MNIST_NAMES, _fetch_fashion_mnist),
    "digits": _Source(_load_digits, lambda _: DIGIT_NAMES, None),
}
