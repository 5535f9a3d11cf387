"""The trials of a study as event files of TensorBoard."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from hpo import name_extra
from hpo.artifacts import new_folder
from hpo.errors import BadInput
from hpo.results.exchange.trials import MEASURES, ExportedTrial, draw, recipe_fields, write_value

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

RESULT = "final/val_accuracy"
"""The scalar that the table of hyperparameters shows as a trial's result."""


def write(trials: Sequence[ExportedTrial], folder: Path) -> None:
    """Write one run per trial to a new folder: its curve as scalars, its figure, and its row of hyperparameters.

    Raises:
        BadInput: TensorBoard is not installed, or the folder is neither new nor empty, or cannot be written.
    """
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise BadInput(f"--format tensorboard: needs `{name_extra('tensorboard')}` ({error})") from error
    with new_folder(folder) as unfinished:
        for trial in trials:
            with SummaryWriter(str(unfinished / trial.title)) as writer:
                _write_trial(writer, trial)


def _write_trial(writer: SummaryWriter, trial: ExportedTrial) -> None:
    from torch.utils.tensorboard.summary import hparams

    time_s = trial.ended.timestamp() if trial.ended else None
    for point in trial.curve:
        for name in MEASURES:
            if (value := getattr(point, name)) is not None:
                writer.add_scalar(name, value, point.iteration, walltime=time_s)
    results = {} if trial.val_accuracy is None else {RESULT: trial.val_accuracy}
    # `SummaryWriter.add_hparams` would put the row into a run of its own.
    events = writer._get_file_writer()  # type: ignore[no-untyped-call]
    for summary in hparams(hyperparameters(trial), results):  # type: ignore[no-untyped-call]
        events.add_summary(summary, walltime=time_s)
    for name, value in results.items():
        writer.add_scalar(name, value, trial.last_iteration, walltime=time_s)
    if (figure := draw(trial)) is not None:
        pixels = np.asarray(Image.open(io.BytesIO(figure)).convert("RGB"))
        writer.add_image("figure", pixels, trial.last_iteration, walltime=time_s, dataformats="HWC")


def hyperparameters(trial: ExportedTrial) -> dict[str, bool | float | str]:
    """Return a trial's recipe and state in the kinds of values that a table of hyperparameters can hold."""
    values = {"state": trial.state} | recipe_fields(trial)
    return {name: _hyperparameter(value) for name, value in values.items() if value is not None}


def _hyperparameter(value: Any) -> bool | float | str:
    return value if isinstance(value, (bool, int, float, str)) else str(write_value(value))
