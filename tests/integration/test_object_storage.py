"""Keep checkpoints in S3, served by moto over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import boto3
import pytest
from moto.server import ThreadedMotoServer

from hpo.artifacts import open_artifacts
from hpo.data import Dataset
from hpo.errors import ArtifactDamaged, ArtifactMissing
from hpo.storage import Storage
from hpo.trajectory import Checkpoints

from .sharing import RECIPE, train, train_and_finish

BUCKET = "hpo-checkpoints"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve S3 on this machine, with one bucket, and give the bucket's URL."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in (settings | {"AWS_ENDPOINT_URL": f"http://{host}:{port}"}).items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket=BUCKET)
    yield f"s3://{BUCKET}"
    server.stop()


def test_files_in_s3_are_whole_or_refused(bucket: str) -> None:
    artifacts = open_artifacts(bucket)
    written = artifacts.write(b"some bytes")
    assert artifacts.read(written) == b"some bytes"
    boto3.client("s3").put_object(Bucket=BUCKET, Key=written.artifact_id, Body=b"other bytes")
    with pytest.raises(ArtifactDamaged):
        artifacts.read(written)
    artifacts.remove(written.artifact_id)
    artifacts.remove(written.artifact_id)
    with pytest.raises(ArtifactMissing):
        artifacts.read(written)


def test_two_workers_share_what_they_train_through_s3(
    bucket: str,
    make_url: Callable[[str], str],
    opened: Callable[..., Storage],
    digits: Dataset,
) -> None:
    url = make_url("sqlite")
    first, second = (Checkpoints(opened(url), open_artifacts(bucket)) for _ in range(2))
    outcome, alone = train(RECIPE, digits, None)
    assert train_and_finish(RECIPE, digits, first)[1].steps == RECIPE.iterations
    shared_outcome, shared = train_and_finish(RECIPE, digits, second)
    assert (shared_outcome, shared.curve, shared.steps) == (outcome, alone.curve, 0)


def test_a_bucket_that_does_not_exist_costs_checkpoints_and_nothing_else(
    bucket: str,
    storage: Storage,
    digits: Dataset,
    caplog: pytest.LogCaptureFixture,
) -> None:
    outcome, alone = train(RECIPE, digits, None)
    found, watcher = train_and_finish(RECIPE, digits, Checkpoints(storage, open_artifacts(f"{bucket}-of-another")))
    assert (found, watcher.curve) == (outcome, alone.curve)
    [warning] = [record.getMessage() for record in caplog.records if record.name.startswith("hpo")]
    assert "training goes on without new checkpoints" in warning
