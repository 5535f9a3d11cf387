"""Stand between a client and a server, and break the line in the ways in which networks do."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Literal

Fault = Literal["none", "reset", "silent"]
CHUNK_BYTES = 65536
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST


class Proxy:
    """Forward TCP connections; `reset` refuses and breaks them, `silent` takes what is sent and never answers.

    A connection that was broken or silenced stays so after the line is mended.
    """

    def __init__(self, target_port: int, host: str = "127.0.0.1") -> None:
        self._target_port = target_port
        self._fault: Fault = "none"
        self._open: list[socket.socket] = []
        self._lost: set[socket.socket] = set()
        self._listener = socket.create_server((host, 0))
        self.host, self.port = self._listener.getsockname()[:2]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, fault: Fault) -> None:
        self._fault = fault
        self._lost |= set(self._open)
        if fault == "reset":
            for end in self._open:
                _reset(end)

    def mend(self) -> None:
        self._fault = "none"

    def close(self) -> None:
        for end in [self._listener, *self._open]:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        with suppress(OSError):  # the listener was closed
            while True:
                self._join(self._listener.accept()[0])

    def _join(self, client: socket.socket) -> None:
        if self._fault == "reset":
            _reset(client)
            return
        self._open.append(client)
        if self._fault == "silent":
            return
        with suppress(OSError):  # the server is gone
            server = socket.create_connection(("127.0.0.1", self._target_port))
            self._open.append(server)
            for ends in ((client, server), (server, client)):
                threading.Thread(target=self._forward, args=ends, daemon=True).start()
            return
        _reset(client)

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):  # either end was closed
            while content := source.recv(CHUNK_BYTES):
                if source not in self._lost:
                    sink.sendall(content)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


def _reset(end: socket.socket) -> None:
    with suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        end.shutdown(socket.SHUT_RD)
    end.close()


@contextmanager
def proxied(url: str, host: str = "127.0.0.1") -> Iterator[tuple[Proxy, str]]:
    """Give a proxy before the server of a URL on this machine, and the URL that leads through it."""
    before, _, rest = url.rpartition("@127.0.0.1:")
    port, _, database = rest.partition("/")
    with ExitStack() as stack:
        proxy = Proxy(int(port), host)
        stack.callback(proxy.close)
        yield proxy, f"{before}@{proxy.host}:{proxy.port}/{database}"
