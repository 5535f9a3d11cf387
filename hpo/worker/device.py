"""The device that a worker trains on."""

from __future__ import annotations

import torch

from hpo.errors import BadInput, DeviceLost


def pick_device(name: str) -> torch.device:
    """Find a device by name; `auto` is the first GPU, or the CPU where there is none.

    Raises:
        BadInput: There is no such device.
    """
    if name == "auto":
        name = "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BadInput(f"device {name!r}: allowed are auto, cpu, cuda and cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise BadInput(f"device {name!r}: allowed are auto, cpu, cuda and cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BadInput(f"device {name!r}: this machine has {torch.cuda.device_count()} GPUs")
    return device


def require_device(device: torch.device) -> None:
    """Make sure that a device still computes: after some failed kernels, a process can never use its GPU again.

    Raises:
        DeviceLost: It does not compute any more.
    """
    try:
        torch.ones(1, device=device).sum().item()
        if device.type == "cuda":
            torch.cuda.empty_cache()  # what the failed trial held
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise DeviceLost(f"device {device}: {reason}; this worker ends, another process may use it") from error
