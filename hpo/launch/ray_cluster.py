"""The state of a Ray cluster: its nodes, their room, and whether its head answers."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from hpo.errors import BadInput, ClusterUnavailable

ALLOWED_ADDRESSES = "auto, local, or HOST:PORT of a running cluster"
CONNECT_S = 5.0
"""How long an address may take to accept a connection."""

HEAD_LOOK_S = 1.0
"""How often the head is looked at, and how long it may take to accept a connection then."""

HEAD_GONE_S = 45.0
"""How long a cluster's head may be silent: it may be restarted. After a minute Ray itself ends this process."""

MIN_SHARE = 0.01
"""The smallest part of a GPU that a worker may take."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A live node of a cluster."""

    host: str
    address: str
    cpus: float = 0.0
    gpus: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """The resources of a node that one worker occupies."""

    cpus: int = 0
    gpus: float = 0.0

    def __str__(self) -> str:
        return f"{self.gpus:g} GPU each" if self.gpus else f"{self.cpus} CPU each"

    def slots(self, node: Node) -> int:
        """Count the workers that a node has room for; each share lies on a single GPU."""
        if self.gpus:
            return int(node.gpus) * math.floor(1 / self.gpus + 1e-9)
        return int(node.cpus) // self.cpus


class Head:
    """A cluster's head node, without which the cluster is lost.

    Args:
        address: Host and port of Ray's control service.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._looked_s = self._heard_s = time.monotonic()

    def require_answer(self) -> None:
        """Check that the head listens, at most once in `HEAD_LOOK_S`.

        Raises:
            ClusterUnavailable: The head has been silent for `HEAD_GONE_S`.
        """
        now_s = time.monotonic()
        if now_s - self._looked_s < HEAD_LOOK_S:
            return
        self._looked_s = now_s
        if not (error := connection_error(self.address, HEAD_LOOK_S)):
            self._heard_s = now_s
        elif now_s - self._heard_s >= HEAD_GONE_S:
            raise ClusterUnavailable(
                f"the head of the Ray cluster {self.address} is gone ({error}); its workers hand back their trials, "
                "and the same command continues, on this cluster or another"
            )


def check_address(address: str) -> None:
    """Check that something listens at an address: Ray itself would try for more than a minute.

    Raises:
        BadInput: The address is malformed.
        ClusterUnavailable: Nothing listens there.
    """
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
        raise BadInput(f"Ray address {address!r}: allowed: {ALLOWED_ADDRESSES}")
    try:
        error = connection_error(address, CONNECT_S)
    except ValueError:  # characters that no host name may have
        raise BadInput(f"Ray address {address!r}: allowed: {ALLOWED_ADDRESSES}") from None
    if error:
        raise ClusterUnavailable(f"Ray cluster {address} cannot be reached: {error}")


def connection_error(address: str, limit_s: float) -> str | None:
    """Return why an address does not accept a connection within `limit_s`; None where it does."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), limit_s).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def check_share(gpus_per_worker: float | None) -> None:
    """Refuse a share of a GPU that no worker can have.

    Raises:
        BadInput: The share is neither 0 nor from 0.01 to 1.
    """
    if gpus_per_worker is not None and gpus_per_worker != 0 and not MIN_SHARE <= gpus_per_worker <= 1:
        raise BadInput(f"--gpus-per-worker {gpus_per_worker:g}: allowed: 0, and from {MIN_SHARE} to 1")


def require_one_host(nodes: Sequence[Node], cluster: str) -> None:
    """Refuse a cluster whose workers could not all open one file on this machine.

    Raises:
        BadInput: The cluster has several hosts, or is not on this one.
    """
    hosts = sorted({node.host for node in nodes} | {socket.gethostname()})
    addresses = sorted({node.address for node in nodes})
    if max(len(hosts), len(addresses)) > 1:
        listed = ", ".join(hosts if len(hosts) > 1 else addresses)
        raise BadInput(f"storage: SQLite serves one host, and the {cluster} has several ({listed}); use PostgreSQL")


def choose_share(nodes: Sequence[Node], gpus_per_worker: float | None, cluster: str) -> Share:
    """Choose the resources of each worker: a GPU or a part of one where the cluster has GPUs, else a CPU.

    Raises:
        BadInput: No node has room for such a worker.
    """
    has_gpus = any(node.gpus >= 1 for node in nodes)
    gpus = float(has_gpus) if gpus_per_worker is None else gpus_per_worker
    share = Share(gpus=gpus) if gpus else Share(cpus=1)
    if not any(share.slots(node) for node in nodes):
        wanted = f"--gpus-per-worker {gpus:g}" if gpus else "a CPU for each worker"
        total = f"{sum(n.cpus for n in nodes):g} CPUs and {sum(n.gpus for n in nodes):g} GPUs"
        raise BadInput(f"{wanted}: the {cluster} has no room for that; its total is {total}")
    return share


def last_line(text: str) -> str:
    """Return the last line of an error of Ray, which says most, cut to a length that fits on a terminal."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no reason given"


def list_nodes() -> list[Node]:
    """List the live nodes of the cluster that this process is connected to, with their CPUs and GPUs."""
    return [
        Node(
            host=node["NodeManagerHostname"],
            address=node["NodeManagerAddress"],
            cpus=node["Resources"].get("CPU", 0.0),
            gpus=node["Resources"].get("GPU", 0.0),
        )
        for node in live_nodes()
    ]


def live_nodes() -> list[dict[str, Any]]:
    """List the live nodes as Ray describes them.

    Raises:
        ClusterUnavailable: The cluster does not answer.
    """
    try:
        return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    except RayError as error:
        raise ClusterUnavailable(f"the Ray cluster does not answer: {last_line(str(error))}") from error
