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

DRAWN_AT_ONCE, MOST_AT_ONCE = 50, 3
"""The same for the one line with which a study begins, which may not delay it."""

ATTEMPT_S = 0.3
"""What a worker needs whenever it takes a trial, besides training: to draw parameters, and to write and load files."""

READS_PER_ATTEMPT, READS_PER_CHECKPOINT, READS_PER_BEAT = 50, 3.4, 2
"""How many rows or lists a worker asks the database for: SELECT statements, counted within 20% on eight studies of 4
to 16 trials (`smooth_lr` and `dense`; asha, median and none; random and tpe)."""

BEAT_S = 10.0
"""How often a worker that trains looks whether it is to stop."""

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
        reads: SELECT statements that the workers send to the database.
    """

    iterations: int
    workers: int
    steps: Range
    requested: Range
    confirmation: Range
    checkpoints: Range
    seconds: Range
    checkpoint_gb: Range
    reads: Range


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


def sketch(search: Search) -> str:
    """Say in a moment about how many optimizer steps a search will take: by few replays, or by its trials alone."""
    whole = f"{search.trials:,} full trial{'s' if search.trials > 1 else ''} of {search.iterations:,}"
    replays = min(MOST_AT_ONCE, DRAWN_AT_ONCE // search.trials)
    if not replays:
        return f"at most {search.trials * search.iterations:,} optimizer steps, {whole}"
    steps = median(replay_search(search, Pace(), seed).steps for seed in range(replays))
    share = steps / (search.trials * search.iterations)
    return f"about {_round(steps):,} optimizer steps, {share:.0%} of {whole}"


def _round(steps: float) -> int:
    """Return a number of steps with two digits that mean something."""
    return int(float(f"{steps:.2g}"))


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

    def reads_of(each: Replayed) -> float:
        """Return how often the workers read from the database in the search."""
        reads = READS_PER_ATTEMPT * each.attempts + READS_PER_CHECKPOINT * each.checkpoints
        return factor * (reads + READS_PER_BEAT * each.steps * pace.step_s / BEAT_S)

    forecast = Forecast(
        iterations=search.iterations,
        workers=search.workers,
        steps=summarise(lambda each: factor * each.steps),
        requested=summarise(lambda each: factor * each.requested),
        confirmation=summarise(lambda each: each.confirmation),
        checkpoints=summarise(lambda each: factor * each.checkpoints),
        seconds=summarise(seconds_of),
        checkpoint_gb=summarise(lambda each: factor * each.checkpoints * speed.checkpoint_bytes / GIGABYTE),
        reads=summarise(reads_of),
    )
    return forecast, [each.params for each in replayed]


def pace_of(speed: Speed, workers: int, devices: int) -> Pace:
    """Return how fast each of some workers trains; those that share a device share its speed."""
    share = max(1.0, workers / devices)
    return Pace(step_s=speed.step_s * share, image_s=speed.image_s * share, attempt_s=ATTEMPT_S)
