"""Count the optimizer steps of a study with and without prefix reuse and pruning.

    python benchmarks/study_cost.py --json study_cost.json                # 1, 2 and 4 workers, three seeds, 50 trials
    python benchmarks/study_cost.py --workers 1 --seeds 1 --check         # shows that reuse changes no decision

Each study is `hpo run` as a user would type it, on the digits, in a folder of its own. Two are trained for each seed
and number of workers: one with the default pruner and one without a pruner, both with reuse. The studies without reuse
need not be: with one worker, decisions and values are the same bit for bit with and without reuse, so what one without
reuse trains is what the one with reuse *requested*; `--check` trains one to show it. With several workers the trials
differ from run to run of the same command in any case. *Naive* is trials times budget; early stopping makes a study
with neither train less.

*Redone* are the trained steps that had been trained before, by another worker or before an interruption: those trained
minus the distinct ones of all trials.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from statistics import mean

from hpo.database.storage import open_storage
from hpo.recipes.schedule import distinct_iterations
from hpo.settings import DEFAULT_ITERATIONS_DIGITS
from hpo.study import load


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """The cost of one study, in iterations.

    Attributes:
        best: Validation accuracy of the best trial.
    """

    workers: int
    seed: int
    pruning: bool
    reuse: bool
    naive: int
    requested: int
    trained: int
    redone: int
    best: float


def run_study(arguments: argparse.Namespace, workers: int, seed: int, *, pruning: bool, reuse: bool) -> Cost:
    """Run one study in a folder of its own."""
    command = [
        sys.executable,
        "-m",
        "hpo",
        "run",
        "--no-confirm",
        "--space",
        arguments.space,
        "--trials",
        str(arguments.trials),
    ]
    command += ["--dataset", "digits", "--iterations", str(arguments.iterations)]
    command += ["--workers", str(workers), "--seed", str(seed), "--json"]
    command += [] if pruning else ["--pruner", "none"]
    command += [] if reuse else ["--no-reuse"]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE)
        status = json.loads(done.stdout)
        distinct = count_distinct(f"sqlite:///{folder}/hpo.db")
    spent = status["iterations_spent"]
    return Cost(
        workers=workers,
        seed=seed,
        pruning=pruning,
        reuse=reuse,
        **spent,
        redone=spent["trained"] - (distinct if reuse else spent["requested"]),
        best=status["best"]["value"],
    )


def count_distinct(url: str) -> int:
    """Count the steps of a study's trials, those that they share once."""
    storage = open_storage(url, "read")
    study = load(storage, None)
    distinct = distinct_iterations((study.recipe_of(t), t.user_attrs["iterations"]) for t in study.trials())
    storage.close()
    return distinct


def without_reuse(cost: Cost) -> Cost:
    """Give the cost of a study of one worker without reuse: it trains all that it requests."""
    return replace(cost, reuse=False, trained=cost.requested, redone=0)


def check(cost: Cost, arguments: argparse.Namespace) -> None:
    """Train the study without reuse too, and compare.

    Raises:
        SystemExit: It decided otherwise, or trained other than was said of it.
    """
    trained = run_study(arguments, 1, cost.seed, pruning=cost.pruning, reuse=False)
    if trained != without_reuse(cost):
        raise SystemExit(f"without reuse the study differs: {trained}, not {without_reuse(cost)}")
    print(f"seed {cost.seed}: without reuse the same trials, decisions and best value, and {trained.trained} steps")


def lines(costs: Sequence[Cost]) -> Iterator[str]:
    """Write the table: means over the seeds, and each seed's share."""
    yield "| workers | pruning | reuse | trained / naive, mean | each seed | redone | best validation accuracy |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for workers, pruning, reuse in product(sorted({c.workers for c in costs}), (True, False), (True, False)):
        matching = [c for c in costs if c.workers == workers and c.pruning is pruning]
        if not matching:
            continue
        matching = matching if reuse else [without_reuse(c) for c in matching]
        shares = [c.trained / c.naive for c in matching]
        yield (
            f"| {workers} | {'yes' if pruning else 'no'} | {'yes' if reuse else 'no'} | {mean(shares):.3f} "
            f"| {', '.join(f'{share:.3f}' for share in shares)} | {', '.join(str(c.redone) for c in matching)} "
            f"| {', '.join(f'{c.best:.4f}' for c in matching)} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="smooth_lr")
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--iterations", type=int, default=DEFAULT_ITERATIONS_DIGITS)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 on")
    parser.add_argument("--pruning", choices=("both", "yes", "no"), default="both")
    parser.add_argument("--check", action="store_true", help="train the studies of one worker without reuse too")
    parser.add_argument("--json", type=Path, help="file that each study is added to; those in it are not run again")
    arguments = parser.parse_args()

    costs = load_costs(arguments.json)
    prunings = {"both": (True, False), "yes": (True,), "no": (False,)}[arguments.pruning]
    for pruning, workers, seed in product(prunings, arguments.workers, range(arguments.seeds)):
        if not any((c.pruning, c.workers, c.seed) == (pruning, workers, seed) for c in costs):
            costs.append(run_study(arguments, workers, seed, pruning=pruning, reuse=True))
            print(costs[-1], file=sys.stderr, flush=True)
            save_costs(arguments.json, costs)
        if arguments.check and workers == 1:
            check(next(c for c in costs if (c.pruning, c.workers, c.seed) == (pruning, 1, seed)), arguments)
    print("\n".join(lines(costs)))


def load_costs(path: Path | None) -> list[Cost]:
    if path is None or not path.exists():
        return []
    return [Cost(**entry) for entry in json.loads(path.read_text())]


def save_costs(path: Path | None, costs: Sequence[Cost]) -> None:
    if path is not None:
        path.write_text(json.dumps([asdict(cost) for cost in costs], indent=2) + "\n")


if __name__ == "__main__":
    main()
