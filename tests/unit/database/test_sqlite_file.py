"""Decide how a database file is opened, and whether its place is a bad one."""

from pathlib import Path

import pytest

from hpo.database import sqlite_file
from hpo.database.sqlite_file import find_filesystem, reading_uri, warn_of_network

MOUNTS_TEXT = """\
/dev/vda / ext4 rw,relatime 0 0
server:/home /home nfs4 rw 0 0
tmpfs /home/me/scratch tmpfs rw 0 0
server:/my\\040data /my\\040data nfs rw 0 0
overlay /data overlay rw 0 0
//server/share /data cifs rw 0 0
me@host:/ /mnt/far fuse.sshfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/hpo.db", "ext4"),
        ("/homes/hpo.db", "ext4"),
        ("/home/me/hpo.db", "nfs4"),
        ("/home/me/scratch/hpo.db", "tmpfs"),
        ("/my data/hpo.db", "nfs"),
        ("/data/hpo.db", "cifs"),
        ("/mnt/far/hpo.db", "fuse.sshfs"),
    ],
)
def test_the_file_system_of_a_path_is_that_of_the_deepest_and_last_mount(path, kind):
    assert find_filesystem(path, MOUNTS_TEXT) == kind


def test_without_a_list_of_mounts_nothing_is_known():
    assert find_filesystem("/hpo.db", "") == ""


@pytest.mark.parametrize(
    ("kind", "warned"), [("ext4", 0), ("overlay", 0), ("nfs", 1), ("lustre", 1), ("fuse.sshfs", 1), ("fuseblk", 0)]
)
def test_a_database_on_a_network_file_system_gets_one_warning_with_the_reason(
    monkeypatch, tmp_path, caplog, kind, warned
):
    (tmp_path / "mounts").write_text(f"device / {kind} rw 0 0\n")
    monkeypatch.setattr(sqlite_file, "MOUNTS", tmp_path / "mounts")

    warn_of_network(Path("hpo.db"))

    assert [record.getMessage() for record in caplog.records] == [
        f"storage: hpo.db is on a network file system ({kind}), whose locks SQLite cannot rely on: workers on several "
        "machines may damage it; PostgreSQL serves them all"
    ] * warned


@pytest.mark.parametrize(
    ("path", "has_log", "uri"),
    [
        ("/a/hpo.db", True, "file:/a/hpo.db?mode=ro"),
        ("/a/hpo.db", False, "file:/a/hpo.db?mode=ro&immutable=1"),
        ("/a b/?#%.db", True, "file:/a%20b/%3F%23%25.db?mode=ro"),
    ],
)
def test_a_file_that_can_only_be_read_is_taken_as_it_is_without_a_log(path, has_log, uri):
    assert reading_uri(Path(path), has_log=has_log) == uri
