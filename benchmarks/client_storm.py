"""Let a plain client of Optuna write to a study at random while workers train it, and check what is left.

The client asks, tells, enqueues inside and outside the space, adds results, edits attributes, ends trials that are
being trained, and renames the study. Then the study is brought to its end, and every trial that was trained is
compared with its recipe trained alone, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import optuna
import torch
from optuna.trial import TrialState, create_trial
from workers import opened_server

from hpo import study as studies
from hpo.artifacts import open_artifacts
from hpo.database import losses, overview, study_state
from hpo.database.storage import open_storage
from hpo.recipes.space_file import load_space
from hpo.settings import StudySettings
from hpo.training.datasets import load_dataset
from hpo.trial.checkpoints import Checkpoints
from hpo.worker.verify import compare_with_scratch

WORKERS = 3
ENDLESS = 100_000  # trials, so that the study does not end before the storm
GONE = "is gone: somebody has deleted or renamed it"
ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


class Storm:
    """A study, the workers that train it, and the client that disturbs them."""

    def __init__(self, url: str, folder: Path, settings: StudySettings, seed: int) -> None:
        self.url = url
        self.folder = folder
        self.settings = settings
        self.chance = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.name = "storm"
        self.logs: list[Path] = []
        self.storage = open_storage(url, "create")
        self.made = studies.continue_or_create(self.storage, self.name, settings, ENDLESS)
        self.client = optuna.storages.RDBStorage(url)
        self.workers = [self._start() for _ in range(WORKERS)]

    def blow(self, seconds: float) -> None:
        """Disturb the study for so long."""
        actions = [self.ask, self.enqueue, self.enqueue_nonsense, self.add, self.edit, self.end_running, self.rename]
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            action: Callable[[], None] = self.chance.choices(actions, weights=[6, 3, 3, 2, 3, 2, 0.3])[0]
            with suppress(optuna.exceptions.UpdateFinishedTrialError, ValueError):  # the trial ended in between
                action()
                self.done[action.__name__] += 1
            time.sleep(self.chance.uniform(0.0, 0.5))

    def theirs(self) -> optuna.Study:
        """Load the study as the client sees it."""
        return optuna.load_study(study_name=self.name, storage=self.client)

    def ask(self) -> None:
        """Take a trial, and end it, or leave it."""
        theirs = self.theirs()
        trial = theirs.ask()
        trial.suggest_float("their own", 0, 1)
        state = self.chance.choice([*ENDED, None])
        if state is not None:
            theirs.tell(trial, 0.999 if state == TrialState.COMPLETE else None, state=state)

    def enqueue(self) -> None:
        """Enqueue a recipe of the space."""
        self.theirs().enqueue_trial({"boundary_1": self.chance.choice([16_000, 20_000, 24_000])})

    def enqueue_nonsense(self) -> None:
        """Enqueue what the space does not allow."""
        given = [{"boundary_1": 60_000}, {"boundary_1": "early"}, {"what": None}, {"learning_rate_1": float("nan")}]
        self.theirs().enqueue_trial(self.chance.choice(given))

    def add(self) -> None:
        """Add a result that is better than any."""
        self.theirs().add_trial(create_trial(value=0.999, user_attrs={"outcome": "<script>"}))

    def edit(self) -> None:
        """Edit the attributes of the study and of a running trial."""
        theirs = self.theirs()
        theirs.set_user_attr(self.chance.choice(["seed", "sampler", "trials", "their own"]), "spoilt")
        for trial in self._running(theirs)[:1]:
            self.client.set_trial_user_attr(trial, "standard error", "spoilt")

    def end_running(self) -> None:
        """End a trial, whoever trains it."""
        for trial in self._running(self.theirs())[:1]:
            self.client.set_trial_state_values(trial, self.chance.choice([TrialState.FAIL, TrialState.PRUNED]))

    def rename(self) -> None:
        """Rename the study as optuna-dashboard does, and start workers for it."""
        before, self.name = self.theirs(), f"storm-{self.done['rename'] + 1}"
        after = optuna.create_study(study_name=self.name, storage=self.client, direction="maximize")
        after.add_trials(before.get_trials(deepcopy=False))
        for key, value in before.user_attrs.items():
            after.set_user_attr(key, value if key in ("their own", "trials") else self.settings.to_attrs()[key])
        while before.study_name in optuna.get_all_study_names(self.client):
            # Optuna says nothing where it could not delete a study, as a worker was adding a trial.
            optuna.delete_study(study_name=before.study_name, storage=self.client)
        self.made = studies.continue_or_create(self.storage, self.name, self.settings, ENDLESS)
        self._wait_for_workers(600, allowed=(0, 2))
        self.workers = [self._start() for _ in range(WORKERS)]

    def end(self) -> None:
        """Let the storm pass: take back what is lent, and train all trials that there are to their ends."""
        study_state.stop(self.storage, self.made.study_id, self.name, finish=False, timeout_s=600)
        self._wait_for_workers(600)
        losses.reclaim(self.storage, self.made.study_id)
        total = len(self.made.trials()) + WORKERS
        self.made = studies.continue_or_create(self.storage, self.name, self.settings, total)
        self.workers = [self._start() for _ in range(WORKERS)]
        self._wait_for_workers(1200)
        counts = overview.count(self.storage, self.made.study_id)
        assert (counts.finished, counts.total, counts.lent) == (total, total, 0), counts

    def compare(self) -> int:
        """Compare each trial that was trained with its recipe trained alone, and return their number."""
        dataset = load_dataset("digits", self.folder)
        checkpoints = Checkpoints(self.storage, open_artifacts(str(self.folder / "artifacts")))
        trained = [t for t in self.made.trained_trials() if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        for trial in trained:
            curve = overview.load_curve(self.storage, trial._trial_id)
            compare_with_scratch(self.made.recipe_of(trial), dataset, self.settings.precision, curve, checkpoints)
        return len(trained)

    def tracebacks(self) -> int:
        """Count the tracebacks in the workers' logs."""
        return sum(log.read_text().count("Traceback") for log in self.logs)

    def _running(self, theirs: optuna.Study) -> list[int]:
        trials = theirs.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return [trial._trial_id for trial in trials]

    def _wait_for_workers(self, timeout_s: float, allowed: tuple[int, ...] = (0,)) -> None:
        for worker, log in zip(self.workers, self.logs[-WORKERS:], strict=True):
            code = worker.wait(timeout_s)
            assert code in allowed, f"a worker ended with {code} after it had said:\n{log.read_text()}"

    def _start(self) -> subprocess.Popen[bytes]:
        log = self.folder / f"worker-{len(self.logs)}.log"
        self.logs.append(log)
        places = {
            "HPO_STORAGE": self.url,
            "HPO_ARTIFACTS": str(self.folder / "artifacts"),
            "HPO_DATA": str(self.folder),
        }
        with log.open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "hpo", "worker", "--study", self.name, "--device", "cpu"],
                env=os.environ | places,
                stdout=output,
                stderr=subprocess.STDOUT,
            )


def settings(iterations: int) -> StudySettings:
    """Make the settings of a small study of the digits."""
    dataset = load_dataset("digits", Path("/nonexistent"))
    return StudySettings(
        space=load_space("smooth_lr").model_dump(mode="json", exclude_none=True),
        dataset="digits",
        split=dataset.checksum,
        image_shape=dataset.image_shape,
        classes=len(dataset.classes),
        augment="crop",
        iterations=iterations,
        seed=0,
        precision="fp32",
        sampler="random",
        pruner="none",
        align="phase",
    )


def main() -> None:
    """Raise a storm on an SQLite file and on a PostgreSQL server of its own, and print what became of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0, help="how long each storm lasts")
    parser.add_argument("--iterations", type=int, default=32, help="budget of a trial")
    parser.add_argument("--seed", type=int, default=0, help="of what the client does")
    parser.add_argument("--kind", choices=["sqlite", "postgresql"], help="one kind of database [both]")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for kind in [asked.kind] if asked.kind else ["sqlite", "postgresql"]:
        with tempfile.TemporaryDirectory() as folder:
            here = f"sqlite:///{folder}/hpo.db" if kind == "sqlite" else None
            with opened_server(here) as (url, _):
                storm = Storm(url, Path(folder), settings(asked.iterations), asked.seed)
                storm.blow(asked.seconds)
                storm.end()
                counts = overview.count(storm.storage, storm.made.study_id)
                said = {
                    "database": kind,
                    "writes": dict(storm.done),
                    "trials": counts.total,
                    "told by the client": counts.told,
                    "refused": counts.refused,
                    "equal to the recipe trained alone": storm.compare(),
                    "tracebacks": storm.tracebacks(),
                }
                print(json.dumps(said))


if __name__ == "__main__":
    main()
