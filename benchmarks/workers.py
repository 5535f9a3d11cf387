"""Fork workers that share a database server, and take down what they and the server spend.

Workers are threads, one or several a process, each with an engine of its own. Counted are SQL statements as SQLAlchemy
sends them (begin and commit not among them), the processor time of the workers (user and system), and that of all
processes of the server, from /proc.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial, wraps
from multiprocessing.context import ForkProcess
from pathlib import Path
from queue import Empty
from typing import Any, Self, TypeVar
from unittest.mock import patch

from sqlalchemy import event

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from conftest import PostgreSQL, serving_postgresql  # noqa: E402 - the tests' server is the benchmarks'

from hpo.database.storage import Storage, open_storage  # noqa: E402
from hpo.worker.stop import StopSignal  # noqa: E402

START_S = 300.0
SWITCH_S = 0.5  # by default all threads that wait for the interpreter ask for it 200 times a second
OUTSIDE = "trial"
"""Phase of what belongs to no other."""

Shared = TypeVar("Shared")
Patches = Mapping[tuple[Any, str], Any]
_inside = threading.local()  # a worker's heartbeat is a thread of its own
_adding = threading.Lock()


@dataclass(frozen=True, slots=True)
class Span:
    """A span of time, by the monotonic clock, which all processes of a machine share.

    Attributes:
        cpu_s: Processor time that its thread used meanwhile.
    """

    started_s: float
    seconds: float
    cpu_s: float = 0.0

    def within(self, start_s: float, end_s: float) -> float:
        """Give how much of it lies between two times, in seconds."""
        return max(0.0, min(self.started_s + self.seconds, end_s) - max(self.started_s, start_s))


@dataclass
class Tally:
    """The measurements of the workers of one process.

    Attributes:
        statements: How many were sent, by phase and second of the monotonic clock.
        errors: Warnings, errors and exceptions.
    """

    spans: dict[str, list[Span]] = field(default_factory=lambda: defaultdict(list))
    statements: Counter[tuple[str, int]] = field(default_factory=Counter)
    errors: int = 0
    cpu_s: float = 0.0

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add a span of time, and the statements within it, to a phase."""
        outer, _inside.phase = getattr(_inside, "phase", OUTSIDE), phase
        started, cpu_before = time.monotonic(), time.thread_time()
        try:
            yield
        finally:
            self.add(phase, Span(started, time.monotonic() - started, time.thread_time() - cpu_before))
            _inside.phase = outer

    def add(self, phase: str, span: Span) -> None:
        """Add a span of time to a phase."""
        with _adding:
            self.spans[phase].append(span)

    def wrap(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Time every call of a function."""

        @wraps(function)
        def timed(*arguments: Any, **options: Any) -> Any:
            with self.timed(phase):
                return function(*arguments, **options)

        return timed

    def count(self, *_: Any) -> None:
        """Count a statement; SQLAlchemy calls it before it sends one."""
        with _adding:
            self.statements[getattr(_inside, "phase", OUTSIDE), int(time.monotonic())] += 1

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Count an exception, show it, and go on behind the context."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - counted, shown and part of the result
            self.fail(f"{type(error).__name__}: {error}")

    def fail(self, message: str) -> None:
        """Count an error, and show it."""
        with _adding:
            self.errors += 1
        print(message, file=sys.stderr, flush=True)


class Warnings(logging.Handler):
    """A log handler that counts warnings and errors, which is how a worker reports a fault."""

    def __init__(self, tally: Tally) -> None:
        super().__init__(logging.WARNING)
        self._tally = tally

    def emit(self, record: logging.LogRecord) -> None:
        """Count a record, and show it."""
        self._tally.fail(record.getMessage())


class UncaughtSignals(StopSignal):
    """A stop signal for a worker that is a thread: signals reach only the main thread of its process."""

    @contextmanager
    def installed(self) -> Iterator[Self]:
        """Leave signals to whoever holds this."""
        yield self

    def wait(self, seconds: float) -> None:
        """Wait in one piece: of hundreds of threads on few cores, those that look around have no time for more."""
        if not self:
            time.sleep(seconds)


@dataclass(frozen=True, slots=True)
class WorkerProcesses:
    """The processes of running workers."""

    processes: list[ForkProcess]
    results: Any

    @property
    def pids(self) -> list[int]:
        """List their process ids."""
        return [process.pid for process in self.processes if process.pid is not None]

    def collect(self) -> list[Tally]:
        """Wait for all processes to end, and give what they measured; one that gave nothing counts as an error."""
        tallies: list[Tally] = []
        while len(tallies) < len(self.processes):
            try:
                tallies.append(self.results.get(timeout=1.0))
            except Empty:
                if not any(process.is_alive() for process in self.processes):
                    break
        for process in self.processes:
            process.join()
        return tallies + [Tally(errors=1)] * (len(self.processes) - len(tallies))


def start_workers(
    workers: int,
    url: str,
    work: Callable[[Storage, Shared], None],
    prepared: Callable[[Tally], AbstractContextManager[Shared]],
    opened: Callable[[str], Storage] = open_storage,
    workers_a_process: int = 1,
) -> WorkerProcesses:
    """Fork workers, and return when each has opened the database and all begin to work.

    Args:
        work: What a worker does, with a storage and what all of its process share.
        prepared: Entered by each process around the work of its workers.
    """
    sizes = [min(workers_a_process, workers - first) for first in range(0, workers, workers_a_process)]
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(len(sizes) + 1), context.Queue()
    gc.collect()
    gc.freeze()  # what exists already stays in memory that all share

    def run_workers(size: int) -> None:
        tally = Tally()
        logging.getLogger("hpo").addHandler(Warnings(tally))
        with tally.failing():
            try:
                storages = [opened(url) for _ in range(size)]
            finally:
                barrier.wait(START_S)
            before = time.process_time()
            sys.setswitchinterval(SWITCH_S)
            with prepared(tally) as shared:
                run_threads(partial(run_worker, storage, shared, tally) for storage in storages)
            tally.cpu_s = time.process_time() - before
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it may come when the tally is still on its way
        results.put(tally)

    def run_worker(storage: Storage, shared: Shared, tally: Tally) -> None:
        event.listen(storage.engine, "before_cursor_execute", tally.count)
        with tally.failing():
            work(storage, shared)

    processes = [context.Process(target=run_workers, args=(size,)) for size in sizes]
    for process in processes:
        process.start()
    barrier.wait(START_S)
    return WorkerProcesses(processes, results)


def run_threads(calls: Iterable[Callable[[], None]]) -> None:
    """Call all at once, and wait for them; signals reach the thread that waits."""
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@contextmanager
def patched(changes: Patches) -> Iterator[None]:
    """Put other things in the place of attributes while the context lasts."""
    with ExitStack() as stack:
        for (owner, name), value in changes.items():
            stack.enter_context(patch.object(owner, name, value))
        yield


def timing(tally: Tally, calls: Iterable[tuple[Any, str, str]]) -> Patches:
    """Time calls, given as owner, name and phase."""
    return {(owner, name): tally.wrap(phase, getattr(owner, name)) for owner, name, phase in calls}


def processes_cpu_s(pids: Iterable[int]) -> float:
    """Sum the processor time of running processes."""
    stats = (_stat(pid) for pid in pids)
    return _seconds(sum(int(ticks) for fields in stats for ticks in fields[11:13]))


def server_cpu_s(postmaster: int | None) -> float:
    """Sum the processor time of the server's processes, those that have ended included."""
    if postmaster is None:
        return 0.0
    ticks = 0
    for folder in Path("/proc").glob("[0-9]*"):
        fields = _stat(int(folder.name))
        if int(folder.name) == postmaster:
            ticks += sum(int(each) for each in fields[11:15])
        elif fields and int(fields[1]) == postmaster:
            ticks += sum(int(each) for each in fields[11:13])
    return _seconds(ticks)


def _stat(pid: int) -> list[str]:
    """Read what the kernel says of a process, from its state on; nothing where it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _seconds(ticks: int) -> float:
    return ticks / os.sysconf("SC_CLK_TCK")


def postmaster_of(port: int) -> int:
    """Find the server's first process by its port."""
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = command.read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if words[0].endswith(b"postgres") and b"-p" in words and str(port).encode() in words:
            return int(command.parent.name)
    raise LookupError(f"no postgres serves port {port}")


@contextmanager
def opened_server(url: str | None, **settings: str | int) -> Iterator[tuple[str, int | None]]:
    """Give the URL of a database, and the first process of its server where that is ours."""
    if url is not None:
        yield url, None
        return
    with serving_postgresql(**settings) as server:
        assert isinstance(server, PostgreSQL)
        yield server.make_database(), postmaster_of(server.port)
