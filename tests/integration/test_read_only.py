"""Read a database file that the user may not write, as on a share or in a snapshot that is mounted read-only."""

from __future__ import annotations

import os
import pwd
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hpo import study
from hpo.artifacts import check_artifacts_folder
from hpo.database import overview
from hpo.database.storage import Storage, open_storage
from hpo.errors import BadInput, StorageUnavailable
from tests.conftest import UNPRIVILEGED
from tests.integration.support import SETTINGS, make_study

Open = Callable[..., Storage]


@contextmanager
def unprivileged() -> Iterator[None]:
    """Lose the rights of root, to whom every file is writable, while the context lasts."""
    if os.geteuid() != 0:
        yield
        return
    entry = pwd.getpwnam(UNPRIVILEGED)
    os.setegid(entry.pw_gid)
    os.seteuid(entry.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Give a folder that others may read, which pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="hpo-read-only-", dir="/tmp") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path
        path.chmod(0o755)


def forbid_writing(folder: Path, places: str) -> None:
    for path in folder.iterdir():
        path.chmod(0o444 if places != "folder" else 0o666)
    folder.chmod(0o777 if places == "file" else 0o555)


@pytest.mark.parametrize("places", ["file", "folder", "both"])
@pytest.mark.parametrize("in_use", [False, True], ids=["closed", "in use"])
def test_reading_commands_read_what_cannot_be_written(folder: Path, opened: Open, places: str, in_use: bool) -> None:
    url = f"sqlite:///{folder}/hpo.db"
    writer = open_storage(url, "create")
    made = make_study(writer, 3)
    if not in_use:
        writer.close()
    forbid_writing(folder, places)
    before = {path: path.read_bytes() for path in folder.glob("*.db*")}

    with unprivileged():
        storage = opened(url, "read")
        assert study.load(storage, None).settings == SETTINGS
        assert overview.count(storage, made.study_id) == overview.Counts(waiting=3)
        with pytest.raises(StorageUnavailable, match=r"read-?only"):
            make_study(storage, 5)
        for access in ("create", "write"):
            with pytest.raises(BadInput) as refused:
                open_storage(url, access)
            assert str(refused.value) == (
                f"storage: {folder}/hpo.db cannot be written (the file or its folder); commands that only read work"
            )
    assert {path: path.read_bytes() for path in folder.glob("*.db*")} == before
    if in_use:
        make_study(writer, 4)
        assert overview.count(storage, made.study_id) == overview.Counts(waiting=4), "each transaction looks anew"
        writer.close()


def test_what_others_keep_to_themselves_is_refused_in_one_line(folder: Path) -> None:
    url = f"sqlite:///{folder}/hpo.db"
    open_storage(url, "create").close()
    (folder / "hpo.db").chmod(0)
    with unprivileged(), pytest.raises(BadInput) as refused:
        open_storage(url, "read")
    assert str(refused.value) == f"storage: {folder}/hpo.db is not readable for you"

    folder.chmod(0)
    with unprivileged(), pytest.raises(BadInput, match=r"^storage: the database .* does not exist"):
        open_storage(url, "read")


def test_artifacts_are_refused_where_they_could_not_be_written(folder: Path) -> None:
    (folder / "file").touch()
    folder.chmod(0o555)
    with unprivileged():
        for name, place in (("", ""), ("/new/er", ""), ("/file", "/file")):
            with pytest.raises(BadInput) as refused:
                check_artifacts_folder(f"{folder}{name}")
            assert str(refused.value) == (
                f"artifacts '{folder}{name}': {folder}{place} is not a writable folder; choose another with --artifacts"
            )
        check_artifacts_folder("s3://team/hpo")
    folder.chmod(0o777)
    with unprivileged():
        check_artifacts_folder(f"{folder}/new/er")
