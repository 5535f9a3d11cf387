"""Workers as actors of a Ray cluster, wherever it has room."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import ray
from ray.exceptions import ActorUnavailableError, RayError

from hpo.database.storage import is_one_file
from hpo.errors import ClusterUnavailable
from hpo.launch.cores import count_cores
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
from hpo.launch.worker_actor import WorkerActor, WorkerLocation
from hpo.settings import MAX_WORKERS
from hpo.study import Study
from hpo.wording import counted

ROOM_S = 10.0
"""How long an actor may take to start before people are told that it waits for room."""

CALLS_AT_ONCE = 16
"""Calls of one actor: one waits for the worker's end, another after each failure of the network, and one ends it."""

STORE_BYTES = 100 * 2**20
"""The size of Ray's object store, which is small as workers exchange nothing through Ray."""

ANSWER_S = 0.2
"""How much sooner than its driver an actor gives up a worker, so that it still lives to kill it and to say so."""

KEPT_ALIVE = {"RAY_kill_child_processes_on_worker_exit": "false"}
"""Without this, Ray kills a worker as its actor ends, before it has handed its trial back."""

GPU_DEVICE = "cuda"
"""The device of an actor with a GPU, of which Ray shows it none but its own; where CUDA does not start, it ends."""

log = logging.getLogger(__name__)


class RayPlace:
    """Room for one worker anywhere on a cluster, and the actor that keeps the worker.

    The death of a node does not count as the worker's: the worker starts elsewhere as soon as there is room.
    """

    def __init__(self, share: Share, options: Sequence[str], environment: Mapping[str, str]) -> None:
        self.share = share
        self.options = options
        self.environment = environment
        self._actor: Any = None
        self._location_call: Any = None
        self._exit_call: Any = None
        self._end_call: Any = None
        self._location: WorkerLocation | None = None
        self._ended: Ended | None = None
        self._started_s = 0.0

    @property
    def name(self) -> str:
        """Return the host of the last worker."""
        return "the Ray cluster" if self._location is None else self._location.host

    @property
    def worker(self) -> str:
        """Return the name of the last worker, as in its attempts; empty where it has not started."""
        return "" if self._location is None else self._location.worker

    @property
    def output(self) -> str:
        """Return where the last worker's output is."""
        return "Ray's logs" if self._location is None else f"{self._location.output} on {self._location.host}"

    def start(self) -> None:
        """Ask Ray for an actor that starts a worker."""
        actor = ray.remote(WorkerActor).options(
            num_cpus=self.share.cpus,
            num_gpus=self.share.gpus,
            max_concurrency=CALLS_AT_ONCE,
            runtime_env={"env_vars": KEPT_ALIVE},  # shown by Ray's dashboard, so the storage's URL is an argument
        )
        self._actor = actor.remote(list(self.options), dict(self.environment))
        self._location_call, self._exit_call = self._actor.locate.remote(), self._actor.wait.remote()
        self._location = self._ended = self._end_call = None
        self._started_s = time.monotonic()

    def waits(self) -> bool:
        """Return whether the worker still waits for room, after the seconds that an actor takes to start."""
        return self._ended is None and self._location is None and time.monotonic() - self._started_s > ROOM_S

    def poll(self) -> Ended | None:
        """Return how the worker ended; None while it runs or waits."""
        if self._ended is None:
            self._locate()
            self._ended = self._find_end()
            if self._ended is not None:
                ray.kill(self._actor)  # to free its resources
        return self._ended

    def ask_to_end(self) -> None:
        """Ask the worker to hand back its trial and end, without waiting for it."""
        if self._actor is None or self._ended is not None:
            return
        self._locate()
        if self._location is not None:
            self._end_call = self._actor.end.remote(TERMINATE_S - ANSWER_S)

    def end(self, limit_s: float) -> None:
        """Wait for the worker, and end its actor; a worker that still runs then notices that and ends."""
        if self._actor is None or self._ended is not None:
            return
        if self._end_call is not None:
            ray.wait([self._end_call], timeout=max(0.0, limit_s))
        ray.kill(self._actor)

    def _locate(self) -> None:
        if self._location is not None or not _is_ready(self._location_call):
            return
        try:
            self._location = ray.get(self._location_call)
        except ActorUnavailableError:  # Ray does not know yet whether it lives
            self._location_call = self._actor.locate.remote()
        except RayError as error:  # the call that waits for the end fails as well, and says so
            log.debug("an actor does not say where it is: %s", error)

    def _find_end(self) -> Ended | None:
        if not _is_ready(self._exit_call):
            return None
        try:
            code = ray.get(self._exit_call)
        except ActorUnavailableError:  # Ray does not know yet whether it lives; the next answer says so
            self._exit_call = self._actor.wait.remote()
            return None
        except RayError as error:
            return self._take_loss(error)
        return Ended(code == 0, f"with code {code}")

    def _take_loss(self, error: RayError) -> Ended | None:
        if self._location is not None and self._location.node_id not in {node["NodeID"] for node in live_nodes()}:
            log.warning("the Ray node on %s is lost; its worker will start on another node", self._location.host)
            self.start()
            return None
        return Ended(False, f"with its actor: {last_line(str(error))}")


class RayLauncher:
    """A launcher for a Ray cluster that this process is connected to.

    Args:
        address: The cluster's name in messages.
        logs: The folder of Ray's logs on each node.
        places: The number of workers.
        share: The resources of a node that each of them takes.
        opened: What is closed with the launcher.
    """

    def __init__(self, address: str, logs: str, places: int, share: Share, opened: contextlib.ExitStack) -> None:
        self.address = address
        self.logs = logs
        self.places = places
        self.share = share
        self._opened = opened

    @classmethod
    def connect(cls, address: str | None, storage_url: str, workers: int | None, gpus_per_worker: float | None) -> Self:
        """Connect to a cluster, or start one on this machine, and choose the resources of each worker.

        Args:
            address: None for the value of RAY_ADDRESS, or else a local cluster.
            storage_url: The database that the workers use.
            workers: None for as many as there is room for.
            gpus_per_worker: None for one where the cluster has GPUs.

        Raises:
            BadInput: The address is malformed, no node has room for a worker, or the storage is one file and the
                cluster has several hosts.
            ClusterUnavailable: There is no such cluster, or it runs another release of Ray.

        Side effects:
            May start Ray's processes. Stdout is discarded until the launcher is closed: Ray's warnings would break the
            result.
        """
        check_share(gpus_per_worker)
        one_file = is_one_file(storage_url)
        address = address or os.environ.get("RAY_ADDRESS") or "local"
        check_address(address)
        with contextlib.ExitStack() as stack:
            _silence_stdout(stack)
            # Local processes of Ray end with the thread that started them, so it lives until the launcher is closed.
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
        """Prepare a place for each worker of a study."""
        options = [*options, "--device", GPU_DEVICE if self.share.gpus else "cpu"]
        return Workers(
            study=study,
            places=[RayPlace(self.share, options, environment) for _ in range(self.places)],
            summary=f"{counted(self.places, 'worker')} on the {self.address} ({self.share}), output in {self.logs}",
            output=self.logs,
            require_answer=Head(ray.get_runtime_context().gcs_address).require_answer,
        )

    def close(self) -> None:
        """Disconnect from the cluster; one that was started here ends."""
        self._opened.close()


def _init(address: str, beside: Executor) -> str:
    """Connect in another thread, and return the folder of Ray's logs.

    In the main thread, Ray would take SIGTERM for itself, and let no signal through while it tries to connect.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cores = count_cores()
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
