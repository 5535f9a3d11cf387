"""The same search as people write it with Optuna and with Ray Tune, which `live_comparison.py` times beside `hpo`.

Both train on the CPU, with batches from a DataLoader that transforms image by image, and report after every epoch.

    optuna    `study.optimize` with TPE and a MedianPruner on SQLite, one trial at a time with torch's own number of
              threads
    ray       `tune.Tuner` with OptunaSearch and an ASHAScheduler, each with its defaults, one trial per core

Each ends with an `outcome.json` in its folder: the recipe that the tool names, and what became of each trial.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from plain_training import steps_per_epoch, train_plainly

from hpo.artifacts import write_whole
from hpo.cli.data import choose_data
from hpo.launch.cores import count_cores
from hpo.recipes.recipe import Recipe
from hpo.recipes.space import SearchSpace
from hpo.recipes.space_file import load_space
from hpo.training.data import Dataset

SPACE = "smooth_lr"
OUTCOME = "outcome.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """A trial that has ended.

    Attributes:
        at_s: When, in seconds since the epoch.
        steps: Number of optimizer steps that its training loop executed.
        complete: Whether it was trained to its end.
        value: Validation accuracy; None for a trial that the tool does not rank.
    """

    at_s: float
    steps: int
    complete: bool
    value: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a search leaves behind: the recipe that the tool names, and all trials."""

    winner: Recipe
    trials: tuple[Ended, ...]

    def save(self, folder: Path) -> None:
        content = {"winner": self.winner.to_dict(), "trials": [asdict(trial) for trial in self.trials]}
        write_whole(folder / OUTCOME, json.dumps(content).encode())


def load_outcome(folder: Path) -> Outcome:
    content = json.loads((folder / OUTCOME).read_bytes())
    trials = tuple(Ended(**fields) for fields in content["trials"])
    return Outcome(winner=Recipe.from_dict(content["winner"]), trials=trials)


def search_with_optuna(space: SearchSpace, dataset: Dataset, arguments: argparse.Namespace) -> Outcome:
    study = optuna.create_study(
        storage=f"sqlite:///{arguments.folder}/optuna.db",
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=arguments.seed),
        pruner=optuna.pruners.MedianPruner(),
    )
    if arguments.enqueue:
        study.enqueue_trial(space.base_params())

    def objective(trial: optuna.Trial) -> float:
        recipe = space.recipe(space.suggest(trial), iterations=arguments.iterations, seed=arguments.seed)
        for epoch in train_plainly(recipe, dataset):
            trial.report(epoch.accuracy, epoch.iteration)
            if trial.should_prune():
                raise optuna.TrialPruned
        return epoch.accuracy

    study.optimize(objective, n_trials=arguments.trials)
    winner = space.recipe(study.best_params, iterations=arguments.iterations, seed=arguments.seed)
    return Outcome(winner=winner, trials=tuple(_ended_in_optuna(trial) for trial in study.trials))


def _ended_in_optuna(trial: optuna.trial.FrozenTrial) -> Ended:
    complete = trial.state == TrialState.COMPLETE
    return Ended(
        at_s=stamp(trial.datetime_complete),
        steps=max(trial.intermediate_values),
        complete=complete,
        value=trial.value if complete else None,
    )


def stamp(at: datetime | None) -> float:
    assert at is not None
    return at.timestamp()


def search_with_ray(space: SearchSpace, dataset: Dataset, arguments: argparse.Namespace) -> Outcome:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # read by Ray when it is imported
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    def recipe_of(params: dict[str, Any]) -> Recipe:
        return space.recipe(params, iterations=arguments.iterations, seed=arguments.seed)

    def train(params: dict[str, Any], dataset: Dataset) -> None:
        for epoch in train_plainly(recipe_of(params), dataset):
            tune.report({**asdict(epoch), "at_s": time.time()})

    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(train, dataset=dataset), {"cpu": 1}),
        tune_config=tune.TuneConfig(
            metric="accuracy",
            mode="max",
            scheduler=ASHAScheduler(
                max_t=math.ceil(arguments.iterations / steps_per_epoch(space.base_recipe, dataset))
            ),
            search_alg=OptunaSearch(
                space.suggest,
                seed=arguments.seed,
                metric="accuracy",
                mode="max",
                points_to_evaluate=[space.base_params()] if arguments.enqueue else None,
            ),
            num_samples=arguments.trials,
        ),
        run_config=tune.RunConfig(name="search", storage_path=str(arguments.folder.absolute())),
    )
    # Ray's sockets are in its folder, and the paths of sockets must be short.
    with (
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as short,
        ray.init("local", num_cpus=count_cores(), include_dashboard=False, _temp_dir=short),
    ):
        results = tuner.fit()
    if results.errors:
        raise results.errors[0]
    trials = tuple(_ended_in_ray(result.metrics) for result in results)
    return Outcome(winner=recipe_of(results.get_best_result().config), trials=trials)


def _ended_in_ray(last: dict[str, Any]) -> Ended:
    """Describe a trial by its last report, which Ray ranks even if the scheduler has stopped the trial."""
    return Ended(at_s=last["at_s"], steps=last["iteration"], complete=last["is_last"], value=last["accuracy"])


SEARCHES = {"optuna": search_with_optuna, "ray": search_with_ray}


def add_search_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that a search and the comparison of searches have in common."""
    parser.add_argument("--dataset", default="digits", help="name or path")
    parser.add_argument("--image-size", type=int, help="for images of different sizes")
    parser.add_argument("--enqueue", action="store_true", help="let plain searches begin with the documented recipe")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool", choices=SEARCHES)
    parser.add_argument("folder", type=Path)
    add_search_options(parser)
    for name in ("--iterations", "--trials", "--seed"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    arguments = parser.parse_args()
    dataset = choose_data(arguments.dataset, arguments.data_dir, arguments.image_size)
    SEARCHES[arguments.tool](load_space(SPACE), dataset, arguments).save(arguments.folder)


if __name__ == "__main__":
    main()
