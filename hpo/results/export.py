"""A study's best trial as a folder that others can use: weights, recipe, metrics, and how to load them."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save as save_tensors

from hpo import __version__
from hpo.database.checkpoint_index import find_checkpoint_of
from hpo.recipes.schedule import CurvePoint, final_iteration
from hpo.results.formatting import show_measured
from hpo.settings import default_augment
from hpo.study import Best, Study
from hpo.training.data import Dataset
from hpo.training.model import count_parameters, network_fields
from hpo.training.train import Training
from hpo.trial.checkpoints import Checkpoints
from hpo.trial.trajectory import training_at

LIBRARIES = ("torch", "torchvision", "optuna", "numpy", "safetensors")
"""Distributions whose versions an exported folder names, apart from our own."""

GIT_S = 10.0
"""Seconds to wait for a git command."""

MODEL_CARD, CLASSIFY = "model_card.md", "classify.py.txt"
"""Names of the templates; the second is code of the exported folder, not of this package."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """A trained model with the facts that its folder states.

    Attributes:
        training: The run at the iteration whose weights the trial ended with.
        val_accuracy: Measured again with these weights, in [0, 1].
        confirmed: How far the trial is confirmed on further seeds, in a sentence.
        test: What a benchmark of the trial says about the test split, or None if there was no benchmark.
    """

    study: Study
    best: Best
    dataset: Dataset
    training: Training
    val_accuracy: float
    confirmed: str
    test: str | None


def load(
    study: Study,
    best: Best,
    dataset: Dataset,
    checkpoints: Checkpoints,
    confirmed: str,
    test: str | None,
    announce: Callable[[str], None],
) -> Exported:
    """Load the weights that a trial ended with, whatever machine computed them.

    Args:
        announce: Told, before it begins, that the weights have to be trained again because their checkpoint is gone.
    """
    training = _from_its_checkpoint(study, best, dataset, checkpoints)
    if training is None:
        iteration = final_iteration(best.curve, best.recipe)
        announce(
            f"the checkpoint of trial {best.trial} is gone: its recipe is trained again up to iteration {iteration:,} "
            f"on {dataset.train.images.device}; another kind of processor gives other weights"
        )
        training = training_at(best.recipe, iteration, dataset, study.settings.precision, checkpoints)
    val_accuracy = training.evaluate(dataset.validation).accuracy
    return Exported(
        study=study,
        best=best,
        dataset=dataset,
        training=training,
        val_accuracy=val_accuracy,
        confirmed=confirmed,
        test=test,
    )


def _from_its_checkpoint(study: Study, best: Best, dataset: Dataset, checkpoints: Checkpoints) -> Training | None:
    """Restore the weights that a trial ended with from its own checkpoint; None if that is gone."""
    with study.storage.translated():
        trial_id = study.storage.optuna.get_trial_id_from_study_id_trial_number(study.study_id, best.trial)
    checkpoint = find_checkpoint_of(study.storage, trial_id)
    if checkpoint is None or checkpoint.iteration != final_iteration(best.curve, best.recipe):
        return None
    training = Training(best.recipe, dataset, study.settings.precision)
    return training if checkpoints.restore(training, checkpoint) else None


def files(exported: Exported) -> dict[str, bytes]:
    """Write all files of the folder, by name."""
    texts = {
        "recipe.yaml": recipe_yaml(exported),
        "metrics.csv": metrics_csv(exported.best.curve),
        "environment.json": json.dumps(environment(exported.training), indent=2) + "\n",
        "README.md": model_card(exported),
        "classify.py": _template(CLASSIFY),
    }
    return {"weights.safetensors": weights(exported)} | {name: text.encode() for name, text in texts.items()}


def weights(exported: Exported) -> bytes:
    """Write the weights as safetensors, whose metadata says how to build the network and how to prepare an image."""
    recipe, dataset = exported.best.recipe, exported.dataset
    height, width, channels = dataset.image_shape
    facts = {
        "network": {
            "channels": channels,
            "classes": len(dataset.classes),
            **network_fields(recipe),
        },
        "mode": "L" if channels == 1 else "RGB",
        "size": [width, height],
        "mean": dataset.mean[:, None, None].tolist(),
        "std": dataset.std[:, None, None].tolist(),
        "labels": dataset.classes,
    }
    tensors = {name: tensor.contiguous() for name, tensor in exported.training.state().weights.items()}
    return save_tensors(tensors, metadata={"hpo": json.dumps(facts)})


def recipe_yaml(exported: Exported) -> str:
    """Write the recipe as a search space that contains nothing else, for `hpo run --space`."""
    base = exported.best.recipe.to_dict()
    del base["iterations"], base["seed"]
    space = {
        "name": f"{exported.study.name[:40]}-{exported.best.trial}",
        "description": f"The recipe of trial {exported.best.trial} of study {exported.study.name}",
        "base": base,
    }
    return f"# {_command(exported)}\n{yaml.safe_dump(space, sort_keys=False, default_flow_style=None)}"


def metrics_csv(curve: Sequence[CurvePoint]) -> str:
    """Write a curve as a CSV table, one row per evaluation."""
    text = io.StringIO()
    names = [field.name for field in fields(CurvePoint)]
    table = csv.writer(text, lineterminator="\n")
    table.writerows([names, *([getattr(point, name) for name in names] for point in curve)])
    return text.getvalue()


def environment(training: Training) -> dict[str, Any]:
    """Describe the versions, the hardware and the code of this process."""
    device = training.device
    return {
        "python": platform.python_version(),
        "versions": {"hpo": __version__} | {name: version(name) for name in LIBRARIES},
        "cuda": torch.version.cuda,
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": training.precision,
        "git_revision": find_revision(Path(__file__).parent),
    }


def find_revision(folder: Path) -> str | None:
    """Find the git revision of a folder under version control, with `-dirty` if it has changes since."""
    try:
        _git(folder, "ls-files", "--error-unmatch", "__init__.py")  # or it merely lies inside somebody's repository
        return _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):  # there is no git, or no repository
        return None


def model_card(exported: Exported) -> str:
    """Describe the model on one page: what it is, how good it is, how it was trained, and how to use it."""
    best, dataset = exported.best, exported.dataset
    height, width, channels = dataset.image_shape
    return _template(MODEL_CARD).format(
        dataset=dataset.name,
        study=exported.study.name,
        trial=best.trial,
        depth=best.recipe.depth,
        size=f"{height}x{width}x{channels}",
        labels=", ".join(dataset.classes),
        parameters=count_parameters(exported.training.model).total,
        iteration=exported.training.iteration,
        training_images=len(dataset.train),
        value=show_measured(best.value, best.standard_error),
        validation_images=len(dataset.validation),
        again=f"{exported.val_accuracy:.4f}",
        confirmed=exported.confirmed,
        test=exported.test or "not opened; `hpo benchmark` does that, on fresh seeds",
        command=_command(exported),
        rows="\n".join(f"| {name} | {value} |" for name, value in best.recipe.to_dict().items()),
    )


def _template(name: str) -> str:
    return resources.files("hpo.results").joinpath("templates", name).read_text(encoding="utf-8")


def _command(exported: Exported) -> str:
    recipe, dataset = exported.best.recipe, exported.dataset
    usual = default_augment(dataset.name, dataset.image_shape[2])
    augment = "" if dataset.augment == usual else f" --augment {dataset.augment}"
    budget = f"--dataset {dataset.name}{augment} --iterations {recipe.iterations} --seed {recipe.seed}"
    return f"hpo run --space recipe.yaml --trials 1 {budget}"


def _processor() -> str:
    """Read the processor's name as Linux reports it, or as Python does on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        check=True,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=GIT_S,
    )
    return done.stdout.strip()
