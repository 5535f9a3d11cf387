"""Fork `hpo` from a process that has imported it: to import torch and all else takes longer than most tests.

Such a process is in all else as one that `subprocess` starts: a child of who asked for it, in a session of its own,
with its own signals, files and end. The workers that a driver starts are forked in the same way.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

HPO = (sys.executable, "-m", "hpo")
MODULES: tuple[str, ...] = (
    "hpo.cli",
    "hpo.cli.progress",
    "hpo.cli.view",
    "hpo.launch.local",
    "hpo.results.benchmark",
    "hpo.results.figures",
    "hpo.worker.publish",
    "hpo.worker.rotation",
    "hpo.database.removal",
    "sklearn.datasets",
    "matplotlib.backends.backend_agg",
)
MODULES += ("psycopg", "sqlalchemy.dialects.postgresql", "sqlalchemy.dialects.sqlite", "optuna.storages")
START_S = 300.0  # to import torch on a busy machine
POLL_S = 0.01
ORDER_BYTES = 100_000
SET_CHILD_SUBREAPER = 36  # prctl.h


class Forked:
    """A forked process of `hpo`, as `subprocess.Popen` would give it, with its output in files."""

    def __init__(self, pid: int, output: Sequence[IO[str]] = ()) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._output = output

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        until_s = time.monotonic() + (math.inf if timeout is None else timeout)
        while (code := self.poll()) is None:
            if time.monotonic() > until_s:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            time.sleep(POLL_S)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, ...]:
        """Wait for the end, and give stdout and stderr."""
        self.wait(timeout)
        for file in self._output:
            file.seek(0)
        return tuple(file.read() for file in self._output)

    def printed(self) -> str:
        """Give what it has printed to stderr so far."""
        file = self._output[1].fileno()
        return os.pread(file, os.fstat(file).st_size, 0).decode()

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Forker:
    """Ask a process that has imported `hpo` for copies of it."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line

    def fork(
        self,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str],
        folder: Path,
        files: Sequence[int],
        before: str = "",
    ) -> int:
        """Run `hpo` in a child of this process, and give its process id.

        Args:
            files: Descriptors for its stdout and stderr.
            before: Python that it executes first; the workers of a driver start from what it changes as well.
        """
        order = {"arguments": arguments, "environment": dict(environment), "folder": str(folder), "before": before}
        with _adopting():
            socket.send_fds(self._line, [json.dumps(order).encode()], files)
            pid = int(self._line.recv(ORDER_BYTES) or 0)
        assert pid, "the process to fork from has died"
        return pid

    def popen(self, command: Sequence[str], *, env: Mapping[str, str], stdout: IO[bytes], **options: Any) -> Forked:
        """Stand in for the `subprocess.Popen` with which a driver starts its workers."""
        same = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT, "start_new_session": True}
        assert (tuple(command[: len(HPO)]), options) == (HPO, same)
        files = [stdout.fileno()] * 2
        return Forked(self.fork(command[len(HPO) :], environment=env, folder=Path.cwd(), files=files))


@contextmanager
def _adopting() -> Iterator[None]:
    """Be the parent of whoever below this process loses its own meanwhile."""
    libc = ctypes.CDLL(None)
    assert libc.prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    try:
        yield
    finally:
        assert libc.prctl(SET_CHILD_SUBREAPER, 0, 0, 0, 0) == 0


@contextmanager
def preloading() -> Iterator[Forker]:
    """Give a forker while the context lasts."""
    with ExitStack() as stack:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stack.enter_context(ours)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        stack.callback(process.wait)
        stack.callback(ours.close)  # at which it ends
        ours.settimeout(START_S)
        assert ours.recv(ORDER_BYTES) == b"ready"
        yield Forker(ours)


def _take_orders(line: socket.socket) -> dict[str, Any]:
    """Fork a process for each order; this returns in those alone, with the order."""
    while True:
        message, files, _, _ = socket.recv_fds(line, ORDER_BYTES, 2)
        if not message:
            os._exit(0)
        told, tell = os.pipe()
        between = os.fork()
        if between == 0:
            between = os.getpid()
            pid = os.fork()
            if pid == 0:
                while os.getppid() == between:  # until it is a child of who sent the order
                    time.sleep(0.001)
                for end in (told, tell):
                    os.close(end)
                line.close()
                return json.loads(message) | {"files": files}
            os.write(tell, str(pid).encode())
            os._exit(0)
        os.waitpid(between, 0)
        line.send(os.read(told, ORDER_BYTES))
        for end in (told, tell, *files):
            os.close(end)


def _follow(order: dict[str, Any]) -> None:
    """Become the process that was ordered, up to the start of `hpo`."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for found, wanted in ((nothing, 0), (order["files"][0], 1), (order["files"][1], 2)):
        os.dup2(found, wanted)
    for found in {nothing, *order["files"]}:
        os.close(found)
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    import hpo.__main__

    sys.argv = [str(Path(hpo.__main__.__file__)), *order["arguments"]]
    sys.orig_argv = [*HPO, *order["arguments"]]


def _be_asked(line: socket.socket) -> None:
    ending = SimpleNamespace(code=1)
    atexit.register(_leave, ending)  # the first, which is called last
    for name in MODULES:
        import_module(name)
    gc.freeze()  # or each copy would write to all pages when it looks for garbage
    line.send(b"ready")
    order = _take_orders(line)
    exec(order["before"], {})
    if order["arguments"][0] in ("run", "confirm", "benchmark"):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork() == 0:
            ours.close()
            for file in order["files"]:
                os.close(file)
            order = _take_orders(theirs)
        else:
            theirs.close()
            _fork_workers(Forker(ours))
    _follow(order)
    from hpo.cli import main

    try:
        main()
    except SystemExit as end:
        ending.code = end.code
        raise


def _leave(ending: SimpleNamespace) -> None:
    """End at once: the interpreter would take most of a second to take apart what was imported."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(ending.code)


def _fork_workers(forker: Forker) -> None:
    from hpo.launch import process

    known = {name: getattr(subprocess, name) for name in ("DEVNULL", "STDOUT", "TimeoutExpired")}
    process.subprocess = SimpleNamespace(Popen=forker.popen, **known)  # type: ignore[attr-defined, assignment]


if __name__ == "__main__":
    _be_asked(socket.socket(fileno=int(sys.argv[1])))
