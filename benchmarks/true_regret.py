"""Replay whole searches on full learning curves: how good is the recipe that each names, and what did it cost?

    python benchmarks/true_regret.py benchmarks/truth/digits-640.json.gz
    python benchmarks/true_regret.py benchmarks/truth/digits-640.json.gz --documented documented_validation_curves.csv
    python benchmarks/true_regret.py benchmarks/truth/cifar-16x16-640.json.gz --trials 6

`truth.py` trains the curves: each recipe of a table on several seeds. A replay is the search of one worker on one of
the seeds, whose trials are recipes of the table in random order, the base recipe first. Confirmation trains on other
seeds. The recipe that is named is judged on all seeds that the search did not use. *True regret* is its accuracy there
below that of the best of the search's recipes, which is chosen for each of these seeds by its mean over all the others:
nothing is judged by the noise that it was chosen by. A regret under zero says that the best is not known better.

*Steps* are optimizer steps, confirmation included, as a share of trials times budget: with shared beginnings trained
once, except in the rows of other tools. Standard errors are over the means of the search's seeds, not over replays.
"""

from __future__ import annotations

import argparse
import csv
import math
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import permutations
from pathlib import Path
from statistics import fmean, stdev

from replay import (
    Choice,
    Compared,
    HalvingStopper,
    MedianStopper,
    Pruner,
    QuantileStopper,
    as_trial,
    best_elsewhere,
    count_steps,
    name_winner,
    promote_by,
    rungs_after_drop,
    stop_by,
    train_all,
)
from truth_table import Run, Truth, load

from hpo.recipes.comparison import BASELINE
from hpo.recipes.promotion import COMPARED_EVALUATIONS, FACTOR, promotion_rungs
from hpo.recipes.recipe import Recipe, documented_runs
from hpo.recipes.schedule import RUNGS, Align, CurvePoint, grid, rungs

LAST = Compared()
COMPARED = (
    LAST,
    Compared(over="mean", count=3),
    Compared(over="mean", count=6),
    Compared(over="best"),
    Compared(figure="loss"),
    Compared(figure="loss", over="mean", count=3),
    Compared(figure="loss", over="mean", count=6),
    Compared(figure="loss", over="best"),
)
UNCONFIRMED = Choice()
CHOICES = (
    Choice(ties="first"),
    UNCONFIRMED,
    Choice(ties="loss alone"),
    *(Choice(top=top, seeds=seeds) for top in (2, 3, 5) for seeds in (2, 3)),
)
RUNG_PLANS = ((1, 2), (2, 2), (3, 2), (4, 2), (5, 2), (1, 3), (2, 3), (3, 3))
"""Numbers of rungs, and factors."""

COMPARED_CHOICES = (UNCONFIRMED, Choice(top=3, seeds=2))
AT_RUNGS = Compared(over="mean", count=COMPARED_EVALUATIONS)
"""What `--pruner asha` compares."""

CHOSEN = (
    ("no pruning", LAST),
    ("asha-stop", LAST),
    ("asha, rungs at halves", AT_RUNGS),
    ("asha, a third at most", AT_RUNGS),
    ("asha", AT_RUNGS),
)
"""The searches that are replayed with every choice of the winner."""

BEST_DOCUMENTED = "dropout"
"""The documented run with the highest test accuracy."""

ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """A way to search: where trials are compared, by what, and who is stopped.

    Attributes:
        steps: Where trials are compared, in steps of the base schedule.
        after_drop: Whether evaluations count only after the first drop of a trial's rate.
        reuse: Whether shared beginnings are trained once.
    """

    name: str
    pruner: Pruner
    steps: tuple[int, ...] = ()
    align: Align = "phase"
    compared: Compared = LAST
    after_drop: bool = False
    reuse: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Orders:
    """The random orders of recipes in which a search is replayed on each seed.

    Attributes:
        trials: How many of the recipes each has; all of them by default.
        seed: Determines the orders.
    """

    count: int
    trials: int | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What one replay comes to.

    Attributes:
        seed: The search's seed.
        regret: Accuracy below the best recipe of the search, over the seeds that the search did not use.
        gain: Accuracy above the base recipe, over the same seeds.
        steps: As a share of trials times budget.
        complete: How many trials reached their ends.
    """

    seed: int
    regret: float
    gain: float
    steps: float
    complete: int


def searches(truth: Truth) -> list[Search]:
    """List all ways to search that are compared."""
    base, epoch = truth.base, truth.source["iterations per epoch"]
    return [
        Search(name="no pruning", pruner=train_all),
        Search(name="no pruning, no reuse", pruner=train_all, reuse=False),
        median_every_epoch(base, epoch),
        ray_tune(base, epoch),
        landed_promotion(base),
        strict_promotion(base),
        promotion_at_halves(base),
        landed_halving(base),
        landed_median(base),
        *(median_after_drop(base, compared) for compared in COMPARED),
        *(promotion(base, count, factor, compared) for count, factor in RUNG_PLANS for compared in COMPARED),
    ]


def median_every_epoch(base: Recipe, epoch: float) -> Search:
    """Describe Optuna's MedianPruner as its examples ask it: after every epoch."""
    steps = tuple(int(epoch * number) for number in range(1, int(base.iterations / epoch) + 1))
    return Search(
        name="Optuna's MedianPruner, every epoch",
        pruner=stop_by(MedianStopper),
        steps=steps,
        align="iteration",
        reuse=False,
    )


def ray_tune(base: Recipe, epoch: float) -> Search:
    """Describe Ray Tune's ASHAScheduler with its defaults: grace of one epoch, factor 4, stopping."""
    epochs = int(base.iterations / epoch)
    steps = tuple(int(epoch * 4**power) for power in range(int(math.log(epochs, 4)) + 1))
    return Search(
        name="Ray Tune's ASHAScheduler",
        pruner=stop_by(partial(QuantileStopper, steps, 4)),
        steps=steps,
        align="iteration",
        reuse=False,
    )


def landed_promotion(base: Recipe) -> Search:
    """Describe `--pruner asha`, the default."""
    return Search(
        name="asha",
        pruner=promote_by(FACTOR),
        steps=promotion_rungs(base),
        compared=AT_RUNGS,
        after_drop=True,
    )


def strict_promotion(base: Recipe) -> Search:
    """Describe `--pruner asha` without the rule that at least one is promoted at each rung."""
    return replace(landed_promotion(base), name="asha, a third at most", pruner=promote_by(FACTOR, at_least=0))


def promotion_at_halves(base: Recipe) -> Search:
    """Describe `--pruner asha` as it was: rungs at halves of what is left after the first drop, the better half."""
    return Search(
        name="asha, rungs at halves",
        pruner=promote_by(2, at_least=0),
        steps=rungs_after_drop(base, 4, 2),
        compared=AT_RUNGS,
        after_drop=True,
    )


def landed_halving(base: Recipe) -> Search:
    """Describe `--pruner asha-stop`: Optuna's successive halving from an eighth of the budget on."""
    first = 2 * base.iterations // RUNGS
    return Search(
        name="asha-stop",
        pruner=stop_by(partial(HalvingStopper, first, 3)),
        steps=tuple(sorted(rungs(base.iterations))),
    )


def landed_median(base: Recipe) -> Search:
    """Describe `--pruner median`: asked at 15 rungs from an eighth of the budget on."""
    asked = frozenset(step for step in rungs(base.iterations) if step >= 2 * base.iterations // RUNGS)
    return Search(name="median", pruner=stop_by(partial(MedianStopper, asked)), steps=grid(base.iterations))


def median_after_drop(base: Recipe, compared: Compared) -> Search:
    """Describe the median pruner without a decision before the first drop of the rate."""
    steps = tuple(step for step in sorted(rungs(base.iterations)) if step > rungs_after_drop(base, 1, 10**9)[0])
    return Search(
        name="median after the drop",
        pruner=stop_by(MedianStopper),
        steps=steps,
        compared=compared,
        after_drop=True,
    )


def promotion(base: Recipe, count: int, factor: int, compared: Compared) -> Search:
    """Describe promotion at some rungs after the first drop of the rate."""
    rungs = "1 rung" if count == 1 else f"{count} rungs"
    return Search(
        name=f"promotion, factor {factor}, {rungs}",
        pruner=promote_by(factor),
        steps=rungs_after_drop(base, count, factor),
        compared=compared,
        after_drop=True,
    )


def replay(truth: Truth, search: Search, choice: Choice, orders: Orders) -> list[Outcome]:
    """Replay a search in many orders on each seed of the table."""
    shown = {
        key: as_trial(truth, run, search.steps, search.align, search.compared, after_drop=search.after_drop)
        for key, run in truth.runs.items()
    }
    shuffled = random.Random(orders.seed)
    others = [name for name in truth.recipes if name != BASELINE]
    further_trials = len(others) if orders.trials is None else orders.trials - 1
    outcomes = []
    for searched in truth.seeds:
        for _ in range(orders.count):
            names = [BASELINE, *shuffled.sample(others, further_trials)]
            best = best_elsewhere(truth, names)
            further = shuffled.sample([s for s in truth.seeds if s != searched], len(truth.seeds) - 1)
            trained = search.pruner([shown[name, searched] for name in names])
            complete = [truth.runs[each.trial.name, searched] for each in trained if each.complete]
            named = name_winner(truth, complete, further, choice)
            fresh = further[choice.seeds :]
            outcomes.append(
                Outcome(
                    seed=searched,
                    regret=fmean(truth.accuracy(best[s], s) - truth.accuracy(named.recipe, s) for s in fresh),
                    gain=fmean(truth.accuracy(named.recipe, s) - truth.accuracy(BASELINE, s) for s in fresh),
                    steps=count_steps(truth, trained, named.confirmed, reuse=search.reuse)
                    / (len(names) * truth.base.iterations),
                    complete=len(complete),
                )
            )
    return outcomes


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """The replays of a search with one choice of the winner.

    Attributes:
        regret: Mean, with its standard error over the means of the search's seeds; None with one seed.
        worse: Share of the replays whose winner is worse than the base recipe.
        complete: Mean number of trials that reach their ends.
    """

    search: Search
    choice: Choice
    replays: int
    regret: float
    error: float | None
    gain: float
    worse: float
    steps: float
    complete: float


def summarise(search: Search, choice: Choice, outcomes: Sequence[Outcome]) -> Row:
    """Average the replays of a search."""
    by_seed = defaultdict(list)
    for outcome in outcomes:
        by_seed[outcome.seed].append(outcome.regret)
    means = [fmean(regrets) for regrets in by_seed.values()]
    return Row(
        search=search,
        choice=choice,
        replays=len(outcomes),
        regret=fmean(means),
        error=stdev(means) / math.sqrt(len(means)) if len(means) > 1 else None,
        gain=fmean(outcome.gain for outcome in outcomes),
        worse=fmean(outcome.gain < -ROUNDING for outcome in outcomes),
        steps=fmean(outcome.steps for outcome in outcomes),
        complete=fmean(outcome.complete for outcome in outcomes),
    )


def measure(truth: Truth, search: Search, choices: Sequence[Choice], orders: Orders) -> list[Row]:
    """Replay a search with each choice of the winner for which the table has enough seeds."""
    possible = [choice for choice in choices if choice.seeds + 1 < len(truth.seeds)]
    return [summarise(search, choice, replay(truth, search, choice, orders)) for choice in possible]


def lines(rows: Sequence[Row]) -> Iterator[str]:
    """Write rows as a table in Markdown."""
    yield "| search | compared | winner | true regret | above base | worse than base | steps | complete | n |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for row in rows:
        error = "" if row.error is None else f" ± {100 * row.error:.2f}"
        compared = row.search.compared if row.search.steps else ""
        yield (
            f"| {row.search.name} | {compared} | {row.choice} | {100 * row.regret:.2f}{error} | {100 * row.gain:+.2f} "
            f"| {row.worse:.0%} | {row.steps:.2f} | {row.complete:.1f} | {row.replays} |"
        )


def read_documented(path: Path) -> Truth:
    """Read the four documented runs of the whole budget; their training loss was not documented."""
    names = {"1_baseline": "baseline", "3_dense": "dense", "4_dropout": "dropout", "5_adjusted_lr": "smooth_lr"}
    curves = defaultdict(list)
    with path.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            if line["run"] in names:
                curves[names[line["run"]]].append(_documented_point(line))
    runs = {
        (name, 0): Run(
            recipe=name, seed=0, accuracy=curve[-1].val_accuracy, loss=curve[-1].val_loss, curve=tuple(curve)
        )
        for name, curve in curves.items()
    }
    return Truth(
        source={"iterations per epoch": curves[BASELINE][0].iteration},
        recipes={name: documented_runs()[name].recipe for name in curves},
        runs=runs,
    )


def _documented_point(line: dict[str, str]) -> CurvePoint:
    return CurvePoint(
        iteration=int(line["iteration"]),
        train_loss=math.nan,
        val_loss=float(line["val_loss"]),
        val_accuracy=float(line["val_accuracy"]),
    )


def lose(truth: Truth, search: Search, name: str) -> tuple[float, float]:
    """Replay a search in all orders of its runs: the share in which one is lost, and the mean share of the steps."""
    trials = [
        as_trial(truth, run, search.steps, search.align, search.compared, after_drop=search.after_drop)
        for run in truth.runs.values()
    ]
    found = [search.pruner(order) for order in permutations(trials)]
    lost = fmean(not each.complete for trained in found for each in trained if each.trial.name == name)
    naive = len(trials) * truth.base.iterations
    return lost, fmean(count_steps(truth, trained, (), reuse=search.reuse) / naive for trained in found)


def documented_lines(truth: Truth) -> Iterator[str]:
    """Write a table of how often the best documented run is lost."""
    yield "| search | compared | best run lost | steps |"
    yield "| --- | --- | --- | --- |"
    for search in searches(truth):
        lost, steps = lose(truth, search, BEST_DOCUMENTED)
        yield f"| {search.name} | {search.compared if search.steps else ''} | {lost:.0%} | {steps:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("truth", type=Path, nargs="*", help="files that truth.py wrote")
    parser.add_argument("--documented", type=Path, help="CSV file of the documented validation curves")
    parser.add_argument("--orders", type=int, default=50, help="random orders of the recipes for each seed")
    parser.add_argument("--trials", type=int, help="number of recipes in a search; all of the table by default")
    parser.add_argument("--seed", type=int, default=0, help="of the orders")
    arguments = parser.parse_args()
    orders = Orders(count=arguments.orders, trials=arguments.trials, seed=arguments.seed)
    for path in arguments.truth:
        truth = load(path)
        if orders.trials is not None and not 1 <= orders.trials <= len(truth.recipes):
            parser.error(f"--trials {orders.trials}: 1 to {len(truth.recipes)} are possible with {path.name}")
        print(f"{path.name}: {len(truth.recipes)} recipes, {len(truth.seeds)} seeds\n")
        for choices, names in ((COMPARED_CHOICES, None), (CHOICES, CHOSEN)):
            chosen = [search for search in searches(truth) if names is None or (search.name, search.compared) in names]
            rows = [measure(truth, search, choices, orders) for search in chosen]
            print("\n".join([*lines([row for group in rows for row in group]), ""]), flush=True)
    if arguments.documented:
        print("\n".join(documented_lines(read_documented(arguments.documented))))


if __name__ == "__main__":
    main()
