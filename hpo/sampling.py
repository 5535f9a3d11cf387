"""The choice of a trial's parameters, so that no recipe is tried twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Any

import optuna

from hpo.database import queue, recipe_index
from hpo.database.attempt import Attempt, Progress
from hpo.database.optuna_view import DraftParam
from hpo.errors import SpaceUsedUp
from hpo.recipes.distinct import draw_untried
from hpo.recipes.recipe import Recipe, derive_seed
from hpo.recipes.space import Param, SearchSpace
from hpo.study import Study

REDRAWS = 10
"""How often the sampler may draw a recipe that the study has, before one is drawn among the untried."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampled:
    """The parameters chosen for a trial.

    Attributes:
        rows: The parameters as they are written.
    """

    trial: optuna.Trial
    params: Mapping[str, Param]
    rows: Mapping[str, DraftParam]
    recipe: Recipe


def sample(study: Study, attempt: Attempt, progress: Progress) -> Sampled:
    """Choose the parameters of a claimed trial and write them, unless it already has some.

    In a search they are drawn again while they give a recipe that another trial has. Those that were enqueued may
    repeat one: at once if nothing else was left to the sampler, else if the sampler finds no other.

    Raises:
        LeaseLost: The attempt has ended.
        RecipeRefused: Another client has chosen some that the search space does not allow.
        SpaceUsedUp: The search space has no recipe left; the trial was removed.
    """
    space = study.space
    for redraw in count():
        fixed = _draw_untried(study, space, attempt, redraw) if isinstance(space, SearchSpace) else {}
        if fixed is None:
            why = f"no untried recipe was found in search space {space.name}"
            queue.withdraw(study.storage, attempt, progress, why)
            raise SpaceUsedUp(f"study {study.name}: {why} for trial {attempt.trial_number}")
        trial = study.open_trial(attempt, redraw, fixed)
        is_drawn = isinstance(space, SearchSpace) and not trial.params
        params, draft = study.suggest(attempt, trial)
        if is_drawn and draft.params:
            key, is_last = study.key_of(params), redraw == REDRAWS
            written = queue.write_params(study.storage, attempt, progress, draft, key, study.key_of, is_last=is_last)
        else:
            written = True
            queue.write_draft(study.storage, attempt, progress, draft)
        if written:
            settings = study.settings
            recipe = space.recipe(params, iterations=settings.iterations, seed=settings.seed)
            return Sampled(trial=trial, params=params, rows=draft.params, recipe=recipe)
    raise AssertionError("unreachable")


def _draw_untried(study: Study, space: SearchSpace, attempt: Attempt, redraw: int) -> Mapping[str, Any] | None:
    """Draw parameters that were not tried, once the sampler has been asked too often; return None if all were."""
    if redraw <= REDRAWS:
        return {}
    tried = recipe_index.list_keys(study.storage, study.study_id)
    random = Random(derive_seed("untried", study.settings.seed, attempt.trial_number, redraw))
    return draw_untried(space, tried, study.key_of, random)
