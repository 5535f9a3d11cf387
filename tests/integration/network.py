"""Make hosts of their own on this machine: network namespaces with their own addresses and host names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest

NEEDED = {"ip": "iproute2", "unshare": "util-linux", "hostname": "hostname"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """A network namespace, and the line between it and this machine.

    Attributes:
        gateway: Address of this machine as the host sees it.
    """

    name: str
    address: str
    gateway: str

    @property
    def line(self) -> str:
        """Name this machine's end of the line."""
        return f"v{self.name}"

    @property
    def program(self) -> tuple[str, ...]:
        """Give the words that run `hpo` on the host, under its name."""
        script = 'hostname "$0" && exec "$@"'
        inside = ("unshare", "--uts", "sh", "-c", script, self.name, sys.executable, "-m", "hpo")
        return ("ip", "netns", "exec", self.name, *inside)

    def disconnect(self) -> None:
        ip("link", "set", self.line, "down")

    def connect(self) -> None:
        ip("link", "set", self.line, "up")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def connected_hosts(count: int) -> Iterator[list[Host]]:
    """Make hosts that reach this machine, and each other, while the context lasts."""
    missing = [package for program, package in NEEDED.items() if shutil.which(program) is None]
    if os.geteuid() != 0 or missing:
        pytest.skip(f"network namespaces need root and Debian's packages {', '.join(missing or NEEDED.values())}")
    own = os.getpid()
    network, bridge = f"10.213.{own % 250}", f"hpo{own}"
    with ExitStack() as stack:
        ip("link", "add", bridge, "type", "bridge")
        stack.callback(ip, "link", "delete", bridge)
        ip("addr", "add", f"{network}.1/24", "dev", bridge)
        ip("link", "set", bridge, "up")
        yield [
            stack.enter_context(
                _connected(Host(name=f"{bridge}h{i}", address=f"{network}.{i + 2}", gateway=f"{network}.1"), bridge)
            )
            for i in range(count)
        ]


@contextmanager
def _connected(host: Host, bridge: str) -> Iterator[Host]:
    ip("netns", "add", host.name)
    try:
        ip("link", "add", host.line, "type", "veth", "peer", "name", "line", "netns", host.name)
        ip("link", "set", host.line, "master", bridge)
        host.connect()
        ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", "line")
        ip("-n", host.name, "link", "set", "line", "up")
        ip("-n", host.name, "link", "set", "lo", "up")
        yield host
    finally:
        ip("netns", "delete", host.name)
