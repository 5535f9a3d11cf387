"""The recipes that a search would try, from its own sampler, without a database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random

import optuna
from optuna.trial import TrialState

from hpo.algorithms import NearestSampler, fixed_sampler, make_pruner, make_sampler
from hpo.recipes.distinct import draw_untried, recipe_key
from hpo.recipes.recipe import Recipe, derive_seed
from hpo.recipes.schedule import Align
from hpo.recipes.space import Param, SearchSpace
from hpo.sampling import REDRAWS
from hpo.settings import PrunerName, SamplerName

STUDIED = 300
"""The number of trials for which the sampler is asked; in a longer search the others are drawn at random."""

REPLAYED_AS: Mapping[SamplerName, SamplerName] = {"gp": "tpe"}
"""Samplers that are replayed as one that learns as well, and quickly: gp needs minutes for a replay of 24 trials."""


Params = Mapping[str, Param]
"""The parameters of a trial by name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """A search as it is replayed.

    Attributes:
        trials: How many it is to have.
        workers: How many train at the same time.
        images: Size of the validation split.
        reuse: Whether common beginnings are trained once.
        budget: After how many optimizer steps it ends, whatever is left; None for no such end.
        confirmed: How many of the best recipes are confirmed at the end; 0 for no confirmation.
        confirmation_seeds: On how many further seeds.
    """

    space: SearchSpace
    iterations: int
    seed: int
    sampler: SamplerName
    pruner: PrunerName
    align: Align
    trials: int
    workers: int
    images: int
    reuse: bool = True
    budget: int | None = None
    confirmed: int = 0
    confirmation_seeds: int = 0

    @property
    def base(self) -> Recipe:
        """Return the base recipe at the search's budget and seed."""
        return self.space.base_recipe.at(iterations=self.iterations, seed=self.seed)


class Proposals:
    """The recipes that a search tries, one after the other and none twice."""

    def __init__(self, search: Search, seed: int, given: Sequence[Params]) -> None:
        self._search, self._seed, self._given = search, seed, list(given)
        self._tried: set[str] = set()
        pruner = make_pruner(search.pruner, search.iterations)
        self.study = optuna.create_study(direction="maximize", pruner=pruner)
        self._number = 0

    def propose(self) -> tuple[Params, optuna.Trial]:
        """Choose the parameters of the next trial, as the study's sampler does."""
        space, number = self._search.space, self._number
        for redraw in count():
            self.study.sampler = self._sampler(number, redraw)
            trial = self.study.ask()
            params = space.suggest(trial)
            key = self._key(params)
            if key not in self._tried:
                self._tried.add(key)
                self._number += 1
                return params, trial
            self.study.tell(trial, state=TrialState.FAIL)
        raise AssertionError("unreachable")

    def _sampler(self, number: int, redraw: int) -> optuna.samplers.BaseSampler:
        name, fixed = self._search.sampler, self._fixed(number, redraw)
        name = REPLAYED_AS.get(name, name) if number < STUDIED and not fixed else "random"
        sampler = NearestSampler(make_sampler(name, self._seed, number, redraw), self._search.space.nearest)
        return fixed_sampler(dict(fixed), sampler) if fixed else sampler

    def _fixed(self, number: int, redraw: int) -> Params:
        if redraw == 0 and number < len(self._given):
            return self._given[number]
        if redraw == 0 and number == 0:
            return self._search.space.base_params()
        if redraw <= REDRAWS:
            return {}
        random = Random(derive_seed("untried", self._seed, number))
        return draw_untried(self._search.space, self._tried, self._key, random) or {}

    def _key(self, params: Mapping[str, Param]) -> str:
        return recipe_key(self._search.space.recipe(params, iterations=self._search.iterations, seed=self._seed))
