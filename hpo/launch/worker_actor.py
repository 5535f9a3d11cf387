"""The actor that keeps one worker on a node of a Ray cluster.

Ray loads this module on the nodes: it imports nothing heavy.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpo.launch.process import ask_to_end, await_end, start_worker
from hpo.worker.name import worker_name


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerLocation:
    """The place where a worker runs.

    Attributes:
        node_id: Ray's name of the node.
        worker: Its name, as in its attempts.
        output: The file on that host that holds the worker's output.
    """

    node_id: str
    host: str
    worker: str
    output: str


class WorkerActor:
    """The actor that starts a worker and ends it; a worker whose actor dies hands back its trial by itself.

    Side effects:
        Starts a process.
    """

    def __init__(self, options: Sequence[str], environment: Mapping[str, str]) -> None:
        self._process = start_worker(options, environment)

    def locate(self) -> WorkerLocation:
        """Return where the worker runs."""
        import ray

        return WorkerLocation(
            node_id=ray.get_runtime_context().get_node_id(),
            host=socket.gethostname(),
            worker=worker_name(self._process.pid),
            output=str(Path("/proc/self/fd/2").readlink()),  # the worker has it from this process, which Ray gave it
        )

    def wait(self) -> int:
        """Wait until the worker ends by itself, and return its exit code."""
        return self._process.wait()

    def end(self, limit_s: float) -> None:
        """Ask the worker to hand back its trial, and kill it after `limit_s`."""
        ask_to_end(self._process)
        await_end(self._process, limit_s)
