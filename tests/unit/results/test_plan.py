"""Test the plan of a study: its ranges, and what else might be asked for."""

from dataclasses import replace

import optuna
import pytest

from hpo.results import plan as planning
from hpo.results.plan import START_S, Range, count_replays, make_plan, pace_of, sketch
from hpo.results.replay import Pace
from hpo.trial.speed import Speed
from tests.unit.results.test_replay import SEARCH, SMALL

optuna.logging.set_verbosity(optuna.logging.WARNING)

SPEED = Speed(step_s=2.0, delay=0.1, image_s=0.0, checkpoint_bytes=3_000_000)


@pytest.fixture(autouse=True)
def _few_replays(monkeypatch):
    monkeypatch.setattr(planning, "FEWEST", 3)
    monkeypatch.setattr(planning, "MOST", 4)


def plan(search=SEARCH, **changes):
    return make_plan(replace(search, trials=3, **changes), SPEED, devices=1, training_images=1_293)


def test_a_range_names_the_lowest_and_the_highest():
    assert Range.of([3.0, 1.0, 5.0, 4.0]) == Range(low=1.0, median=3.5, high=5.0)


@pytest.mark.parametrize(("trials", "replays"), [(1, 4), (150, 4), (180, 3), (100_000, 3)])
def test_long_searches_are_replayed_less_often(trials, replays):
    assert count_replays(trials) == replays


@pytest.mark.parametrize(("workers", "devices", "share"), [(1, 2, 1), (2, 2, 1), (3, 2, 1.5), (8, 1, 8)])
def test_workers_that_share_a_device_share_its_speed(workers, devices, share):
    assert pace_of(SPEED, workers, devices) == Pace(step_s=2.0 * share, image_s=0.0, attempt_s=0.3)


def test_a_plan_says_what_a_study_takes_and_what_half_the_budget_and_more_workers_would_do():
    seen = []
    made = make_plan(replace(SEARCH, trials=3), SPEED, devices=1, training_images=1_293, report=lambda: seen.append(1))
    halved, doubled = made.alternatives

    assert (made.recipes, made.settings, made.trials, made.replays) == (675, 675, 3, 4)
    assert len(seen) == 3 * made.replays
    assert made.asked.requested == Range(low=960, median=960, high=960)
    assert 320 < made.asked.steps.low < made.asked.steps.high <= 960
    assert made.asked.seconds.low == pytest.approx(START_S + 2 * made.asked.steps.low + 3 * 0.3)
    assert made.asked.checkpoint_gb.high == pytest.approx(made.asked.checkpoints.high * 0.003)
    assert (halved.iterations, halved.workers) == (160, 1)
    assert halved.steps == Range(
        low=made.asked.steps.low / 2, median=made.asked.steps.median / 2, high=made.asked.steps.high / 2
    )
    assert (doubled.iterations, doubled.workers) == (320, 2)
    assert doubled.steps == made.asked.steps
    assert doubled.seconds.median > made.asked.seconds.median  # one device trains no faster


def test_the_smallest_budget_is_not_halved():
    assert [each.iterations for each in plan(iterations=63).alternatives] == [63]
    assert [each.iterations for each in plan(iterations=64).alternatives] == [32, 64]


def test_a_study_has_no_more_trials_than_recipes():
    assert make_plan(replace(SEARCH, space=SMALL, trials=9), SPEED, devices=1, training_images=1_293).trials == 4


def test_trials_beyond_those_that_are_replayed_take_as_much_as_those(monkeypatch):
    few = plan()
    monkeypatch.setattr("hpo.results.plan.LONGEST", 3)
    many = make_plan(replace(SEARCH, trials=30), SPEED, devices=1, training_images=1_293)

    assert many.replays == few.replays
    assert many.asked.steps.median == pytest.approx(10 * few.asked.steps.median)
    assert many.asked.seconds.median == pytest.approx(START_S + 10 * (few.asked.seconds.median - START_S))


def test_what_is_searched_in_vain_is_named():
    found = plan(space=SMALL, iterations=640).review

    assert found == ()


@pytest.mark.parametrize(
    ("trials", "said"),
    [
        (1, "about 320 optimizer steps, 100% of 1 full trial of 320"),
        (4, "about 1,000 optimizer steps, 81% of 4 full trials of 320"),
        (51, "at most 16,320 optimizer steps, 51 full trials of 320"),
    ],
)
def test_a_study_is_sketched_in_one_line(trials, said):
    assert sketch(replace(SEARCH, trials=trials)) == said
