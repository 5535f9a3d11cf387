"""Run each benchmark at its smallest, so that none is found broken when it is wanted; figures are for `benchmarks/`."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.support import Result, Shell

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(shell: Shell, name: str, *options: str) -> Result:
    # Threads that share a core with other tests spend their time waiting for each other.
    done = shell.run("python", BENCHMARKS / f"{name}.py", *options, OMP_NUM_THREADS="1")
    assert done.code == 0, done.err
    return done


def runs_of(shell: Shell, name: str, *options: str) -> Any:
    run(shell, name, *options, "--json", "found.json")
    return json.loads((shell.folder / "found.json").read_text())["runs"]


@pytest.mark.slow
def test_a_study_without_reuse_trains_what_the_one_with_it_requested(shell: Shell) -> None:
    options = ("--trials", "2", "--iterations", "32", "--workers", "1", "--seeds", "1", "--pruning", "no", "--check")
    found = run(shell, "study_cost", *options).out.splitlines()
    assert found[0] == "seed 0: without reuse the same trials, decisions and best value, and 64 steps"
    assert [line.split("|")[2:5] for line in found[-2:]] == [[" no ", " yes ", " 1.000 "], [" no ", " no ", " 1.000 "]]


@pytest.mark.slow
@pytest.mark.alone
def test_searches_are_compared_live(shell: Shell) -> None:
    small = ("--trials", "2", "--iterations", "32", "--first-seed", "3", "--seeds", "1", "--fresh-seeds", "1")
    said = run(shell, "live_comparison", *small, "--json", "found.json").out.splitlines()
    found = json.loads((shell.folder / "found.json").read_text())
    assert [search["title"] for search in found] == ["hpo without confirmation", "hpo", "Optuna", "Ray Tune"]
    assert {search["seed"] for search in found} == {3}
    assert all(search["complete"] + search["ended_early"] == 2 for search in found)
    assert all(32 < search["steps"] <= 64 for search in found[2:])
    assert said[-1].endswith("times as long as hpo to the lowest best")


def test_searches_are_replayed_on_curves_that_were_trained_for_it(shell: Shell) -> None:
    small = ("--recipes", "3", "--seeds", "1", "--iterations", "32", "--out", ".")
    first = "3 recipes on 1 of 1 seed\ndigits-32.json.gz has 3 recipes on 1 seed\n"
    assert run(shell, "truth", *small).out == first
    assert run(shell, "truth", *small, "--run-seed", "1").out == first.replace("on 1 seed\n", "on 2 seeds\n")
    said = run(shell, "true_regret", "digits-32.json.gz", "--orders", "2").out.splitlines()
    assert said[0] == "digits-32.json.gz: 3 recipes, 2 seeds"
    assert [line.split("|")[-2].strip() for line in said if line.startswith("| no pruning |")] == ["4"] * 4


def test_the_control_plane_is_measured_without_an_error(shell: Shell) -> None:
    ours, optunas = runs_of(shell, "storage_load", "--rounds", "2", "--trials-each", "1")
    assert (ours["kind"], ours["errors"], ours["states"]["complete"]) == ("hpo", 0, 2)
    assert (optunas["kind"], optunas["errors"], optunas["states"]["complete"]) == ("optuna", 0, 2)


@pytest.mark.slow
def test_a_fleet_that_sleeps_is_measured_without_an_error(shell: Shell) -> None:
    times = ("--warm-up-s", "2", "--window-s", "4", "--speed-up", "20")
    [found] = runs_of(shell, "scale", "--workers", "2", *times)
    assert (found["errors"], found["redone"]) == (0, 0)
    assert found["trained"] > 0


@pytest.mark.slow
def test_training_steps_are_timed(shell: Shell) -> None:
    found = run(shell, "train_step", "--rounds", "1", "--steps", "1", "--size", "8", "--threads", "1").out
    assert "bare" in found


@pytest.mark.alone
@pytest.mark.slow
def test_the_check_of_a_gpu_runs_without_one(shell: Shell) -> None:
    options = ("--device", "cpu", "--quick", "--only", "determinism", "packing", "--json", "found.json")
    said = run(shell, "gpu", *options).out.splitlines()
    found = json.loads((shell.folder / "found.json").read_text())
    comparisons = ("eager again", "eager with stops", "graph", "graph again", "graph with stops")
    kinds = [f"{precision} {head}" for precision in ("bf16", "fp32") for head in ("linear", "dropout", "dense")]
    expected = [*(f"{kind}: {what}" for kind in kinds for what in comparisons), "packed, 1 graph"]
    assert found["verdict"] == dict.fromkeys(expected, True)
    assert said[-len(expected) :] == [f"  same bits   {name}" for name in expected]


def test_bits_that_differ_on_a_gpu_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    gpu = importlib.import_module("gpu")
    linear = {"hash": "a", "eager again": True, "graph": False}
    results = {
        "environment": {"card": "x"},
        "determinism": {"bf16 linear": linear, "bf16 dense": {"hash": "b", "graph": True}},
        "beside": {"bf16 linear": {"hash": "a"}, "bf16 dense": {"hash": "c"}},
        "packing": {"4 graph": {"hashes": ["a"]}, "8 graph": {"hashes": ["a", "d"]}, "1 eager": {"error": "died"}},
        "pressure, 400 MiB left": {"hash": "d"},
        "pressure, 100 MiB left": {"out of memory": "none left"},
    }
    assert gpu.verdict(results) == {
        "bf16 linear: eager again": True,
        "bf16 linear: graph": False,
        "bf16 linear: beside another process": True,
        "bf16 dense: graph": True,
        "bf16 dense: beside another process": False,
        "packed, 4 graph": True,
        "packed, 8 graph": False,
        "pressure, 400 MiB left": False,
    }
    assert gpu.verdict(results | {"determinism": {"error": "not done within 120 s"}}) == {}
