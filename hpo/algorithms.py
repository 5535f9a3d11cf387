"""Optuna's samplers and pruners, with the settings that studies use."""

from __future__ import annotations

import warnings
from typing import Any

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

from hpo.recipes.recipe import derive_seed
from hpo.recipes.schedule import RUNGS
from hpo.settings import PrunerName, SamplerName

ASHA_FACTOR = 3  # misses less than 2 and trains less, on all curves of benchmarks/README.md
HYPERBAND_FACTOR = 3  # Li et al. 2018, §3


def make_sampler(name: SamplerName, seed: int, trial_number: int) -> BaseSampler:
    """Create a sampler for one trial of a study."""
    own = derive_seed("sampler", seed, trial_number) % 2**32
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


def fixed_sampler(params: dict[str, Any], base: BaseSampler) -> BaseSampler:
    """Create a sampler that returns fixed parameters, and samples any others with `base`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return PartialFixedSampler(params, base)


def make_pruner(name: PrunerName, iterations: int, rungs: int = RUNGS) -> BasePruner:
    """Create a pruner for trials of a budget in iterations, asked at `rungs` evenly spaced steps."""
    rung = max(1, iterations // rungs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        match name:
            case "asha":
                return SuccessiveHalvingPruner(min_resource=2 * rung, reduction_factor=ASHA_FACTOR)
            case "hyperband":
                return HyperbandPruner(min_resource=rung, max_resource=iterations, reduction_factor=HYPERBAND_FACTOR)
            case "median":
                return MedianPruner(n_startup_trials=5, n_warmup_steps=2 * rung)
            case "wilcoxon":
                return WilcoxonPruner(p_threshold=0.1, n_startup_steps=4)
            case "none":
                return NopPruner()
