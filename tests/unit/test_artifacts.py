"""Check that files in an artifact store are whole or refused."""

import hashlib

import pytest

from hpo.artifacts import Artifact, Bucket, open_artifacts, parse_bucket, write_folder, write_whole
from hpo.errors import ArtifactDamaged, ArtifactMissing, ArtifactsUnavailable, BadInput


def test_what_is_read_is_what_was_written(tmp_path):
    artifacts = open_artifacts(str(tmp_path / "made" / "here"))
    written = artifacts.write(b"some bytes")
    assert artifacts.read(written) == b"some bytes"
    assert written == Artifact(
        artifact_id=written.artifact_id, size_bytes=10, sha256=hashlib.sha256(b"some bytes").hexdigest()
    )


@pytest.mark.parametrize("content", [b"some byteS", b"some byte", b"", b"some bytes and more"])
def test_a_changed_or_shortened_file_is_refused(tmp_path, content):
    artifacts = open_artifacts(str(tmp_path))
    written = artifacts.write(b"some bytes")
    (tmp_path / written.artifact_id).write_bytes(content)
    with pytest.raises(ArtifactDamaged, match=written.artifact_id):
        artifacts.read(written)


def test_of_a_file_that_is_too_large_no_more_is_read_than_shows_that(tmp_path, monkeypatch):
    monkeypatch.setattr("hpo.artifacts.NOTE_BYTES", 10)
    artifacts = open_artifacts(str(tmp_path))
    artifacts.write_note("note", b"some bytes")
    assert artifacts.find_note("note") == b"some bytes"
    with (tmp_path / "note").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ArtifactDamaged, match="file note has more than 10 bytes"):
        artifacts.find_note("note")
    with pytest.raises(ArtifactDamaged, match="note"):
        artifacts.read(Artifact(artifact_id="note", size_bytes=10, sha256="0" * 64))


def test_a_removed_file_is_missing_and_may_be_removed_again(tmp_path):
    artifacts = open_artifacts(str(tmp_path))
    written = artifacts.write(b"some bytes")
    artifacts.remove(written.artifact_id)
    artifacts.remove(written.artifact_id)
    with pytest.raises(ArtifactMissing, match=written.artifact_id):
        artifacts.read(written)


def test_a_write_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    artifacts = open_artifacts(str(tmp_path))

    def fill_up(artifact_id, _content):
        (tmp_path / artifact_id).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artifacts.store, "write", fill_up)
    with pytest.raises(ArtifactsUnavailable, match="No space left on device"):
        artifacts.write(b"some bytes")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "bucket"),
    [
        ("s3://team", Bucket(scheme="s3", name="team", prefix="")),
        ("s3://team/", Bucket(scheme="s3", name="team", prefix="")),
        ("s3://team/hpo", Bucket(scheme="s3", name="team", prefix="hpo/")),
        ("s3://team/hpo/", Bucket(scheme="s3", name="team", prefix="hpo/")),
        ("gs://my.team-1/a/b c", Bucket(scheme="gs", name="my.team-1", prefix="a/b c/")),
        ("s3://team/ä%20", Bucket(scheme="s3", name="team", prefix="ä%20/")),
    ],
)
def test_a_bucket_has_a_name_and_maybe_a_prefix(url, bucket):
    assert parse_bucket(url) == bucket


NO_STORE = ["ftp://host/folder", "s3://", "s3:///hpo", "gs://-a", "http://x", "s3://a b", "s3://user:key@team/hpo"]
NO_PREFIX = ["s3://team//hpo", "s3://team//", "gs://team/a/../b", "s3://team/.", "s3://team/hpo?x", "s3://team/a\nb"]


@pytest.mark.parametrize("url", NO_STORE + NO_PREFIX)
def test_other_urls_are_refused_and_make_no_folder(tmp_path, monkeypatch, url):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="allowed: a folder, or s3://BUCKET or gs://BUCKET, each with or"):
        open_artifacts(url)
    assert list(tmp_path.iterdir()) == []


def test_a_google_bucket_without_credentials_is_refused_in_one_line(tmp_path, monkeypatch):
    for name in ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    with pytest.raises(BadInput, match=r"^artifacts gs://bucket: .*credentials were not found.*$"):
        open_artifacts("gs://bucket")


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="cannot create the folder: Not a directory"):
        open_artifacts(str(tmp_path / "file" / "folder"))


def test_a_file_is_written_whole_over_an_earlier_one(tmp_path):
    path = tmp_path / "report.html"
    write_whole(path, b"old")

    write_whole(path, b"new")

    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"report.html": b"new"}


def test_a_file_that_cannot_be_written_leaves_the_earlier_one_and_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    write_whole(path, b"old")

    def fail(_file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, b"new")

    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"report.html": b"old"}


def test_a_store_that_is_only_looked_at_is_not_made(tmp_path):
    artifacts = open_artifacts(str(tmp_path / "absent"), create=False)

    with pytest.raises(ArtifactMissing, match="file 0a does not exist"):
        artifacts.read(Artifact(artifact_id="0a", size_bytes=1, sha256=""))
    assert list(tmp_path.iterdir()) == []


FILES = {"a.txt": b"some", "b.bin": b"bytes"}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("there", [False, True], ids=["new", "empty"])
def test_a_folder_is_written_whole_and_leaves_nothing_beside_it(tmp_path, there):
    folder = tmp_path / "out"
    if there:
        folder.mkdir()
    write_folder(folder, FILES)
    assert contents(folder) == FILES
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_that_cannot_be_written_to_its_end_does_not_appear(tmp_path):
    with pytest.raises(BadInput, match=r"out: cannot be written: "):
        write_folder(tmp_path / "out", FILES | {"no/such": b""})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_refused_and_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_bytes(b"mine")
    with pytest.raises(BadInput, match=r"out: already exists and is not empty$"):
        write_folder(tmp_path / "out", FILES)
    with pytest.raises(BadInput, match=r"mine: already exists and is not empty$"):
        write_folder(tmp_path / "out" / "mine", FILES)
    assert contents(tmp_path / "out") == {"mine": b"mine"}


def test_a_folder_in_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(BadInput, match=f"^folder {tmp_path}/no/out: its parent folder {tmp_path}/no does not exist$"):
        write_folder(tmp_path / "no" / "out", FILES)
