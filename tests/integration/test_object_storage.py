"""Keep checkpoints and figures in S3, served by moto, and in Google's Cloud Storage, served by an emulator."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import boto3
import pytest
from gcp_storage_emulator.server import create_server
from google.cloud.storage import Client as GoogleClient
from moto.server import ThreadedMotoServer
from PIL import Image
from sqlalchemy import func, select, text
from werkzeug.test import Client

from hpo import study
from hpo.artifacts import open_artifacts
from hpo.dashboard.server import make_app
from hpo.database import queue
from hpo.database.storage import Storage
from hpo.database.tables import AttemptRow
from hpo.errors import ArtifactDamaged, ArtifactMissing
from hpo.recipes.recipe import Recipe
from hpo.recipes.schedule import distinct_iterations
from hpo.study import Study
from hpo.training.data import Dataset
from hpo.trial.checkpoints import Checkpoints
from hpo.worker.stop import StopSignal
from hpo.worker.verify import verify
from hpo.worker.work import WorkerConfig, train_attempt
from tests.conftest import PostgreSQL, free_port
from tests.integration.conftest import Start
from tests.integration.network import connected_hosts
from tests.integration.proxy import proxied
from tests.integration.sharing import RECIPE, train_alone, train_and_finish
from tests.integration.support import NOTHING, SETTINGS, SPACE, WORKER, claim, make_study, wait_until

BUCKET = "hpo-checkpoints"
TRIALS = 4
END_S = 120.0
# All trials begin alike, with their first segment, and none ends before its budget.
ALIKE = SPACE | {
    "search": {
        "boundaries": [[20000], {"low": 32000, "high": 56000, "step": 4000}],
        "values": [[0.05], [0.01, 0.02], [0.005]],
    }
}
SHARED_ITERATIONS = 20
SHARING = replace(SETTINGS, space=ALIKE, iterations=64, sampler="random", pruner="none")


@contextmanager
def s3(address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve S3 with one bucket, and give the bucket's URL."""
    server = ThreadedMotoServer(ip_address=address, port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in (settings | {"AWS_ENDPOINT_URL": f"http://{host}:{port}"}).items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket=BUCKET)
    yield f"s3://{BUCKET}"
    server.stop()


@contextmanager
def gs(address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve Google's Cloud Storage with one bucket, and give the bucket's URL."""
    port = free_port()
    server = create_server(address, port, in_memory=True)
    server.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://{address}:{port}")
    GoogleClient().create_bucket(BUCKET)
    yield f"gs://{BUCKET}"
    server.stop()


@pytest.fixture(params=[s3, gs])
def bucket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Give the URL of an empty bucket of either kind."""
    with request.param("127.0.0.1", monkeypatch) as url:
        yield url


def test_files_in_a_bucket_are_whole_or_refused(bucket: str) -> None:
    artifacts = open_artifacts(bucket)
    written = artifacts.write(b"some bytes")
    assert artifacts.read(written) == b"some bytes"
    artifacts.write_note(written.artifact_id, b"other bytes")
    with pytest.raises(ArtifactDamaged):
        artifacts.read(written)
    artifacts.remove(written.artifact_id)
    artifacts.remove(written.artifact_id)
    with pytest.raises(ArtifactMissing):
        artifacts.read(written)
    assert artifacts.find_note(written.artifact_id) is None


def test_two_projects_in_one_bucket_do_not_meet(bucket: str) -> None:
    whole, one, other = (open_artifacts(url) for url in (bucket, f"{bucket}/team/one", f"{bucket}/team/other/"))
    written = one.write(b"some bytes")
    for artifacts in (whole, one, other):
        artifacts.write_note("note", artifacts.url.encode())
    other.remove(written.artifact_id)
    whole.remove(written.artifact_id)

    assert open_artifacts(f"{bucket}/team/one/").read(written) == b"some bytes"
    assert whole.find_note(f"team/one/{written.artifact_id}") == b"some bytes"
    assert [artifacts.find_note("note") for artifacts in (whole, one, other)] == [
        artifacts.url.encode() for artifacts in (whole, one, other)
    ]
    one.remove(written.artifact_id)
    with pytest.raises(ArtifactMissing):
        one.read(written)


def test_two_workers_share_what_they_train_through_a_bucket(
    bucket: str,
    make_url: Callable[[str], str],
    opened: Callable[..., Storage],
    digits: Dataset,
) -> None:
    url = make_url("sqlite")
    first, second = (Checkpoints(opened(url), open_artifacts(f"{bucket}/hpo")) for _ in range(2))
    outcome, alone = train_alone(RECIPE, digits)
    assert train_and_finish(RECIPE, digits, first)[1].steps == RECIPE.iterations
    shared_outcome, shared = train_and_finish(RECIPE, digits, second)
    assert (shared_outcome, shared.curve, shared.steps) == (outcome, alone.curve, 0)


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_bucket_that_does_not_exist_costs_checkpoints_and_nothing_else(
    bucket: str,
    storage: Storage,
    digits: Dataset,
    caplog: pytest.LogCaptureFixture,
) -> None:
    outcome, alone = train_alone(RECIPE, digits)
    found, watcher = train_and_finish(RECIPE, digits, Checkpoints(storage, open_artifacts(f"{bucket}-of-another")))
    assert (found, watcher.curve) == (outcome, alone.curve)
    [warning] = [record.getMessage() for record in caplog.records if record.name.startswith("hpo")]
    assert "training continues without new checkpoints" in warning


@pytest.mark.parametrize("kind", ["sqlite"])
def test_the_dashboard_shows_the_figure_that_a_worker_elsewhere_put_into_the_bucket(
    bucket: str, storage: Storage, digits: Dataset
) -> None:
    made = make_study(storage, 1, SHARING)
    assert train_attempt(made, claim(made), digits, StopSignal(), WorkerConfig(artifacts=open_artifacts(bucket)))
    [trial] = made.trials()
    [figure_id] = [name.removeprefix("artifacts:") for name in trial.system_attrs if name.startswith("artifacts:")]

    browser = Client(make_app(storage, open_artifacts(bucket, create=False), read_write=False))
    answer = browser.get(f"/artifacts/{made.study_id}/{trial._trial_id}/{figure_id}")

    assert answer.status_code == 200
    with Image.open(io.BytesIO(answer.data)) as image:
        assert (image.format, image.width) == ("PNG", 1050)


def test_workers_on_two_hosts_go_on_from_each_others_checkpoints_bit_for_bit(
    postgresql: PostgreSQL,
    opened: Callable[..., Storage],
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    url = postgresql.make_database()
    storage = opened(url)
    with (
        connected_hosts(2) as hosts,
        proxied(url, hosts[0].gateway) as (_, through),
        s3(hosts[0].gateway, monkeypatch) as bucket,
    ):
        made = make_study(storage, 1, SHARING)
        held = claim(made)  # so that both workers are there before there is something to train
        before = count_idle(storage)
        workers = [start("worker", url=through, artifacts=bucket, program=host.program) for host in hosts]
        wait_until(lambda: count_idle(storage) >= before + len(hosts), END_S, "two workers that wait")
        make_study(storage, TRIALS, SHARING)
        queue.hand_back(storage, held, NOTHING, "stopped")
        outputs = [worker.communicate(timeout=END_S) for worker in workers]

        assert [worker.returncode for worker in workers] == [0, 0], outputs
        assert study.status(made)["trials"]["complete"] == TRIALS
        checkpoints = Checkpoints(storage, open_artifacts(bucket))
        for number in range(TRIALS):
            assert "bit for bit, and so are weights" in verify(made, number, tmp_path, checkpoints, print)

    trained = trained_by_host(storage)
    assert trained.keys() == {host.name for host in hosts}
    assert min(trained.values()) > 0
    # Each iteration was trained on one of the hosts alone, and the first phase is the same in all trials: so what one
    # has trained of it, the other has taken over.
    assert sum(trained.values()) == distinct_iterations((r, SHARING.iterations) for r in recipes_of(made))
    finished = {host: recipes_of(made, host) for host in trained}
    needed = {host: distinct_iterations((r, SHARING.iterations) for r in found) for host, found in finished.items()}
    assert sum(needed.values()) - sum(trained.values()) >= SHARED_ITERATIONS


def count_idle(storage: Storage) -> int:
    """Count the connections whose last transaction has ended, as that of a worker that found no trial."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query = 'COMMIT'"
    with storage.transaction() as session:
        return int(session.scalar(text(query)) or 0)


def trained_by_host(storage: Storage) -> dict[str, int]:
    """Sum the optimizer steps that were executed on each host."""
    query = select(AttemptRow.host, func.sum(AttemptRow.trained_iterations)).where(AttemptRow.host != WORKER.host)
    with storage.transaction() as session:
        return dict(session.execute(query.group_by(AttemptRow.host)).all())


def recipes_of(made: Study, host: str | None = None) -> list[Recipe]:
    """List the recipes of a study's trials, or of those that were completed on a host."""
    query = select(AttemptRow.trial_id).where(AttemptRow.outcome == "complete")
    with made.storage.transaction() as session:
        found = set(session.scalars(query if host is None else query.where(AttemptRow.host == host)))
    return [made.recipe_of(trial) for trial in made.trials() if trial._trial_id in found]
