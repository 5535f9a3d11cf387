"""One search of the live comparison: run it in a process of its own, and read what it did when."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import plain_searches
from optuna.trial import TrialState
from plain_searches import SPACE, Ended, stamp

from hpo import study as studies
from hpo.artifacts import write_whole
from hpo.database import overview
from hpo.database.storage import open_storage
from hpo.errors import HpoError, StudyNotFound
from hpo.recipes.distinct import recipe_key
from hpo.recipes.recipe import Recipe
from hpo.results import confirmation

STUDY = "live"
HPO, ALONE = "hpo", "hpo without confirmation"
TITLES = {"hpo": HPO, "optuna": "Optuna", "ray": "Ray Tune"}
TERMINATE_S = 30.0
"""Seconds that a search has to end its own processes before it is killed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """The outcome of one search.

    Attributes:
        steps: Number of optimizer steps that were executed.
        best_after: Pairs of seconds since the start and the best validation accuracy so far, ascending.
        winner: The recipe that the search names.
    """

    title: str
    seed: int
    seconds: float
    steps: int
    complete: int
    ended_early: int
    best_after: tuple[tuple[float, float], ...]
    winner: Recipe

    @property
    def best(self) -> float:
        return self.best_after[-1][1]

    @property
    def key(self) -> str:
        """Return the key of the winner, whatever the search's seed."""
        return recipe_key(self.winner.at(iterations=self.winner.iterations, seed=0))

    def seconds_to(self, accuracy: float) -> float:
        """Return the seconds until an accuracy was first reached."""
        return next(seconds for seconds, best in self.best_after if best >= accuracy)


def best_so_far(ended: Sequence[Ended], started_s: float) -> Iterator[tuple[float, float]]:
    """Yield seconds and accuracy whenever a search has a better best trial than before."""
    best = -1.0
    for trial in sorted(ended, key=lambda trial: trial.at_s):
        if trial.value is not None and trial.value > best:
            best = trial.value
            yield trial.at_s - started_s, best


def run_search(name: str, arguments: argparse.Namespace, seed: int, folder: Path) -> list[Search]:
    """Run one search in an empty folder, and read there what it did when."""
    asked = ["--dataset", arguments.dataset, "--data-dir", str(arguments.data_dir), "--seed", str(seed)]
    asked += ["--iterations", str(arguments.iterations), "--trials", str(arguments.trials)]
    asked += ["--image-size", str(arguments.image_size)] if arguments.image_size else []
    storage = f"sqlite:///{folder}/hpo.db"
    kept = ["--storage", storage, "--artifacts", str(folder / "artifacts")]
    ours = ["-m", "hpo", "run", "--confirm", "--space", SPACE, "--study", STUDY, *asked, *kept]
    plain = [plain_searches.__file__, name, str(folder), *asked, *(["--enqueue"] if arguments.enqueue else [])]
    started_s, started = time.time(), time.perf_counter()
    run_quietly([sys.executable, *(ours if name == "hpo" else plain)], folder)
    seconds = time.perf_counter() - started
    if name == "hpo":
        return read_hpo(storage, seed, started_s, seconds)
    outcome = plain_searches.load_outcome(folder)
    return [
        Search(
            title=TITLES[name],
            seed=seed,
            seconds=seconds,
            steps=sum(trial.steps for trial in outcome.trials),
            winner=outcome.winner,
            **_trials(outcome.trials, started_s),
        )
    ]


def run_quietly(command: Sequence[str], folder: Path) -> None:
    """Run a command in a folder, with its output in a file there.

    Raises:
        HpoError: It failed.

    Side effects:
        Ends the command and its processes if this one is interrupted.
    """
    quiet = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT, "start_new_session": True}
    log = folder / "log.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, **quiet)
        try:
            code = process.wait()
        finally:
            end(process)
    if code:
        raise HpoError(f"{command[1]} {command[2]} failed with exit code {code}; {log} has its output")


def end(process: subprocess.Popen[bytes]) -> None:
    """Terminate a process that still runs, and kill its group if it takes too long."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(TERMINATE_S)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def read_hpo(url: str, seed: int, started_s: float, seconds: float) -> list[Search]:
    """Read from the storage of a run what its search took, and what it took with its confirmation."""
    storage = open_storage(url)
    study = studies.load(storage, STUDY)
    alone = overview.trained_iterations(storage, study.study_id)
    finished = [trial for trial in study.trials() if trial.state.is_finished()]
    trials = [
        Ended(
            at_s=stamp(trial.datetime_complete),
            steps=trial.user_attrs.get("iterations", 0),
            complete=trial.state == TrialState.COMPLETE,
            value=trial.value if trial.state == TrialState.COMPLETE else None,
        )
        for trial in finished
    ]
    common = {"seed": seed, **_trials(trials, started_s)}
    search_s = max(trial.at_s for trial in trials) - started_s
    return [
        Search(title=ALONE, seconds=search_s, steps=alone, winner=studies.best(study).recipe, **common),
        Search(
            title=HPO,
            seconds=seconds,
            steps=alone + _confirmation_steps(study),
            winner=confirmation.load_best(study).recipe,
            **common,
        ),
    ]


def _confirmation_steps(study: studies.Study) -> int:
    """Count the steps of a confirmation, which a search that completed the base recipe alone does not have."""
    try:
        companion = studies.load(study.storage, confirmation.companion_name(study.name))
    except StudyNotFound:
        return 0
    return overview.trained_iterations(study.storage, companion.study_id)


def _trials(ended: Sequence[Ended], started_s: float) -> dict[str, Any]:
    complete = sum(trial.complete for trial in ended)
    best_after = tuple(best_so_far(ended, started_s))
    return {"complete": complete, "ended_early": len(ended) - complete, "best_after": best_after}


def run_once(file: Path, run: Callable[[Path], list[Search]]) -> list[Search]:
    """Return the searches that a file holds; if there is none, run them in an empty folder beside it and write it."""
    if not file.exists():
        folder = file.with_suffix("")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_whole(file, as_json([to_dict(search) for search in run(folder)]))
    return [from_dict(fields) for fields in json.loads(file.read_bytes())]


def to_dict(search: Search) -> dict[str, Any]:
    return asdict(search) | {"winner": search.winner.to_dict()}


def from_dict(fields: dict[str, Any]) -> Search:
    best_after = tuple((seconds, best) for seconds, best in fields["best_after"])
    return Search(**fields | {"best_after": best_after, "winner": Recipe.from_dict(fields["winner"])})


def as_json(content: object) -> bytes:
    return json.dumps(content, indent=2).encode() + b"\n"
