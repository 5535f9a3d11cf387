"""Optuna's samplers and pruners, with the settings that studies use."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner, WilcoxonPruner
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    PartialFixedSampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.trial import FrozenTrial

from hpo.recipes.recipe import derive_seed
from hpo.recipes.schedule import RUNGS
from hpo.settings import PrunerName, SamplerName

ASHA_FACTOR = 3
HYPERBAND_FACTOR = 3  # Li et al. 2018, §3


def make_sampler(name: SamplerName, seed: int, trial_number: int, redraw: int = 0) -> BaseSampler:
    """Create a sampler for one trial of a study.

    Args:
        redraw: How often parameters were drawn for the trial before, and not taken.
    """
    own = derive_seed("sampler", seed, trial_number, *([redraw] if redraw else [])) % 2**32
    shared = derive_seed("sampler", seed) % 2**32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        match name:
            case "tpe":
                # group: without it, the joint model leaves out parameters that only some trials have
                return TPESampler(seed=own, multivariate=True, group=True, constant_liar=True)
            case "random":
                return RandomSampler(seed=own)
            case "qmc":
                # one sequence for all workers, which find their positions in it through the storage
                return QMCSampler(
                    scramble=True, seed=shared, warn_asynchronous_seeding=False, warn_independent_sampling=False
                )
            case "gp":
                return GPSampler(seed=own, warn_independent_sampling=False)
            case "cmaes":
                return CmaEsSampler(seed=own, warn_independent_sampling=False)


class NearestSampler(BaseSampler):
    """A sampler whose draws are replaced by the nearest values that a search space has.

    Samplers compute in binary, so they draw 0.30000000000000004 where a range has 0.3, and they know no step of a
    logarithmic range.

    Args:
        nearest: From a parameter's name and a draw to the value.
    """

    def __init__(self, drawing: BaseSampler, nearest: Callable[[str, Any], Any]) -> None:
        self._drawing, self._nearest = drawing, nearest

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the parameters that are drawn together."""
        return self._drawing.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw several parameters together."""
        drawn = self._drawing.sample_relative(study, trial, search_space)
        return {name: self._nearest(name, value) for name, value in drawn.items()}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw one parameter."""
        drawn = self._drawing.sample_independent(study, trial, param_name, param_distribution)
        return self._nearest(param_name, drawn)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Tell the sampler that a trial begins."""
        self._drawing.before_trial(study, trial)


def fixed_sampler(params: dict[str, Any], base: BaseSampler) -> BaseSampler:
    """Create a sampler that returns fixed parameters, and samples any others with `base`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return PartialFixedSampler(params, base)


def make_pruner(name: PrunerName, iterations: int, rungs: int = RUNGS) -> BasePruner:
    """Create a pruner for trials of a budget in iterations, asked at `rungs` evenly spaced steps.

    That of `asha` prunes nothing: `hpo.recipes.promotion` decides which trials train beyond a rung.
    """
    rung = max(1, iterations // rungs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        match name:
            case "asha-stop":
                return SuccessiveHalvingPruner(min_resource=2 * rung, reduction_factor=ASHA_FACTOR)
            case "hyperband":
                return HyperbandPruner(min_resource=rung, max_resource=iterations, reduction_factor=HYPERBAND_FACTOR)
            case "median":
                return MedianPruner(n_startup_trials=5, n_warmup_steps=2 * rung)
            case "wilcoxon":
                return WilcoxonPruner(p_threshold=0.1, n_startup_steps=4)
            case "asha" | "none":
                return NopPruner()
