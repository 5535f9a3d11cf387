"""The trials of a study as runs of an MLflow experiment, in a folder or on a tracking server."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TypeVar

from hpo import name_extra
from hpo.artifacts import new_folder
from hpo.errors import BadInput
from hpo.masking import mask_secrets
from hpo.results.exchange.trials import MEASURES, ExportedTrial, draw, recipe_fields, write_value

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

T = TypeVar("T")

STATUS = {"complete": "FINISHED", "pruned": "KILLED", "fail": "FAILED"}
"""MLflow's word for the end of a trial; it has none for a pruned one, whose state is a tag as well."""

DATABASE, ARTIFACTS = "mlflow.db", "artifacts"
"""The names of database and artifacts in the folder."""

METRICS_AT_ONCE, PARAMS_AT_ONCE = 1_000, 100
"""How many metrics and parameters MLflow takes in one call."""

StoreFigure = Callable[[str, str, bytes], None]
"""Store a figure of a run, given by run id, file name and PNG."""


def write(name: str, trials: Sequence[ExportedTrial], folder: Path) -> None:
    """Write an experiment with one run per trial to a new folder: a SQLite database, and figures.

    Args:
        name: Of the experiment.

    Raises:
        BadInput: MLflow is not installed, or the folder is neither new nor empty, or cannot be written.
    """
    with new_folder(folder) as unfinished:
        client = _client(f"sqlite:///{unfinished / DATABASE}")
        location = (folder.absolute() / ARTIFACTS).as_uri()

        def store(run_id: str, file: str, figure: bytes) -> None:
            """Store a figure where MLflow will look for it when the folder has its place."""
            path = unfinished / ARTIFACTS / run_id / "artifacts" / file
            path.parent.mkdir(parents=True)
            path.write_bytes(figure)

        _write_runs(client, client.create_experiment(name, location), trials, store)


def send(name: str, trials: Sequence[ExportedTrial], tracking_uri: str) -> None:
    """Send an experiment with one run per trial to a tracking server.

    Args:
        name: Of the experiment.

    Raises:
        BadInput: MLflow is not installed, the server cannot be reached or refuses, or has the experiment already.
    """
    client = _client(tracking_uri)
    from mlflow.exceptions import MlflowException

    def store(run_id: str, file: str, figure: bytes) -> None:
        """Send a figure to the server."""
        with TemporaryDirectory() as folder:
            path = Path(folder) / file
            path.write_bytes(figure)
            client.log_artifact(run_id, str(path))

    try:
        _write_runs(client, client.create_experiment(name), trials, store)
    except MlflowException as error:
        raise BadInput(f"--out {mask_secrets(tracking_uri)}: {mask_secrets(error.message)}") from error


def _client(tracking_uri: str) -> MlflowClient:
    """Make a client of a tracking server or database.

    Raises:
        BadInput: MLflow is not installed.

    Side effects:
        Keeps MLflow, unless the environment says otherwise, from reporting its use and from logging what it does.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    try:
        from mlflow import MlflowClient
    except ImportError as error:
        raise BadInput(f"--format mlflow: needs `{name_extra('mlflow')}` ({error})") from error
    return MlflowClient(tracking_uri)


def _write_runs(client: MlflowClient, experiment: str, trials: Sequence[ExportedTrial], store: StoreFigure) -> None:
    for trial in trials:
        start_ms, end_ms = _milliseconds(trial.started), _milliseconds(trial.ended)
        tags = {"trial": str(trial.number), "state": trial.state}
        run = client.create_run(experiment, start_time=start_ms, tags=tags, run_name=trial.title).info.run_id
        for params in batched(_params(trial), PARAMS_AT_ONCE):
            client.log_batch(run, params=params)
        for metrics in batched(_metrics(trial, end_ms), METRICS_AT_ONCE):
            client.log_batch(run, metrics=metrics)
        if (figure := draw(trial)) is not None:
            store(run, f"{trial.title}.png", figure)
        client.set_terminated(run, STATUS[trial.state], end_ms)


def _params(trial: ExportedTrial) -> list[Param]:
    from mlflow.entities import Param

    return [Param(name, str(write_value(value))) for name, value in recipe_fields(trial).items()]


def _metrics(trial: ExportedTrial, at_ms: int) -> list[Metric]:
    from mlflow.entities import Metric

    return [
        Metric(name, value, at_ms, point.iteration)
        for point in trial.curve
        for name in MEASURES
        if (value := getattr(point, name)) is not None
    ]


def _milliseconds(moment: datetime | None) -> int:
    return int(1000 * moment.timestamp()) if moment else 0


def batched(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Split items into groups of at most `size`."""
    return (items[start : start + size] for start in range(0, len(items), size))
