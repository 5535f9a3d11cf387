"""The training of a recipe as people write it, which the searches of `plain_searches.py` have in common."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import nn
from train_step import usual_batches

from hpo.recipes.recipe import Recipe
from hpo.recipes.schedule import learning_rate, scale
from hpo.training.data import Dataset, normalise
from hpo.training.model import ResNet, network_fields

EVALUATION_BATCH = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class Epoch:
    """The state of a training after an epoch.

    Attributes:
        iteration: Number of optimizer steps that were executed.
        accuracy: On the validation split; at the end of a recipe with early stopping, that of the restored weights.
        is_last: Whether the training is at its end.
    """

    iteration: int
    accuracy: float
    is_last: bool


def train_plainly(recipe: Recipe, dataset: Dataset) -> Iterator[Epoch]:
    """Train with a DataLoader, evaluate after every epoch, and stop early."""
    torch.manual_seed(recipe.seed)
    model = ResNet(
        channels=dataset.image_shape[2],
        classes=len(dataset.classes),
        **network_fields(recipe),
        generator=torch.Generator(),
        seed=recipe.seed,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=recipe.momentum)
    batches = iter(usual_batches(dataset, workers=0))
    patience = scale(recipe.early_stopping, recipe.iterations) if recipe.early_stopping else math.inf
    lowest, restored, lowest_at = math.inf, 0.0, 0
    iteration, is_last = 0, False
    while not is_last:
        model.train()
        for images, labels in islice(batches, min(steps_per_epoch(recipe, dataset), recipe.iterations - iteration)):
            optimizer.param_groups[0]["lr"] = learning_rate(recipe, iteration)
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            iteration += 1
        val_loss, accuracy = evaluate_plainly(model, dataset)
        if val_loss < lowest:
            lowest, restored, lowest_at = val_loss, accuracy, iteration
        is_last = iteration == recipe.iterations or iteration - lowest_at >= patience
        final = restored if recipe.early_stopping and is_last else accuracy
        yield Epoch(iteration=iteration, accuracy=final, is_last=is_last)


def steps_per_epoch(recipe: Recipe, dataset: Dataset) -> int:
    return math.ceil(len(dataset.train) / recipe.batch_size)


@torch.no_grad()
def evaluate_plainly(model: nn.Module, dataset: Dataset) -> tuple[float, float]:
    model.eval()
    images, labels = dataset.validation.images, dataset.validation.labels
    logits = torch.cat([model(normalise(batch, dataset)) for batch in images.split(EVALUATION_BATCH)])
    return float(nn.functional.cross_entropy(logits, labels)), float((logits.argmax(1) == labels).float().mean())
