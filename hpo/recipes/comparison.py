"""Recipes that are trained again, side by side, on fresh seeds: the space of a benchmark and of a confirmation."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from itertools import count, islice
from types import MappingProxyType
from typing import Annotated, Any, Self

from optuna import Trial
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from pydantic import BaseModel, ConfigDict, Field

from hpo.errors import RecipeRefused, short
from hpo.recipes.recipe import LATER_FIELDS, MAX_BENCHMARK_SEEDS, Recipe, derive_seed

BASELINE = "baseline"
"""Name of the recipe that the others are compared with."""

CANDIDATE = "candidate"
"""Name of the recipe of a search's best trial."""

SEEDS = 2**31
"""Number of possible seeds; small, because Optuna stores parameters as doubles."""


class Comparison(BaseModel):
    """The recipes of a benchmark by name; its trials train every recipe on one seed, then every recipe on the next.

    Attributes:
        runs: Fields of the recipes by name, without budget and seed; the base recipe's is `baseline`.
        trial: Number of the search's trial that is the candidate, or None.
        searched_seed: The search's own seed, which determines the fresh seeds and is never one of them.
        trials: In a confirmation, which is measured on the validation split, the number of the search's trial with each
            recipe; the base recipe may have none. Empty in a benchmark, which is measured on the test split.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: str = ""
    runs: dict[str, dict[str, Any]]
    trial: int | None = None
    searched_seed: int
    trials: Annotated[dict[str, int], Field(exclude_if=operator.not_)] = {}  # benchmarks of before do not have it

    @classmethod
    def of(
        cls,
        recipes: Mapping[str, Recipe],
        *,
        name: str,
        searched_seed: int,
        trial: int | None = None,
        trials: Mapping[str, int] = MappingProxyType({}),
    ) -> Self:
        """Create a comparison of recipes, ignoring their budgets and seeds."""
        runs = {run: _without_budget(recipe) for run, recipe in recipes.items()}
        return cls(name=name, runs=runs, trial=trial, searched_seed=searched_seed, trials=dict(trials))

    @property
    def is_confirmation(self) -> bool:
        """Return whether the recipes are compared on the validation split, rather than on the test split."""
        return bool(self.trials)

    @property
    def base_recipe(self) -> Recipe:
        """Return the base recipe, at the reference budget."""
        return Recipe.from_dict(self.runs[BASELINE])

    def seed(self, index: int) -> int:
        """Return the fresh seed with an index."""
        seeds = _fresh_seeds("benchmark", self.searched_seed, ())
        if self.is_confirmation:
            seeds = _fresh_seeds("confirmation", self.searched_seed, islice(seeds, MAX_BENCHMARK_SEEDS))
        return next(islice(seeds, index, None))

    def params_of(self, trial_number: int) -> dict[str, str | int]:
        """Return the name of the recipe that a trial trains, and the seed."""
        index, run = divmod(trial_number, len(self.runs))
        return {"run": list(self.runs)[run], "seed": self.seed(index)}

    def base_params(self) -> dict[str, str | int]:
        """Return the parameters of the first trial."""
        return self.params_of(0)

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return the distribution of every parameter."""
        return {"run": CategoricalDistribution(list(self.runs)), "seed": IntDistribution(0, SEEDS - 1)}

    def require(self, params: object, trial_number: int) -> None:
        """Refuse parameters that are not those of a trial; some of them may be left out.

        Args:
            params: Whatever another client has written.

        Raises:
            RecipeRefused: One differs.
        """
        allowed = self.params_of(trial_number)
        if not isinstance(params, Mapping) or not params.items() <= allowed.items():
            raise RecipeRefused(f"parameters are {short(params)}; allowed for trial {trial_number}: {allowed}")

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """Set a trial's parameters through Optuna, so that they are stored and shown with it."""
        run = trial.suggest_categorical("run", list(self.runs))
        return {"run": run, "seed": trial.suggest_int("seed", 0, SEEDS - 1)}

    def recipe(self, params: Mapping[str, Any], *, iterations: int, seed: int) -> Recipe:
        """Return the recipe that a trial's parameters describe, for a budget; the study's seed is not used."""
        del seed
        return Recipe.from_dict(self.runs[params["run"]] | {"iterations": iterations, "seed": params["seed"]})


def _fresh_seeds(purpose: str, searched_seed: int, used: Iterable[int]) -> Iterator[int]:
    seen = {searched_seed, *used}
    for index in count():
        seed = derive_seed(purpose, searched_seed, index) % SEEDS
        if seed not in seen:
            seen.add(seed)
            yield seed


def _without_budget(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe's fields as the benchmarks of earlier releases hold them: later ones where they say something."""
    fields = recipe.to_dict()
    left_out = {"iterations", "seed"} | {name for name, fixed in LATER_FIELDS.items() if fields[name] == fixed}
    return {name: value for name, value in fields.items() if name not in left_out}
