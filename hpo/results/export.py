"""Write a study's best trial as a folder that others can use: weights, recipe, metrics, and how to load them."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save as save_tensors

from hpo.recipes.schedule import CurvePoint, final_iteration
from hpo.settings import DatasetName
from hpo.study import Best, Study
from hpo.training.data import CLASSES, Dataset
from hpo.training.model import count_parameters
from hpo.training.train import Training
from hpo.trial.checkpoints import Checkpoints
from hpo.trial.trajectory import training_at

LIBRARIES = ("hpo", "torch", "torchvision", "optuna", "numpy", "safetensors")
GIT_S = 10.0

CLASS_NAMES: dict[DatasetName, tuple[str, ...]] = {
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    "fashion_mnist": (
        "T-shirt/top",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle boot",
    ),
    "digits": ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """Be a model to be written, and what is known of it.

    Attributes:
        training: Stands at the weights of the trial's end.
        val_accuracy: Measured again with these weights, in [0, 1].
        test: What a benchmark of the trial says of the test split, or None where there was none.
    """

    study: Study
    best: Best
    dataset: Dataset
    training: Training
    val_accuracy: float
    test: str | None


def load(study: Study, best: Best, dataset: Dataset, checkpoints: Checkpoints, test: str | None) -> Exported:
    """Load the weights that a trial ended with, or train them again where their checkpoint is gone."""
    settings = study.settings
    iteration = final_iteration(best.curve, best.recipe)
    training = training_at(best.recipe, iteration, dataset, settings.precision, checkpoints, compiled=settings.compiled)
    val_accuracy = training.evaluate(dataset.validation).accuracy
    return Exported(study=study, best=best, dataset=dataset, training=training, val_accuracy=val_accuracy, test=test)


def files(found: Exported) -> dict[str, bytes]:
    """Give the files of the folder by name."""
    texts = {
        "recipe.yaml": recipe_yaml(found),
        "metrics.csv": metrics_csv(found.best.curve),
        "environment.json": json.dumps(environment(found.training), indent=2) + "\n",
        "README.md": model_card(found),
        "classify.py": CLASSIFY,
    }
    return {"weights.safetensors": weights(found)} | {name: text.encode() for name, text in texts.items()}


def weights(found: Exported) -> bytes:
    """Give the weights as safetensors; the metadata says how to build the network and how to prepare an image."""
    recipe, dataset = found.best.recipe, found.dataset
    height, width, channels = dataset.image_shape
    facts = {
        "network": {
            "channels": channels,
            "classes": CLASSES,
            "head": recipe.head,
            "dropout": recipe.dropout,
            "shortcut_norm": recipe.shortcut_norm,
        },
        "mode": "L" if channels == 1 else "RGB",
        "size": [width, height],
        "mean": dataset.mean[:, None, None].tolist(),
        "std": dataset.std[:, None, None].tolist(),
        "labels": CLASS_NAMES[dataset.name],
    }
    tensors = {name: tensor.contiguous() for name, tensor in found.training.state().weights.items()}
    return save_tensors(tensors, metadata={"hpo": json.dumps(facts)})


def recipe_yaml(found: Exported) -> str:
    """Write the recipe as a space of which it is the only member, for `hpo run --space`."""
    base = found.best.recipe.to_dict()
    del base["iterations"], base["seed"]
    space = {
        "name": f"{found.study.name[:40]}-{found.best.trial}",
        "description": f"The recipe of trial {found.best.trial} of study {found.study.name}",
        "base": base,
    }
    return f"# {_command(found)}\n{yaml.safe_dump(space, sort_keys=False, default_flow_style=None)}"


def metrics_csv(curve: Sequence[CurvePoint]) -> str:
    """Write a curve as a table."""
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
        "versions": {name: version(name) for name in LIBRARIES},
        "cuda": torch.version.cuda,
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": training.precision,
        "git_revision": find_revision(Path(__file__).parent),
    }


def find_revision(folder: Path) -> str | None:
    """Find the git revision of a folder under version control, with `-dirty` where it was changed since."""
    try:
        _git(folder, "ls-files", "--error-unmatch", "__init__.py")  # else it only lies inside somebody's repository
        return _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):  # there is no git, or no repository
        return None


def model_card(found: Exported) -> str:
    """Describe the model in a page: what it is, how good, how it was made, how to use it."""
    best, dataset = found.best, found.dataset
    height, width, channels = dataset.image_shape
    return CARD.format(
        dataset=dataset.name,
        study=found.study.name,
        trial=best.trial,
        size=f"{height}x{width}x{channels}",
        labels=", ".join(CLASS_NAMES[dataset.name]),
        parameters=count_parameters(found.training.model).total,
        iteration=found.training.iteration,
        training_images=len(dataset.train),
        value=f"{best.value:.4f} ± {best.standard_error:.4f}",
        validation_images=len(dataset.validation),
        again=f"{found.val_accuracy:.4f}",
        test=found.test or "not opened; `hpo benchmark` does that, on fresh seeds",
        command=_command(found),
        rows="\n".join(f"| {name} | {value} |" for name, value in best.recipe.to_dict().items()),
    )


CARD = """\
# ResNet-20 on {dataset}

Trial {trial} of the hyperparameter study `{study}`, the best of its trials.

- **Task**: images of {size} (height, width, channels) into the classes {labels}.
- **Network**: ResNet-20, {parameters:,} parameters.
- **Training**: {iteration:,} iterations on {training_images:,} images, as `recipe.yaml` says; `metrics.csv` is
  the curve.
- **Validation accuracy**: {value} (standard error) on {validation_images:,} images. This is optimistic, as the trial
  was picked for it. These weights, measured when the folder was written: {again}.
- **Test split**: {test}.
- **Limits**: it knows images like those of its data set only, and has not been tried on others.

## Use

With `hpo` installed, `python classify.py IMAGE` prints the class of an image file, and

    {command}

trains the recipe again. `environment.json` says with which versions and on what machine this folder was written.

## Recipe

Boundaries and patience are reference iterations: of a budget of 64,000.

| field | value |
| --- | --- |
{rows}
"""

CLASSIFY = '''\
"""Print the class of an image: python classify.py IMAGE."""

import sys
from pathlib import Path
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor
from hpo.training.model import load_network

network, facts = load_network(Path(__file__).with_name("weights.safetensors"))
picture = Image.open(sys.argv[1]).convert(facts["mode"]).resize(facts["size"])
image = (pil_to_tensor(picture) - torch.tensor(facts["mean"])) / torch.tensor(facts["std"])
print(facts["labels"][network(image[None]).argmax()])
'''


def _command(found: Exported) -> str:
    recipe, dataset = found.best.recipe, found.dataset.name
    budget = f"--dataset {dataset} --iterations {recipe.iterations} --seed {recipe.seed}"
    return f"hpo run --space recipe.yaml --trials 1 {budget}"


def _processor() -> str:
    """Name the processor, as Linux does where this is one."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True, timeout=GIT_S
    )
    return done.stdout.strip()
