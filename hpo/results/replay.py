"""Replays of a search before it is run: its sampler and its pruner on stand-in curves, worker by worker.

Nothing is trained. What is counted are the optimizer steps, the checkpoints and the time that the same decisions would
take, with the rules of a study: common beginnings are trained once, a trial waits while another one trains what it
needs, and a trial that may train beyond its rung comes before a new one.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from random import Random

import optuna
from optuna.trial import TrialState

from hpo.algorithms import NearestSampler, fixed_sampler, make_pruner, make_sampler
from hpo.recipes.distinct import count_recipes, draw_untried, recipe_key
from hpo.recipes.promotion import Reached, compared_value, list_promotable, promotion_rungs
from hpo.recipes.recipe import Recipe, derive_seed
from hpo.recipes.schedule import Align, CurvePoint, evaluation, final_iteration, grid, reports, rungs
from hpo.recipes.space import Param, SearchSpace
from hpo.results.stand_in import StandIn
from hpo.sampling import REDRAWS
from hpo.settings import PROMOTING, PrunerName, SamplerName
from hpo.trial.segments import Segment, cut_path, segment_at, segment_of

MIN_PARKED = 2  # as hpo.database.parking has it

STUDIED = 300
"""The number of trials for which the sampler is asked; in a longer search the others are drawn at random."""

REPLAYED_AS: Mapping[SamplerName, SamplerName] = {"gp": "tpe", "cmaes": "tpe"}
"""Samplers that are replayed as a quicker one that learns as well."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """A search as it is replayed.

    Attributes:
        trials: How many it is to have.
        workers: How many train at the same time.
        images: Size of the validation split.
        reuse: Whether common beginnings are trained once.
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

    @property
    def base(self) -> Recipe:
        """Return the base recipe at the search's budget and seed."""
        return self.space.base_recipe.at(iterations=self.iterations, seed=self.seed)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """How long things take one worker, in seconds.

    Attributes:
        step_s: One optimizer step of the base recipe.
        image_s: Evaluating one image.
        attempt_s: Whatever else a trial needs each time that a worker takes it.
    """

    step_s: float = 1.0
    image_s: float = 0.0
    attempt_s: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Replayed:
    """What one replay comes to.

    Attributes:
        params: The parameters of its trials, in their order.
        steps: Optimizer steps that are executed.
        requested: Steps that the trials consist of, shared ones counted each time.
        seconds: From the first trial to the last.
        checkpoints: How many are saved.
        attempts: How often a worker takes a trial.
        evaluations: How often a network is evaluated.
    """

    params: tuple[Mapping[str, Param], ...]
    steps: int
    requested: int
    seconds: float
    checkpoints: int
    attempts: int
    evaluations: int


def replay(search: Search, pace: Pace, seed: int, given: Sequence[Mapping[str, Param]] = ()) -> Replayed:
    """Replay a search once.

    Args:
        seed: Determines the curves, and the sampler's draws.
        given: The parameters of the first trials, which the sampler is not asked for.
    """
    return _Replay(search, pace, seed, given).run()


@dataclass(kw_only=True, slots=True)
class _Trial:
    """A trial of a replay, and how far it has come."""

    number: int
    recipe: Recipe
    path: tuple[Segment, ...]
    curve: list[CurvePoint]
    asked: dict[int, list[int]]
    stations: list[int]
    told: optuna.Trial
    position: int = 0
    promoted: set[int] = field(default_factory=set)
    holds: str | None = None

    @property
    def end(self) -> int:
        return self.curve[-1].iteration

    def next_station(self) -> int:
        return self.stations[bisect_right(self.stations, self.position)]

    def up_to(self, iteration: int) -> list[CurvePoint]:
        return [point for point in self.curve if point.iteration <= iteration]


class _Proposals:
    """The recipes that a search tries, one after the other and none twice."""

    def __init__(self, search: Search, seed: int, given: Sequence[Mapping[str, Param]]) -> None:
        self._search, self._seed, self._given = search, seed, list(given)
        self._tried: set[str] = set()
        pruner = make_pruner(search.pruner, search.iterations)
        self.study = optuna.create_study(direction="maximize", pruner=pruner)
        self.params: list[Mapping[str, Param]] = []

    def propose(self) -> tuple[Mapping[str, Param], optuna.Trial]:
        """Choose the parameters of the next trial, as the study's sampler does."""
        space, number = self._search.space, len(self.params)
        for redraw in count():
            self.study.sampler = self._sampler(number, redraw)
            trial = self.study.ask()
            params = space.suggest(trial)
            key = self._key(params)
            if key not in self._tried:
                self._tried.add(key)
                self.params.append(params)
                return params, trial
            self.study.tell(trial, state=TrialState.FAIL)
        raise AssertionError("unreachable")

    def _sampler(self, number: int, redraw: int) -> optuna.samplers.BaseSampler:
        name, fixed = self._search.sampler, self._fixed(number, redraw)
        name = REPLAYED_AS.get(name, name) if number < STUDIED and not fixed else "random"
        sampler = NearestSampler(make_sampler(name, self._seed, number, redraw), self._search.space.nearest)
        return fixed_sampler(dict(fixed), sampler) if fixed else sampler

    def _fixed(self, number: int, redraw: int) -> Mapping[str, Param]:
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


class _Replay:
    """One replay: a clock, workers that take trials, and what has been trained."""

    def __init__(self, search: Search, pace: Pace, seed: int, given: Sequence[Mapping[str, Param]]) -> None:
        self._search, self._pace, self._seed = search, pace, seed
        self._base = search.base
        self._rungs = promotion_rungs(self._base)
        self._asked_at = frozenset(self._rungs) if search.pruner == PROMOTING else rungs(search.iterations)
        self._proposals = _Proposals(search, seed, given)
        self._stand_in = StandIn(distributions=search.space.distributions(), seed=seed)
        possible = count_recipes(search.space)
        self._total = search.trials if possible is None else min(search.trials, possible)
        self._trials: list[_Trial] = []
        self._reached: dict[tuple[int, int], Reached] = {}
        self._waiting: set[int] = set()
        self._parked: dict[int, str] = {}
        self._holders: dict[str, int] = {}
        self._depth: dict[str, int] = {}
        self._idle = search.workers
        self._events: list[tuple[float, int, int]] = []
        self._now = 0.0
        self._steps = self._checkpoints = self._attempts = self._evaluations = 0

    def run(self) -> Replayed:
        """Let the workers take trials until none is left."""
        self._employ()
        while self._events:
            self._now, number, station = heapq.heappop(self._events)
            self._arrive(self._trials[number], station)
            self._employ()
        return Replayed(
            params=tuple(self._proposals.params),
            steps=self._steps,
            requested=sum(trial.position for trial in self._trials),
            seconds=self._now,
            checkpoints=self._checkpoints,
            attempts=self._attempts,
            evaluations=self._evaluations,
        )

    def _employ(self) -> None:
        """Give idle workers trials, in the order in which a study gives them out."""
        while self._idle and (trial := self._choose()) is not None:
            self._idle -= 1
            self._attempts += 1
            self._proceed(trial, self._now + self._pace.attempt_s)

    def _choose(self) -> _Trial | None:
        free = [number for number, key in self._parked.items() if key not in self._holders]
        if free:
            del self._parked[min(free)]
            return self._trials[min(free)]
        for each in list_promotable(self._reached.values()):
            if each.trial_number in self._waiting:
                self._promote(each)
                self._waiting.remove(each.trial_number)
                return self._trials[each.trial_number]
        begins = len(self._parked) < max(MIN_PARKED, self._idle)
        return self._begin() if begins and len(self._trials) < self._total else None

    def _begin(self) -> _Trial:
        search, number = self._search, len(self._trials)
        params, told = self._proposals.propose()
        recipe = search.space.recipe(params, iterations=search.iterations, seed=search.seed)
        plan = evaluation(search.iterations, recipe.batch_size, search.images)
        path = cut_path(recipe, {} if search.reuse else {"trial": number})
        curve = self._stand_in.curve(recipe, params, path, plan.iterations)
        asked: dict[int, list[int]] = {}
        for report in reports(recipe, self._base, plan.iterations, search.align):
            asked.setdefault(report.iteration, []).append(report.step)
        end = curve[-1].iteration
        stations = {*grid(search.iterations), *asked, end}
        trial = _Trial(
            number=number,
            recipe=recipe,
            path=path,
            curve=curve,
            asked=asked,
            stations=sorted(station for station in stations if station <= end),
            told=told,
        )
        self._trials.append(trial)
        return trial

    def _proceed(self, trial: _Trial, now: float) -> None:
        """Go on with a trial: over what is trained for nothing, then with the next stretch of training."""
        while True:
            station = trial.next_station()
            segment = segment_at(trial.path, trial.position)
            if self._depth.get(segment_of(trial.path, station).key, 0) >= station:
                trial.position = station
                if not self._trains_on(trial, station):
                    self._release(trial)
                    return
                continue
            if self._holders.setdefault(segment.key, trial.number) != trial.number:
                self._release(trial)
                self._parked[trial.number] = segment.key
                return
            if trial.holds not in (None, segment.key):
                self._holders.pop(trial.holds)
            trial.holds = segment.key
            heapq.heappush(self._events, (now + self._cost(trial, station), trial.number, station))
            return

    def _cost(self, trial: _Trial, station: int) -> float:
        """Return how long it takes to train a trial up to a station, evaluations included."""
        recipe, base = trial.recipe, self._base
        size = (recipe.depth - 2) / (base.depth - 2) * recipe.batch_size / base.batch_size
        plan = evaluation(recipe.iterations, recipe.batch_size, self._search.images)
        points = [point for point in plan.iterations if trial.position < point <= station]
        images = plan.images * len(points)
        self._evaluations += len(points)
        return (station - trial.position) * self._pace.step_s * size + images * self._pace.image_s

    def _arrive(self, trial: _Trial, station: int) -> None:
        """Note that a trial has been trained up to a station, and go on with it."""
        self._steps += station - trial.position
        trial.position = station
        at = segment_of(trial.path, station)
        for segment in trial.path[: trial.path.index(at) + 1]:
            reached = min(segment.end, station)
            self._depth[segment.key] = max(self._depth.get(segment.key, 0), reached)
        goes_on = self._trains_on(trial, station)
        self._checkpoints += not goes_on or station in grid(self._search.iterations)
        if goes_on:
            self._proceed(trial, self._now)
        else:
            self._release(trial)

    def _release(self, trial: _Trial) -> None:
        """Let a worker leave a trial."""
        if trial.holds is not None:
            self._holders.pop(trial.holds)
            trial.holds = None
        self._idle += 1

    def _trains_on(self, trial: _Trial, station: int) -> bool:
        """Decide at a station whether a trial goes on."""
        if station == trial.end:
            final = final_iteration(trial.curve, trial.recipe)
            value = next(point.val_accuracy for point in trial.curve if point.iteration == final)
            self._proposals.study.tell(trial.told, value)
            return False
        steps = trial.asked.get(station, [])
        if self._search.pruner == PROMOTING:
            return self._passes_rungs(trial, station, steps)
        for step in steps:
            trial.told.report(trial.up_to(station)[-1].val_accuracy, step)
        is_base = trial.recipe == self._base
        if self._asked_at.intersection(steps) and trial.told.should_prune() and not is_base:
            self._proposals.study.tell(trial.told, state=TrialState.PRUNED)
            return False
        return True

    def _passes_rungs(self, trial: _Trial, station: int, steps: Sequence[int]) -> bool:
        for rung, step in enumerate(self._rungs, start=1):
            if step not in steps:
                continue
            value = compared_value(trial.up_to(station), trial.recipe)
            if value is not None and not self._passes(trial, rung, value):
                self._waiting.add(trial.number)
                return False
        return True

    def _passes(self, trial: _Trial, rung: int, value: float) -> bool:
        """Note that a trial has reached a rung, and return whether it trains on at once."""
        promoted = trial.recipe == self._base
        known = self._reached.setdefault(
            (trial.number, rung),
            Reached(trial_id=trial.number, trial_number=trial.number, rung=rung, value=value, promoted=promoted),
        )
        if known.promoted:
            return True
        if known not in list_promotable(self._reached.values()):
            return False
        self._promote(known)
        return True

    def _promote(self, each: Reached) -> None:
        self._reached[each.trial_number, each.rung] = Reached(
            trial_id=each.trial_id,
            trial_number=each.trial_number,
            rung=each.rung,
            value=each.value,
            promoted=True,
        )
