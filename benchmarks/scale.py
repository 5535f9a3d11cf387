"""Run a study with many workers on one PostgreSQL, and see how trials an hour grow with their number.

All but training is what `hpo worker` runs: reap, claim, sample, the leases and checkpoints of trajectories, prune
decisions, heartbeats, finish. Training is a stub that sleeps for as long as an H100-class GPU would train, and makes up
a loss and an accuracy that follow from the learning rates so far, so that recipes with a common start have a common
curve. Its state is a few bytes; the budget of the checkpoints is scaled down with it, so that as many fit as in
`--checkpoint-gb` of real ones. The figures of trials are not drawn.

    python benchmarks/scale.py --json scale.json --plot scale.png                      # 32, 128 and 512 workers
    python benchmarks/scale.py --json scale.json --workers 512 --speed-up 0.25         # of two cores, 512 want more
    python benchmarks/scale.py --workers 64 --warm-up-s 20 --window-s 40 --speed-up 4  # a quick look

Workers are threads, 32 a process, as hundreds of processes take all memory. They come one by one in the first part of
the warm-up, as machines of a cluster do.

An epoch, 351 steps of 128 images, takes 1.9 s by default (`--epoch-s`): `docs/benchmarks.md` says where that is from.
An evaluation takes a third of the time that training takes for as many images.

Measured is a window after a warm-up, which begins with the first training step: trials that end in it; the processor
seconds of all processes of the server, and of all workers, a second; statements as SQLAlchemy sends them; what the
workers do with their time; what the server's connections wait for. Redone iterations are counted over the whole run:
those trained minus the distinct ones of all trials. `workers.py` says how.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import multiprocessing
import os
import platform
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import optuna
import psycopg
import torch
from sqlalchemy import func, select
from workers import (
    OUTSIDE,
    Span,
    Tally,
    UncaughtSignals,
    WorkerProcesses,
    opened_server,
    patched,
    processes_cpu_s,
    server_cpu_s,
    start_workers,
    timing,
)

from hpo import study as studies
from hpo.artifacts import open_artifacts
from hpo.database import losses, overview, queue, study_state
from hpo.database.attempt import WorkerId
from hpo.database.retry import RetryPolicy
from hpo.database.storage import Storage, open_storage
from hpo.database.tables import AttemptRow
from hpo.recipes.recipe import REFERENCE_ITERATIONS, Recipe
from hpo.recipes.schedule import CurvePoint, distinct_iterations, learning_rate_runs
from hpo.recipes.space_file import load_space
from hpo.results.figures import LIGHT, drawing, to_png, use_log_scale
from hpo.settings import DEFAULT_STORAGE_TIMEOUT_S, GIGABYTE, StudySettings
from hpo.training.data import Dataset, Split
from hpo.training.train import Computing, Measurement, Precision, State
from hpo.trial import trajectory
from hpo.trial.checkpoints import Checkpoints, encode
from hpo.trial.trajectory import Trajectory
from hpo.worker import registration, work
from hpo.worker.name import worker_name
from hpo.worker.stop import StopSignal
from hpo.worker.supervisor import TrialSupervisor

STEPS_PER_EPOCH = 351
TRAINING_IMAGES, VALIDATION_IMAGES = 45_000, 5_000
FORWARD_SHARE = 1 / 3
SLICE_S = 1.0
"""How long the stub sleeps before it looks whether it is to stop."""

CHECKPOINT_BYTES = 2_200_000
CONNECTING_AT_ONCE = 4
ARRIVAL_SHARE = 0.4
LAST_CALL_S = 600.0
SETTINGS = StudySettings(
    space=load_space("smooth_lr").model_dump(mode="json", exclude_none=True),
    dataset="cifar10",
    split="not used",
    image_shape=(32, 32, 3),
    classes=10,
    augment="crop,flip",
    iterations=REFERENCE_ITERATIONS,
    seed=0,
    precision="bf16",
    sampler="tpe",
    pruner="asha-stop",
    align="phase",
)
TRAINING, IDLE = "training", "idle"
process_id = registration.worker_id
CALLS = (
    (losses, "reap", "poll"),
    (queue, "claim", "poll"),
    (registration.WorkerRegistration, "show", "poll"),
    (study_state, "find_state", "poll"),
    (overview, "count", "poll"),
    (registration.IdleBackoff, "wait", IDLE),
    (TrialSupervisor, "sample", "sample"),
    (TrialSupervisor, "should_prune", "prune"),
    (TrialSupervisor, "finish", "finish"),
    (queue, "hand_back", "hand back"),
    (queue, "record", "heartbeat"),
    (queue, "renew", "heartbeat"),
    (Checkpoints, "save", "save"),
    (Checkpoints, "adopt", "start"),
    (Trajectory, "_enter", "enter"),
    (Trajectory, "_restore_deepest", "load"),
    (work, "train_attempt", OUTSIDE),
)
PHASES = ("poll", "sample", "prune", "finish", "hand back", "save", "start", "enter", "load")
"""Of the thread that trains, in a trial and between two."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The conditions of one run."""

    url: str
    name: str
    workers: int
    workers_a_process: int
    trials: int
    warm_up_s: float
    window_s: float
    checkpoint_gb: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """The measurements of a window, read at its edges and every second.

    Attributes:
        waits: What the server's connections were waiting for or doing, counted once a second.
        queries: Calls and milliseconds by statement, as the server counts them.
    """

    start_s: float
    end_s: float
    server_cpu_s: float
    workers_cpu_s: float
    transactions: int
    sessions: int
    connections: int
    waits: Counter[str]
    queries: list[tuple[str, int, float]]
    load_average: float

    @property
    def seconds(self) -> float:
        """Give its length."""
        return self.end_s - self.start_s


class SleepingTraining:
    """A stand-in for `hpo.training.train.Training` that takes its time and makes up its measurements."""

    step_s = 1.9 / STEPS_PER_EPOCH
    tally: Tally

    def __init__(
        self, recipe: Recipe, _dataset: Dataset, _precision: Precision, _computing: Computing = nullcontext
    ) -> None:
        self.recipe = recipe
        self.iteration = 0

    def advance(self, until: int, stop: Callable[[], bool] = lambda: False) -> int:
        """Sleep until an iteration is reached, or `stop` says so."""
        started, begun_s = self.iteration, time.monotonic()
        while self.iteration < until and not stop():
            left_s = begun_s + (until - started) * self.step_s - time.monotonic()
            time.sleep(max(0.0, min(SLICE_S, left_s)))
            self.iteration = min(until, started + math.floor((time.monotonic() - begun_s) / self.step_s + 1e-6))
        self._took(begun_s)
        return self.iteration - started

    def measure(self, images: int) -> CurvePoint:
        """Evaluate, for as long as that takes."""
        measured = self._evaluate(images)
        return CurvePoint(
            iteration=self.iteration,
            train_loss=measured.loss,
            train_accuracy=measured.accuracy,
            val_loss=measured.loss,
            val_accuracy=measured.accuracy,
        )

    def evaluate(self, split: Split) -> Measurement:
        """Evaluate, for as long as that takes."""
        return self._evaluate(len(split))

    def restart_means(self) -> None:
        """Do nothing: training loss and accuracy are made up, too."""

    def state(self) -> State:
        """Give a state of a few bytes."""
        return State(
            iteration=self.iteration,
            weights={"none": torch.zeros(1)},
            momentum={},
            loss_sum=0.0,
            loss_count=0,
            correct_count=0,
        )

    def misfit(self, _state: State) -> None:
        """Object to no state."""

    def restore(self, state: State) -> None:
        """Go to a state."""
        self.iteration = state.iteration

    def _evaluate(self, images: int) -> Measurement:
        begun_s = time.monotonic()
        time.sleep(FORWARD_SHARE * images / self.recipe.batch_size * self.step_s)
        self._took(begun_s)
        error = made_up_error(self.recipe, self.iteration)
        return Measurement(loss=2.5 * error, accuracy=1 - error, images=images)

    def _took(self, begun_s: float) -> None:
        self.tally.add(TRAINING, Span(begun_s, time.monotonic() - begun_s))


def made_up_error(recipe: Recipe, iteration: int) -> float:
    """Make up a validation error: it falls towards a floor, which is lower for lower rates, more slowly for these.

    It depends on the network and on the rates so far alone, as that of a training does.
    """
    network = 0.01 * _draw(recipe.head, recipe.dropout)
    error, before = 0.9, 0
    for end, rate in learning_rate_runs(recipe, iteration):
        floor = 0.08 + network + 0.35 * math.sqrt(rate)
        speed = (2 + 40 * math.sqrt(rate)) / REFERENCE_ITERATIONS
        error = floor + (error - floor) * math.exp(-speed * (end - before))
        before = end
    return error * (1 + 0.02 * (_draw(recipe.head, recipe.dropout, iteration, rate) - 0.5))


def _draw(*of: object) -> float:
    """Give a number in [0, 1) that looks random."""
    return int.from_bytes(hashlib.sha256(repr(of).encode()).digest()[:4], "big") / 2**32


def stub_dataset() -> Dataset:
    """Make a data set of the right size that holds nothing."""
    train, validation = (
        Split(images=torch.zeros(1, 32, 32, 3, dtype=torch.uint8), labels=torch.zeros(size, dtype=torch.int64))
        for size in (TRAINING_IMAGES, VALIDATION_IMAGES)
    )
    return Dataset(
        name="cifar10",
        classes=tuple("0123456789"),
        train=train,
        validation=validation,
        mean=torch.zeros(3),
        std=torch.ones(3),
        padding=4,
        flip=True,
        checksum=SETTINGS.split,
    )


@contextmanager
def stubbed(dataset: Dataset, tally: Tally) -> Iterator[UncaughtSignals]:
    """Put a stub in the place of training, time what is around it, and catch signals for all workers of a process."""
    SleepingTraining.tally = tally
    stubs = {
        (trajectory, "Training"): SleepingTraining,
        (work, "load_checked"): lambda *_: dataset,
        (registration, "worker_id"): thread_id,
    }
    stop = UncaughtSignals(last_call_s=LAST_CALL_S)
    with patched(stubs | dict(timing(tally, CALLS))), StopSignal.installed(stop):
        yield stop


def thread_id(device: torch.device) -> WorkerId:
    """Identify a worker by its thread, as all workers of a process would have the same name."""
    return replace(process_id(device), name=worker_name(threading.get_native_id()))


def run_worker(plan: Plan, stub_bytes: int, folder: str, storage: Storage, stop: UncaughtSignals) -> None:
    """Run `hpo worker` from a random moment in the first part of the warm-up on, as machines come up one by one."""
    stop.wait(random.uniform(0, ARRIVAL_SHARE * plan.warm_up_s))
    budget_bytes = int(plan.checkpoint_gb * GIGABYTE * stub_bytes / CHECKPOINT_BYTES)
    work.work(
        studies.load(storage, plan.name),
        device=torch.device("cpu"),
        data_dir=Path(),
        stop=stop,
        checkpoints=Checkpoints(storage, open_artifacts(folder), budget_bytes),
    )


def run(plan: Plan, server: int | None) -> dict[str, Any]:
    """Run a study through warm-up and window, stop its workers, and describe what was measured."""
    storage = open_storage(plan.url, "create")  # and libraries loaded, before the fork
    study = studies.continue_or_create(storage, plan.name, SETTINGS, plan.trials)
    dataset = stub_dataset()
    stub_bytes = len(encode(SleepingTraining(study.base, dataset, "fp32").state()))
    storage.close()
    gate = multiprocessing.get_context("fork").BoundedSemaphore(CONNECTING_AT_ONCE)
    with tempfile.TemporaryDirectory() as folder:
        processes = start_workers(
            plan.workers,
            plan.url,
            partial(run_worker, plan, stub_bytes, folder),
            partial(stubbed, dataset),
            partial(open_patiently, gate),
            plan.workers_a_process,
        )
        started_s = time.monotonic()
        while not overview.trained_iterations(storage, study.study_id):
            time.sleep(SLICE_S / 4)
        time.sleep(plan.warm_up_s)
        window = watch(plan, processes, server)
        for pid in processes.pids:
            os.kill(pid, signal.SIGTERM)
        tallies = processes.collect()
    measured = describe(plan, window, tallies) | iterations(study)
    storage.close()
    return measured | {"seconds": time.monotonic() - started_s}


def open_patiently(gate: Any, url: str) -> Storage:
    """Open a database as `hpo worker` does, a few at once: where many come, some are told to come again."""
    retry_policy = RetryPolicy(DEFAULT_STORAGE_TIMEOUT_S)
    with gate:
        return retry_policy.call(lambda: open_storage(url, retry_policy=retry_policy, one_connection=True))


def watch(plan: Plan, processes: WorkerProcesses, server: int | None) -> Window:
    """Take down what server and workers do until the window is over."""
    waits: Counter[str] = Counter()
    connections = 0
    with psycopg.connect(plan.url, autocommit=True) as connection:
        connection.execute("SELECT pg_stat_statements_reset()")
        start_s, (transactions, sessions) = time.monotonic(), count_so_far(connection)
        server_before, workers_before = server_cpu_s(server), processes_cpu_s(processes.pids)
        while time.monotonic() < start_s + plan.window_s:
            time.sleep(1.0)
            seen = look(connection)
            waits += seen
            connections = max(connections, seen.total())
        now = count_so_far(connection)
        return Window(
            start_s=start_s,
            end_s=time.monotonic(),
            server_cpu_s=server_cpu_s(server) - server_before,
            workers_cpu_s=processes_cpu_s(processes.pids) - workers_before,
            transactions=now[0] - transactions,
            sessions=now[1] - sessions,
            connections=connections,
            waits=waits,
            queries=list_queries(connection),
            load_average=os.getloadavg()[0],
        )


def count_so_far(connection: psycopg.Connection[Any]) -> tuple[int, int]:
    """Count the transactions that the database has ended, and the connections that it was asked for."""
    query = "SELECT xact_commit + xact_rollback, sessions FROM pg_stat_database WHERE datname = current_database()"
    row = connection.execute(query).fetchone()
    assert row is not None
    return int(row[0]), int(row[1])


def look(connection: psycopg.Connection[Any]) -> Counter[str]:
    """Count the connections of workers by what they do."""
    query = """
        SELECT CASE state WHEN 'active' THEN coalesce(wait_event_type || ' ' || wait_event, 'running') ELSE state END,
               count(*)
        FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'hpo' GROUP BY 1"""
    return Counter({state or "starting": count for state, count in connection.execute(query).fetchall()})


def list_queries(connection: psycopg.Connection[Any]) -> list[tuple[str, int, float]]:
    """List the statements that took the server longest."""
    query = """
        SELECT regexp_replace(query, '\\s+', ' ', 'g'), calls, total_exec_time FROM pg_stat_statements
        WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
        ORDER BY total_exec_time DESC LIMIT 12"""
    return connection.execute(query).fetchall()


def iterations(study: studies.Study) -> dict[str, int]:
    """Count the optimizer steps of a whole run: those trained, and the distinct ones among them."""
    furthest = select(AttemptRow.trial_id, func.max(AttemptRow.iteration)).group_by(AttemptRow.trial_id)
    with study.storage.transaction() as session:
        reached = dict(session.execute(furthest).all())
    begun = [trial for trial in study.trials() if reached.get(trial._trial_id)]
    distinct = distinct_iterations((study.recipe_of(trial), reached[trial._trial_id]) for trial in begun)
    trained = overview.trained_iterations(study.storage, study.study_id)
    return {"trials_begun": len(begun), "trained": trained, "distinct": distinct, "redone": trained - distinct}


def describe(plan: Plan, window: Window, tallies: Sequence[Tally]) -> dict[str, Any]:
    """Sum up what all workers did within the window."""
    spans = {phase: [span for tally in tallies for span in tally.spans[phase]] for phase in (*PHASES, TRAINING, IDLE)}
    seconds = {
        phase: sum(span.within(window.start_s, window.end_s) for span in group) for phase, group in spans.items()
    }
    ends = [span.started_s + span.seconds for span in spans["finish"]]
    done = sum(window.start_s <= end < window.end_s for end in ends)
    control_s = sum(seconds[phase] for phase in PHASES)
    statements: Counter[str] = Counter()
    for tally in tallies:
        for (phase, second), count in tally.statements.items():
            if window.start_s <= second < window.end_s:
                statements[phase] += count
    looks = window.waits.total()
    return {
        "workers": plan.workers,
        "epoch_s": STEPS_PER_EPOCH * SleepingTraining.step_s,
        "window_s": window.seconds,
        "finished": done,
        "trials_an_hour": 3600 * done / window.seconds,
        "errors": sum(tally.errors for tally in tallies),
        "server_cpu_s_a_second": window.server_cpu_s / window.seconds,
        "workers_cpu_s_a_second": window.workers_cpu_s / window.seconds,
        "statements_a_second": statements.total() / window.seconds,
        "transactions_a_second": window.transactions / window.seconds,
        "connections": window.connections,
        "connections_opened_a_second": window.sessions / window.seconds,
        "share_training": seconds[TRAINING] / (plan.workers * window.seconds),
        "share_idle": seconds[IDLE] / (plan.workers * window.seconds),
        "share_control": control_s / (plan.workers * window.seconds),
        "control_s_a_trial": control_s / max(1, done),
        "cpu_ms_a_call": {phase: cpu_ms(group) for phase, group in spans.items() if group},
        "seconds_a_trial": {phase: seconds[phase] / max(1, done) for phase in PHASES},
        "statements_a_second_by_phase": {phase: count / window.seconds for phase, count in statements.most_common()},
        "connections_by_state": {state: plan.workers * count / looks for state, count in window.waits.most_common(8)},
        "queries": [{"query": query[:160], "calls": calls, "ms": ms} for query, calls, ms in window.queries],
        "load_average": window.load_average,
    }


def cpu_ms(spans: Sequence[Span]) -> float:
    """Give the mean processor time of calls in milliseconds."""
    return 1000 * sum(span.cpu_s for span in spans) / len(spans)


def show(result: dict[str, Any]) -> None:
    """Print one run as lines for a person."""
    redone = result["redone"] / max(1, result["trained"])
    print(
        f"\n{result['workers']} workers: {result['trials_an_hour']:.0f} trials an hour ({result['finished']} in "
        f"{result['window_s']:.0f} s); time: {result['share_training']:.1%} training, {result['share_idle']:.1%} idle, "
        f"{result['share_control']:.1%} control plane ({result['control_s_a_trial']:.2f} s a trial); "
        f"redone {redone:.2%} of {result['trained']:,} iterations; {result['errors']} errors\n"
        f"processor seconds a second: server {result['server_cpu_s_a_second']:.3f}, workers "
        f"{result['workers_cpu_s_a_second']:.3f}; {result['statements_a_second']:.0f} statements and "
        f"{result['transactions_a_second']:.0f} transactions a second on {result['connections']} connections, "
        f"{result['connections_opened_a_second']:.1f} opened a second; "
        f"load {result['load_average']:.1f}"
    )
    for title in ("cpu_ms_a_call", "seconds_a_trial", "statements_a_second_by_phase", "connections_by_state"):
        print(f"{title}: " + ", ".join(f"{name} {value:.3g}" for name, value in result[title].items()))
    for query in result["queries"][:8]:
        print(f"  {query['ms'] / result['window_s']:7.2f} ms/s {query['calls']:7d} calls  {query['query'][:110]}")
    print(end="", flush=True)


def plot(runs: Sequence[dict[str, Any]]) -> bytes:
    """Draw trials, the database's load and redone iterations over the number of workers.

    Time is told in epochs and load by the trial, so that runs with epochs of other lengths can stand side by side.
    """
    done = [result["trials_an_hour"] / 3600 * result["epoch_s"] * 1000 for result in runs]
    server_s = [result["server_cpu_s_a_second"] * 3600 / result["trials_an_hour"] for result in runs]
    with drawing(2.4) as figure:
        trials, load, redone = figure.subplots(1, 3)
        at = [result["workers"] for result in runs]
        ideal = [done[0] * workers / at[0] for workers in at]
        trials.plot(at, ideal, color=LIGHT["quiet"], linestyle=(0, (2, 2)), label="in proportion")
        trials.plot(at, done, "o-", markersize=3.5, color=LIGHT["first"], label="measured")
        use_log_scale(trials)
        trials.set_title("Trials in the time of 1,000 epochs")
        trials.legend(loc="upper left")
        load.plot(at, server_s, "o-", markersize=3.5, color=LIGHT["first"])
        load.set_title("Server: processor s a trial")
        redone.plot(at, [r["redone"] / r["trained"] for r in runs], "o-", markersize=3.5, label="redone iterations")
        redone.plot(at, [r["share_idle"] for r in runs], "s-", markersize=3.5, label="workers' time idle")
        for line, colour in zip(redone.lines, ("first", "second"), strict=True):
            line.set_color(LIGHT[colour])
        redone.set_title("Shares")
        redone.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        redone.legend(loc="lower right", bbox_to_anchor=(1.0, 0.1))
        for axes in (trials, load, redone):
            axes.set_xscale("log", base=2)
            axes.set_xticks(at, [str(workers) for workers in at])
            axes.minorticks_off()
            axes.set_xlabel("workers")
        for axes in (load, redone):
            axes.set_ylim(bottom=0)
        return to_png(figure)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument(
        "--workers-a-process", type=int, default=32, help="threads, as hundreds of processes take all memory"
    )
    parser.add_argument("--epoch-s", type=float, default=1.9, help="seconds that an epoch of training takes")
    parser.add_argument("--speed-up", type=float, default=1.0, help="train so many times as fast")
    parser.add_argument("--warm-up-s", type=float, default=150.0, help="before the window")
    parser.add_argument("--window-s", type=float, default=150.0)
    parser.add_argument("--trials-each", type=int, default=8, help="trials of the study for each worker")
    parser.add_argument("--checkpoint-gb", type=float, default=10.0, help="budget for checkpoints of 2.2 MB")
    parser.add_argument("--json", type=Path, help="file that each run is added to; those in it are not run again")
    parser.add_argument("--plot", type=Path, help="PNG to draw the results into")
    return parser.parse_args()


def main() -> None:
    """Run what the command line asks for."""
    arguments = parse_arguments()
    SleepingTraining.step_s = arguments.epoch_s / STEPS_PER_EPOCH / arguments.speed_up
    versions = f"Python {platform.python_version()}, Optuna {optuna.__version__}, torch {torch.__version__}"
    print(f"{versions}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}", flush=True)
    runs = load_runs(arguments.json)
    for workers in arguments.workers:
        if workers not in [result["workers"] for result in runs]:
            runs.append(run_on_own_server(arguments, workers))
            show(runs[-1])
        if arguments.json:
            arguments.json.write_text(json.dumps({"versions": versions, "runs": runs}, indent=2) + "\n")
    if arguments.plot:
        arguments.plot.write_bytes(plot(sorted(runs, key=lambda result: result["workers"])))


def load_runs(path: Path | None) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["runs"] if path is not None and path.exists() else []


def run_on_own_server(arguments: argparse.Namespace, workers: int) -> dict[str, Any]:
    """Start a server for one run, so that each begins alike."""
    settings = {"max_connections": 2 * workers + 50, "autovacuum": "on", "shared_buffers": "512MB"}
    with opened_server(None, shared_preload_libraries="pg_stat_statements", **settings) as (url, server):
        with psycopg.connect(url) as connection:
            connection.execute("CREATE EXTENSION pg_stat_statements")
        plan = Plan(
            url=url,
            name=f"scale-{workers}-{uuid4().hex[:8]}",
            workers=workers,
            workers_a_process=arguments.workers_a_process,
            trials=workers * arguments.trials_each,
            warm_up_s=arguments.warm_up_s,
            window_s=arguments.window_s,
            checkpoint_gb=arguments.checkpoint_gb,
        )
        return run(plan, server)


if __name__ == "__main__":
    main()
