"""Run the same search with hpo and with plain Optuna as people write it, and compare the time each takes.

    python benchmarks/plain_optuna.py --seeds 3 --json plain_optuna.json
    python benchmarks/plain_optuna.py --dataset fashion_mnist --iterations 1280 --trials 20 --seeds 1

Both search the space `smooth_lr` with the same number of trials and iterations on all cores, in turn, each in a
process of its own; without options with 50 trials of 640 iterations on the digits. The plain one is `study.optimize`
with TPE and a MedianPruner asked after every epoch, on SQLite, one trial at a time with torch's own number of threads,
batches from a DataLoader that transforms image by image. Two times are compared: until all trials are finished, and
until the lower of the two best validation accuracies is first reached. hpo begins with the documented recipe, as it
always does; `--enqueue` lets the plain search begin with it as well.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from statistics import median

import optuna
import torch
from optuna.trial import TrialState
from torch import nn
from train_step import usual_batches

from hpo.recipes.recipe import Recipe
from hpo.recipes.schedule import learning_rate, scale
from hpo.recipes.space_file import load_space
from hpo.settings import DEFAULT_ITERATIONS_DIGITS, DatasetName, default_data_dir
from hpo.training.data import Dataset, normalise
from hpo.training.datasets import load_dataset
from hpo.training.model import ResNet, network_fields

SPACE = "smooth_lr"
EVALUATION_BATCH = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """The outcome of one search.

    Attributes:
        best_after: Pairs of seconds since the start and the best validation accuracy so far, ascending.
    """

    seed: int
    seconds: float
    complete: int
    pruned: int
    best_after: tuple[tuple[float, float], ...]

    @property
    def best(self) -> float:
        return self.best_after[-1][1]

    def seconds_to(self, accuracy: float) -> float:
        """Give the time until an accuracy was first reached."""
        return next(seconds for seconds, best in self.best_after if best >= accuracy)


def search_plainly(name: DatasetName, iterations: int, trials: int, seed: int, enqueue: bool) -> None:
    """Search as people do with Optuna."""
    space, dataset = load_space(SPACE), load_dataset(name, default_data_dir())
    study = optuna.create_study(
        storage="sqlite:///plain.db",
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=seed),
        pruner=optuna.pruners.MedianPruner(),
    )
    if enqueue:
        study.enqueue_trial(space.base_params())

    def objective(trial: optuna.Trial) -> float:
        recipe = space.recipe(space.suggest(trial), iterations=iterations, seed=seed)
        return train_plainly(trial, recipe, dataset)

    study.optimize(objective, n_trials=trials)


def train_plainly(trial: optuna.Trial, recipe: Recipe, dataset: Dataset) -> float:
    """Train with a DataLoader, evaluate after every epoch, and stop early or prune."""
    model = ResNet(
        channels=dataset.image_shape[2],
        classes=len(dataset.classes),
        **network_fields(recipe),
        generator=torch.Generator(),
        seed=recipe.seed,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=recipe.momentum)
    batches = iter(usual_batches(dataset, workers=0))
    per_epoch = -(-len(dataset.train) // recipe.batch_size)
    lowest, restored, lowest_at = float("inf"), 0.0, 0
    iteration, accuracy = 0, 0.0
    while iteration < recipe.iterations:
        model.train()
        for images, labels in islice(batches, min(per_epoch, recipe.iterations - iteration)):
            optimizer.param_groups[0]["lr"] = learning_rate(recipe, iteration)
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            iteration += 1
        val_loss, accuracy = evaluate_plainly(model, dataset)
        if val_loss < lowest:
            lowest, restored, lowest_at = val_loss, accuracy, iteration
        trial.report(accuracy, iteration)
        if trial.should_prune():
            raise optuna.TrialPruned
        if recipe.early_stopping and iteration - lowest_at >= scale(recipe.early_stopping, recipe.iterations):
            break
    return restored if recipe.early_stopping else accuracy


@torch.no_grad()
def evaluate_plainly(model: nn.Module, dataset: Dataset) -> tuple[float, float]:
    model.eval()
    images, labels = dataset.validation.images, dataset.validation.labels
    logits = torch.cat([model(normalise(batch, dataset)) for batch in images.split(EVALUATION_BATCH)])
    return float(nn.functional.cross_entropy(logits, labels)), float((logits.argmax(1) == labels).float().mean())


def run(which: str, arguments: argparse.Namespace, seed: int) -> Search:
    """Run one search in a folder of its own, and read from its storage what it did when."""
    asked = ["--trials", str(arguments.trials), "--dataset", arguments.dataset]
    asked += ["--iterations", str(arguments.iterations)]
    ours = ["-m", "hpo", "run", "--no-confirm", "--space", SPACE, *asked, "--json"]
    plain = [str(Path(__file__).absolute()), "--plainly", *asked, *(["--enqueue"] if arguments.enqueue else [])]
    command, file = (ours, "hpo.db") if which == "hpo" else (plain, "plain.db")
    with tempfile.TemporaryDirectory() as folder:
        started, clock = time.time(), time.perf_counter()
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run([sys.executable, *command, "--seed", str(seed)], cwd=folder, check=True, **quiet)
        seconds = time.perf_counter() - clock
        study = optuna.load_study(study_name=None, storage=f"sqlite:///{folder}/{file}")
        trials = study.get_trials()
    ends = sorted((_stamp(t.datetime_complete) - started, t.value) for t in trials if t.state == TrialState.COMPLETE)
    return Search(
        seed=seed,
        seconds=seconds,
        complete=len(ends),
        pruned=sum(t.state == TrialState.PRUNED for t in trials),
        best_after=tuple(_so_far(ends)),
    )


def _stamp(at: datetime | None) -> float:
    assert at is not None
    return at.timestamp()


def _so_far(ends: list[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    best = 0.0
    for seconds, value in ends:
        best = max(best, value)
        yield seconds, best


def lines(pairs: list[tuple[Search, Search]]) -> Iterator[str]:
    yield "| seed | search | seconds | complete, pruned | best | seconds to the lower best |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for pair in pairs:
        lower = min(search.best for search in pair)
        for name, s in zip(("hpo", "plain Optuna"), pair, strict=True):
            yield (
                f"| {s.seed} | {name} | {s.seconds:.0f} | {s.complete}, {s.pruned} | {s.best:.4f} "
                f"| {s.seconds_to(lower):.0f} (to {lower:.4f}) |"
            )
    whole = [plain.seconds / ours.seconds for ours, plain in pairs]
    lowers = [min(ours.best, plain.best) for ours, plain in pairs]
    reach = [p.seconds_to(low) / o.seconds_to(low) for (o, p), low in zip(pairs, lowers, strict=True)]
    for title, ratios in (("until all trials are finished", whole), ("to the lower best accuracy", reach)):
        each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        yield f"plain Optuna takes {median(ratios):.2f} times as long {title} (median of {each})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=("digits", "fashion_mnist"), default="digits")
    parser.add_argument("--iterations", type=int, default=DEFAULT_ITERATIONS_DIGITS)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 on")
    parser.add_argument("--enqueue", action="store_true", help="let the plain search begin with the documented recipe")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plainly", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plainly:
        search_plainly(arguments.dataset, arguments.iterations, arguments.trials, arguments.seed, arguments.enqueue)
        return
    pairs = []
    for seed in range(arguments.seeds):
        pairs.append((run("hpo", arguments, seed), run("plain", arguments, seed)))
        print(f"seed {seed}: {pairs[-1][0].seconds:.0f} s and {pairs[-1][1].seconds:.0f} s", file=sys.stderr)
    print("\n".join(lines(pairs)))
    if arguments.json:
        arguments.json.write_text(json.dumps([[asdict(search) for search in pair] for pair in pairs], indent=2) + "\n")


if __name__ == "__main__":
    main()
