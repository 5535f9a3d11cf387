"""Test how a trial is run: what it reports, and how it ends."""

import math
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from statistics import fmean

import pytest
import torch

from hpo.database.attempt import Outcome
from hpo.recipes.promotion import first_drop
from hpo.recipes.recipe import documented_runs
from hpo.recipes.schedule import best_point, evaluation, reports, rungs, stops_early
from hpo.training.numerics import numerics
from hpo.training.train import Training
from hpo.trial.objective import Task, run_trial, standard_error

BASE = replace(documented_runs()["baseline"].recipe, boundaries=(16_000, 32_000), batch_size=20, iterations=32, seed=5)

OTHER = replace(BASE, values=(0.1, 0.01, 0.002))


@dataclass
class Recorder:
    """Take notes, stop before a given iteration's step, prune at a given iteration, and wait at a given rung."""

    stop_at: int | None = None
    prune_at: int | None = None
    wait_at: int | None = None
    iteration: int = 0
    steps: int = 0
    curve: list = field(default_factory=list)
    values: dict = field(default_factory=dict)
    asked_at: list = field(default_factory=list)
    rungs: list = field(default_factory=list)
    _next: int = 0

    def stopped(self):
        if self._next == self.stop_at:
            return True
        self._next += 1
        return False

    def computing(self):
        return nullcontext()

    def advanced(self, iteration, steps):
        self.iteration = iteration
        self.steps += steps

    def record(self, point, values):
        assert point.iteration == self.iteration
        assert not values.keys() & self.values.keys()
        self.curve.append(point)
        self.values |= values

    def should_prune(self):
        self.asked_at.append(self.iteration)
        return self.iteration == self.prune_at

    def reach_rung(self, rung, value, *, promoted):
        self.rungs.append((rung, self.iteration, value, promoted))
        return rung != self.wait_at


def run(recipe, dataset, base=BASE, align="phase", at_end=None, promoting=False, **orders):
    recorder = Recorder(**orders)
    task = Task(recipe=recipe, base=base, align=align, precision="fp32", at_end=at_end, promoting=promoting)
    return run_trial(task, dataset, recorder), recorder


def train(recipe, dataset, until):
    """Train without a trial around it, and measure at the same iterations."""
    plan = evaluation(recipe.iterations, recipe.batch_size, len(dataset.validation))
    training, curve = Training(recipe, dataset, "fp32"), []
    for iteration in plan.iterations:
        if iteration <= until:
            training.advance(iteration)
            last = iteration == recipe.iterations
            curve.append(training.measure(len(dataset.validation) if last else plan.images))
    return training, curve


def here():
    return numerics(torch.device("cpu"), "fp32").to_dict()


def outcome_of(sentence, end, found):
    return Outcome(
        state="complete",
        value=found.accuracy,
        attrs={
            "outcome": sentence,
            "iterations": end,
            "validation loss": found.loss,
            "standard error": math.sqrt(found.accuracy * (1 - found.accuracy) / found.images),
            "numerics": here(),
        },
    )


def expected_values(recipe, curve, align):
    accuracies = {point.iteration: point.val_accuracy for point in curve}
    plan = sorted(accuracies)
    return {report.step: accuracies[report.iteration] for report in reports(recipe, BASE, plan, align)}


@pytest.mark.slow
@pytest.mark.parametrize("align", ["phase", "iteration"])
def test_a_trial_that_runs_to_its_end_has_the_accuracy_of_its_last_weights(few_digits, align):
    recipe = replace(BASE, boundaries=(8_000, 48_000))
    training, curve = train(recipe, few_digits, 32)

    outcome, recorder = run(recipe, few_digits, align=align)

    assert outcome == outcome_of("complete", 32, training.evaluate(few_digits.validation))
    assert recorder.curve == curve
    assert (recorder.iteration, recorder.steps) == (32, 32)
    assert recorder.values == expected_values(recipe, curve, align)


def test_a_pruner_is_asked_at_every_rung_and_nowhere_else(few_digits):
    _, recorder = run(BASE, few_digits)

    assert recorder.asked_at == sorted(rungs(32))


def test_the_base_recipe_is_never_pruned_and_its_pruner_is_asked_all_the_same(few_digits):
    outcome, recorder = run(BASE, few_digits, prune_at=6)

    assert outcome.state == "complete"
    assert recorder.asked_at == sorted(rungs(32))


# The rate of STEPS drops at iterations 8, 16 and 24 of 32, and its rungs are 11 and 19; that of LATER at 12, 16 and 24.
STEPS = replace(BASE, boundaries=(16_000, 32_000, 48_000), values=(0.1, 0.01, 0.002, 0.001))
LOWER = replace(STEPS, values=(0.1, 0.01, 0.001, 0.0005))
LATER = replace(STEPS, boundaries=(24_000, 32_000, 48_000))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "align", "rungs_at"),
    [
        (STEPS, "phase", {1: 11, 2: 19}),
        (LOWER, "iteration", {1: 11, 2: 19}),
        (LATER, "phase", {1: 13, 2: 19}),
        (LATER, "iteration", {2: 19}),
    ],
)
def test_a_trial_is_compared_at_each_rung_after_its_rate_has_dropped(few_digits, recipe, align, rungs_at):
    _, curve = train(recipe, few_digits, 32)
    drop = first_drop(recipe)

    outcome, recorder = run(recipe, few_digits, base=STEPS, align=align, promoting=True)

    assert outcome.state == "complete"
    assert recorder.rungs == [
        (rung, at, fmean(point.val_accuracy for point in curve[max(drop, at - 3) : at]), recipe == STEPS)
        for rung, at in rungs_at.items()
    ]


def test_a_trial_that_has_to_wait_at_a_rung_has_no_value_yet(few_digits):
    _, curve = train(LOWER, few_digits, 19)

    outcome, recorder = run(LOWER, few_digits, base=STEPS, promoting=True, wait_at=2)

    assert outcome == Outcome(
        state="waiting",
        value=None,
        attrs={"outcome": "waiting at rung 2 (iteration 19)", "iterations": 19, "numerics": here()},
    )
    assert recorder.curve == curve
    assert (recorder.steps, [rung for rung, *_ in recorder.rungs]) == (19, [1, 2])


@pytest.mark.parametrize("stop_at", [0, 1, 7])
def test_a_trial_that_is_stopped_has_no_outcome_and_has_told_of_every_step(few_digits, stop_at):
    outcome, recorder = run(BASE, few_digits, stop_at=stop_at)

    assert outcome == "stopped"
    assert (recorder.iteration, recorder.steps) == (stop_at, stop_at)
    assert [point.iteration for point in recorder.curve] == list(range(1, stop_at + 1))


def test_a_pruned_trial_has_the_value_that_was_reported_last(few_digits):
    _, curve = train(OTHER, few_digits, 6)

    outcome, recorder = run(OTHER, few_digits, prune_at=6)

    assert outcome == Outcome(
        state="pruned",
        value=curve[-1].val_accuracy,
        attrs={"outcome": "pruned at iteration 6", "iterations": 6, "numerics": here()},
    )
    assert recorder.curve == curve
    assert recorder.values == {point.iteration: point.val_accuracy for point in curve}
    assert recorder.steps == 6


@pytest.mark.parametrize("batch_size", [20, 80], ids=["measured on a subset", "measured on the whole split"])
def test_a_trial_that_stops_early_has_the_accuracy_of_its_best_weights(few_digits, batch_size):
    recipe = replace(BASE, values=(0.5, 0.5, 0.5), early_stopping=4_000, batch_size=batch_size)

    outcome, recorder = run(recipe, few_digits)

    end, best = recorder.curve[-1].iteration, best_point(recorder.curve).iteration
    assert best < end < 32, "this recipe was chosen to stop early"
    assert [stops_early(recorder.curve[:n], recipe) for n in range(1, end + 1)] == [False] * (end - 1) + [True]
    training, curve = train(recipe, few_digits, end)
    assert recorder.curve == curve
    training, _ = train(recipe, few_digits, best)
    assert outcome == outcome_of(
        f"stopped early at iteration {end}, weights of iteration {best}", end, training.evaluate(few_digits.validation)
    )
    assert recorder.steps == end


def test_early_stopping_that_never_strikes_still_takes_the_best_weights(few_digits):
    recipe = replace(BASE, values=(0.05, 0.5, 0.5), early_stopping=63_000)

    outcome, recorder = run(recipe, few_digits)

    best = best_point(recorder.curve).iteration
    assert best < 32, "this recipe was chosen to be best before its end"
    training, _ = train(recipe, few_digits, best)
    assert outcome == outcome_of(f"complete, weights of iteration {best}", 32, training.evaluate(few_digits.validation))


@pytest.mark.slow
@pytest.mark.parametrize("early_stopping", [None, 63_000])
def test_what_is_measured_at_the_end_is_measured_on_the_final_weights_and_kept_with_the_trial(
    few_digits, early_stopping
):
    recipe = replace(BASE, values=(0.05, 0.5, 0.5), early_stopping=early_stopping)
    plain, recorder = run(recipe, few_digits)
    final = 32 if early_stopping is None else best_point(recorder.curve).iteration
    training, _ = train(recipe, few_digits, final)

    outcome, _ = run(recipe, few_digits, at_end=lambda ended: {"found": ended.evaluate(few_digits.train)})

    assert outcome == replace(plain, attrs=plain.attrs | {"found": training.evaluate(few_digits.train)})


def test_nothing_is_measured_at_the_end_of_a_trial_that_was_pruned_or_diverged(few_digits):
    def fail(_training):
        raise AssertionError

    assert run(OTHER, few_digits, at_end=fail, prune_at=6)[0].state == "pruned"
    assert run(replace(BASE, values=(1e30, 1e30, 1e30)), few_digits, at_end=fail)[0].state == "pruned"
    assert run(BASE, few_digits, at_end=fail, stop_at=7)[0] == "stopped"


@pytest.mark.parametrize(("values", "finite"), [((1e4, 1e4, 1e4), 0), ((1e30, 1e30, 1e30), 0), ((0.1, 1e30, 0.1), 8)])
def test_a_trial_that_diverges_is_pruned_with_the_reason_and_nothing_infinite_is_recorded(few_digits, values, finite):
    outcome, recorder = run(replace(BASE, values=values), few_digits)

    length = len(recorder.curve)
    last = recorder.curve[-1].val_accuracy if recorder.curve else None
    assert finite <= length < finite + 3, "this recipe was chosen to diverge when the high rate begins"
    assert outcome == Outcome(
        state="pruned",
        value=last,
        attrs={
            "outcome": f"diverged: the loss was not finite at iteration {length + 1}",
            "iterations": length,
            "numerics": here(),
        },
    )
    assert all(math.isfinite(x) for p in recorder.curve for x in (p.train_loss, p.val_loss, p.val_accuracy))
    assert recorder.values == {point.iteration: point.val_accuracy for point in recorder.curve}


@pytest.mark.parametrize(
    ("accuracy", "images", "error"), [(0.9, 100, 0.03), (0.5, 2_500, 0.01), (0.0, 144, 0.0), (1.0, 144, 0.0)]
)
def test_the_standard_error_is_the_binomial_one(accuracy, images, error):
    assert standard_error(accuracy, images) == pytest.approx(error)
