"""The plan of a study: what it will take, by replays of its search and a measured speed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from hpo.recipes.distinct import count_every_recipe, count_every_setting
from hpo.recipes.recipe import MIN_ITERATIONS
from hpo.recipes.review import review_space
from hpo.results.proposals import Params, Search
from hpo.results.replay import Pace, Replayed, replay_search
from hpo.settings import GIGABYTE
from hpo.trial.speed import Speed

LONGEST = 500
"""The largest number of trials that are replayed; more take more in proportion."""

DRAWN = 600
FEWEST, MOST = 10, 20
"""As many replays are made as draw about `DRAWN` trials, at least `FEWEST` and at most `MOST`."""

ATTEMPT_S = 0.3
"""What a worker needs whenever it takes a trial, besides training: to draw parameters, and to write and load files."""

START_S = 10.0
"""What workers need to start and to load the data set."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """The median of some replays, with the lowest and the highest."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Range:
        """Summarise the values of some replays."""
        return cls(low=min(values), median=median(values), high=max(values))


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """What a search will take.

    Attributes:
        steps: Optimizer steps of the search.
        requested: Steps that its trials consist of; what reuse saves is the difference.
        confirmation: Optimizer steps of the confirmation, if no recipe drops out of it.
        seconds: From start to end.
        checkpoint_gb: Size of all checkpoints that are saved, in gigabytes.
    """

    iterations: int
    workers: int
    steps: Range
    requested: Range
    confirmation: Range
    checkpoints: Range
    seconds: Range
    checkpoint_gb: Range


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What can be known of a study before it is run.

    Attributes:
        recipes: The number of distinct recipes of the space.
        settings: The number of settings of its parameters, of which several may give one recipe.
        review: What the space searches in vain.
        trials: How many the study will have; no more than there are recipes.
        replays: Number of replays behind each range.
        speed: What was measured on one device of this machine.
        asked: What the study as it is asked for will take.
        alternatives: What it would take with half the budget, and with twice the workers.
    """

    recipes: int
    settings: int
    review: tuple[str, ...]
    trials: int
    replays: int
    speed: Speed
    asked: Forecast
    alternatives: tuple[Forecast, ...]


def make_plan(
    search: Search, speed: Speed, *, devices: int, training_images: int, report: Callable[[], object] = lambda: None
) -> Plan:
    """Plan a search.

    Args:
        devices: How many of the workers can train at full speed.
        training_images: Size of the training split.
        report: Called after each replay.
    """
    recipes = count_every_recipe(search.space)
    search = replace(search, trials=min(search.trials, recipes))
    replays = count_replays(search.trials)
    asked, given = _forecast(search, speed, devices, [()] * replays, report)
    alternatives = [_forecast(other, speed, devices, given, report)[0] for other in _alternatives(search)]
    return Plan(
        recipes=recipes,
        settings=count_every_setting(search.space),
        review=tuple(review_space(search.space, search.iterations, training_images, search.images)),
        trials=search.trials,
        replays=replays,
        speed=speed,
        asked=asked,
        alternatives=tuple(alternatives),
    )


def _alternatives(search: Search) -> list[Search]:
    """List what else might be asked for: half the budget, if it may be as small as that, and twice the workers."""
    halved = [replace(search, iterations=search.iterations // 2)] if search.iterations >= 2 * MIN_ITERATIONS else []
    return [*halved, replace(search, workers=2 * search.workers)]


def count_replays(trials: int) -> int:
    """Return how many replays a search of some trials gets."""
    return max(FEWEST, min(MOST, DRAWN // trials))


def _forecast(
    search: Search,
    speed: Speed,
    devices: int,
    given: Sequence[Sequence[Params]],
    report: Callable[[], object],
) -> tuple[Forecast, list[Sequence[Params]]]:
    """Replay a search, and return what it takes with the parameters of each replay.

    Args:
        given: For each replay, the parameters that are not drawn.
    """
    pace = pace_of(speed, search.workers, devices)
    shown = replace(search, trials=min(search.trials, LONGEST))
    replayed: list[Replayed] = []
    for number, params in enumerate(given):
        replayed.append(replay_search(shown, pace, number, params))
        report()
    factor = search.trials / shown.trials

    def summarise(value_of: Callable[[Replayed], float]) -> Range:
        """Return the range of a figure over the replays."""
        return Range.of([value_of(each) for each in replayed])

    def seconds_of(each: Replayed) -> float:
        """Return how long a search takes with its confirmation, whose runs are shared out among the workers."""
        return START_S + factor * each.seconds + each.confirmation * pace.step_s / search.workers

    forecast = Forecast(
        iterations=search.iterations,
        workers=search.workers,
        steps=summarise(lambda each: factor * each.steps),
        requested=summarise(lambda each: factor * each.requested),
        confirmation=summarise(lambda each: each.confirmation),
        checkpoints=summarise(lambda each: factor * each.checkpoints),
        seconds=summarise(seconds_of),
        checkpoint_gb=summarise(lambda each: factor * each.checkpoints * speed.checkpoint_bytes / GIGABYTE),
    )
    return forecast, [each.params for each in replayed]


def pace_of(speed: Speed, workers: int, devices: int) -> Pace:
    """Return how fast each of some workers trains; those that share a device share its speed."""
    share = max(1.0, workers / devices)
    return Pace(step_s=speed.step_s * share, image_s=speed.image_s * share, attempt_s=ATTEMPT_S)
