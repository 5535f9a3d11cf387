"""Commands on the results of a study (best, verify, report, dashboard) and on its storage (gc, upgrade)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpo.cli.options import (
    MAX_NUMBER,
    ArtifactsOption,
    BudgetOption,
    DataOption,
    JsonOption,
    StorageOption,
    StudyOption,
)
from hpo.cli.output import print_json, say, show
from hpo.paths import expand_path
from hpo.settings import (
    DEFAULT_ARTIFACTS,
    DEFAULT_CHECKPOINT_GB,
    DEFAULT_DASHBOARD_PORT,
    DEFAULT_STORAGE,
    GIGABYTE,
    LOOPBACK,
    default_data_dir,
)

if TYPE_CHECKING:
    from hpo.study import Best, Study


def best(
    study_name: StudyOption = None,
    export: Annotated[
        Path | None,
        typer.Option(
            parser=expand_path,
            metavar="FOLDER",
            help="New folder for weights, recipe, metrics and a model card.",
        ),
    ] = None,
    storage: StorageOption = DEFAULT_STORAGE,
    artifacts: ArtifactsOption = DEFAULT_ARTIFACTS,
    data_dir: DataOption = None,
    json_output: JsonOption = False,
) -> None:
    """Show the best trial: value, recipe and curve.

    After `hpo confirm` it is the trial of the confirmed recipe.
    """
    from dataclasses import asdict

    from hpo import study as studies
    from hpo.cli import view
    from hpo.database.storage import open_storage
    from hpo.results import confirmation

    study = studies.load(open_storage(storage, "read" if export is None else "write"), study_name)
    winner = confirmation.load_best(study)
    if export is not None:
        _export(study, winner, export, artifacts, data_dir or default_data_dir())
    if json_output:
        confirmed = confirmation.find(study)
        found = {"recipe": winner.recipe.to_dict(), "confirmation": confirmed and confirmation.to_dict(confirmed)}
        print_json(asdict(winner) | found)
    else:
        show(view.best(winner, study.base.to_dict(), confirmation.explain(study)))


def _export(study: Study, winner: Best, path: Path, artifacts: str, data_dir: Path) -> None:
    from hpo.artifacts import check_new_folder, open_artifacts, write_folder
    from hpo.results import benchmark, confirmation, export
    from hpo.trial.checkpoints import Checkpoints
    from hpo.worker.verify import load_as_worker

    check_new_folder(path)
    dataset = load_as_worker(study, data_dir)
    checkpoints = Checkpoints(study.storage, open_artifacts(artifacts))
    test = benchmark.find_sentence(study, winner.trial)
    exported = export.load(study, winner, dataset, checkpoints, confirmation.explain(study), test, say)
    write_folder(path, export.files(exported))
    say(f"wrote trial {winner.trial} to {path}")


def verify(
    trial: Annotated[
        int | None,
        typer.Option(min=0, max=MAX_NUMBER, metavar="N", help="Number of a finished trial.", show_default="the best"),
    ] = None,
    study_name: StudyOption = None,
    storage: StorageOption = DEFAULT_STORAGE,
    artifacts: ArtifactsOption = DEFAULT_ARTIFACTS,
    data_dir: DataOption = None,
) -> None:
    """Retrain a trial and compare it bit for bit."""
    from hpo import study as studies
    from hpo.artifacts import open_artifacts
    from hpo.database.storage import open_storage
    from hpo.results import confirmation
    from hpo.trial.checkpoints import Checkpoints
    from hpo.worker.verify import verify as verify_trial

    database = open_storage(storage)
    study = studies.load(database, study_name)
    checkpoints = Checkpoints(database, open_artifacts(artifacts))
    number = confirmation.load_best(study).trial if trial is None else trial
    print(verify_trial(study, number, data_dir or default_data_dir(), checkpoints, say))


def report(
    study_name: StudyOption = None,
    out: Annotated[
        Path | None,
        typer.Option(parser=expand_path, metavar="FOLDER", help="Folder of the report.", show_default="STUDY-report"),
    ] = None,
    storage: StorageOption = DEFAULT_STORAGE,
) -> None:
    """Write a report with figures.

    One HTML page that needs no network, and the same in Markdown.
    """
    from hpo import study as studies
    from hpo.database.storage import open_storage
    from hpo.results.report import write_report

    study = studies.load(open_storage(storage, "read"), study_name)
    for path in write_report(study, out or Path(f"{study.name}-report")):
        print(path)


def gc(
    checkpoint_budget: BudgetOption = DEFAULT_CHECKPOINT_GB,
    storage: StorageOption = DEFAULT_STORAGE,
    artifacts: ArtifactsOption = DEFAULT_ARTIFACTS,
) -> None:
    """Delete old checkpoints that exceed a budget.

    Checkpoints that running trials or the best trials of a study need are kept.
    """
    from hpo.artifacts import open_artifacts
    from hpo.database.storage import open_storage
    from hpo.trial.checkpoints import Checkpoints

    checkpoints = Checkpoints(open_storage(storage), open_artifacts(artifacts), int(checkpoint_budget * GIGABYTE))
    left_bytes = checkpoints.collect_garbage()
    print(f"{left_bytes / GIGABYTE:.3f} GB of checkpoints remain")


def dashboard(
    host: Annotated[str, typer.Option(metavar="HOST", help="Address to listen on.")] = LOOPBACK,
    port: Annotated[
        int, typer.Option(min=1, max=65535, metavar="PORT", help="Port to listen on.")
    ] = DEFAULT_DASHBOARD_PORT,
    auth: Annotated[
        Path | None,
        typer.Option(
            parser=expand_path,
            metavar="FILE",
            help="File with one line USER:PASSWORD that only you can read.",
            show_default="HPO_DASHBOARD_USER and HPO_DASHBOARD_PASSWORD",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Host name of a proxy in front of 127.0.0.1; repeatable."),
    ] = None,
    root_path: Annotated[
        str | None, typer.Option(metavar="PATH", help="Path under which a proxy serves the dashboard, such as /hpo.")
    ] = None,
    read_write: Annotated[bool, typer.Option("--read-write", help="Allow changes from the browser.")] = False,
    storage: StorageOption = DEFAULT_STORAGE,
    artifacts: ArtifactsOption = DEFAULT_ARTIFACTS,
) -> None:
    """Show all studies in a browser."""
    from hpo.artifacts import open_artifacts
    from hpo.dashboard.access import check_host, find_credentials, is_loopback
    from hpo.dashboard.root_path import check_root_path
    from hpo.dashboard.server import bind, guard, make_app
    from hpo.database.storage import open_storage

    credentials = find_credentials(auth, os.environ)
    hosts = [check_host(name) for name in allow_host or []]
    root = None if root_path is None else check_root_path(root_path)
    database = open_storage(storage, "write" if read_write else "read")
    app = make_app(database, open_artifacts(artifacts, create=False), read_write=read_write, root_path=root)
    server = bind(guard(app, host, credentials, hosts), host, port)
    mode = "changes allowed" if read_write else "read-only"
    login = "" if credentials is None else ", with a login"
    say(f"optuna-dashboard on http://{host}:{port}{root or ''}/ ({mode}{login}); stop it with Ctrl-C")
    if hosts and credentials is None:
        say(f"everyone who reaches {', '.join(hosts)} sees all studies: configure a login in the proxy, or pass --auth")
    if not is_loopback(host):
        say("HTTP does not encrypt the password: in a network that you do not trust, put TLS in front")
    server.run()


def storage_upgrade(storage: StorageOption = DEFAULT_STORAGE) -> None:
    """Upgrade the tables of an older release.

    Nobody else may use the storage in the meantime.
    """
    from hpo.database.storage import upgrade_storage

    for line in upgrade_storage(storage):
        print(line)
