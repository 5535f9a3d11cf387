"""The check of a finished trial: train it again from scratch, and compare with what was stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from optuna.trial import FrozenTrial

from hpo.database import overview
from hpo.errors import BadInput, VerificationFailed
from hpo.recipes.recipe import Recipe
from hpo.recipes.schedule import CurvePoint, evaluation
from hpo.settings import Precision
from hpo.study import Study
from hpo.training.data import Dataset
from hpo.training.numerics import Numerics, numerics, prepare_torch
from hpo.training.train import Training
from hpo.trial.checkpoints import Checkpoints, encode
from hpo.trial.objective import NUMERICS
from hpo.trial.segments import segments
from hpo.worker.device import pick_device
from hpo.worker.work import load_checked


def compare_with_scratch(
    recipe: Recipe,
    dataset: Dataset,
    precision: Precision,
    stored: Sequence[CurvePoint],
    checkpoints: Checkpoints,
) -> str:
    """Train a recipe from scratch along a stored curve, and compare curve and last checkpoint with it.

    Returns:
        A line that says what was compared.

    Raises:
        VerificationFailed: They differ; the first such iteration is named.
    """
    plan = evaluation(recipe.iterations, recipe.batch_size, len(dataset.validation))
    training = Training(recipe, dataset, precision)
    for point in stored:
        training.advance(point.iteration)
        last = point.iteration == recipe.iterations
        measured = training.measure(len(dataset.validation) if last else plan.images)
        if point.train_accuracy is None:  # measured by a release without it
            measured = replace(measured, train_accuracy=None)
        if measured != point:
            raise VerificationFailed(
                f"the curve differs at iteration {point.iteration}: {point} stored, {measured} now"
            )
    path = segments(recipe, dataset, plan, numerics(dataset.train.images.device, precision))
    checkpoint = checkpoints.find(path, training.iteration)
    compared = f"{len(stored)} points of the curve up to iteration {training.iteration} are equal bit for bit"
    if checkpoint is None or checkpoint.iteration != training.iteration:
        return f"{compared}; the last checkpoint is no longer kept"
    state = training.state()
    before = replace(state, correct_count=None)  # as releases without training accuracy saved it
    if checkpoints.artifacts.read(checkpoint.artifact) not in (encode(state), encode(before)):
        raise VerificationFailed(f"the state at iteration {training.iteration} differs from the checkpoint")
    return f"{compared}, and so are weights, momentum and BatchNorm statistics at its end"


def verify(
    study: Study, trial_number: int, data_dir: Path, checkpoints: Checkpoints, announce: Callable[[str], None]
) -> str:
    """Train a finished trial's recipe from scratch, and compare curve and weights with the study's, bit for bit.

    It is trained on the kind of device that computed it.

    Args:
        announce: Told when training begins.

    Returns:
        A line that says what was compared.

    Raises:
        BadInput: There is no such finished trial, this machine computes otherwise than the one that trained it, or the
            data set on this machine is not the study's.
        VerificationFailed: Curve or weights differ.
    """
    trial = next((t for t in study.trials() if t.number == trial_number and t.state.is_finished()), None)
    if trial is None:
        raise BadInput(f"--trial {trial_number}: study {study.name} has no finished trial with that number")
    with study.storage.translated():
        trial_id = study.storage.optuna.get_trial_id_from_study_id_trial_number(study.study_id, trial.number)
    stored = overview.load_curve(study.storage, trial_id)
    if not stored or trial not in study.trained_trials():
        why = trial.user_attrs.get("outcome", "another client has told its result")
        raise BadInput(f"--trial {trial_number}: it was not trained by hpo, so it cannot be compared: {why}")
    precision = study.settings.precision
    trained_by = numerics_of(trial)
    prepare_torch(precision)
    device = pick_device("auto") if trained_by is None else _device_like(trained_by, trial_number)
    here = numerics(device, precision)
    if trained_by not in (None, here):
        raise BadInput(_other_kind(trial_number, str(trained_by), str(here)))
    dataset = load_checked(study, data_dir).to(device)
    announce(f"training trial {trial_number} of {study.name} from scratch")
    return compare_with_scratch(study.recipe_of(trial), dataset, precision, stored, checkpoints)


def numerics_of(trial: FrozenTrial) -> Numerics | None:
    """Return how a trial was computed; None for one that does not say, as those of earlier releases."""
    fields = trial.user_attrs.get(NUMERICS)
    return None if fields is None else Numerics(**fields)


def load_as_worker(study: Study, data_dir: Path) -> Dataset:
    """Load a study's data set onto this machine's device, as a worker does.

    Raises:
        BadInput: The data set on this machine is not the study's.

    Side effects:
        Sets torch up as `prepare_torch` does.
    """
    prepare_torch(study.settings.precision)
    return load_checked(study, data_dir).to(pick_device("auto"))


def _device_like(trained_by: Numerics, trial_number: int) -> torch.device:
    """Pick this machine's device of the kind that trained a trial."""
    try:
        return pick_device(trained_by.device_type)
    except BadInput as error:
        raise BadInput(_other_kind(trial_number, str(trained_by), str(error))) from error


def _other_kind(trial_number: int, there: str, here: str) -> str:
    return (
        f"--trial {trial_number}: it was computed on {there}; here: {here}. Only a machine of that kind can verify it"
    )
