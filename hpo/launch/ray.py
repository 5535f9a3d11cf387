"""Start workers as actors of a Ray cluster, wherever it has room."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import ray
from ray.exceptions import ActorUnavailableError, RayError

from hpo.database.storage import is_one_file
from hpo.errors import ClusterUnavailable
from hpo.launch.ray_cluster import (
    Head,
    Share,
    check_address,
    check_share,
    choose_share,
    last_line,
    list_nodes,
    live_nodes,
    require_one_host,
)
from hpo.launch.supervise import TERMINATE_S, Ended, Workers
from hpo.launch.worker_actor import Where, WorkerActor
from hpo.study import Study

ROOM_S = 10.0
"""How long an actor may take to start before people are told that it waits for room."""


CALLS_AT_ONCE = 16
"""Of an actor: one waits for the worker's end, and again after each time that the network failed; one ends it."""

STORE_BYTES = 100 * 2**20  # workers give each other nothing through Ray
MAX_WORKERS = 512
KEPT_ALIVE = {"RAY_kill_child_processes_on_worker_exit": "false"}
"""Ray kills what an actor started when the actor ends; a worker is to hand its trial back instead."""

log = logging.getLogger(__name__)


@dataclass
class RayPlace:
    """Be room for one worker on a cluster, wherever that is, and the actor that keeps the worker.

    The death of a node is not held against the worker: it is started elsewhere, as soon as there is room.
    """

    share: Share
    options: Sequence[str]
    environment: Mapping[str, str]
    _actor: Any = field(default=None, init=False)
    _whereabouts: Any = field(default=None, init=False)
    _exit: Any = field(default=None, init=False)
    _handing_back: Any = field(default=None, init=False)
    _where: Where | None = field(default=None, init=False)
    _ended: Ended | None = field(default=None, init=False)
    _started_s: float = field(default=0.0, init=False)

    @property
    def name(self) -> str:
        """Name the host of the last worker."""
        return "the Ray cluster" if self._where is None else self._where.host

    @property
    def worker(self) -> str:
        """Name the last worker, as its attempts do; empty where it has not started."""
        return "" if self._where is None else f"{self._where.host}:{self._where.process_id}"

    @property
    def output(self) -> str:
        """Say where the last worker's output is."""
        return "Ray's logs" if self._where is None else f"{self._where.output} on {self._where.host}"

    def start(self) -> None:
        """Ask Ray for an actor that starts a worker."""
        actor = ray.remote(WorkerActor).options(
            num_cpus=self.share.cpus,
            num_gpus=self.share.gpus,
            max_concurrency=CALLS_AT_ONCE,
            runtime_env={"env_vars": KEPT_ALIVE},  # shown by Ray's dashboard, so the storage's URL is an argument
        )
        self._actor = actor.remote(list(self.options), dict(self.environment))
        self._whereabouts, self._exit = self._actor.where.remote(), self._actor.wait.remote()
        self._where = self._ended = self._handing_back = None
        self._started_s = time.monotonic()

    def waits(self) -> bool:
        """Tell whether Ray has found no room for the worker yet."""
        return self._ended is None and self._where is None and time.monotonic() - self._started_s > ROOM_S

    def poll(self) -> Ended | None:
        """Say how the worker ended; None while it runs or waits."""
        if self._ended is None:
            self._locate()
            self._ended = self._find_end()
            if self._ended is not None:
                ray.kill(self._actor)  # its room is for others
        return self._ended

    def ask_to_end(self) -> None:
        """Let the worker hand back its trial and end, without waiting for it."""
        if self._actor is None or self._ended is not None:
            return
        self._locate()
        if self._where is not None:
            self._handing_back = self._actor.end.remote(TERMINATE_S)

    def end(self, limit_s: float) -> None:
        """Wait for the worker, and end its actor: a worker that is left then notices that by itself."""
        if self._actor is None or self._ended is not None:
            return
        if self._handing_back is not None:
            ray.wait([self._handing_back], timeout=max(0.0, limit_s))
        ray.kill(self._actor)

    def _locate(self) -> None:
        if self._where is not None or not _is_ready(self._whereabouts):
            return
        try:
            self._where = ray.get(self._whereabouts)
        except ActorUnavailableError:  # Ray does not know yet whether it lives
            self._whereabouts = self._actor.where.remote()
        except RayError as error:  # the call that waits for the end fails as well, and says so
            log.debug("an actor does not say where it is: %s", error)

    def _find_end(self) -> Ended | None:
        if not _is_ready(self._exit):
            return None
        try:
            code = ray.get(self._exit)
        except ActorUnavailableError:  # Ray does not know yet whether it lives; the next answer says so
            self._exit = self._actor.wait.remote()
            return None
        except RayError as error:
            return self._take_loss(error)
        return Ended(code == 0, f"with code {code}")

    def _take_loss(self, error: RayError) -> Ended | None:
        if self._where is not None and self._where.node_id not in {node["NodeID"] for node in live_nodes()}:
            log.warning("the node of Ray on %s is gone; its worker starts wherever there is room", self._where.host)
            self.start()
            return None
        return Ended(False, f"with its actor: {last_line(str(error))}")


@dataclass
class RayLauncher:
    """Start workers on a Ray cluster that this process is connected to.

    Attributes:
        address: For messages.
        logs: Folder of Ray's logs on each node.
        places: How many workers there are to be.
        share: What of a node each of them takes.
    """

    address: str
    logs: str
    places: int
    share: Share
    _open: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @classmethod
    def connect(cls, address: str | None, storage_url: str, workers: int | None, gpus_per_worker: float | None) -> Self:
        """Connect to a cluster, or start one on this machine, and choose what each worker takes.

        Args:
            address: None for that in RAY_ADDRESS, and where there is none, a local one.
            storage_url: What the workers are to reach.
            workers: None for as many as there is room for.
            gpus_per_worker: None for one where the cluster has GPUs.

        Raises:
            BadInput: The address is malformed, no node has room for a worker, or the storage is one file for several
                hosts.
            ClusterUnavailable: There is no such cluster, or it is of another release.

        Side effects:
            May start Ray's processes. Until it is closed, stdout goes nowhere: Ray's warnings would spoil the result.
        """
        check_share(gpus_per_worker)
        one_file = is_one_file(storage_url)
        address = address or os.environ.get("RAY_ADDRESS") or "local"
        check_address(address)
        with contextlib.ExitStack() as stack:
            _silence_stdout(stack)
            # Local processes of Ray end with the thread that started them, so it stays until all is closed.
            beside = stack.enter_context(ThreadPoolExecutor(1))
            logs = _init(address, beside)
            stack.callback(ray.shutdown)
            nodes = list_nodes()
            shown = "local Ray" if address == "local" else f"Ray cluster {ray.get_runtime_context().gcs_address}"
            if one_file:
                require_one_host(nodes, shown)
            share = choose_share(nodes, gpus_per_worker, shown)
            places = workers or min(MAX_WORKERS, sum(map(share.slots, nodes)))
            return cls(shown, logs, places, share, stack.pop_all())

    def prepare(self, study: Study, options: Sequence[str], environment: Mapping[str, str]) -> Workers:
        """Choose room for workers of a study."""
        device = "auto" if self.share.gpus else "cpu"  # Ray shows an actor its own GPU alone
        options = [*options, "--device", device]
        return Workers(
            study=study,
            places=[RayPlace(self.share, options, environment) for _ in range(self.places)],
            summary=f"{self.places} workers on the {self.address} ({self.share}), their output is in {self.logs}",
            output=self.logs,
            require_answer=Head(ray.get_runtime_context().gcs_address).require_answer,
        )

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        self._open.close()


def _init(address: str, beside: Executor) -> str:
    """Connect in another thread, and give the folder of Ray's logs.

    In the main thread, Ray would take SIGTERM for itself, and let no signal through while it tries to connect.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cores = len(os.sched_getaffinity(0))
    local: dict[str, Any] = {"num_cpus": cores, "include_dashboard": False, "object_store_memory": STORE_BYTES}
    options = {"log_to_driver": False, "logging_level": logging.ERROR} | (local if address == "local" else {})
    try:
        context: Any = beside.submit(ray.init, address, **options).result()
    except (RayError, RuntimeError, OSError, ValueError) as error:
        what = "a local Ray could not be started" if address == "local" else f"Ray cluster {address}"
        raise ClusterUnavailable(f"{what}: {str(error).strip().splitlines()[0]}") from error
    return f"{context.address_info['session_dir']}/logs"


def _silence_stdout(stack: contextlib.ExitStack) -> None:
    nowhere = stack.enter_context(Path(os.devnull).open("w"))  # noqa: SIM115 - the stack closes it
    stack.enter_context(contextlib.redirect_stdout(nowhere))


def _is_ready(reference: Any) -> bool:
    return bool(ray.wait([reference], timeout=0)[0])
