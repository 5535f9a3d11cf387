"""The promise of equal bits, checked on a device: a short training walked straight, interrupted, and in a new process.

It uses what trials use: the training, the order of its batches, and checkpoints as they are stored.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import get_args

import torch
from torch import Tensor

from hpo.recipes.recipe import Recipe, documented_runs
from hpo.settings import Precision
from hpo.training.data import Dataset, Split
from hpo.training.numerics import computes_bf16, prepare_torch
from hpo.training.train import Measurement, State, Training
from hpo.trial.checkpoints import decode, encode

BATCHES_PER_EPOCH = 5
NEW_PROCESS_S = 300.0
"""How long a new process may take; most of it goes to loading torch."""

_NEW_PROCESS = "import sys; from hpo.trial.promise import print_walks; print_walks(sys.argv[1])"


@dataclass(frozen=True, kw_only=True, slots=True)
class Course:
    """The length of a check's training, and the iterations at which it is interrupted."""

    until: int
    stops: tuple[int, ...]


# The rate changes at 4 and 8, and epochs end at 5 and 10: a state just before, at and after each is continued from.
FULL = Course(until=12, stops=(1, 3, 4, 5, 8, 10, 11))
SHORT = Course(until=6, stops=(1, 4, 5))


@dataclass(frozen=True, kw_only=True, slots=True)
class Walked:
    """The end of a walk: its state as a checkpoint holds it, and how the network does there."""

    content: bytes
    measured: Measurement


def walk(make: Callable[[], Training], stops: Sequence[int], until: int) -> Walked:
    """Train up to an iteration, with all but an encoded checkpoint thrown away at each stop."""
    training = make()
    for stop in stops:
        training.advance(stop)
        content = encode(training.state())
        training = make()
        training.restore(decode(content))
    training.advance(until)
    content = encode(training.state())
    return Walked(content=content, measured=training.evaluate(training.dataset.validation))


def find_broken(
    device: torch.device, precision: Precision, course: Course, elsewhere: Walked | None = None
) -> str | None:
    """Check on a device that interrupted training has the bits of uninterrupted training; return what differs first.

    Args:
        elsewhere: The end of the same training in another process.

    Side effects:
        Sets torch up as `prepare_torch` does.
    """
    prepare_torch(precision)
    make = partial(Training, check_recipe(device), synthetic_images(device), precision)
    straight = walk(make, (), course.until)
    others = {f"interrupted at iterations {_listed(course.stops)}": walk(make, course.stops, course.until)}
    if elsewhere is not None:
        others["in a new process"] = elsewhere
    found = ((how, find_difference(straight, other)) for how, other in others.items())
    return next((f"{how}: {what}" for how, what in found if what is not None), None)


def find_difference(expected: Walked, other: Walked) -> str | None:
    """Say in which numbers the end of a walk differs from what is expected; None if all bits are equal."""
    if other == expected:
        return None
    ours, theirs = decode(expected.content), decode(other.content)
    return next(_list_differences(ours, theirs), f"the evaluation is {other.measured} instead of {expected.measured}")


def usable_precisions(device: torch.device) -> tuple[Precision, ...]:
    """List the precisions that a device computes natively."""
    if not computes_bf16(device):
        return ("fp32",)
    return get_args(Precision) if device.type == "cuda" else ("fp32", "bf16")


def walk_in_new_process(device: torch.device) -> dict[Precision, Walked]:
    """Walk the full course in a new process, uninterrupted, in each precision that the device computes natively.

    Raises:
        OSError, SubprocessError, ValueError: The process failed, hung, or printed something else.
    """
    command = [sys.executable, "-c", _NEW_PROCESS, str(device)]
    done = subprocess.run(
        command, check=True, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", timeout=NEW_PROCESS_S
    )
    ends = [json.loads(line) for line in done.stdout.splitlines()]
    return {
        end["precision"]: Walked(content=base64.b64decode(end["content"]), measured=Measurement(**end["measured"]))
        for end in ends
    }


def print_walks(device_name: str) -> None:
    """Walk the full course in each precision that a device computes natively, and print each end as a line of JSON."""
    device = torch.device(device_name)
    for precision in usable_precisions(device):
        prepare_torch(precision)
        end = walk(partial(Training, check_recipe(device), synthetic_images(device), precision), (), FULL.until)
        content = base64.b64encode(end.content).decode()
        print(json.dumps({"precision": precision, "content": content, "measured": asdict(end.measured)}))


def check_recipe(device: torch.device) -> Recipe:
    """Return a recipe that has everything that draws random numbers, and two early changes of the learning rate."""
    return replace(
        documented_runs()["baseline"].recipe,
        head="dense",
        dropout=0.3,
        shortcut_norm=True,
        iterations=64,
        boundaries=(4_000, 8_000),
        values=(0.1, 0.01, 0.001),
        batch_size=_batch_size(device),
    )


def synthetic_images(device: torch.device) -> Dataset:
    """Make random images on a device: of CIFAR-10's size on a GPU, and small ones on a CPU, which is slow."""
    side, batch = (32 if device.type == "cuda" else 8), _batch_size(device)
    count = BATCHES_PER_EPOCH * batch + 3
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count + batch, side, side, 3), dtype=torch.uint8, generator=generator)
    whole = Split(images=images, labels=torch.arange(len(images)) % 10)
    return Dataset(
        name="synthetic",
        classes=tuple("0123456789"),
        train=whole.take(torch.arange(count)),
        validation=whole.take(torch.arange(count, len(images))),
        mean=torch.full((3,), 127.5),
        std=torch.full((3,), 73.9),
        padding=side // 8,
        flip=True,
        checksum="",
    ).to(device)


def _batch_size(device: torch.device) -> int:
    return 128 if device.type == "cuda" else 8


def _listed(numbers: Sequence[int]) -> str:
    *first, last = map(str, numbers)
    return f"{', '.join(first)} and {last}"


def _list_differences(ours: State, theirs: State) -> Iterator[str]:
    for part, own, other in (("weight", ours.weights, theirs.weights), ("momentum", ours.momentum, theirs.momentum)):
        for name, tensor in sorted(own.items()):
            unequal = int((_bits(tensor) != _bits(other[name])).sum())
            if unequal:
                yield f"{unequal:,} of {tensor.numel():,} numbers of the {part} {name} differ"
    for name in ("iteration", "loss_sum", "loss_count", "correct_count"):
        if getattr(ours, name) != getattr(theirs, name):
            yield f"{name} is {getattr(theirs, name)} instead of {getattr(ours, name)}"


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.int64 if tensor.element_size() == 8 else torch.int32)
