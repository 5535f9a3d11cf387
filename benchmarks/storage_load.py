"""Measure what a trial's control plane costs, and load a PostgreSQL server with many workers at once.

Training is replaced by a stub that takes no time, or `--epoch-s` seconds a report; all else is `hpo.worker.work` as
`hpo worker` runs it: reap, claim, sample, 32 reports, prune decisions at the rungs, finish. Beside it, on the same
server, in the same search space and with the same sampler and pruner, the loop of Optuna's manual: ask, suggest,
32 times report and should_prune, tell. Both take note of the pruner's advice but go on, so that every trial has all of
its reports.

Workers are forked processes with an engine each, and start together. Optuna's loop has no fixed number of trials in its
storage, so a counter that the processes share gives them out.

    python benchmarks/storage_load.py                                    # 1,000 trials of ours, 128 workers
    python benchmarks/storage_load.py --rounds 8 32 128 --trials-each 2  # both, at several numbers of running trials
    python benchmarks/storage_load.py --rounds 128 --trials-each 2 --epoch-s 1 --only hpo

Counted are SQL statements as SQLAlchemy sends them (begin and commit not among them), the processor time of the workers
(user and system), and that of all processes of the server, from /proc. Times are wall times in the worker; with more
busy workers than cores they are mostly waiting for a core, which is why processor time stands beside them.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import uuid4

import optuna
import torch
from optuna.trial import TrialState
from sqlalchemy import event

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from conftest import PostgreSQL, serving_postgresql  # noqa: E402 - the tests' server is the benchmark's
from hpo import queue, worker  # noqa: E402
from hpo import study as studies  # noqa: E402
from hpo.objective import Supervisor, Task  # noqa: E402
from hpo.patience import Patience  # noqa: E402
from hpo.queue import Outcome  # noqa: E402
from hpo.schedule import REPORTS, CurvePoint, rungs  # noqa: E402
from hpo.search import SearchStorage  # noqa: E402
from hpo.settings import StudySettings  # noqa: E402
from hpo.space import load_space  # noqa: E402
from hpo.storage import Storage, open_storage  # noqa: E402

SETTINGS = StudySettings(
    space=load_space("smooth_lr").model_dump(mode="json", exclude_none=True),
    dataset="digits",
    split="not used",
    iterations=REPORTS,
    seed=0,
    precision="fp32",
    sampler="random",
    pruner="median",
    align="phase",
)
PHASES = ("claim", "sample", "report", "prune", "finish", "trial")
START_S = 300.0
MAX_CONNECTIONS = 600  # Optuna's own pool keeps several a worker


@dataclass
class Tally:
    """Collect what one worker process measures."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    statements: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    errors: int = 0
    cpu_s: float = 0.0
    phase: str = "trial"

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add a stretch of time, and the statements within, to a phase."""
        outer, self.phase = self.phase, phase
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase].append(time.perf_counter() - started)
            self.phase = outer

    def wrap(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Time every call of a function."""

        @wraps(function)
        def timed(*arguments: Any, **options: Any) -> Any:
            with self.timed(phase):
                return function(*arguments, **options)

        return timed

    def count(self, *_: Any) -> None:
        """Count a statement; SQLAlchemy calls it before it sends one."""
        self.statements[self.phase] += 1


class Warnings(logging.Handler):
    """Count warnings and errors, which are what a worker makes of a fault."""

    def __init__(self, tally: Tally) -> None:
        super().__init__(logging.WARNING)
        self._tally = tally

    def emit(self, record: logging.LogRecord) -> None:
        """Count a record, and show it."""
        self._tally.errors += 1
        print(record.getMessage(), file=sys.stderr)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Say what one run does.

    Attributes:
        trials: How many the study is to have.
        epoch_s: How long the stub takes before each report, in seconds.
    """

    kind: str
    url: str
    name: str
    settings: StudySettings
    workers: int
    trials: int
    epoch_s: float


def accuracy(trial_number: int, iteration: int) -> float:
    """Make up a learning curve that rises, higher for some trials than for others."""
    return (0.5 + 0.4 * (trial_number * 0.618 % 1.0)) * (1 - 0.9 ** (iteration + 1))


def work_ours(plan: Plan, storage: Storage, tally: Tally) -> None:
    """Be `hpo worker`, with a stub in the place of training."""

    def train(_task: Task, _data: object, supervisor: Supervisor, _sharing: object) -> Outcome:
        assert isinstance(supervisor, worker.TrialSupervisor)
        at = rungs(REPORTS)
        for iteration in range(1, REPORTS + 1):
            time.sleep(plan.epoch_s)
            value = accuracy(supervisor.attempt.trial_number, iteration)
            supervisor.advanced(iteration, 1)
            point = CurvePoint(iteration=iteration, train_loss=1 - value, val_loss=1 - value, val_accuracy=value)
            with tally.timed("report"):
                supervisor.record(point, {iteration: value})
            if iteration in at:
                with tally.timed("prune"):
                    supervisor.should_prune()
        attrs = {"outcome": "complete", "iterations": REPORTS, "validation loss": 0.1, "standard error": 0.01}
        return Outcome(state="complete", value=value, attrs=attrs)

    found = studies.load(storage, plan.name)
    with ExitStack() as stack:
        stack.enter_context(patch.object(worker, "run_trial", train))
        stack.enter_context(patch.object(worker, "_load_checked", lambda *_: torch.zeros(1)))
        for owner, name, phase in (
            (queue, "claim", "claim"),
            (worker.TrialSupervisor, "finish", "finish"),
            (worker.TrialSupervisor, "sample", "sample"),
            (worker, "train_attempt", "trial"),
        ):
            stack.enter_context(patch.object(owner, name, tally.wrap(phase, getattr(owner, name))))
        worker.work(found, device=torch.device("cpu"), data_dir=Path(), stop=worker.StopSignal())


def work_optuna(plan: Plan, storage: Storage, tally: Tally, next_trial: Callable[[], bool]) -> None:
    """Be the loop of Optuna's manual."""
    settings = plan.settings
    own_seed = os.getpid()
    study = optuna.load_study(
        study_name=plan.name,
        storage=storage.optuna,
        sampler=studies.make_sampler(settings.sampler, settings.seed, own_seed),
        pruner=studies.make_pruner(settings.pruner, settings.iterations),
    )
    space = load_space("smooth_lr")
    while next_trial():
        with tally.timed("trial"):
            with tally.timed("claim"):
                trial = study.ask()
            with tally.timed("sample"):
                space.suggest(trial)
            for iteration in range(1, REPORTS + 1):
                time.sleep(plan.epoch_s)
                value = accuracy(trial.number, iteration)
                with tally.timed("report"):
                    trial.report(value, iteration)
                with tally.timed("prune"):
                    trial.should_prune()
            with tally.timed("finish"):
                study.tell(trial, value)


def be_worker(plan: Plan, barrier: Any, taken: Any, results: Any) -> None:
    """Work as one process, and send the tally."""
    tally = Tally()
    logging.getLogger("hpo").addHandler(Warnings(tally))

    def next_trial() -> bool:
        with taken.get_lock():
            taken.value += 1
            return bool(taken.value <= plan.trials)

    before = 0.0
    try:
        try:
            storage = open_plain(plan.url) if plan.kind == "optuna" else open_storage(plan.url)
        finally:
            barrier.wait(START_S)
        event.listen(storage.engine, "before_cursor_execute", tally.count)
        before = time.process_time()
        if plan.kind == "hpo":
            work_ours(plan, storage, tally)
        else:
            work_optuna(plan, storage, tally, next_trial)
    except Exception as error:  # noqa: BLE001 - counted, shown and part of the result
        tally.errors += 1
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    tally.cpu_s = time.process_time() - before
    results.put((dict(tally.seconds), dict(tally.statements), tally.errors, tally.cpu_s))


def open_plain(url: str) -> Storage:
    """Open the storage as `optuna.load_study` would, with Optuna's own cache and pool."""
    backend = optuna.storages.RDBStorage(url.replace("postgresql://", "postgresql+psycopg://"))
    patience = Patience()
    return Storage(
        url="",
        engine=backend.engine,
        optuna=optuna.storages.get_storage(backend),
        search=SearchStorage(backend, patience),
        patience=patience,
    )


def run(plan: Plan, server: int | None) -> dict[str, Any]:
    """Run a study to its end, and describe what it cost."""
    context = multiprocessing.get_context("fork")
    barrier, taken, results = context.Barrier(plan.workers + 1), context.Value("i", 0), context.Queue()
    create(plan)
    processes = [context.Process(target=be_worker, args=(plan, barrier, taken, results)) for _ in range(plan.workers)]
    for process in processes:
        process.start()
    barrier.wait(START_S)
    server_before, started = server_cpu_s(server), time.perf_counter()
    tallies = [results.get() for _ in processes]
    wall_s = time.perf_counter() - started
    server_s = server_cpu_s(server) - server_before if server else None
    for process in processes:
        process.join()
    return describe(plan, tallies, wall_s, server_s) | {"states": states(plan)}


def create(plan: Plan) -> None:
    """Make the study; ours with its queue, Optuna's empty."""
    if plan.kind == "hpo":
        storage = open_storage(plan.url, "create")
        studies.continue_or_create(storage, plan.name, plan.settings, plan.trials)
    else:
        storage = open_plain(plan.url)
        optuna.create_study(study_name=plan.name, storage=storage.optuna, direction="maximize")
    storage.close()


def states(plan: Plan) -> dict[str, int]:
    """Count the trials by state, as Optuna sees them, and check that each has all of its reports."""
    storage = open_plain(plan.url)
    trials = optuna.load_study(study_name=plan.name, storage=storage.optuna).get_trials(deepcopy=False)
    storage.close()
    assert {len(t.intermediate_values) for t in trials if t.state.is_finished()} <= {REPORTS}, "a report was lost"
    return {state.name.lower(): sum(t.state == state for t in trials) for state in TrialState}


def describe(plan: Plan, tallies: list[Any], wall_s: float, server_s: float | None) -> dict[str, Any]:
    """Sum up the tallies of all workers, a trial."""
    seconds = {phase: [s for tally in tallies for s in tally[0].get(phase, [])] for phase in PHASES}
    done = len(seconds["finish"])
    statements = {phase: sum(tally[1].get(phase, 0) for tally in tallies) for phase in PHASES}
    client_s = sum(tally[3] for tally in tallies)
    return {
        "kind": plan.kind,
        "workers": plan.workers,
        "trials": done,
        "errors": sum(tally[2] for tally in tallies),
        "wall_s": wall_s,
        "worker_cpu_s_a_trial": client_s / done,
        "server_cpu_s_a_trial": None if server_s is None else server_s / done,
        "statements_a_trial": sum(statements.values()) / done,
        "statements_by_phase": {phase: count / done for phase, count in statements.items()},
        "ms": {phase: quantiles(found) for phase, found in seconds.items() if found},
    }


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Give median and 99th percentile in milliseconds, and how many there were."""
    ordered = sorted(seconds)
    return {
        "median": 1000 * statistics.median(ordered),
        "p99": 1000 * ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))],
        "n": len(ordered),
    }


def server_cpu_s(postmaster: int | None) -> float:
    """Sum the processor time of the server's processes, those that have ended included."""
    if postmaster is None:
        return 0.0
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile, and its parent has its time
            continue
        pid, parent = int(stat.parent.name), int(fields[1])
        if pid == postmaster:
            ticks += sum(int(field) for field in fields[11:15])
        elif parent == postmaster:
            ticks += sum(int(field) for field in fields[11:13])
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


def show(found: Mapping[str, Any]) -> None:
    """Print one run as lines for a person."""
    server = found["server_cpu_s_a_trial"]
    cost = f"worker {1000 * found['worker_cpu_s_a_trial']:.1f} ms"
    cost += "" if server is None else f" + server {1000 * server:.1f} ms of processor"
    states = ", ".join(f"{count} {state}" for state, count in found["states"].items() if count)
    print(
        f"\n{found['kind']}, {found['workers']} workers: {states}; {found['errors']} errors; {found['wall_s']:.1f} s; "
        f"a trial: {cost}, {found['statements_a_trial']:.1f} statements"
    )
    for phase, ms in found["ms"].items():
        count = found["statements_by_phase"][phase]
        line = f"median {ms['median']:9.2f} ms  p99 {ms['p99']:9.2f} ms  n {ms['n']:6d}"
        print(f"  {phase:7s} {line}  {count:6.1f} statements a trial", flush=True)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", help="URL of an empty PostgreSQL database; left out, a server is started")
    parser.add_argument("--workers", type=int, default=128, help="of a run of --trials")
    parser.add_argument("--trials", type=int, default=1000, help="of our study in a run without --rounds")
    parser.add_argument("--rounds", type=int, nargs="+", help="numbers of workers to run with, one after the other")
    parser.add_argument("--trials-each", type=int, default=2, help="trials per worker in --rounds")
    parser.add_argument("--only", choices=["hpo", "optuna"])
    parser.add_argument("--sampler", default="random", choices=["random", "tpe", "qmc", "gp", "cmaes"])
    parser.add_argument("--pruner", default="median", choices=["median", "asha", "hyperband", "wilcoxon", "none"])
    parser.add_argument("--epoch-s", type=float, default=0.0)
    parser.add_argument("--json", type=Path, help="file to write the results to")
    return parser.parse_args()


def plans(arguments: argparse.Namespace, url: str) -> Iterator[Plan]:
    """List the runs that the command line asks for."""
    settings = SETTINGS.from_attrs(SETTINGS.to_attrs() | {"sampler": arguments.sampler, "pruner": arguments.pruner})
    kinds = [arguments.only] if arguments.only else ["hpo", "optuna"]
    rounds = [(workers, workers * arguments.trials_each) for workers in arguments.rounds or []]
    for workers, trials in rounds or [(arguments.workers, arguments.trials)]:
        for kind in kinds if rounds else kinds[:1]:
            yield Plan(
                kind=kind,
                url=url,
                name=f"{kind}-{workers}-{uuid4().hex[:8]}",
                settings=settings,
                workers=workers,
                trials=trials,
                epoch_s=arguments.epoch_s,
            )


@contextmanager
def opened_server(url: str | None) -> Iterator[tuple[str, int | None]]:
    """Give the URL of a database, and the first process of its server where that is ours."""
    if url is not None:
        yield url, None
        return
    with serving_postgresql(MAX_CONNECTIONS) as server:
        assert isinstance(server, PostgreSQL)
        yield server.make_database(), postmaster_of(server.port)


def main() -> None:
    """Run what the command line asks for."""
    arguments = parse_arguments()
    versions = f"Python {platform.python_version()}, Optuna {optuna.__version__}"
    print(f"{versions}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}")
    with opened_server(arguments.storage) as (url, server):
        found = []
        for plan in plans(arguments, url):
            found.append(run(plan, server))
            show(found[-1])
    if arguments.json:
        arguments.json.write_text(json.dumps({"versions": versions, "runs": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
