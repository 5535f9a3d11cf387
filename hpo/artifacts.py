"""Keep files in an artifact store, named by URL, and check them by checksum when they are read."""

from __future__ import annotations

import hashlib
import io
import os
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from optuna.artifacts import Boto3ArtifactStore, FileSystemArtifactStore, GCSArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.exceptions import ExperimentalWarning

from hpo.errors import ArtifactDamaged, ArtifactMissing, ArtifactsUnavailable, BadInput

ALLOWED = "a folder, or s3://BUCKET or gs://BUCKET without a path"
Store = FileSystemArtifactStore | Boto3ArtifactStore | GCSArtifactStore


@dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """Name a stored file, with what is needed to know it again.

    Attributes:
        sha256: Of the content, in hexadecimal.
    """

    artifact_id: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Artifacts:
    """Hold an artifact store: one of Optuna's, so that optuna-dashboard can read it too."""

    url: str
    store: Store = field(repr=False)

    def write(self, content: bytes) -> Artifact:
        """Store a file under a new name.

        Nothing refers to the name before this returns, so that nobody reads a file half-written.

        Raises:
            ArtifactsUnavailable: The store is full or cannot be reached.
        """
        artifact_id = str(uuid.uuid4())
        with self._translated(artifact_id):
            try:
                self.store.write(artifact_id, io.BytesIO(content))
            except OSError:  # a folder may hold half of the file
                with suppress(ArtifactNotFound):
                    self.store.remove(artifact_id)
                raise
        return Artifact(artifact_id=artifact_id, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())

    def read(self, artifact: Artifact) -> bytes:
        """Read a file whole.

        Raises:
            ArtifactMissing: The store has no such file.
            ArtifactDamaged: Its content is not what was written.
            ArtifactsUnavailable: The store cannot be reached.
        """
        with self._translated(artifact.artifact_id), self.store.open_reader(artifact.artifact_id) as file:
            content = file.read()
        if hashlib.sha256(content).hexdigest() != artifact.sha256:
            raise ArtifactDamaged(f"artifacts {self.url}: file {artifact.artifact_id} is not what was written")
        return content

    def write_note(self, name: str, content: bytes) -> None:
        """Store a file under a name that others can work out; one that is there is replaced.

        Raises:
            ArtifactsUnavailable: The store is full or cannot be reached.
        """
        with self._translated(name):
            self.store.write(name, io.BytesIO(content))

    def find_note(self, name: str) -> bytes | None:
        """Read a file by its name; None where there is none.

        Raises:
            ArtifactsUnavailable: The store cannot be reached.
        """
        try:
            with self._translated(name), self.store.open_reader(name) as file:
                return file.read()
        except ArtifactMissing:
            return None

    def remove(self, artifact_id: str) -> bool:
        """Delete a file, if it is there.

        Returns:
            Whether it may have been there: a bucket does not say.

        Raises:
            ArtifactsUnavailable: The store cannot be reached.
        """
        with suppress(ArtifactMissing), self._translated(artifact_id):
            self.store.remove(artifact_id)
            return True
        return False

    @contextmanager
    def _translated(self, artifact_id: str) -> Iterator[None]:
        """Turn the errors of whatever store it is into ours: each has a tree of its own."""
        try:
            yield
        except ArtifactNotFound as error:
            raise ArtifactMissing(f"artifacts {self.url}: there is no file {artifact_id}") from error
        except Exception as error:
            raise ArtifactsUnavailable(f"artifacts {self.url}: {error}") from error


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that nobody ever sees half of it, over an earlier one.

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
    """Refuse a URL that can name no artifact store, without touching anything.

    Raises:
        BadInput: The URL is of another kind.
    """
    parts = urlsplit(url)
    bucket = parts.scheme in ("s3", "gs") and parts.netloc and not parts.path.strip("/")
    if not url or ("://" in url and not bucket):
        raise BadInput(f"artifacts {url!r}: allowed are {ALLOWED}")


def absolute_artifacts(url: str) -> str:
    """Give the URL of the same store for a process that works in another folder."""
    return url if "://" in url else str(Path(url).absolute())


def open_artifacts(url: str, *, create: bool = True) -> Artifacts:
    """Open an artifact store by URL.

    Args:
        create: Whether a folder that is not there is made; else it counts as empty.

    Raises:
        BadInput: The URL is of another kind, or the folder cannot be made.

    Side effects:
        May make the folder.
    """
    check_artifacts_url(url)
    parts = urlsplit(url)
    if "://" in url:
        return Artifacts(url, _open_bucket(parts.scheme, parts.netloc))
    try:
        if create:
            Path(url).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"artifacts {url!r}: the folder cannot be made: {error.strerror}") from error
    return Artifacts(url, FileSystemArtifactStore(url))


def check_new_folder(path: Path) -> None:
    """Refuse a path at which no new folder can be made.

    Raises:
        BadInput: Something that is not an empty folder stands there, or the folder that it is to be in does not exist.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise BadInput(f"folder {path}: there is something already; allowed is a new or an empty folder")
    if not path.absolute().parent.is_dir():
        raise BadInput(f"folder {path}: there is no folder {path.absolute().parent} to make it in")


def write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder of files that appears whole or not at all.

    Raises:
        BadInput: Something that is not an empty folder stands there, or it cannot be written.
    """
    check_new_folder(path)
    try:
        with TemporaryDirectory(prefix=f".{path.name}-", dir=path.absolute().parent) as beside:
            folder = Path(beside) / "files"
            folder.mkdir()
            for name, content in files.items():
                _write_synced(folder / name, content)
            folder.replace(path)
    except OSError as error:
        raise BadInput(f"folder {path}: it cannot be written: {error.strerror}") from error


def _write_synced(path: Path, content: bytes) -> None:
    """Write a file, and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


class _GoogleStore(GCSArtifactStore):
    """Be Optuna's store, but say in Optuna's words that a file is not there."""

    def remove(self, artifact_id: str) -> None:
        from google.api_core.exceptions import NotFound

        try:
            super().remove(artifact_id)
        except NotFound as error:
            raise ArtifactNotFound(artifact_id) from error


def _open_bucket(scheme: str, bucket: str) -> Store:
    try:
        return Boto3ArtifactStore(bucket) if scheme == "s3" else _open_google(bucket)
    except ImportError as error:
        raise BadInput(f"artifacts {scheme}://{bucket}: needs `pip install hpo[{scheme}]` ({error})") from error


def _open_google(bucket: str) -> Store:
    from google.auth.exceptions import GoogleAuthError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        try:
            return _GoogleStore(bucket)
        except (GoogleAuthError, OSError) as error:  # OSError: no project is named
            raise BadInput(f"artifacts gs://{bucket}: {str(error).splitlines()[0]}") from error
