"""Trajectories, each trained once: find, store and share the checkpoints along the paths of recipes.

Two recipes that agree up to iteration t have the same state at t, so the recipes of a study form a tree. Its edges are
*segments*, ranges of iterations with one learning rate. A segment's key stands for everything that determines its
states, and a checkpoint is identified by segment and iteration (the stage trees of Shin et al. 2020).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal

from hpo.errors import StorageUnavailable
from hpo.recipes.recipe import Recipe
from hpo.recipes.schedule import CurvePoint, Evaluation, evaluation, grid
from hpo.settings import Precision
from hpo.training.data import Dataset
from hpo.training.numerics import numerics
from hpo.training.train import Computing, Measurement, State, Training
from hpo.trial.checkpoints import Checkpoints, Sharing
from hpo.trial.segments import Segment, segment_at, segments

log = logging.getLogger(__name__)

Blocked = Literal["stopped", "parked"]
"""The reasons for which a trial goes back to the queue: it was stopped, or waits for another worker's segment."""


class Trajectory:
    """A walk along a recipe's trajectory that trains only what no checkpoint holds.

    Args:
        sharing: None to train everything from scratch.
        stop: Called before each optimizer step; returns whether to stop.
        computing: Makes a context that is entered around whatever keeps the device busy.
        advanced: Called after optimizer steps with the iteration reached and the number of steps executed.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        precision: Precision,
        plan: Evaluation,
        *,
        sharing: Sharing | None,
        stop: Callable[[], bool],
        computing: Computing,
        advanced: Callable[[int, int], None],
    ) -> None:
        self._recipe, self._dataset, self._plan = recipe, dataset, plan
        self._precision = precision
        self.numerics = numerics(dataset.train.images.device, precision)
        self._sharing, self._stop, self._computing, self._advanced = sharing, stop, computing, advanced
        self._path = segments(recipe, dataset, plan, self.numerics)
        self._grid = frozenset(grid(recipe.iterations))
        self._entered: Segment | None = None
        self._training: Training | None = None
        self._kept: State | None = None
        self._saved = 0
        self.position = 0
        self.curve: list[CurvePoint] = []
        if sharing is not None:
            sharing.checkpoints.adopt(sharing.attempt, self._path, plan)

    def measure_at(self, iteration: int) -> CurvePoint | Blocked:
        """Go to an iteration of the plan and measure there, or take the measurement from a checkpoint.

        Returns:
            The measurement; `stopped` if `stop` returned True; `parked` if a live worker is training what comes next.
        """
        while True:
            known = self._known(iteration)
            if known is not None:
                return known
            segment = segment_at(self._path, self.position)
            if segment != self._entered and not self._enter(segment):
                return "parked"
            if segment == self._entered:
                return self._train_to(iteration)

    def keep(self) -> None:
        """Remember the current state, so that `evaluate_at` need not load or train it again."""
        training = self._training
        if training is None or training.iteration != self.position:
            return
        if self._kept is None or self._kept.iteration != training.iteration:
            self._kept = training.state()

    def save_kept(self, iteration: int) -> None:
        """Store the remembered state, if it is that of an iteration: the weights of a trial that stopped early."""
        kept = self._kept
        if self._sharing is None or kept is None or kept.iteration != iteration:
            return
        curve = [point for point in self.curve if point.iteration <= iteration]
        self._sharing.checkpoints.save(self._sharing.attempt, self._path, kept, curve)

    def evaluate_at(self, iteration: int) -> Measurement | Blocked:
        """Measure the state at an earlier iteration, on the whole validation split."""
        if iteration == self._recipe.iterations or self._plan.images == len(self._dataset.validation):
            point = next(point for point in self.curve if point.iteration == iteration)
            images = len(self._dataset.validation)
            return Measurement(loss=point.val_loss, accuracy=point.val_accuracy, images=images)
        training = self.training_at(iteration)
        return training.evaluate(self._dataset.validation) if isinstance(training, Training) else training

    def training_at(self, iteration: int) -> Training | Blocked:
        """Return the training in its state at an earlier iteration."""
        if not self._go_to(iteration):
            return "stopped"
        assert self._training is not None
        return self._training

    def save(self) -> None:
        """Store the current state, unless it is already stored or was not trained here."""
        training = self._training
        if self._sharing is None or training is None or training.iteration in (0, self._saved):
            return
        curve = [point for point in self.curve if point.iteration <= training.iteration]
        self._sharing.checkpoints.save(self._sharing.attempt, self._path, training.state(), curve)
        self._saved = training.iteration

    def _known(self, iteration: int) -> CurvePoint | None:
        if iteration > self.position:
            return None
        return next(point for point in self.curve if point.iteration == iteration)

    def _enter(self, segment: Segment) -> bool:
        """Begin a segment: continue from the deepest checkpoint saved by now, or lease the segment.

        If the database does not answer, a trial that holds its state continues without the lease, at the risk that
        another trial trains the same segment; a trial that does not hold its state waits.
        """
        if self._sharing is None:
            self._entered = segment
            return True
        sharing, retry_policy = self._sharing, self._sharing.checkpoints.storage.retry_policy
        if self._training is None or self._training.iteration != self.position:
            return retry_policy.call(lambda: self._join(sharing, segment))
        try:
            return retry_policy.once(lambda: self._join(sharing, segment))
        except StorageUnavailable as error:
            log.info("iteration %d: %s; the segment is trained without a lease", self.position, error)
            self._entered = segment
            return True

    def _join(self, sharing: Sharing, segment: Segment) -> bool:
        if self._adopt_deeper(sharing):
            return True
        if not sharing.checkpoints.enter(sharing.attempt, segment):
            return False
        if not self._adopt_deeper(sharing):  # it may have been saved just before the lease was taken
            self._entered = segment
        return True

    def _adopt_deeper(self, sharing: Sharing) -> bool:
        """Take state and curve of the deepest checkpoint past the position whose state can be restored."""
        checkpoints, training = sharing.checkpoints, self._training
        while (checkpoint := checkpoints.find(self._path, self._recipe.iterations)) is not None:
            if checkpoint.iteration <= self.position:
                return False
            checkpoints.note_use(sharing.attempt, checkpoint)
            training = training or self._begin()
            if checkpoints.restore(training, checkpoint):
                self._training, self._saved = training, checkpoint.iteration
                self.position, self.curve = checkpoint.iteration, list(checkpoint.curve)
                return True
        return False

    def _begin(self) -> Training:
        return Training(self._recipe, self._dataset, self._precision, self._computing)

    def _train_to(self, iteration: int) -> CurvePoint | Blocked:
        if not self._go_to(self.position) or not self._advance(iteration):
            self.save()
            return "stopped"
        assert self._training is not None
        last = iteration == self._recipe.iterations
        point = self._training.measure(len(self._dataset.validation) if last else self._plan.images)
        self.position = iteration
        self.curve.append(point)
        if iteration in self._grid:
            self.save()
        return point

    def _advance(self, iteration: int) -> bool:
        """Train up to an iteration, and return whether it was reached."""
        assert self._training is not None
        steps = self._training.advance(iteration, self._stop)
        self.position = max(self.position, self._training.iteration)
        self._advanced(self.position, steps)
        return self._training.iteration == iteration

    def _go_to(self, iteration: int) -> bool:
        """Bring the training to an iteration that the curve covers, from the deepest readable checkpoint.

        Returns:
            Whether the iteration was reached; not if training was stopped.
        """
        if self._training is not None and self._training.iteration == iteration:
            return True
        self._training = self._begin()
        self._restore_deepest(self._training, iteration)
        for point in self._plan.iterations:
            if self._training.iteration < point <= iteration:
                if not self._advance(point):
                    return False
                self._training.restart_means()
        return self._advance(iteration)

    def _restore_deepest(self, training: Training, iteration: int) -> None:
        """Go to the deepest state up to an iteration that is remembered or stored."""
        if self._kept is not None and self._kept.iteration == iteration:
            training.restore(self._kept)
        elif self._sharing is not None and self._sharing.checkpoints.restore_deepest(training, self._path, iteration):
            self._saved = training.iteration


def training_at(
    recipe: Recipe, iteration: int, dataset: Dataset, precision: Precision, checkpoints: Checkpoints
) -> Training:
    """Bring a training to an iteration, from the deepest readable checkpoint, or else from scratch."""
    plan = evaluation(recipe.iterations, recipe.batch_size, len(dataset.validation))
    path = segments(recipe, dataset, plan, numerics(dataset.train.images.device, precision))
    training = Training(recipe, dataset, precision)
    checkpoints.restore_deepest(training, path, iteration)
    training.advance(iteration)
    return training
