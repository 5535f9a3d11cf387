"""Artifact stores, identified by URL, whose files are verified by checksum when they are read."""

from __future__ import annotations

import hashlib
import io
import os
import re
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from optuna.artifacts import Boto3ArtifactStore, FileSystemArtifactStore, GCSArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.exceptions import ExperimentalWarning

from hpo import name_extra
from hpo.errors import ArtifactDamaged, ArtifactMissing, ArtifactsUnavailable, BadInput

ALLOWED = "a folder, or s3://BUCKET or gs://BUCKET, each with or without a /PREFIX"
"""What messages name as allowed URLs."""

NOTE_BYTES = 1 << 26
"""The largest note: that of a full run has a megabyte, and more where it was handed back between its evaluations."""

_BUCKET = re.compile(r"(?P<scheme>s3|gs)://(?P<bucket>[A-Za-z0-9][\w.-]*)(/(?P<prefix>[^?#]*))?", re.ASCII)
"""A bucket's URL; a query or a fragment has no meaning there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bucket:
    """A bucket, and what the names of all files of one store in it begin with.

    Attributes:
        prefix: Empty, or ends with a slash.
    """

    scheme: str
    name: str
    prefix: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """A stored file, with the size and checksum to verify it.

    Attributes:
        sha256: SHA-256 of the content, in hexadecimal.
    """

    artifact_id: str
    size_bytes: int
    sha256: str


class PrefixedStore:
    """A store within another, whose files have a common beginning of their names."""

    def __init__(self, whole: Boto3ArtifactStore | GCSArtifactStore, prefix: str) -> None:
        self._whole = whole
        self._prefix = prefix

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Open a file for reading."""
        return self._whole.open_reader(self._prefix + artifact_id)

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Write a file."""
        self._whole.write(self._prefix + artifact_id, content_body)

    def remove(self, artifact_id: str) -> None:
        """Delete a file."""
        self._whole.remove(self._prefix + artifact_id)


Store = FileSystemArtifactStore | Boto3ArtifactStore | GCSArtifactStore | PrefixedStore


@dataclass(frozen=True, slots=True)
class Artifacts:
    """An artifact store: one of Optuna's, so that optuna-dashboard can read it too."""

    url: str
    store: Store = field(repr=False)

    def write(self, content: bytes) -> Artifact:
        """Store a file under a new name.

        Nothing refers to the name before this returns, so nobody reads a partly written file.

        Raises:
            ArtifactsUnavailable: The store is full or cannot be reached.
        """
        artifact_id = str(uuid.uuid4())
        with self._translated(artifact_id):
            try:
                self.store.write(artifact_id, io.BytesIO(content))
            except OSError:  # a folder may hold part of the file
                with suppress(ArtifactNotFound):
                    self.store.remove(artifact_id)
                raise
        return Artifact(artifact_id=artifact_id, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())

    def read(self, artifact: Artifact) -> bytes:
        """Read a whole file.

        Raises:
            ArtifactMissing: The store has no such file.
            ArtifactDamaged: Its checksum is wrong.
            ArtifactsUnavailable: The store cannot be reached.
        """
        with self._translated(artifact.artifact_id), self.store.open_reader(artifact.artifact_id) as file:
            content = _read_at_most(file, artifact.size_bytes)
        if hashlib.sha256(content).hexdigest() != artifact.sha256:
            raise ArtifactDamaged(f"artifacts {self.url}: file {artifact.artifact_id} is corrupt (checksum mismatch)")
        return content

    def write_note(self, name: str, content: bytes) -> None:
        """Store a file under a name that others can derive, replacing an earlier file.

        Raises:
            ArtifactsUnavailable: The store is full or cannot be reached.
        """
        with self._translated(name):
            self.store.write(name, io.BytesIO(content))

    def find_note(self, name: str) -> bytes | None:
        """Read a file by its name; return None if there is none.

        Raises:
            ArtifactDamaged: It is larger than any note.
            ArtifactsUnavailable: The store cannot be reached.
        """
        try:
            with self._translated(name), self.store.open_reader(name) as file:
                content = _read_at_most(file, NOTE_BYTES)
        except ArtifactMissing:
            return None
        if len(content) > NOTE_BYTES:
            raise ArtifactDamaged(f"artifacts {self.url}: file {name} has more than {NOTE_BYTES:,} bytes")
        return content

    def remove(self, artifact_id: str) -> bool:
        """Delete a file, if it exists.

        Returns:
            Whether it may have existed: a bucket does not tell.

        Raises:
            ArtifactsUnavailable: The store cannot be reached.
        """
        with suppress(ArtifactMissing), self._translated(artifact_id):
            self.store.remove(artifact_id)
            return True
        return False

    @contextmanager
    def _translated(self, artifact_id: str) -> Iterator[None]:
        """Turn the errors of any store into ours: each store has its own exception classes."""
        try:
            yield
        except ArtifactNotFound as error:
            raise ArtifactMissing(f"artifacts {self.url}: file {artifact_id} does not exist") from error
        except Exception as error:
            raise ArtifactsUnavailable(f"artifacts {self.url}: {error}") from error


def _read_at_most(file: BinaryIO, limit_bytes: int) -> bytes:
    """Read a file, or of a file that is larger than a limit, a byte more than that."""
    content = bytearray()
    while piece := file.read(limit_bytes + 1 - len(content)):  # some stores give less than they are asked for
        content += piece
    return bytes(content)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, replacing an earlier one, so that nobody ever sees part of it.

    Raises:
        OSError: The disk is full, or the folder cannot be written to; an earlier file stays as it was.
    """
    beside = path.with_name(f".{path.name}.{uuid.uuid4()}")
    try:
        _write_synced(beside, content)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def check_artifacts_url(url: str) -> None:
    """Refuse a URL that cannot be an artifact store's, without side effects.

    Raises:
        BadInput: The URL is of another kind.
    """
    if not url or ("://" in url and parse_bucket(url) is None):
        raise BadInput(f"artifacts {url!r}: allowed: {ALLOWED}")


def check_artifacts_folder(url: str) -> None:
    """Refuse a folder that this process cannot write or make, without side effects.

    Raises:
        BadInput: It is such a folder.
    """
    if "://" in url:
        return
    path = Path(url).absolute()
    folder = next(place for place in (path, *path.parents) if os.path.lexists(place))
    if not (os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK, effective_ids=True)):  # noqa: PTH112
        raise BadInput(f"artifacts {url!r}: {folder} is not a writable folder; choose another with --artifacts")


def parse_bucket(url: str) -> Bucket | None:
    """Parse the URL of a bucket, with or without a prefix; return None for any other URL."""
    matched = _BUCKET.fullmatch(url)
    if matched is None or not url.isprintable():
        return None
    folders = matched["prefix"].removesuffix("/").split("/") if matched["prefix"] else []
    if not {"", ".", ".."}.isdisjoint(folders):
        return None
    return Bucket(scheme=matched["scheme"], name=matched["bucket"], prefix="".join(f"{name}/" for name in folders))


def absolute_artifacts(url: str) -> str:
    """Return the URL of the same store for a process with another working directory."""
    return url if "://" in url else str(Path(url).absolute())


def open_artifacts(url: str, *, create: bool = True) -> Artifacts:
    """Open an artifact store by URL.

    Args:
        create: Whether to create a missing folder; otherwise it counts as empty.

    Raises:
        BadInput: The URL is of another kind, or the folder cannot be created.

    Side effects:
        May create the folder.
    """
    check_artifacts_url(url)
    if (bucket := parse_bucket(url)) is not None:
        return Artifacts(url, _open_bucket(bucket))
    try:
        if create:
            Path(url).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"artifacts {url!r}: cannot create the folder: {error.strerror}") from error
    return Artifacts(url, FileSystemArtifactStore(url))


def check_new_folder(path: Path) -> None:
    """Refuse a path at which no new folder can be created.

    Raises:
        BadInput: The path exists and is not an empty folder, or its parent folder does not exist.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise BadInput(f"folder {path}: already exists and is not empty")
    if not path.absolute().parent.is_dir():
        raise BadInput(f"folder {path}: its parent folder {path.absolute().parent} does not exist")


def write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder of files that appears whole or not at all.

    Raises:
        BadInput: The path exists and is not an empty folder, or it cannot be written.
    """
    with new_folder(path) as folder:
        for name, content in files.items():
            _write_synced(folder / name, content)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a folder to fill, which takes its place when the context ends without an error.

    Raises:
        BadInput: The path exists and is not an empty folder, or it cannot be written.
    """
    check_new_folder(path)
    try:
        with TemporaryDirectory(prefix=f".{path.name}-", dir=path.absolute().parent) as beside:
            folder = Path(beside) / "files"
            folder.mkdir()
            yield folder
            folder.replace(path)
    except OSError as error:
        raise BadInput(f"folder {path}: cannot be written: {error.strerror}") from error


def _write_synced(path: Path, content: bytes) -> None:
    """Write a file, and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


class _GoogleStore(GCSArtifactStore):
    """Optuna's store, which reports a missing file as Optuna's other stores do."""

    def remove(self, artifact_id: str) -> None:
        """Delete a file.

        Raises:
            ArtifactNotFound: There is no such file.
        """
        from google.api_core.exceptions import NotFound

        try:
            super().remove(artifact_id)
        except NotFound as error:
            raise ArtifactNotFound(artifact_id) from error


def _open_bucket(bucket: Bucket) -> Store:
    url = f"{bucket.scheme}://{bucket.name}"
    try:
        store = Boto3ArtifactStore(bucket.name) if bucket.scheme == "s3" else _open_google(bucket.name)
    except ImportError as error:
        raise BadInput(f"artifacts {url}: needs `{name_extra(bucket.scheme)}` ({error})") from error
    return PrefixedStore(store, bucket.prefix) if bucket.prefix else store


def _open_google(bucket: str) -> GCSArtifactStore:
    from google.auth.exceptions import GoogleAuthError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        try:
            return _GoogleStore(bucket)
        except (GoogleAuthError, OSError) as error:  # OSError: no project is named
            raise BadInput(f"artifacts gs://{bucket}: {str(error).splitlines()[0]}") from error
