"""Replay full learning curves through the pruners: what does each save, and what does it miss?

First train the curves once, without pruning, on recipes drawn at random:

    hpo run --space smooth_lr --trials 40 --dataset digits --sampler random --pruner none --storage sqlite:///curves.db
    hpo run --space smooth_lr --trials 24 --dataset fashion_mnist --iterations 320 --sampler random --pruner none \
        --storage sqlite:///curves.db
    python benchmarks/pruning_regret.py --storage sqlite:///curves.db

Every pruner then sees the trials of a study in many random orders, one after the other as one worker trains them, with
their values at phase time or at iterations, and is asked at 7 or 15 rungs. *Regret* is the best final accuracy of all
trials minus the best of those that were not pruned. *Requested* are the lengths of the curves up to where they were
pruned, *trained* their distinct iterations, as shares of trials times budget. All rows see the same orders, so that
their differences are paired. Intervals are of 95 %, over the orders; the curves are given.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean, stdev

import optuna
from optuna.pruners import BasePruner, MedianPruner, PercentilePruner, SuccessiveHalvingPruner
from optuna.trial import TrialState

from hpo.algorithms import make_pruner
from hpo.database import overview
from hpo.database.storage import Storage, open_storage
from hpo.recipes.recipe import Recipe
from hpo.recipes.schedule import Align, distinct_iterations, reports, rungs
from hpo.study import Study, load

ALIGNS: tuple[Align, ...] = ("phase", "iteration")
RUNG_COUNTS = (8, 16)
SHIPPED = ("median", "asha-stop", "hyperband")
"""Without Wilcoxon: a decision of it takes about a second where accuracies are tied, as they often are."""

MakePruner = Callable[[int, int], BasePruner]


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """The curve of a trial that was trained to its end.

    Attributes:
        length: Iterations until its end, early stopping included.
        values: Validation accuracies by alignment, each as (step, iteration, accuracy) ascending.
    """

    recipe: Recipe
    final: float
    length: int
    values: dict[Align, tuple[tuple[int, int, float], ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Replay:
    """The outcome of one order of trials under a pruner."""

    regret: float
    requested: float
    trained: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Mean:
    """A mean with half the width of its 95 % interval."""

    value: float
    half_width: float

    def text(self, scale: float = 1.0, digits: int = 2) -> str:
        return f"{self.value * scale:.{digits}f} ± {self.half_width * scale:.{digits}f}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A pruner's row of the table.

    Attributes:
        missed: Share of the orders in which the best trial, and all that equal it, were pruned.
    """

    pruner: str
    align: Align
    decisions: int
    orders: int
    regret: Mean
    missed: float
    requested: Mean
    trained: Mean


def pruners() -> dict[str, MakePruner]:
    """List the pruners that `hpo run` offers, and others that it could."""
    offered: dict[str, MakePruner] = {name: partial(_shipped, name) for name in SHIPPED}
    return offered | {
        "median, 10 startup trials": lambda _, rung: MedianPruner(n_startup_trials=10, n_warmup_steps=2 * rung),
        "median, half as warm-up": lambda budget, _: MedianPruner(n_startup_trials=5, n_warmup_steps=budget // 2),
        "best quarter": lambda _, rung: PercentilePruner(25, n_startup_trials=5, n_warmup_steps=2 * rung),
        "asha, factor 2": lambda _, rung: SuccessiveHalvingPruner(min_resource=2 * rung, reduction_factor=2),
    }


def _shipped(name: str, budget: int, rung: int) -> BasePruner:
    return make_pruner(name, budget, budget // rung)  # type: ignore[arg-type]


def load_curves(study: Study) -> list[Curve]:
    """Load the trials of a study that were trained to their end."""
    complete = [trial for trial in study.trials() if trial.state == TrialState.COMPLETE]
    points = {trial.number: overview.load_curve(study.storage, trial._trial_id) for trial in complete}
    evaluated = max(([p.iteration for p in curve] for curve in points.values()), key=len)
    curves = []
    for trial in complete:
        recipe = study.recipe_of(trial)
        accuracy = {p.iteration: p.val_accuracy for p in points[trial.number]}
        values = {
            align: tuple(
                (report.step, report.iteration, accuracy[report.iteration])
                for report in reports(recipe, study.base, evaluated, align)
                if report.iteration in accuracy
            )
            for align in ALIGNS
        }
        assert trial.value is not None
        length = trial.user_attrs["iterations"]
        curves.append(Curve(recipe=recipe, final=trial.value, length=length, values=values))
    return curves


def replay(curves: Sequence[Curve], pruner: BasePruner, align: Align, asked: frozenset[int], name: str) -> Replay:
    """Show trials to a pruner in their order, each up to where it is pruned.

    Args:
        asked: The steps at which the pruner is asked.
        name: Name of the study, on which Hyperband's brackets depend.
    """
    study = optuna.create_study(study_name=name, direction="maximize", pruner=pruner, sampler=_SAMPLER)
    lengths = []
    finals = []
    for curve in curves:
        pruned_at = _replay_trial(study, curve, align, asked)
        lengths.append((curve.recipe, curve.length if pruned_at is None else pruned_at))
        finals += [curve.final] if pruned_at is None else []
    naive = sum(curve.recipe.iterations for curve in curves)
    return Replay(
        regret=max(curve.final for curve in curves) - max(finals, default=0.0),
        requested=sum(length for _, length in lengths) / naive,
        trained=distinct_iterations(lengths) / naive,
    )


_SAMPLER = optuna.samplers.RandomSampler(seed=0)


def _replay_trial(study: optuna.Study, curve: Curve, align: Align, asked: frozenset[int]) -> int | None:
    trial = study.ask()
    for step, iteration, accuracy in curve.values[align]:
        trial.report(accuracy, step)
        if step in asked and trial.should_prune():
            study.tell(trial, state=TrialState.PRUNED)
            return iteration
    study.tell(trial, curve.final)
    return None


def replay_all(
    curves: Sequence[Curve], name: str, align: Align, count: int, orders: Sequence[Sequence[int]]
) -> list[Replay]:
    """Show the trials to a pruner in many orders."""
    budget = curves[0].recipe.iterations
    asked = rungs(budget, count)
    make = pruners()[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna's, on experimental pruners
        return [
            replay([curves[i] for i in order], make(budget, budget // count), align, asked, f"order {number}")
            for number, order in enumerate(orders)
        ]


def estimate(values: Sequence[float]) -> Mean:
    return Mean(value=mean(values), half_width=1.96 * stdev(values) / len(values) ** 0.5)


def summarise(name: str, align: Align, count: int, replays: Sequence[Replay]) -> Row:
    return Row(
        pruner=name,
        align=align,
        decisions=count - 1,
        orders=len(replays),
        regret=estimate([r.regret for r in replays]),
        missed=mean(r.regret > 0 for r in replays),
        requested=estimate([r.requested for r in replays]),
        trained=estimate([r.trained for r in replays]),
    )


def lines(study: Study, curves: Sequence[Curve], rows: Sequence[Row], by_align: Sequence[str]) -> Iterator[str]:
    finals = sorted((curve.final for curve in curves), reverse=True)
    naive = sum(curve.recipe.iterations for curve in curves)
    lengths = [(curve.recipe, curve.length) for curve in curves]
    yield f"{study.name}: {len(curves)} curves, final accuracy {finals[0]:.4f} to {finals[-1]:.4f}; without pruning "
    yield f"requested {sum(n for _, n in lengths) / naive:.1%}, trained {distinct_iterations(lengths) / naive:.1%}"
    yield ""
    yield "| pruner | aligned by | decisions | orders | regret, points | best missed | requested, % | trained, % |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for row in rows:
        yield (
            f"| {row.pruner} | {row.align} | {row.decisions} | {row.orders} | {row.regret.text(100)} "
            f"| {row.missed:.0%} | {row.requested.text(100, 1)} | {row.trained.text(100, 1)} |"
        )
    yield ""
    yield from by_align


def compare_alignments(name: str, count: int, phase: Sequence[Replay], iteration: Sequence[Replay]) -> str:
    """State how much less phase time misses and trains than iterations do, in the same orders."""
    regret = estimate([b.regret - a.regret for a, b in zip(phase, iteration, strict=True)])
    trained = estimate([b.trained - a.trained for a, b in zip(phase, iteration, strict=True)])
    return (
        f"{name}, {count - 1} decisions: iteration minus phase: regret {regret.text(100)} points, "
        f"trained {trained.text(100, 1)} %"
    )


def measure(study: Study, arguments: argparse.Namespace) -> tuple[list[Row], list[str]]:
    """Compute the table of a study, and print it."""
    curves = load_curves(study)
    shuffled = random.Random(arguments.seed)
    orders = [shuffled.sample(range(len(curves)), len(curves)) for _ in range(arguments.orders)]
    cases = [(n, c, a) for n, c, a in product(pruners(), RUNG_COUNTS, ALIGNS)]
    with ProcessPoolExecutor(arguments.processes) as pool:
        futures = [pool.submit(replay_all, curves, name, align, count, orders) for name, count, align in cases]
        replays = {case: future.result() for case, future in zip(cases, futures, strict=True)}
    rows = [summarise(name, align, count, replays[name, count, align]) for name, count, align in cases]
    paired = [
        compare_alignments(n, c, replays[n, c, "phase"], replays[n, c, "iteration"])
        for n, c in product(pruners(), RUNG_COUNTS)
    ]
    print("\n".join(lines(study, curves, rows, paired)), flush=True)
    return rows, paired


def list_studies(storage: Storage) -> list[str]:
    return [summary.study_name for summary in optuna.get_all_study_summaries(storage.optuna)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", required=True, help="URL of the database with the curves")
    parser.add_argument("--orders", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = open_storage(arguments.storage, "read")
    results = {}
    for name in list_studies(storage):
        rows, paired = measure(load(storage, name), arguments)
        results[name] = {"rows": [asdict(row) for row in rows], "alignments": paired}
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
