"""The training of one recipe, from any state of its trajectory to any later one."""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, wraps
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from hpo.recipes.recipe import Recipe, derive_seed
from hpo.recipes.schedule import CurvePoint, learning_rate
from hpo.settings import Precision
from hpo.training.data import Batches, Dataset, Split, normalise
from hpo.training.model import ResNet, network_fields
from hpo.training.optimizer import SGD

EVALUATION_BATCH = 500
"""Images per forward pass of an evaluation."""

SUBSET_SEED = 0
"""Seed of the subset of the validation split that most evaluations use."""

Computing = Callable[[], AbstractContextManager[object]]
"""A function that makes a context around what keeps a device busy."""

P = ParamSpec("P")
R = TypeVar("R")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """A point of a trajectory: everything needed to continue from it.

    Attributes:
        weights: Parameters and BatchNorm statistics by name, on the CPU.
        momentum: The optimizer's buffers by parameter name, on the CPU; empty at iteration 0.
        loss_sum: Sum of the training losses since the last evaluation, float64 scalar.
        loss_count: Number of batches in the sum.
        correct_count: Number of images in these batches that were classified correctly; None if the state was saved by
            a release that did not count them.
    """

    iteration: int
    weights: dict[str, Tensor]
    momentum: dict[str, Tensor]
    loss_sum: float
    loss_count: int
    correct_count: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """Mean cross-entropy and accuracy (in [0, 1]) over a number of images."""

    loss: float
    accuracy: float
    images: int


@cache
def keep_memory() -> None:
    """Tell glibc's allocator to keep freed pages, which saves 10 to 20% of a training step on a CPU.

    Side effects:
        Sets the process's malloc options; does nothing without glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)


def _computing(method: Callable[Concatenate[Training, P], R]) -> Callable[Concatenate[Training, P], R]:
    """Enter the training's context for as long as a method keeps the device busy."""

    @wraps(method)
    def compute(self: Training, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the method in the training's context."""
        with self.computing():
            return method(self, *args, **kwargs)

    return compute


class Training:
    """A walk along the trajectory of one recipe.

    It starts at iteration 0. The state after iteration t depends on the recipe, the data set and the numerics alone,
    however often the walk was interrupted and resumed with `restore`.

    Args:
        dataset: On the device to train on.
        computing: Makes a context that is entered around whatever keeps the device busy.
    """

    def __init__(
        self, recipe: Recipe, dataset: Dataset, precision: Precision, computing: Computing = nullcontext
    ) -> None:
        self.recipe = recipe
        self.dataset = dataset
        self.precision = precision
        self.device = dataset.train.images.device
        self.computing = computing
        self.iteration = 0
        if self.device.type == "cpu":
            keep_memory()
        self._build()

    @_computing
    def _build(self) -> None:
        recipe, dataset = self.recipe, self.dataset
        self._generator = torch.Generator(self.device)
        model = ResNet(
            channels=dataset.image_shape[2],
            classes=len(dataset.classes),
            **network_fields(recipe),
            generator=self._generator,
            seed=derive_seed("weights", recipe.seed, 0),
        )
        self.model = model.to(self.device).to(memory_format=torch.channels_last)
        self._optimizer = SGD(self.model, recipe)
        self._batches = Batches(dataset, recipe.batch_size)
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self._loss_count = 0
        self._correct = torch.zeros((), dtype=torch.float64, device=self.device)  # NaN where it is not known

    @_computing
    def advance(self, until: int, stop: Callable[[], bool] = lambda: False) -> int:
        """Train up to an iteration, or until `stop` returns True.

        Returns:
            The number of optimizer steps executed.
        """
        started = self.iteration
        per_epoch = self._batches.per_epoch
        self.model.train()
        order = None
        while self.iteration < until and not stop():
            epoch, position = divmod(self.iteration, per_epoch)
            if order is None or position == 0:
                order = self._batches.order(self._seeded("order", epoch))
            images, labels = self._batches.draw(order[position], self._seeded("iteration", self.iteration))
            with self._autocast():
                logits = self.model(images)
                loss = nn.functional.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step(learning_rate(self.recipe, self.iteration))

            self._loss_sum += loss.detach()  # no .item(): it would wait for the device
            self._correct += (logits.detach().argmax(1) == labels).sum()
            self._loss_count += 1
            self.iteration += 1
        return self.iteration - started

    @_computing
    def measure(self, images: int) -> CurvePoint:
        """Evaluate on a fixed number of validation images, and start new means of the training loss and accuracy."""
        validation = self.dataset.validation
        measured = self.evaluate(validation if images >= len(validation) else _subset(validation, images))
        train_loss = float(self._loss_sum) / max(1, self._loss_count)
        train_accuracy = float(self._correct) / max(1, self._loss_count * self._batches.batch_size)
        self.restart_means()
        return CurvePoint(
            iteration=self.iteration,
            train_loss=train_loss,
            train_accuracy=None if math.isnan(train_accuracy) else train_accuracy,
            val_loss=measured.loss,
            val_accuracy=measured.accuracy,
        )

    def restart_means(self) -> None:
        """Start new means of the training loss and accuracy, as every evaluation does."""
        self._loss_sum.zero_()
        self._correct.zero_()
        self._loss_count = 0

    @_computing
    @torch.no_grad()
    def evaluate(self, split: Split) -> Measurement:
        """Measure loss and accuracy over a split, without augmentation."""
        self.model.eval()
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        for start in range(0, len(split), EVALUATION_BATCH):
            labels = split.labels[start : start + EVALUATION_BATCH]
            with self._autocast():
                logits = self.model(normalise(split.images[start : start + EVALUATION_BATCH], self.dataset))
            loss += nn.functional.cross_entropy(logits.float(), labels, reduction="sum")
            correct += (logits.argmax(1) == labels).sum()
        return Measurement(loss=float(loss) / len(split), accuracy=int(correct) / len(split), images=len(split))

    @_computing
    def state(self) -> State:
        """Copy the current state to the CPU."""
        correct = float(self._correct)
        return State(
            iteration=self.iteration,
            weights={name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()},
            momentum={name: buffer.detach().cpu().clone() for name, buffer in self._optimizer.momentum().items()},
            loss_sum=float(self._loss_sum),
            loss_count=self._loss_count,
            correct_count=None if math.isnan(correct) else int(correct),
        )

    def misfit(self, state: State) -> str | None:
        """Return why a state cannot lie on this recipe's trajectory; None if it can."""
        if not 0 <= state.loss_count <= state.iteration <= self.recipe.iterations:
            return f"iteration {state.iteration:,} of {self.recipe.iterations:,}, {state.loss_count:,} losses"
        steps = state.iteration and self.recipe.momentum
        own = {"weights": self.model.state_dict(), "momentum": dict(self.model.named_parameters()) if steps else {}}
        for part, given in (("weights", state.weights), ("momentum", state.momentum)):
            if _layout(given) != _layout(own[part]):
                return f"names, shapes or types of its {part} are those of another network"
        return None

    @_computing
    def restore(self, state: State) -> None:
        """Go to a state of this recipe's trajectory, which `misfit` has not objected to."""
        self.iteration = state.iteration
        self.model.load_state_dict(state.weights)
        self._optimizer.restore(state.momentum)
        self._loss_sum.fill_(state.loss_sum)
        self._loss_count = state.loss_count
        correct_count = state.correct_count if state.loss_count else 0
        self._correct.fill_(math.nan if correct_count is None else correct_count)

    def _seeded(self, purpose: str, counter: int) -> torch.Generator:
        return self._generator.manual_seed(derive_seed(purpose, self.recipe.seed, counter))

    def _autocast(self) -> AbstractContextManager[object]:
        if self.precision != "bf16":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def _layout(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def _subset(validation: Split, images: int) -> Split:
    """Select the same images every time; the split keeps the data set's order, so a random draw is representative."""
    generator = torch.Generator().manual_seed(SUBSET_SEED)
    chosen = torch.randperm(len(validation), generator=generator)[:images].sort().values
    return validation.take(chosen.to(validation.labels.device))
