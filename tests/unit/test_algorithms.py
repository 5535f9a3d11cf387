"""Test that all samplers draw the values that a space has."""

from typing import get_args

import optuna
import pytest

from hpo.algorithms import NearestSampler, make_sampler
from hpo.recipes.space_file import parse_space
from hpo.settings import SamplerName

TRIALS = 16  # past the random draws with which some samplers begin
SPACE = parse_space(
    """
name: mine
base: dropout
search:
  dropout: {low: 0.1, high: 0.9, step: 0.1}
  values:
    - {low: 0.1, high: 0.7, step: 0.2}
    - {low: 0.001, high: 0.1, step: 0.001, log: true}
    - {low: 1e-4, high: 1e-2, log: true}
  batch_size: {low: 32, high: 512, step: 32, log: true}
  weight_decay: [0, 1e-4]
""",
    "mine.yaml",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", get_args(SamplerName))
def test_every_sampler_draws_the_decimal_numbers_of_a_range_and_nothing_between_its_steps(name):
    study = optuna.create_study(direction="maximize")
    for number in range(TRIALS):
        study.sampler = NearestSampler(make_sampler(name, 0, number), SPACE.nearest)
        trial = study.ask()
        params = SPACE.suggest(trial)
        study.tell(trial, params["dropout"])

    drawn = [trial.params for trial in study.trials]
    assert {params["dropout"] for params in drawn} <= {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9}
    assert {params["learning_rate_1"] for params in drawn} <= {0.1, 0.3, 0.5, 0.7}
    assert all(len(repr(params["learning_rate_2"])) <= len("0.001") for params in drawn)
    assert all(f"{params['learning_rate_3']:.3g}" == f"{params['learning_rate_3']:g}" for params in drawn)
    assert all(1e-4 <= params["learning_rate_3"] <= 1e-2 for params in drawn)
    assert {params["batch_size"] % 32 for params in drawn} == {0}
    for param in drawn[0]:
        assert len({params[param] for params in drawn}) > 1, f"{param} is searched"


def test_a_logarithmic_range_is_drawn_evenly_over_its_ratios():
    study = optuna.create_study(sampler=NearestSampler(make_sampler("random", 0, 0), SPACE.nearest))
    drawn = [SPACE.suggest(study.ask())["learning_rate_3"] for _ in range(200)]

    assert 70 <= sum(rate < 1e-3 for rate in drawn) <= 130
