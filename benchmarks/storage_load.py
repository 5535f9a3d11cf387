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

`workers.py` says what is counted. Times are wall times in the worker; with more busy workers than cores they are mostly
waiting for a core, which is why processor time stands beside them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import optuna
import torch
from optuna.trial import TrialState
from workers import Tally, UncaughtSignals, opened_server, patched, server_cpu_s, start_workers, timing

from hpo import algorithms
from hpo import study as studies
from hpo.database import queue
from hpo.database.attempt import Outcome
from hpo.database.optuna_view import OptunaView
from hpo.database.retry import RetryPolicy
from hpo.database.storage import Storage, open_storage
from hpo.recipes.schedule import REPORTS, CurvePoint, rungs
from hpo.recipes.space_file import load_space
from hpo.settings import StudySettings
from hpo.trial.objective import Supervisor, Task
from hpo.worker import work
from hpo.worker.supervisor import TrialSupervisor

SETTINGS = StudySettings(
    space=load_space("smooth_lr").model_dump(mode="json", exclude_none=True),
    dataset="digits",
    split="not used",
    image_shape=(8, 8, 1),
    classes=10,
    augment="crop",
    iterations=REPORTS,
    seed=0,
    precision="fp32",
    sampler="random",
    pruner="median",
    align="phase",
)
PHASES = ("claim", "sample", "report", "prune", "finish", "trial")
MAX_CONNECTIONS = 600  # Optuna's own pool keeps several a worker


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The conditions of one run.

    Attributes:
        trials: Number of trials that the study is to have.
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


@contextmanager
def stubbed(plan: Plan, tally: Tally) -> Iterator[Tally]:
    """Put a stub in the place of training, and time what is around it."""

    def train(_task: Task, _data: object, supervisor: Supervisor, _sharing: object) -> Outcome:
        assert isinstance(supervisor, TrialSupervisor)
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

    calls = [
        (queue, "claim", "claim"),
        (TrialSupervisor, "finish", "finish"),
        (TrialSupervisor, "sample", "sample"),
        (work, "train_attempt", "trial"),
    ]
    stubs = {(work, "run_trial"): train, (work, "load_checked"): lambda *_: torch.zeros(1)}
    with patched(stubs | dict(timing(tally, calls))):
        yield tally


def work_ours(plan: Plan, storage: Storage, _tally: Tally) -> None:
    """Run `hpo worker`."""
    study = studies.load(storage, plan.name)
    work.work(study, device=torch.device("cpu"), data_dir=Path(), stop=UncaughtSignals())


def work_optuna(plan: Plan, next_trial: Callable[[], bool], storage: Storage, tally: Tally) -> None:
    """Run the loop of Optuna's manual."""
    settings = plan.settings
    own_seed = os.getpid()
    study = optuna.load_study(
        study_name=plan.name,
        storage=storage.optuna,
        sampler=algorithms.make_sampler(settings.sampler, settings.seed, own_seed),
        pruner=algorithms.make_pruner(settings.pruner, settings.iterations),
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


def open_plain(url: str) -> Storage:
    """Open the storage as `optuna.load_study` would, with Optuna's own cache and pool."""
    backend = optuna.storages.RDBStorage(url.replace("postgresql://", "postgresql+psycopg://"))
    retry_policy = RetryPolicy()
    return Storage(
        url="",
        engine=backend.engine,
        optuna=optuna.storages.get_storage(backend),
        view=OptunaView(backend, retry_policy),
        retry_policy=retry_policy,
    )


def run(plan: Plan, server: int | None) -> dict[str, Any]:
    """Run a study to its end, and describe what it cost."""
    create(plan)
    taken = multiprocessing.get_context("fork").Value("i", 0)

    def next_trial() -> bool:
        with taken.get_lock():
            taken.value += 1
            return bool(taken.value <= plan.trials)

    if plan.kind == "hpo":
        opened = partial(open_storage, one_connection=True)
        processes = start_workers(plan.workers, plan.url, partial(work_ours, plan), partial(stubbed, plan), opened)
    else:
        processes = start_workers(
            plan.workers, plan.url, partial(work_optuna, plan, next_trial), nullcontext, open_plain
        )
    server_before, started = server_cpu_s(server), time.perf_counter()
    tallies = processes.collect()
    wall_s = time.perf_counter() - started
    server_s = server_cpu_s(server) - server_before if server else None
    return describe(plan, tallies, wall_s, server_s) | {"states": states(plan)}


def create(plan: Plan) -> None:
    """Create the study: ours with its queue, Optuna's empty."""
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


def describe(plan: Plan, tallies: list[Tally], wall_s: float, server_s: float | None) -> dict[str, Any]:
    """Sum up the tallies of all workers, a trial."""
    seconds = {phase: [span.seconds for tally in tallies for span in tally.spans[phase]] for phase in PHASES}
    done = len(seconds["finish"])
    sent = [(phase, count) for tally in tallies for (phase, _), count in tally.statements.items()]
    statements = {phase: sum(count for sender, count in sent if sender == phase) for phase in PHASES}
    client_s = sum(tally.cpu_s for tally in tallies)
    return {
        "kind": plan.kind,
        "workers": plan.workers,
        "trials": done,
        "errors": sum(tally.errors for tally in tallies),
        "wall_s": wall_s,
        "worker_cpu_s_a_trial": client_s / done,
        "server_cpu_s_a_trial": None if server_s is None else server_s / done,
        "statements_a_trial": sum(statements.values()) / done,
        "statements_by_phase": {phase: count / done for phase, count in statements.items()},
        "ms": {phase: quantiles(group) for phase, group in seconds.items() if group},
    }


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Give median and 99th percentile in milliseconds, and how many there were."""
    ordered = sorted(seconds)
    return {
        "median": 1000 * statistics.median(ordered),
        "p99": 1000 * ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))],
        "n": len(ordered),
    }


def show(result: Mapping[str, Any]) -> None:
    """Print one run as lines for a person."""
    server = result["server_cpu_s_a_trial"]
    cost = f"worker {1000 * result['worker_cpu_s_a_trial']:.1f} ms"
    cost += "" if server is None else f" + server {1000 * server:.1f} ms of processor"
    states = ", ".join(f"{count} {state}" for state, count in result["states"].items() if count)
    print(
        f"\n{result['kind']}, {result['workers']} workers: {states}; {result['errors']} errors; "
        f"{result['wall_s']:.1f} s; a trial: {cost}, {result['statements_a_trial']:.1f} statements"
    )
    for phase, ms in result["ms"].items():
        count = result["statements_by_phase"][phase]
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
    parser.add_argument("--pruner", default="median", choices=["median", "asha-stop", "hyperband", "wilcoxon", "none"])
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


def main() -> None:
    """Run what the command line asks for."""
    arguments = parse_arguments()
    versions = f"Python {platform.python_version()}, Optuna {optuna.__version__}"
    print(f"{versions}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}")
    with opened_server(arguments.storage, max_connections=MAX_CONNECTIONS) as (url, server):
        results = []
        for plan in plans(arguments, url):
            results.append(run(plan, server))
            show(results[-1])
    if arguments.json:
        arguments.json.write_text(json.dumps({"versions": versions, "runs": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
