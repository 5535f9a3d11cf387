"""The supervision of one trial: keep its lease alive during its training, and write its measurements."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from types import TracebackType
from typing import Never, Self

import optuna

from hpo.artifacts import Artifacts
from hpo.database import losses, queue
from hpo.database.attempt import Attempt, Loss, Outcome, Progress
from hpo.database.optuna_view import DraftParam
from hpo.errors import DeviceLost, LeaseLost, StorageUnavailable
from hpo.recipes.recipe import Recipe
from hpo.recipes.schedule import CurvePoint
from hpo.sampling import sample
from hpo.settings import DEFAULT_LEASE_S, PROMOTING
from hpo.study import Study
from hpo.worker.publish import delete_figures, publish_note_and_figure
from hpo.worker.registration import beat_s
from hpo.worker.stop import StopSignal, end_at_once
from hpo.worker.watch import HangLimits, Watch

log = logging.getLogger(__name__)

WRITE_EVERY_S = 2.0
"""A transaction for each report would cost more than everything else that a trial asks of the database."""


DEFAULT_HANG_LIMITS = HangLimits()


class TrialSupervisor:
    """A thread next to a trial's training that renews its lease, writes its measurements, and ends a worker that hangs.

    Use as a context manager: the thread runs until the context is left, so training continues while the database does
    not answer.

    Args:
        hang_limits: How long training may make no progress.
        clock: Measures that in seconds.

    Attributes:
        failure: The error that ended the attempt before its trial had ended; None while there is none.
        recalled: Whether the study was stopped.
        progress: What is written together with the lease.
        watch: Watches whether training makes progress.

    Side effects:
        Ends the process when training makes no progress for too long.
    """

    def __init__(
        self,
        study: Study,
        attempt: Attempt,
        stop: StopSignal,
        lease_s: float = DEFAULT_LEASE_S,
        write_every_s: float = WRITE_EVERY_S,
        hang_limits: HangLimits = DEFAULT_HANG_LIMITS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.study = study
        self.attempt = attempt
        self.stop = stop
        self.lease_s = lease_s
        self.write_every_s = write_every_s
        self.failure: Exception | None = None
        self.recalled = False
        self.progress = Progress(iteration=0, trained_iterations=0, val_accuracy=None)
        self.watch = Watch(hang_limits, clock)
        self._trial: optuna.Trial | None = None
        self._recipe: Recipe | None = None
        self._params: Mapping[str, DraftParam] = {}
        self._written_s = -math.inf
        self._points: list[CurvePoint] = []
        self._values: dict[int, float] = {}
        self._changed = threading.Condition()
        self._wanted = False
        self._done = False

    def __enter__(self) -> Self:
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        # Not joined: it may wait for a database that hangs, and what it still writes is refused.
        with self._changed:
            self._done = True
            self._changed.notify_all()

    def stopped(self) -> bool:
        """Return whether the worker or the study is to stop, or the attempt has ended; asked before each step."""
        self.watch.note_progress()
        return self.recalled or self.failure is not None or bool(self.stop)

    def computing(self) -> AbstractContextManager[None]:
        """Return a context in which training is watched."""
        return self.watch.computing()

    def advanced(self, iteration: int, steps: int) -> None:
        """Count optimizer steps that were trained, up to an iteration."""
        trained = self.progress.trained_iterations + steps
        self.progress = replace(self.progress, iteration=iteration, trained_iterations=trained)

    def sample(self) -> Recipe:
        """Let the study's sampler choose the trial's recipe, and write its parameters before anything is trained.

        Raises:
            RecipeRefused: Another client has chosen some that the search space does not allow.
            SpaceUsedUp: No recipe is left; the trial was removed.
        """
        sampled = sample(self.study, self.attempt, self.progress)
        self._trial, self._params, self._recipe = sampled.trial, sampled.rows, sampled.recipe
        return sampled.recipe

    def record(self, point: CurvePoint, values: Mapping[int, float]) -> None:
        """Report values to the pruner, and collect measurements, which are written at most every `write_every_s`."""
        assert self._trial is not None, "sampled before it is trained"
        if self._asks_optuna():
            for step, value in values.items():
                self._trial.report(value, step)
        with self._changed:
            self.progress = replace(self.progress, iteration=point.iteration, val_accuracy=point.val_accuracy)
            self._points.append(point)
            self._values |= values
            self._wanted = self._wanted or time.monotonic() - self._written_s >= self.write_every_s
            self._changed.notify_all()

    def finish(self, outcome: Outcome, artifacts: Artifacts | None = None) -> None:
        """Write the remaining measurements, and the end of the trial, or where it waits, with its note and figure.

        Raises:
            LeaseLost: The attempt had already ended.
            StorageUnavailable: The database did not answer for too long.
        """
        self._wait_until_written()
        self.require_open()
        published = publish_note_and_figure(self.study, self.attempt, outcome, self._recipe, artifacts)
        try:
            queue.finish(self.study.storage, self.attempt, self.progress, published.outcome, self._params)
        except LeaseLost:
            delete_figures(published.figures, artifacts)
            raise
        delete_figures(published.replaced, artifacts)

    def give_up(self, loss: Loss) -> None:
        """End the attempt without its trial, so that the trial is given out again; log what the database refuses."""
        try:
            self.require_open()
            losses.lose(self.study.storage, self.attempt, self.progress, loss)
        except LeaseLost as error:
            log.warning("%s", error)
        except StorageUnavailable as error:
            log.warning("%s; the trial is retried when its lease expires", error)

    def should_prune(self) -> bool:
        """Ask the study's pruner about the values reported so far; wait while the database does not answer.

        A decision must not depend on whether the database answered in time. Once the attempt has ended nothing is
        decided, as training stops before its next iteration.
        """
        if not self._asks_optuna():
            return False
        if self.failure is not None:
            return False
        assert self._trial is not None, "sampled before it is trained"
        decided, draft = self.study.should_prune(self.attempt, self._trial)
        queue.write_draft(self.study.storage, self.attempt, self.progress, draft)
        return decided

    def reach_rung(self, rung: int, value: float, *, promoted: bool) -> bool:
        """Note what the trial is compared by at a rung, and return whether it trains on; if `promoted`, it does.

        Once the attempt has ended nothing is decided, as training stops before its next iteration.
        """
        if self.failure is not None:
            return True
        return queue.reach_rung(self.study.storage, self.attempt, self.progress, rung, value, promoted=promoted)

    def require_open(self) -> None:
        """Raise the error that ended the attempt, if there is one."""
        if self.failure is not None:
            raise self.failure

    def _asks_optuna(self) -> bool:
        return self.study.settings.pruner not in ("none", PROMOTING)

    def _wait_until_written(self) -> None:
        with self._changed:
            self._wanted = bool(self._points)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self.failure is not None or not self._points)

    def _beat(self) -> None:
        while self._wait_for_beat():
            hang = self.watch.find_hang()
            if hang is not None:
                self._end_hung(hang)
            if self.failure is None:
                self._try_to_write()

    def _end_hung(self, why: str) -> Never:
        log.error("trial %d: %s; this worker exits", self.attempt.trial_number, why)
        try:
            self.give_up(Loss(kind="hung", reason=why))
        finally:
            end_at_once(DeviceLost.exit_code)

    def _try_to_write(self) -> None:
        try:
            self._write()
        except Exception as error:  # noqa: BLE001 - the thread that trains raises it again
            with self._changed:
                self.failure = error
                self._changed.notify_all()

    def _wait_for_beat(self) -> bool:
        """Wait until it is time to write, and return whether the trial is still in training."""
        with self._changed:
            self._changed.wait_for(self._is_due, beat_s(self.lease_s))
            return not self._done

    def _is_due(self) -> bool:
        return self._done or (self._wanted and self.failure is None)

    def _write(self) -> None:
        with self._changed:
            points, values, progress = tuple(self._points), dict(self._values), self.progress
            self._wanted = False
        if points:
            state = queue.record(self.study.storage, self.attempt, progress, points, values, self.lease_s)
        else:
            state = queue.renew(self.study.storage, self.attempt, progress, self.lease_s)
        with self._changed:
            self.recalled = state in ("stopped", "ended")
            del self._points[: len(points)]
            self._values = {step: value for step, value in self._values.items() if step not in values}
            self._written_s = time.monotonic()
            self._changed.notify_all()
