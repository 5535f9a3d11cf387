"""Test what a terminal is shown, line by line."""

import re
from dataclasses import replace
from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from hpo.cli import view
from hpo.database.overview import Counts, Running
from hpo.database.study_state import Stopped
from hpo.database.workers import LiveWorker
from hpo.recipes.recipe import ParameterCounts, documented_runs
from hpo.results.benchmark import Result, Run
from hpo.results.confirmation import Confirmation, Contender
from hpo.results.plan import Forecast, Plan, Range
from hpo.study import Best
from hpo.training.model import LayerRow
from hpo.trial.speed import Speed

COUNTS = Counts(complete=3, pruned=4, failed=0, running=2, waiting=11)


def lines_of(renderable, width=100):
    console = Console(file=StringIO(), width=width, color_system=None)
    console.print(renderable)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


@pytest.mark.parametrize(("value", "text"), [(None, "-"), (0.0, "0.0000"), (0.89125, "0.8912"), (1.0, "1.0000")])
def test_an_accuracy_has_four_places(value, text):
    assert view.accuracy(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "unknown"),
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3_599.6, "1 h 00 min"),
        (3_660, "1 h 01 min"),
        (90_000, "25 h 00 min"),
    ],
)
def test_a_duration_is_written_for_people(seconds, text):
    assert view.duration(seconds) == text


@given(seconds=st.floats(0, 1e7))
def test_a_duration_has_never_60_minutes_or_seconds(seconds):
    numbers = re.findall(r"(\d+) (?:min|s)\b", view.duration(seconds))

    assert numbers
    assert all(int(number) < 60 for number in numbers)


@pytest.mark.parametrize(
    ("elapsed_s", "finished", "remaining", "left_s"),
    [(100.0, 0, 5, None), (100.0, 4, 6, 150.0), (100.0, 4, 0, 0.0), (0.0, 0, 0, None)],
)
def test_the_time_left_follows_from_the_trials_finished_so_far(elapsed_s, finished, remaining, left_s):
    assert view.time_left(elapsed_s, finished, remaining) == left_s


@pytest.mark.parametrize(
    ("counts", "line"),
    [
        (COUNTS, "7 / 20 finished, 3 complete, 4 pruned, 2 running, 11 waiting"),
        (Counts(complete=1, failed=2), "3 / 20 finished, 1 complete, 2 failed"),
        (Counts(waiting=9, at_rungs={1: 4, 2: 1}), "0 / 20 finished, 9 waiting (4 at rung 1, 1 at rung 2)"),
        (Counts(), "0 / 20 finished"),
    ],
)
def test_states_are_counted_that_have_any_trial(counts, line):
    assert view.counts_line(counts, 20) == line


def test_the_live_view_shows_the_best_trial_and_what_each_worker_does():
    running = [
        Running(worker="a:1", host="a", device="cuda:0", trial_number=7, iteration=120, val_accuracy=0.5),
        Running(worker="b:22", host="b", device="cpu", trial_number=12, iteration=0, val_accuracy=None),
    ]

    assert lines_of(view.progress("mine", COUNTS, 20, (3, 0.91234), running, 640, 125.0)) == [
        "mine  7 / 20 finished, 3 complete, 4 pruned, 2 running, 11 waiting",
        "best 0.9123 (trial 3), time left 2 min 05 s",
        "worker  device  trial  iteration  accuracy",
        "a:1     cuda:0      7  120 / 640    0.5000",
        "b:22    cpu        12    0 / 640         -",
    ]


def test_the_live_view_of_a_study_that_just_began_claims_nothing():
    assert lines_of(view.progress("mine", Counts(waiting=20), 20, None, [], 640, None)) == [
        "mine  0 / 20 finished, 20 waiting",
        "no result yet, time left unknown",
    ]


def test_a_study_that_does_not_run_says_so_first():
    shown = lines_of(view.progress("mine", COUNTS, 20, None, [], 640, None, "paused"))
    assert shown[0] == "mine  paused: 7 / 20 finished, 3 complete, 4 pruned, 2 running, 11 waiting"
    line = view.progress_line(COUNTS, 20, 0, None, None, "stopping")
    assert line.startswith("stopping: 7 / 20 finished, ")


def test_workers_are_listed_with_what_they_train():
    busy = LiveWorker(
        worker="a:1",
        host="a",
        device="cuda:0",
        study="mine",
        state="running",
        trial=7,
        iteration=120,
        heartbeat_age_s=3.4,
    )
    idle = replace(busy, worker="b:22", host="b", device="cpu", study=None, trial=None, iteration=None)

    paused = replace(idle, worker="c:3", study="mine", state="paused")
    assert lines_of(view.workers([busy, idle, paused])) == [
        "worker  host  device  study          trial  iteration  last heartbeat",
        "a:1     a     cuda:0  mine               7        120         3 s ago",
        "b:22    b     cpu     -                  -          -         3 s ago",
        "c:3     b     cpu     mine (paused)      -          -         3 s ago",
    ]


@pytest.mark.parametrize(
    ("counts", "line"),
    [
        (
            COUNTS,
            "study mine is stopped: 2 running trials handed back, 1 finished; 7 finished in all, 11 "
            "waiting. Continue it with `hpo resume --study mine` or the command that created it",
        ),
        (
            Counts(complete=20),
            "study mine has no trials left: 2 running trials handed back, 1 finished; 20 finished in all",
        ),
    ],
)
def test_what_stopping_did_is_said_in_a_line(counts, line):
    assert view.stopped("mine", Stopped(handed_back=2, finished=1, counts=counts)) == line


def test_the_line_for_a_log_says_the_same():
    assert view.progress_line(COUNTS, 20, 4_800, (3, 0.91234), 9.0) == (
        "7 / 20 finished, 3 complete, 4 pruned, 2 running, 11 waiting; "
        "4,800 steps; best 0.9123 (trial 3); time left 9 s"
    )
    assert view.progress_line(COUNTS, 20, 0, None, None) == (
        "7 / 20 finished, 3 complete, 4 pruned, 2 running, 11 waiting; 0 steps; no result yet; time left unknown"
    )


@pytest.mark.parametrize(
    ("spent", "line"),
    [
        (
            {"naive": 32_000, "requested": 12_480, "trained": 4_800},
            "4,800 trained, 15% of the 32,000 of full trials; 12,480 without reuse",
        ),
        ({"naive": 0, "requested": 0, "trained": 0}, "0 trained"),
    ],
)
def test_what_a_study_cost_stands_beside_what_it_would_have_cost(spent, line):
    assert view.spent_line(spent) == line


STATUS = {
    "study": "smooth_lr-digits",
    "space": "smooth_lr",
    "dataset": "digits",
    "iterations": 640,
    "target": 50,
    "state": "done",
    "ended_because": None,
    "trials": {"complete": 18, "pruned": 32, "failed": 0, "running": 0, "waiting": 0},
    "waiting_at_rungs": {},
    "of_other_clients": {"lent": 0, "told": 0, "refused": 0},
    "best": {"trial": 11, "value": 0.98765, "recipe": {}},
    "recipes": {"tried": 50, "possible": 22_680},
    "iterations_spent": {"naive": 32_000, "requested": 12_480, "trained": 4_800},
}


def test_the_status_of_a_study_is_a_table_of_seven_rows():
    assert lines_of(view.status(STATUS)) == [
        "study    smooth_lr-digits",
        "space    smooth_lr on digits, 640 iterations per trial",
        "state    done",
        "trials   50 of 50 finished: 18 complete, 32 pruned",
        "recipes  50 of 22,680 tried",
        "best     0.9877 (trial 11)",
        "steps    4,800 trained, 15% of the 32,000 of full trials; 12,480 without reuse",
    ]


def test_the_status_says_at_which_rungs_trials_wait():
    trials = {"complete": 18, "pruned": 0, "failed": 0, "running": 2, "waiting": 30}

    assert lines_of(view.status(STATUS | {"trials": trials, "waiting_at_rungs": {1: 7}}))[3] == (
        "trials   18 of 50 finished: 18 complete, 2 running, 30 waiting (7 at rung 1)"
    )


def test_the_status_says_why_a_study_has_ended():
    ended = STATUS | {"state": "ended", "ended_because": "its workers have trained 100 optimizer steps of 100"}
    [row] = [line for line in lines_of(view.status(ended)) if line.startswith("state")]
    assert row.split(maxsplit=1)[1].rstrip() == "ended: its workers have trained 100 optimizer steps of 100"


def test_a_status_without_a_best_trial_says_so():
    assert lines_of(view.status(STATUS | {"best": None}))[5] == "best     none yet"


@pytest.mark.parametrize(
    ("recipes", "line"),
    [
        ({"tried": 12, "possible": 12}, ["recipes  12 of 12 tried: the search space is used up"]),
        ({"tried": 11, "possible": 12}, ["recipes  11 of 12 tried"]),
        (None, []),
    ],
    ids=["used up", "not used up", "a benchmark"],
)
def test_the_status_says_how_much_of_the_space_was_tried(recipes, line):
    assert [row for row in lines_of(view.status(STATUS | {"recipes": recipes})) if row.startswith("recipes")] == line


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({}, []),
        ({"confirmation": None}, ["confirmed  no; `hpo confirm` trains it on further seeds"]),
        ({"confirmation": {"verdict": "Trial 11 holds."}}, ["confirmed  Trial 11 holds."]),
        ({"confirmation": None, "best": None}, []),
    ],
    ids=["a benchmark", "not confirmed", "confirmed", "nothing to confirm"],
)
def test_the_status_says_whether_the_best_recipe_is_confirmed(change, line):
    assert [row for row in lines_of(view.status(STATUS | change)) if row.startswith("confirmed")] == line


def test_a_confirmation_is_a_table_of_accuracies_by_seed_with_the_verdict_below():
    recipe = documented_runs()["smooth_lr"].recipe

    def contender(name, *accuracy, trial, dropped_after=None):
        return Contender(name=name, trial=trial, recipe=recipe, accuracy=accuracy, dropped_after=dropped_after)

    result = Confirmation(
        study="s.confirm",
        seeds=(11, 12, 13),
        contenders=(
            contender("trial 7", 0.95, 0.94, 0.96, trial=7),
            contender("baseline", 0.93, 0.94, 0.92, trial=0),
            contender("trial 3", 0.5, 0.51, trial=3, dropped_after=2),
        ),
        waiting=0,
    )

    assert lines_of(view.confirmation(result, "Trial 7 holds.")) == [
        "seed                 trial 7  baseline  trial 3",
        "11                    0.9500    0.9300   0.5000",
        "12                    0.9400    0.9400   0.5100",
        "13                    0.9600    0.9200        -",
        "mean                  0.9500    0.9300   0.5050",
        "dropped after seeds        -         -        2",
        "",
        "Trial 7 holds.",
    ]


def test_the_best_recipe_stands_beside_the_base_recipe_where_they_differ():
    base = documented_runs()["smooth_lr"].recipe.at(iterations=640, seed=7)
    found = Best(
        trial=11,
        value=0.98765,
        standard_error=0.00921,
        recipe=type(base).from_dict(base.to_dict() | {"head": "linear", "boundaries": [16_000, 32_000, 56_000]}),
        curve=(),
    )

    assert lines_of(view.best(found, base.to_dict(), "Not confirmed."), width=140) == [
        "trial                11",
        "validation accuracy  0.9877 ± 0.0092 (standard error). Optimistic, as the best of many; "
        "`hpo benchmark` measures it on new images.",
        "confirmed            Not confirmed.",
        "head                 linear   (base recipe: dropout)",
        "dropout              0   (base recipe: 0.5)",
        "shortcut norm        yes",
        "depth                20",
        "boundaries           16,000 / 32,000 / 56,000 of 64,000   (base recipe: 20,000 / 32,000 / 56,000 of 64,000)",
        "learning rates       0.1 → 0.02 → 0.005 → 0.001",
        "early stopping       none",
        "batch size           128",
        "momentum             0.9",
        "nesterov             no",
        "weight decay         0",
        "label smoothing      0",
        "iterations           640",
        "seed                 7",
    ]


def run_of(name, accuracies, losses, recipe=None, documented=None):
    recipe = recipe or documented_runs()["baseline"].recipe
    return Run(name=name, recipe=recipe, documented=documented, test_accuracy=accuracies, test_loss=losses)


BENCHMARK = Result(
    study="s.benchmark",
    dataset="fashion_mnist",
    iterations=1_280,
    trial=7,
    seeds=(11, 1_471_062_688),
    runs=(
        run_of("candidate", (0.92, 0.94), (0.31, 0.32)),
        run_of("baseline", (0.90, 0.91), (0.41, 0.42), documented=documented_runs()["baseline"]),
    ),
    missing=("baseline on seed 5: diverged",),
    waiting=2,
)


def test_a_benchmark_shows_every_seed_the_means_and_the_verdict():
    assert lines_of(view.benchmark(BENCHMARK, "So it is.")) == [
        "s.benchmark: test split of fashion_mnist, 1,280 iterations, 2 seeds",
        "",
        "                    accuracy  accuracy    accuracy       loss      loss",
        "seed               candidate  baseline  difference  candidate  baseline",
        "11                    0.9200    0.9000      0.0200     0.3100    0.4100",
        "1471062688            0.9400    0.9100      0.0300     0.3200    0.4200",
        "mean                  0.9300    0.9050      0.0250     0.3150    0.4150",
        "95% interval from     0.8029    0.8415     -0.0385     0.2515    0.3515",
        "to                    1.0571    0.9685      0.0885     0.3785    0.4785",
        "documented                 -    0.8963                      -    0.5765",
        "",
        "no result: baseline on seed 5: diverged",
        "Not finished yet: 2 runs; the same command continues.",
        "The documented figures are not comparable: they are of CIFAR-10 at 64,000 iterations.",
        "So it is.",
    ]


def test_the_benchmark_of_a_baseline_that_is_the_best_shows_it_once():
    alone = replace(BENCHMARK, seeds=(11,), runs=(run_of("baseline", (0.9,), (0.4,)),), missing=(), waiting=0)

    assert lines_of(view.benchmark(alone, "So it is."))[2:] == [
        "                   accuracy      loss",
        "seed               baseline  baseline",
        "11                   0.9000    0.4000",
        "mean                 0.9000    0.4000",
        "95% interval from         -         -",
        "to                        -         -",
        "documented                -         -",
        "",
        "So it is.",
    ]


def test_documented_runs_stand_beside_what_they_reach_here():
    runs = documented_runs()
    found = replace(
        BENCHMARK,
        dataset="cifar10",
        iterations=64_000,
        trial=None,
        runs=(
            run_of("baseline", (0.90, 0.91), (0.41, 0.42), documented=runs["baseline"]),
            run_of("dense_early_stopping", (0.80, 0.82), (0.6, 0.7), documented=runs["dense_early_stopping"]),
        ),
        missing=(),
        waiting=0,
    )

    assert lines_of(view.documented_runs(found), width=80) == [
        "s.benchmark: test split of cifar10, 64,000 iterations, 2 seeds",
        "",
        "                      documented  documented    accuracy here        loss here",
        "run                     accuracy        loss       mean ± 95%       mean ± 95%",
        "baseline                  0.8963      0.5765  0.9050 ± 0.0635  0.4150 ± 0.0635",
        "dense_early_stopping           -           -  0.8100 ± 0.1271  0.6500 ± 0.6353",
        "",
    ]


def test_the_layer_table_is_written_as_in_the_documentation_of_the_runs():
    rows = [
        LayerRow(name="input_1", kind="InputLayer", shape=(32, 32, 3), params=0),
        LayerRow(name="conv2d", kind="Conv2D", shape=(32, 32, 16), params=448),
        LayerRow(name="dense", kind="Dense", shape=(10,), params=650),
    ]

    assert lines_of(view.layers(rows, ParameterCounts(total=271_786, trainable=270_410, non_trainable=1_376))) == [
        "Layer (type)          Output Shape         Param",
        "input_1 (InputLayer)  [(None, 32, 32, 3)]      0",
        "conv2d (Conv2D)       (None, 32, 32, 16)     448",
        "dense (Dense)         (None, 10)             650",
        "",
        "Total params: 271786",
        "Trainable params: 270410",
        "Non-trainable params: 1376",
    ]


def test_the_spaces_are_listed_with_what_they_search():
    assert lines_of(view.spaces([("dense", "dense", 6, "The dense head"), ("mine", "own", 12, "All of it")])) == [
        "name   base recipe  parameters  description",
        "dense  dense        6           The dense head",
        "mine   own          12          All of it",
    ]


@pytest.mark.parametrize(
    ("number", "said"),
    [
        ({"lent": 1, "told": 0, "refused": 0}, "1 lent (take back with `hpo reclaim --study mine`)"),
        (
            {"lent": 0, "told": 2, "refused": 3},
            "2 with results that they reported, which do not compete with trained ones; "
            "3 that they failed, or whose parameters are outside the search space",
        ),
    ],
)
def test_the_status_says_what_other_clients_did(number, said):
    written = " ".join(" ".join(lines_of(view.status(STATUS | {"study": "mine", "of_other_clients": number}))).split())
    assert f"other clients {said}" in written


def span(low, median, high):
    return Range(low=low, median=median, high=high)


def forecast(iterations=640, workers=2, seconds=600.0, confirmation=0):
    return Forecast(
        iterations=iterations,
        workers=workers,
        steps=span(3_000, 3_500, 4_000),
        requested=span(7_000, 7_000, 7_000),
        confirmation=span(0, confirmation, confirmation),
        seconds=span(seconds / 2, seconds, 2 * seconds),
        checkpoints=span(100, 200, 300),
        checkpoint_gb=span(0.2, 0.4, 0.6),
        reads=span(1_000, 2_000, 3_000),
    )


def shown_plan(asked, delay=0.1, settings=100, review=()):
    made = Plan(
        recipes=100,
        settings=settings,
        review=review,
        trials=24,
        replays=20,
        speed=Speed(step_s=0.0125, delay=delay, image_s=0.001, checkpoint_bytes=2_190_000),
        asked=asked,
        alternatives=(forecast(iterations=320, seconds=90.0), forecast(workers=4, seconds=36_000.0)),
    )
    return lines_of(view.plan(made, "smooth_lr", "digits", "cpu, fp32"))


def test_a_plan_shows_what_a_study_takes():
    assert shown_plan(forecast(), settings=120, review=("dropout is not searched: its only value is 0.3",)) == [
        "24 trials of 640 iterations, 2 workers",
        "space       smooth_lr: 100 distinct recipes (120 settings: some train alike)",
        "            dropout is not searched: its only value is 0.3",
        "data set    digits",
        "speed       12.5 ms per optimizer step of the base recipe (cpu, fp32)",
        "checkpoint  2.19 MB each",
        "reuse       50% of the steps of the trials are trained; the others are shared",
        "",
        "                 median  lowest  highest",
        "optimizer steps   3,500   3,000    4,000",
        "time, minutes      10.0     5.0     20.0",
        "checkpoints, GB    0.40    0.20     0.60",
        "database reads    2,000   1,000    3,000",
        "",
        "With 320 iterations: 3,500 (3,000 to 4,000) steps, 90.0 (45.0 to 180.0) seconds.",
        "With 4 workers: 3,500 (3,000 to 4,000) steps, 10.0 (5.0 to 20.0) hours.",
        "",
        "Over 20 replays of the search on imagined learning curves.",
    ]


def test_a_plan_says_that_the_machine_is_busy_and_what_the_confirmation_takes():
    lines = shown_plan(forecast(confirmation=900), delay=0.5)

    assert "            the machine is busy: now a step takes 1.5 times as long" in lines
    assert "steps to confirm, at most     900       0      900" in lines
