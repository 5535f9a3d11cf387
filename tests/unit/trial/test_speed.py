"""Test that the speed of training is measured on the real thing."""

from itertools import count

import pytest

from hpo.recipes.recipe import documented_runs
from hpo.training.train import Training
from hpo.trial.checkpoints import encode
from hpo.trial.speed import ROUNDS, measure_speed


@pytest.mark.slow
@pytest.mark.parametrize(("iterations", "steps"), [(32, 5), (640, 12)], ids=["few", "many"])
def test_steps_and_evaluations_are_timed_and_the_checkpoint_is_weighed(few_digits, iterations, steps):
    recipe = documented_runs()["baseline"].recipe.at(iterations=iterations, seed=0)
    ticks, walls = count(), iter((100.0, 100.5))

    speed = measure_speed(recipe, few_digits, "fp32", lambda: next(walls), lambda: next(ticks) / 25)

    training = Training(recipe, few_digits, "fp32")
    training.advance(3 + 1 + ROUNDS * steps)
    assert speed.step_s == pytest.approx(0.04 / steps)
    assert speed.delay == pytest.approx(0.5 / (ROUNDS * 0.04) - 1)
    assert speed.image_s == pytest.approx(0.04 / len(few_digits.validation))
    assert speed.checkpoint_bytes == pytest.approx(len(encode(training.state())), abs=100)
