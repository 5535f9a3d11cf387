"""Replays of a search before it is run: its sampler and its pruner on stand-in curves, worker by worker.

Nothing is trained. What is counted are the optimizer steps, the checkpoints and the time that the same decisions would
take, with the rules of a study: common beginnings are trained once, a trial waits while another one trains what it
needs, and a trial that may train beyond its rung comes before a new one.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import optuna
from optuna.trial import TrialState

from hpo.database.parking import MIN_PARKED
from hpo.recipes.distinct import count_recipes
from hpo.recipes.promotion import Reached, compared_value, list_promotable, promotion_rungs
from hpo.recipes.recipe import Recipe, derive_seed
from hpo.recipes.schedule import (
    CurvePoint,
    Evaluation,
    distinct_iterations,
    evaluation,
    final_iteration,
    grid,
    reports,
    rungs,
)
from hpo.results.proposals import Params, Proposals, Search
from hpo.results.stand_in import StandIn
from hpo.settings import PROMOTING
from hpo.trial.segments import Segment, cut_path, segment_at, segment_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """How long things take one worker, in seconds.

    Attributes:
        step_s: One optimizer step of the base recipe.
        image_s: Evaluating one image.
        attempt_s: What a trial needs besides training, each time that a worker takes it.
    """

    step_s: float = 1.0
    image_s: float = 0.0
    attempt_s: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Replayed:
    """What one replay comes to.

    Attributes:
        params: The parameters of its trials, in their order.
        steps: Optimizer steps that are trained.
        requested: Steps that the trials consist of, shared ones counted each time.
        confirmation: Optimizer steps of the confirmation, if no recipe drops out of it.
        seconds: From the first trial to the last.
        checkpoints: How many are saved in the search.
        attempts: How often a worker takes a trial.
    """

    params: tuple[Params, ...]
    steps: int
    requested: int
    confirmation: int
    seconds: float
    checkpoints: int
    attempts: int


def replay_search(search: Search, pace: Pace, seed: int, given: Sequence[Params] = ()) -> Replayed:
    """Replay a search once.

    Args:
        seed: Determines the curves, and the sampler's draws.
        given: The parameters of the first trials, for which the sampler is not asked.
    """
    return _Replay(search, pace, seed, given).run()


@dataclass(kw_only=True, slots=True)
class _Trial:
    """A trial of a replay, and how far it has come.

    Attributes:
        plan: Where it is evaluated.
        steps: The steps that are reported to Optuna, by iteration.
        stations: Iterations at which it is saved or judged; the last is its end.
        holds: The key of the segment that it trains.
    """

    number: int
    recipe: Recipe
    params: Params
    path: tuple[Segment, ...]
    plan: Evaluation
    curve: list[CurvePoint]
    steps: dict[int, list[int]]
    stations: list[int]
    told: optuna.Trial
    position: int = 0
    holds: str | None = None
    value: float | None = None

    def next_station(self) -> int:
        """Return the next iteration at which the trial is saved or judged."""
        return self.stations[bisect_right(self.stations, self.position)]

    def measured(self) -> list[CurvePoint]:
        """Return the curve up to the trial's position."""
        return [point for point in self.curve if point.iteration <= self.position]


@dataclass(kw_only=True, slots=True)
class _Ladder:
    """The rungs of a search that promotes, and which trials have reached them.

    Attributes:
        waiting: Numbers of the trials that wait at a rung.
    """

    base: Recipe
    reached: dict[tuple[int, int], Reached] = field(default_factory=dict)
    waiting: set[int] = field(default_factory=set)

    def passes(self, trial: _Trial) -> bool:
        """Return whether a trial trains beyond its position, or wait there with it."""
        steps = trial.steps.get(trial.position, [])
        for rung, step in enumerate(promotion_rungs(self.base), start=1):
            value = compared_value(trial.measured(), trial.recipe) if step in steps else None
            if value is not None and not self._passes(trial, rung, value):
                self.waiting.add(trial.number)
                return False
        return True

    def promote_next(self) -> int | None:
        """Promote the first trial that waits and may train on; return its number, or None if there is none."""
        for each in list_promotable(self.reached.values()):
            if each.trial_number in self.waiting:
                self._promote(each)
                self.waiting.remove(each.trial_number)
                return each.trial_number
        return None

    def _passes(self, trial: _Trial, rung: int, value: float) -> bool:
        number, is_base = trial.number, trial.recipe == self.base
        new = Reached(trial_id=number, trial_number=number, rung=rung, value=value, promoted=is_base)
        known = self.reached.setdefault((number, rung), new)
        if not known.promoted and known in list_promotable(self.reached.values()):
            known = self._promote(known)
        return known.promoted

    def _promote(self, each: Reached) -> Reached:
        promoted = replace(each, promoted=True)
        self.reached[each.trial_number, each.rung] = promoted
        return promoted


class _Replay:
    """A clock, workers that take trials, and what has been trained."""

    def __init__(self, search: Search, pace: Pace, seed: int, given: Sequence[Params]) -> None:
        self._search, self._pace = search, pace
        self._base, self._grid = search.base, frozenset(grid(search.iterations))
        self._ladder = _Ladder(base=self._base)
        self._proposals = Proposals(search, seed, given)
        self._stand_in = StandIn(distributions=search.space.distributions(), seed=seed)
        self._total = min(search.trials, count_recipes(search.space) or search.trials)
        self._trials: list[_Trial] = []
        self._parked: dict[int, str] = {}
        self._holders: dict[str, int] = {}
        self._trained: dict[str, int] = defaultdict(int)  # up to which iteration each segment is, by key
        self._idle = search.workers
        self._events: list[tuple[float, int]] = []
        self._now = 0.0
        self._steps = self._checkpoints = self._attempts = 0

    def run(self) -> Replayed:
        """Let the workers take trials until none is left."""
        self._employ()
        while self._events:
            self._now, number = heapq.heappop(self._events)
            self._arrive(self._trials[number])
            self._employ()
        return Replayed(
            params=tuple(trial.params for trial in self._trials),
            steps=self._steps,
            requested=sum(trial.position for trial in self._trials),
            confirmation=self._count_confirmation(),
            seconds=self._now,
            checkpoints=self._checkpoints,
            attempts=self._attempts,
        )

    def _employ(self) -> None:
        """Give idle workers trials."""
        while self._idle and (trial := self._choose()) is not None:
            self._idle -= 1
            self._attempts += 1
            self._proceed(trial, self._now + self._pace.attempt_s)

    def _choose(self) -> _Trial | None:
        """Choose the next trial in the order in which a study gives them out."""
        if self._is_spent():
            return None
        free = [number for number, key in self._parked.items() if key not in self._holders]
        if free:
            del self._parked[min(free)]
            return self._trials[min(free)]
        promoted = self._ladder.promote_next()
        if promoted is not None:
            return self._trials[promoted]
        begins = len(self._parked) < max(MIN_PARKED, self._idle)
        return self._begin() if begins and len(self._trials) < self._total else None

    def _is_spent(self) -> bool:
        return self._search.budget is not None and self._steps >= self._search.budget

    def _begin(self) -> _Trial:
        search, number = self._search, len(self._trials)
        params, told = self._proposals.propose()
        recipe = search.space.recipe(params, iterations=search.iterations, seed=search.seed)
        plan = evaluation(search.iterations, recipe.batch_size, search.images)
        path = cut_path(recipe, {} if search.reuse else {"trial": number})
        curve = self._stand_in.curve(recipe, params, path, plan.iterations)
        steps: dict[int, list[int]] = defaultdict(list)
        for report in reports(recipe, self._base, plan.iterations, search.align):
            steps[report.iteration].append(report.step)
        end = curve[-1].iteration
        trial = _Trial(
            number=number,
            recipe=recipe,
            params=params,
            path=path,
            plan=plan,
            curve=curve,
            steps=dict(steps),
            stations=sorted(station for station in {*self._grid, *steps, end} if station <= end),
            told=told,
        )
        self._trials.append(trial)
        return trial

    def _proceed(self, trial: _Trial, now: float) -> None:
        """Let a trial pass over what is trained already, and begin the next stretch of training."""
        while self._trained[segment_of(trial.path, trial.next_station()).key] >= trial.next_station():
            trial.position = trial.next_station()
            if not self._goes_on(trial):
                self._leave(trial)
                return
        segment = segment_at(trial.path, trial.position)
        if segment.key != trial.holds:
            self._let_go(trial)
            if segment.key in self._holders:
                self._parked[trial.number] = segment.key
                self._idle += 1
                return
            self._holders[segment.key], trial.holds = trial.number, segment.key
        heapq.heappush(self._events, (now + self._cost_s(trial), trial.number))

    def _cost_s(self, trial: _Trial) -> float:
        """Return how long a trial trains up to its next station, evaluations included."""
        recipe, base, station = trial.recipe, self._base, trial.next_station()
        size = (recipe.depth - 2) / (base.depth - 2) * recipe.batch_size / base.batch_size
        evaluations = sum(trial.position < point <= station for point in trial.plan.iterations)
        trained_s = (station - trial.position) * self._pace.step_s * size
        return trained_s + evaluations * trial.plan.images * self._pace.image_s

    def _arrive(self, trial: _Trial) -> None:
        """Note that a trial has been trained up to its next station, and go on with it."""
        station = trial.next_station()
        self._steps += station - trial.position
        trial.position = station
        for segment in trial.path:
            if segment.start < station:
                self._trained[segment.key] = max(self._trained[segment.key], min(segment.end, station))
        goes_on = self._goes_on(trial)
        self._checkpoints += station in self._grid or not goes_on
        if goes_on and not self._is_spent():
            self._proceed(trial, self._now)
        else:
            self._leave(trial)

    def _leave(self, trial: _Trial) -> None:
        self._let_go(trial)
        self._idle += 1

    def _let_go(self, trial: _Trial) -> None:
        if trial.holds is not None:
            del self._holders[trial.holds]
            trial.holds = None

    def _goes_on(self, trial: _Trial) -> bool:
        """Judge a trial at its position, as the study's pruner does."""
        if trial.position == trial.stations[-1]:
            final = final_iteration(trial.curve, trial.recipe)
            trial.value = next(point.val_accuracy for point in trial.curve if point.iteration == final)
            self._proposals.study.tell(trial.told, trial.value)
            return False
        if self._search.pruner == PROMOTING:
            return self._ladder.passes(trial)
        return self._is_kept(trial)

    def _is_kept(self, trial: _Trial) -> bool:
        """Report to Optuna's pruner, and return whether it keeps the trial."""
        steps = trial.steps.get(trial.position, [])
        for step in steps:
            trial.told.report(trial.measured()[-1].val_accuracy, step)
        asked = rungs(self._search.iterations).intersection(steps)
        if not asked or not trial.told.should_prune() or trial.recipe == self._base:
            return True
        self._proposals.study.tell(trial.told, state=TrialState.PRUNED)
        return False

    def _count_confirmation(self) -> int:
        """Count the steps in which the best recipes and the base recipe are trained on further seeds."""
        complete = [trial for trial in self._trials if trial.value is not None]
        best = sorted(complete, key=lambda trial: -(trial.value or 0.0))[: self._search.confirmed]
        contenders = {trial.recipe: trial for trial in (*best, self._trials[0])}.values()
        if len(contenders) < 2:
            return 0
        return sum(distinct_iterations(self._again(trial, seed) for trial in contenders) for seed in self._further())

    def _further(self) -> range:
        return range(1, self._search.confirmation_seeds + 1)

    def _again(self, trial: _Trial, seed: int) -> tuple[Recipe, int]:
        """Return a trial's recipe on another seed, and how long it trains there."""
        stand_in = replace(self._stand_in, seed=derive_seed("confirmation", self._stand_in.seed, seed))
        curve = stand_in.curve(trial.recipe, trial.params, trial.path, trial.plan.iterations)
        return trial.recipe, curve[-1].iteration
