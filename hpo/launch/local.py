"""Start one worker process per device on this machine."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from hpo.launch.process import ask_to_end, await_end, start_worker
from hpo.launch.supervise import Ended, Workers
from hpo.study import Study
from hpo.worker.registration import worker_name


@dataclass
class LocalPlace:
    """Be a device of this machine, and the worker process that has it.

    Attributes:
        name: Of the device, such as `cpu` or `cuda:0`.
        log_path: Where the worker's output goes, behind what is there.
    """

    name: str
    options: Sequence[str]
    environment: Mapping[str, str]
    log_path: Path
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def worker(self) -> str:
        """Name the last worker that was started, as its attempts do."""
        return "" if self._process is None else worker_name(self._process.pid)

    @property
    def output(self) -> str:
        """Say where the last worker's output is."""
        return str(self.log_path)

    def start(self) -> None:
        """Start a worker process."""
        with self.log_path.open("ab") as log:
            self._process = start_worker([*self.options, "--device", self.name], self.environment, log)

    def waits(self) -> bool:
        """Tell that there is always room on a machine's devices."""
        return False

    def poll(self) -> Ended | None:
        """Say how the worker ended; None while it runs."""
        code = None if self._process is None else self._process.poll()
        return None if code is None else Ended(code == 0, f"with code {code}")

    def ask_to_end(self) -> None:
        """Let the worker hand back its trial and end, without waiting for it."""
        if self._process is not None:
            ask_to_end(self._process)

    def end(self, limit_s: float) -> None:
        """Wait for the worker, and kill it after `limit_s`."""
        if self._process is not None:
            await_end(self._process, limit_s)


@dataclass(frozen=True)
class LocalLauncher:
    """Start workers on this machine: so many, or one per device."""

    workers: int | None = None

    def prepare(self, study: Study, options: Sequence[str], environment: Mapping[str, str]) -> Workers:
        """Choose devices for workers of a study."""
        devices = choose_devices(self.workers, torch.cuda.device_count(), cores=len(os.sched_getaffinity(0)))
        log_path = Path(f"{study.name}.log").absolute()
        return Workers(
            study=study,
            places=[LocalPlace(device, options, environment, log_path) for device in devices],
            summary=f"{len(devices)} workers ({', '.join(devices)}), their log is {log_path}",
            output=str(log_path),
        )

    def close(self) -> None:
        """Do nothing: processes are all there is."""


def choose_devices(workers: int | None, gpus: int, cores: int) -> list[str]:
    """Place workers: one per GPU, or per core where there is no GPU; more than GPUs share them in turn."""
    if gpus == 0:
        return ["cpu"] * (workers or cores)
    return [f"cuda:{index % gpus}" for index in range(workers or gpus)]
