"""Worker processes on the devices of this machine."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpo.launch.cores import count_cores
from hpo.launch.devices import WorkerDevice, choose_devices, find_gpus
from hpo.launch.process import ask_to_end, await_end, start_worker
from hpo.launch.supervise import Ended, Workers
from hpo.paths import choose_log
from hpo.study import Study
from hpo.wording import counted
from hpo.worker.name import worker_name


class LocalPlace:
    """A device of this machine, and the worker process that uses it.

    Args:
        device: The device, and what tells the worker to use no other.
        log_path: The file to which the worker's output is appended.
    """

    def __init__(
        self, device: WorkerDevice, options: Sequence[str], environment: Mapping[str, str], log_path: Path
    ) -> None:
        self.name = device.name
        self.options = [*options, "--device", device.option]
        self.environment = {**environment, **device.environment}
        self.log_path = log_path
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def worker(self) -> str:
        """Return the name of the last worker that was started, as in its attempts; empty where none was."""
        return "" if self._process is None else worker_name(self._process.pid)

    @property
    def output(self) -> str:
        """Return the path of the last worker's output."""
        return str(self.log_path)

    def start(self) -> None:
        """Start a worker process."""
        with self.log_path.open("ab") as log:
            self._process = start_worker(self.options, self.environment, log)

    def waits(self) -> bool:
        """Return False: there is always room on this machine's devices."""
        return False

    def poll(self) -> Ended | None:
        """Return how the worker ended; None while it runs."""
        code = None if self._process is None else self._process.poll()
        return None if code is None else Ended(code == 0, f"with code {code}")

    def ask_to_end(self) -> None:
        """Ask the worker to hand back its trial and end, without waiting for it."""
        if self._process is not None:
            ask_to_end(self._process)

    def end(self, limit_s: float) -> None:
        """Wait for the worker to end, and kill it after `limit_s`."""
        if self._process is not None:
            await_end(self._process, limit_s)


@dataclass(frozen=True)
class LocalLauncher:
    """A launcher for this machine.

    Attributes:
        workers: The number of workers; None for one per device.
    """

    workers: int | None = None

    def prepare(self, study: Study, options: Sequence[str], environment: Mapping[str, str]) -> Workers:
        """Choose devices for workers of a study."""
        devices = choose_devices(self.workers, find_gpus(), cores=count_cores())
        names = ", ".join(device.name for device in devices)
        log_path = choose_log(f"{study.name}.log")
        return Workers(
            study=study,
            places=[LocalPlace(device, options, environment, log_path) for device in devices],
            summary=f"{counted(len(devices), 'worker')} ({names}), log in {log_path}",
            output=str(log_path),
        )

    def close(self) -> None:
        """Do nothing: only the workers' processes were held."""
