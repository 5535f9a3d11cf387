"""The command that writes a study for other tools (export)."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hpo.cli.options import StorageOption, StudyOption
from hpo.cli.output import say
from hpo.errors import BadInput
from hpo.masking import mask_secrets
from hpo.paths import expand_path
from hpo.settings import DEFAULT_STORAGE
from hpo.wording import counted


class FormatChoice(StrEnum):
    """The tool for which a study is written."""

    csv = "csv"
    tensorboard = "tensorboard"
    mlflow = "mlflow"


def export(
    form: Annotated[FormatChoice, typer.Option("--format", help="CSV tables, event files, or runs of an experiment.")],
    out: Annotated[
        str,
        typer.Option(
            "--out", metavar="FOLDER|URL", help="New or empty folder, or the http address of an MLflow server."
        ),
    ],
    study_name: StudyOption = None,
    storage: StorageOption = DEFAULT_STORAGE,
) -> None:
    """Write trials and curves for other tools.

    Finished trials with parameters, recipe, curve and figure.
    """
    from hpo import study as studies
    from hpo.artifacts import check_new_folder
    from hpo.database.storage import open_storage
    from hpo.results.exchange import mlflow, tables, tensorboard
    from hpo.results.exchange.trials import load_trials

    served = out.startswith(("http://", "https://"))
    if served and form != FormatChoice.mlflow:
        raise BadInput(f"--out {mask_secrets(out)}: only valid with --format mlflow; give a folder")
    folder = expand_path(out)
    if not served:
        check_new_folder(folder)
    study = studies.load(open_storage(storage, "read"), study_name)
    trials = load_trials(study)
    if served:
        mlflow.send(study.name, trials, out)
        say(f"sent {counted(len(trials), 'trial')} of study {study.name} to {mask_secrets(out)}")
        return
    match form:
        case FormatChoice.csv:
            tables.write(trials, folder)
        case FormatChoice.tensorboard:
            tensorboard.write(trials, folder)
        case FormatChoice.mlflow:
            mlflow.write(study.name, trials, folder)
    say(f"wrote {counted(len(trials), 'trial')} of study {study.name} to {out}{_how_to_open(form, folder)}")


def _how_to_open(form: FormatChoice, folder: Path) -> str:
    match form:
        case FormatChoice.csv:
            return ""
        case FormatChoice.tensorboard:
            return f"; `tensorboard --logdir {folder}` shows them"
        case FormatChoice.mlflow:
            return f"; `mlflow server --backend-store-uri sqlite:///{folder / 'mlflow.db'}` shows them"
