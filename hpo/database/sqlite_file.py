"""A database in a file: whether it can be opened, and how."""

from __future__ import annotations

import logging
import os
import re
import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import NullPool

from hpo.errors import BadInput

SQLITE_BUSY_S = 60.0
"""The longest wait for SQLite's write lock."""

MOUNTS = Path("/proc/mounts")
NETWORK = frozenset({"9p", "afs", "beegfs", "ceph", "cifs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "smb3", "smbfs"})
"""Types of file systems that several machines write to; those of FUSE are nearly all remote as well."""

log = logging.getLogger(__name__)


def check_file(path: Path, access: str) -> None:
    """Refuse a file that cannot be opened as a database, without side effects.

    Raises:
        BadInput: It or its folder does not exist, or its access does not suffice.
    """
    if os.path.isdir(path) or not os.path.isdir(path.absolute().parent):  # noqa: PTH112 - pathlib may raise
        raise BadInput(
            f"storage: {path} is not a usable database path: it is a directory, or its parent directory does not exist"
        )
    if access != "create" and not os.path.isfile(path):  # noqa: PTH113 - pathlib may raise
        raise BadInput(
            f"storage: the database {path} does not exist; create it with `hpo run`, or choose another with --storage"
        )
    if access != "read" and not _is_writable(path):
        raise BadInput(f"storage: {path} cannot be written (the file or its folder); commands that only read work")
    if access == "read" and not os.access(path, os.R_OK, effective_ids=True):
        raise BadInput(f"storage: {path} is not readable for you")


def _is_writable(path: Path) -> bool:
    """Return whether this user may write an SQLite file, or make it, and its journal next to it."""
    wanted = [path.absolute().parent, *([path] if path.exists() else [])]
    return all(os.access(place, os.W_OK, effective_ids=True) for place in wanted)


def file_options(path: Path, access: str) -> dict[str, Any]:
    """Return the options of an engine for a file."""
    pragmas = ["synchronous = NORMAL", "foreign_keys = ON"]
    pragmas += ["query_only = ON"] if access == "read" else ["journal_mode = WAL"]

    def prepare(connection: Any, _record: object) -> None:
        """Set the options of a new connection."""
        connection.isolation_level = None  # transactions are begun below, not by the driver
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}")

    return place_options(path) | {"pool_events": [(prepare, "connect")]}


def place_options(path: Path) -> dict[str, Any]:
    """Return an engine's options for a file; one that cannot be written is looked at anew for each transaction."""
    if _is_writable(path):
        return {"connect_args": {"timeout": SQLITE_BUSY_S}}

    def connect() -> sqlite3.Connection:
        """Open the file for reading."""
        uri = reading_uri(path, has_log=path.with_name(f"{path.name}-wal").exists())
        return sqlite3.connect(uri, uri=True, timeout=SQLITE_BUSY_S, check_same_thread=False)

    return {"creator": connect, "poolclass": NullPool}


def reading_uri(path: Path, *, has_log: bool) -> str:
    """Write the URI of an SQLite file that can only be read.

    Args:
        has_log: Whether there is a write-ahead log, as while somebody has the file open. Without one SQLite would
            create it, and the file is taken as it is.
    """
    return f"file:{quote(str(path.absolute()))}?mode=ro{'' if has_log else '&immutable=1'}"


def warn_of_network(path: Path) -> None:
    """Log why a database on a network file system is in danger."""
    kind = find_filesystem(os.path.realpath(path), _read_mounts())
    if kind in NETWORK or kind.startswith("fuse."):
        log.warning(
            "storage: %s is on a network file system (%s), whose locks SQLite cannot rely on: workers on several "
            "machines may damage it; PostgreSQL serves them all",
            path,
            kind,
        )


def find_filesystem(path: str, mounts: str) -> str:
    """Find the type of the file system that a path is on, empty where that is not known.

    Args:
        path: Absolute, without links.
        mounts: The text of `/proc/mounts`: a device, a place, a type and more on each line; later ones cover earlier.
    """
    best_place, best_kind = "", ""
    for line in mounts.splitlines():
        _, place, kind, *_ = line.split(" ")
        place = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), place).rstrip("/")
        if len(place) >= len(best_place) and f"{path}/".startswith(f"{place}/"):
            best_place, best_kind = place, kind
    return best_kind


def _read_mounts() -> str:
    try:
        return MOUNTS.read_text("utf-8", errors="replace")
    except OSError:  # another system than Linux
        return ""
