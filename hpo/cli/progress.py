"""The progress of a study: a live view on a terminal, a line from time to time elsewhere."""

from __future__ import annotations

import math
import time
from typing import Self

from rich.console import Console
from rich.live import Live

from hpo.cli import view
from hpo.database import overview
from hpo.database.overview import Counts
from hpo.study import Study

PLAIN_EVERY_S = 10.0
"""The least time between two lines without a terminal."""

PLAIN_AFTER_S = 300.0
"""The time after which a line is printed without a terminal, even if no trial has finished since the last."""


class Progress:
    """The progress of a study on stderr: a live view on a terminal, a line from time to time elsewhere."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._console = Console(stderr=True)
        self._live = (
            Live(console=self._console, transient=True, redirect_stdout=False) if self._console.is_terminal else None
        )
        self._started = time.monotonic()
        self._settled_before: int | None = None
        self._last_line = -math.inf
        self._last_settled = -1
        self._last_note = ""
        self._last_state = "running"

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def update(self, counts: Counts, state: str, note: str = "") -> None:
        """Show the counts, the best trial, and on a terminal the trial of each worker.

        Args:
            state: The study's state in a word.
            note: Whatever else people should know.
        """
        settled = counts.finished + sum(counts.at_rungs.values())  # few of those that wait at a rung are promoted
        if self._settled_before is None:
            self._settled_before = settled
        now = time.monotonic()
        left = view.time_left(now - self._started, settled - self._settled_before, counts.total - settled)
        if not self._live and note and note != self._last_note:
            self._console.print(note, soft_wrap=True)
        self._last_note = note
        due = settled != self._last_settled and now - self._last_line >= PLAIN_EVERY_S
        due |= state not in (self._last_state, "done") or now - self._last_line >= PLAIN_AFTER_S
        if not self._live and not due and counts.finished != counts.total:
            return
        best = overview.find_best(self._study.storage, self._study.study_id)
        if self._live:
            running = overview.list_running(self._study.storage, self._study.study_id)
            budget = self._study.settings.iterations
            shown = view.progress(self._study.name, counts, counts.total, best, running, budget, left, state, note)
            self._live.update(shown)
        else:
            steps = overview.trained_iterations(self._study.storage, self._study.study_id)
            self._console.print(view.progress_line(counts, counts.total, steps, best, left, state), soft_wrap=True)
            self._last_line, self._last_settled, self._last_state = now, settled, state
