"""The devices of this machine that workers are given: GPUs, slices of them (MIG), or the CPU."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

import torch

from hpo.errors import BadInput
from hpo.settings import Precision
from hpo.training.numerics import native_precision
from hpo.worker.device import warn_of_unused_gpu

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""The variable that tells CUDA which devices a process may use."""

LISTING = ("nvidia-smi", "-L")
LISTING_S = 10.0
"""How long NVIDIA's tool may take to list the devices."""

_GPU = re.compile(r"GPU (\d+): .*\(UUID: (GPU-[^\s()]+)\)")
_SLICE = re.compile(r"MIG .*\(UUID: (MIG-[^\s()]+)\)")

_ASK_PRECISION = """
from hpo.training.numerics import native_precision
from hpo.worker.device import pick_device
print(native_precision(pick_device("auto")))
"""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """A GPU or a slice of one, as NVIDIA's tool lists it.

    Attributes:
        name: For people, such as `GPU 0` or `GPU 0 MIG 1`.
        gpu_uuid: The UUID of the GPU that a slice is part of; a whole GPU's own.
    """

    name: str
    uuid: str
    gpu_uuid: str


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerDevice:
    """A device that a worker is started on.

    Attributes:
        name: For people.
        option: The value of `hpo worker --device`.
        environment: Added to the worker's environment.
    """

    name: str
    option: str
    environment: Mapping[str, str] = field(default_factory=dict)


def choose_devices(workers: int | None, gpus: Sequence[WorkerDevice], cores: int) -> list[WorkerDevice]:
    """Choose a device for each worker: by default one per GPU, or per core without a GPU; extra workers share GPUs."""
    if not gpus:
        return [WorkerDevice(name="cpu", option="cpu")] * (workers or cores)
    return [gpus[index % len(gpus)] for index in range(workers or len(gpus))]


def find_gpus() -> list[WorkerDevice]:
    """Find the GPUs and slices that workers of this machine can have; none where torch has no use for them.

    Side effects:
        Runs `nvidia-smi` where torch sees a GPU. CUDA is not started in this process: it would hold memory of a GPU.
    """
    count = torch.cuda.device_count()
    if count == 0:
        warn_of_unused_gpu()
        return []
    try:
        listed = parse_listing(_list_devices())
        problem = "" if listed else f"`{' '.join(LISTING)}` lists no GPU"
    except (OSError, subprocess.SubprocessError) as error:
        listed, problem = [], str(error)
    gpus = restrict(listed, os.environ.get(VISIBLE))
    if gpus:
        return gpus
    log.warning("%s; using the %d devices that torch counts", problem or f"{VISIBLE} names no listed GPU", count)
    return [WorkerDevice(name=f"cuda:{index}", option=f"cuda:{index}") for index in range(count)]


def find_native_precision() -> Precision:
    """Find the precision that workers of this machine compute natively.

    Raises:
        BadInput: A GPU does not tell.

    Side effects:
        Runs a short process where there is a GPU: in this one CUDA would hold memory of it, or, where a GPU is for one
        process alone, all of it.
    """
    if torch.cuda.device_count() == 0:
        return native_precision(torch.device("cpu"))
    command = [sys.executable, "-c", _ASK_PRECISION]
    asked = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8")
    if asked.returncode != 0:
        why = (asked.stderr.strip().splitlines() or [f"code {asked.returncode}"])[-1]
        raise BadInput(f"--precision auto: cannot find out what the GPU supports ({why}); pass fp32, tf32 or bf16")
    return next(precision for precision in get_args(Precision) if precision == asked.stdout.strip())


def _list_devices() -> str:
    return subprocess.run(
        LISTING, capture_output=True, encoding="utf-8", errors="replace", timeout=LISTING_S, check=True
    ).stdout


def parse_listing(text: str) -> list[Listed]:
    """Read the output of `nvidia-smi -L`; a GPU that has slices counts as its slices, as CUDA takes it so."""
    gpus: list[Listed] = []
    slices: dict[str, list[Listed]] = {}
    for line in map(str.strip, text.splitlines()):
        if found := _GPU.fullmatch(line):
            gpus.append(Listed(name=f"GPU {found[1]}", uuid=found[2], gpu_uuid=found[2]))
        elif (found := _SLICE.fullmatch(line)) and gpus:
            gpu, own = gpus[-1], slices.setdefault(gpus[-1].uuid, [])
            own.append(Listed(name=f"{gpu.name} MIG {len(own)}", uuid=found[1], gpu_uuid=gpu.uuid))
    return [device for gpu in gpus for device in slices.get(gpu.uuid, [gpu])]


def restrict(listed: Sequence[Listed], visible: str | None) -> list[WorkerDevice]:
    """Choose what a given CUDA_VISIBLE_DEVICES leaves of the listed devices, each as CUDA identifies it.

    The value is read as CUDA reads it: its entries are numbers, UUIDs or beginnings of them, and end with the first
    that names nothing. A number is passed on as it is, since CUDA counts in another order than NVIDIA's tool.

    Args:
        visible: None where the variable is not set.
    """
    if visible is None:
        return [_by_uuid(device) for device in listed]
    chosen: list[WorkerDevice] = []
    count = len({device.gpu_uuid for device in listed})
    for entry in map(str.strip, visible.split(",")):
        if entry.isascii() and entry.isdigit() and int(entry) < count:
            named = [WorkerDevice(name=f"CUDA's GPU {entry}", option="cuda", environment={VISIBLE: entry})]
        elif entry.startswith(("GPU-", "MIG-")):
            named = [_by_uuid(d) for d in listed if d.uuid.startswith(entry) or d.gpu_uuid.startswith(entry)]
        else:
            named = []
        if not named:
            break
        chosen += [device for device in named if device not in chosen]
    return chosen


def _by_uuid(device: Listed) -> WorkerDevice:
    return WorkerDevice(name=device.name, option="cuda", environment={VISIBLE: device.uuid})
