"""Train a trial again from scratch, and compare it with what was stored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hpo.database import overview
from hpo.errors import BadInput, VerificationFailed
from hpo.recipes.recipe import Recipe
from hpo.recipes.schedule import CurvePoint, evaluation
from hpo.settings import Precision
from hpo.study import Study
from hpo.training.data import Dataset
from hpo.training.train import Training, numerics
from hpo.trial.checkpoints import Checkpoints, encode
from hpo.trial.segments import segments
from hpo.worker.device import pick_device, prepare_torch
from hpo.worker.work import load_checked


def compare_with_scratch(
    recipe: Recipe,
    dataset: Dataset,
    precision: Precision,
    stored: Sequence[CurvePoint],
    checkpoints: Checkpoints,
    compiled: bool = False,
) -> str:
    """Train a recipe from scratch along a stored curve, and compare curve and last checkpoint with it.

    Returns:
        What was compared, in one line.

    Raises:
        VerificationFailed: Naming the first iteration at which they differ.
    """
    plan = evaluation(recipe.iterations, recipe.batch_size, len(dataset.validation))
    training = Training(recipe, dataset, precision, compiled)
    for point in stored:
        training.advance(point.iteration)
        last = point.iteration == recipe.iterations
        found = training.measure(len(dataset.validation) if last else plan.images)
        if found != point:
            raise VerificationFailed(f"the curve differs at iteration {point.iteration}: {point} stored, {found} now")
    path = segments(recipe, dataset, plan, numerics(dataset.train.images.device, precision, compiled))
    kept = checkpoints.find(path, training.iteration)
    compared = f"{len(stored)} points of the curve up to iteration {training.iteration} are equal bit for bit"
    if kept is None or kept.iteration != training.iteration:
        return f"{compared}; the checkpoint of the last is no longer kept"
    if checkpoints.artifacts.read(kept.artifact) != encode(training.state()):
        raise VerificationFailed(f"the state at iteration {training.iteration} differs from the checkpoint")
    return f"{compared}, and so are weights, momentum and BatchNorm statistics at its end"


def verify(study: Study, trial_number: int, data_dir: Path, checkpoints: Checkpoints) -> str:
    """Train a finished trial's recipe from scratch, and compare with what the study holds, bit for bit.

    Returns:
        What was compared, in one line.

    Raises:
        BadInput: There is no such finished trial, or this machine computes otherwise than the study's.
        VerificationFailed: Curve or weights differ.
    """
    trial = next((t for t in study.trials() if t.number == trial_number and t.state.is_finished()), None)
    if trial is None:
        raise BadInput(f"--trial {trial_number}: study {study.name} has no such finished trial")
    stored = overview.load_curve(study.storage, trial._trial_id)
    if not stored:
        raise BadInput(f"--trial {trial_number}: it has no curve: {trial.user_attrs.get('outcome')}")
    dataset = load_as_worker(study, data_dir)
    settings = study.settings
    return compare_with_scratch(
        study.recipe_of(trial), dataset, settings.precision, stored, checkpoints, settings.compiled
    )


def load_as_worker(study: Study, data_dir: Path) -> Dataset:
    """Load a study's data set onto this machine's device, to compute there what its workers would.

    Raises:
        BadInput: The data set on this machine is not the study's.

    Side effects:
        Sets torch's number of threads.
    """
    prepare_torch()
    return load_checked(study, data_dir).to(pick_device("auto"))
