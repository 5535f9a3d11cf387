"""The device that a worker trains on."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import torch

from hpo.errors import BadInput, DeviceLost

log = logging.getLogger(__name__)


def open_device(name: str) -> torch.device:
    """Find a device by name and make it this process's own.

    Raises:
        BadInput: There is no such device.

    Side effects:
        Makes a GPU torch's current device, which autocast and much else asks. Warns where `auto` is the CPU although
        there seems to be a GPU.
    """
    device = pick_device(name)
    if name == "auto" and device.type == "cpu":
        warn_of_unused_gpu()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def pick_device(name: str) -> torch.device:
    """Find a device by name; `auto` is the first GPU, or the CPU without one.

    Raises:
        BadInput: There is no such device.
    """
    if name == "auto":
        name = "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BadInput(f"device {name!r}: allowed: auto, cpu, cuda and cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise BadInput(f"device {name!r}: allowed: auto, cpu, cuda and cuda:N")
    if device.type == "cpu":
        return device
    if not torch.cuda.is_available():
        raise BadInput(f"device {name!r}: CUDA does not start: {why_no_cuda()}")
    if (device.index or 0) >= torch.cuda.device_count():
        raise BadInput(f"device {name!r}: this machine has {torch.cuda.device_count()} GPUs")
    return torch.device("cuda", device.index or 0)


def warn_of_unused_gpu() -> None:
    """Log why CUDA does not start where there seems to be a GPU, unless somebody hid it from CUDA."""
    file = find_gpu_file()
    if file is not None and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
        log.warning(
            "this machine has a GPU (%s), but CUDA does not start: %s; training on the CPU", file, why_no_cuda()
        )


def why_no_cuda() -> str:
    """Return torch's reason why CUDA does not start, such as a driver that is too old or none; its first sentence."""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without CUDA
        return str(error).strip().partition("\n")[0].partition(". ")[0].rstrip(".")
    return "torch says that there is none"


def find_gpu_file(folder: Path = Path("/dev")) -> Path | None:
    """Find a device file by which a GPU of NVIDIA's shows itself: Linux's own, or that of Windows for Linux in it."""
    return min([*folder.glob("nvidia[0-9]*"), *folder.glob("dxg")], default=None)


def require_device(device: torch.device) -> None:
    """Make sure that a device still computes: after some failed kernels, a process can never use its GPU again.

    Raises:
        DeviceLost: It does not compute any more.
    """
    try:
        if device.type == "cuda":
            torch.cuda.empty_cache()  # what a failed trial held, or the test itself may find no memory
        torch.ones(1, device=device).sum().item()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise DeviceLost(f"device {device}: {reason}; this worker exits; another process may be using it") from error
