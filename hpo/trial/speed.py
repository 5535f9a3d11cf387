"""The measured speed of training on a device: a few steps of a recipe on the real data set."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from hpo.recipes.recipe import Recipe
from hpo.settings import Precision
from hpo.training.data import Dataset
from hpo.training.numerics import prepare_torch, require_precision
from hpo.training.train import EVALUATION_BATCH, Training
from hpo.trial.checkpoints import encode

WARM_UP_STEPS = 3
ROUNDS = 5
ROUND_S = 0.5
"""How long a round of steps is to take, of which each has at least one step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """How long training takes on a device.

    Attributes:
        step_s: Seconds per optimizer step, the median of the rounds; on a CPU those of its core's work.
        delay: By which share of it a step takes longer now, because other work uses the processor.
        image_s: Seconds per image of an evaluation.
        checkpoint_bytes: Size of a saved state.
    """

    step_s: float
    delay: float
    image_s: float
    checkpoint_bytes: int


def measure_speed(
    recipe: Recipe,
    dataset: Dataset,
    precision: Precision,
    clock: Callable[[], float] = time.perf_counter,
    core_clock: Callable[[], float] = time.process_time,
) -> Speed:
    """Measure the speed of a recipe's training, in some seconds.

    On a CPU the time is taken by the clock of this process, which stands still while other work has the core.

    Args:
        dataset: On the device to measure.

    Raises:
        BadInput: The device does not have the precision.

    Side effects:
        Sets torch's number of threads and its choice of kernels, as training does.
    """
    device = dataset.train.images.device
    work_clock = core_clock if device.type == "cpu" else clock
    prepare_torch(precision)
    require_precision(device, precision)
    training = Training(recipe, dataset, precision)
    training.advance(WARM_UP_STEPS)
    one_s = _seconds(lambda: training.advance(training.iteration + 1), device, work_clock)
    steps = max(1, min(int(ROUND_S / one_s), (recipe.iterations - training.iteration) // ROUNDS))
    started_s = clock()
    rounds = [
        _seconds(lambda: training.advance(training.iteration + steps), device, work_clock) / steps
        for _ in range(ROUNDS)
    ]
    passed_s = clock() - started_s
    images = dataset.validation.take(torch.arange(min(EVALUATION_BATCH, len(dataset.validation)), device=device))
    training.evaluate(images)
    image_s = _seconds(lambda: training.evaluate(images), device, work_clock) / len(images)
    return Speed(
        step_s=median(rounds),
        delay=max(0.0, passed_s / (sum(rounds) * steps) - 1),
        image_s=image_s,
        checkpoint_bytes=len(encode(training.state())),
    )


def _seconds(act: Callable[[], object], device: torch.device, clock: Callable[[], float]) -> float:
    """Return how long something takes on a device, which may go on after the call has returned."""
    _wait_for(device)
    started_s = clock()
    act()
    _wait_for(device)
    return clock() - started_s


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
