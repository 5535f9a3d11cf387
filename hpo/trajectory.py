"""Train each trajectory once: find, keep and share the checkpoints along the paths that recipes walk.

Two recipes that agree up to iteration t have the same state at t, so the recipes of a study form a tree. Its edges are
*segments*, stretches of one learning rate; a segment's key stands for all that determines the states on it, and a
checkpoint is named by segment and iteration (the stage trees of Shin et al. 2020).
"""

from __future__ import annotations

import hashlib
import json
import logging
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from hpo.artifacts import Artifacts
from hpo.database import checkpoint_index
from hpo.database.attempt import Attempt
from hpo.database.checkpoint_index import Checkpoint
from hpo.database.parking import take_segment
from hpo.database.storage import Storage
from hpo.errors import ArtifactDamaged, ArtifactMissing, ArtifactsUnavailable, StorageUnavailable, VerificationFailed
from hpo.recipes.recipe import Recipe
from hpo.recipes.schedule import CurvePoint, Evaluation, evaluation, grid, learning_rate_runs
from hpo.settings import DEFAULT_CHECKPOINT_GB, GIGABYTE, Precision
from hpo.training.data import Dataset
from hpo.training.train import Measurement, Numerics, State, Training, numerics

FORMAT = 1
"""Part of every key; to be raised when a change of the training code changes its results."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """Be a stretch (start, end] of iterations of one learning rate, with the key of the states on it."""

    key: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Unindexed:
    """Be a stored checkpoint that the database does not know of yet.

    Attributes:
        note: Name under which it can be left beside the files.
    """

    attempt: Attempt
    note: str
    row: dict[str, Any]


def segments(recipe: Recipe, dataset: Dataset, plan: Evaluation, found: Numerics) -> tuple[Segment, ...]:
    """Cut a recipe's path into segments.

    A key is the SHA-256 of the canonical JSON of all that determines the states: architecture, dropout, data, batch
    size, optimizer, seed, numerics, when is evaluated and on how much, and the learning rates up to and on the segment.
    Early stopping and what comes later are not part of it.
    """
    setting = {
        "data": [dataset.name, dataset.checksum, dataset.padding, dataset.flip],
        "numerics": asdict(found),
        "evaluation": asdict(plan),
    }
    return cut_path(recipe, setting)


def cut_path(recipe: Recipe, setting: Mapping[str, Any]) -> tuple[Segment, ...]:
    """Cut a recipe's path into segments, whose keys tell recipes apart within one setting.

    Args:
        setting: What determines the states beside the recipe, as JSON values.
    """
    same = {
        "format": FORMAT,
        "network": ["resnet20", recipe.head, recipe.dropout, recipe.shortcut_norm],
        "optimizer": ["sgd", recipe.momentum, recipe.weight_decay, recipe.batch_size],
        "seed": recipe.seed,
        **setting,
    }
    cut: list[Segment] = []
    runs = learning_rate_runs(recipe, recipe.iterations)
    for index, (end, rate) in enumerate(runs):
        text = json.dumps(same | {"before": runs[:index], "rate": rate}, sort_keys=True, separators=(",", ":"))
        start = runs[index - 1][0] if index else 0
        cut.append(Segment(key=hashlib.sha256(text.encode()).hexdigest(), start=start, end=end))
    return tuple(cut)


def segment_at(path: Sequence[Segment], iteration: int) -> Segment:
    """Find the segment that leads on from an iteration before the last."""
    return next(segment for segment in path if segment.start <= iteration < segment.end)


def segment_of(path: Sequence[Segment], iteration: int) -> Segment:
    """Find the segment that a state of iteration 1 or more lies on."""
    return path[bisect_left([segment.end for segment in path], iteration)]


def shared_iterations(one: Sequence[Segment], other: Sequence[Segment]) -> int:
    """Count the iterations that two paths have in common from their start."""
    shared = 0
    for a, b in zip(one, other, strict=False):
        if a.key != b.key:
            break
        shared = min(a.end, b.end)
        if a.end != b.end:
            break
    return shared


def _note_name(path: Sequence[Segment]) -> str:
    """Name the note of a recipe: the key of the last segment stands for the whole of it."""
    return f"unindexed-{path[-1].key}"


@dataclass
class Checkpoints:
    """Keep checkpoints: files in an artifact store, and an index of them in the database.

    Attributes:
        budget_bytes: Cap on the files' size; the least recently used go first.
    """

    storage: Storage
    artifacts: Artifacts
    budget_bytes: int = int(DEFAULT_CHECKPOINT_GB * GIGABYTE)
    _missing: set[str] = field(default_factory=set, init=False)
    _warned: bool = field(default=False, init=False)
    _unindexed: list[Unindexed] = field(default_factory=list, init=False)

    def find(self, path: Sequence[Segment], at_most: int) -> Checkpoint | None:
        """Find the deepest checkpoint on a path, up to an iteration."""
        reached = [(s.key, min(s.end, at_most)) for s in path if s.start < at_most]
        return checkpoint_index.find_checkpoint(self.storage, reached, self._missing)

    def note_use(self, attempt: Attempt, checkpoint: Checkpoint) -> None:
        """Note that an attempt needs a checkpoint, so that it stays."""
        checkpoint_index.note_use(self.storage, attempt, checkpoint)

    def load(self, checkpoint: Checkpoint) -> State | None:
        """Read a checkpoint's state; None where the file is gone or damaged.

        A damaged file is dropped for all. One that is missing is passed over by this process alone: another one's
        artifact store may hold it.
        """
        try:
            return decode(self.artifacts.read(checkpoint.artifact))
        except (ArtifactMissing, ArtifactsUnavailable) as error:
            log.warning("%s", error)
            self._missing.add(checkpoint.artifact.artifact_id)
        except (ArtifactDamaged, SafetensorError) as error:
            log.warning("%s; it is dropped", error)
            self._drop(checkpoint.artifact.artifact_id)
        return None

    def load_deepest(self, path: Sequence[Segment], at_most: int) -> State | None:
        """Read the deepest checkpoint on a path, up to an iteration, whose file is there and whole."""
        while (found := self.storage.patience.call(lambda: self.find(path, at_most))) is not None:
            state = self.load(found)
            if state is not None:
                return state
        return None

    def save(self, attempt: Attempt, path: Sequence[Segment], state: State, curve: Sequence[CurvePoint]) -> None:
        """Store a state.

        Where the store is full, training goes on without new checkpoints, after one warning. Where the database does
        not answer, it is told of the checkpoint later.
        """
        try:
            artifact = self.artifacts.write(encode(state))
        except ArtifactsUnavailable as error:
            if not self._warned:
                log.warning("%s; training goes on without new checkpoints", error)
            self._warned = True
            return
        row = {
            "segment": segment_of(path, state.iteration).key,
            "iteration": state.iteration,
            "curve": json.dumps([asdict(point) for point in curve]),
            **asdict(artifact),
        }
        self._unindexed.append(Unindexed(attempt, _note_name(path), row))
        try:
            self.storage.patience.once(self._index)
        except StorageUnavailable as error:
            log.info("checkpoint %s of iteration %d: %s", artifact.artifact_id, state.iteration, error)

    def index(self) -> None:
        """Tell the database of the checkpoints that it does not know of yet.

        Raises:
            StorageUnavailable: It did not answer for longer than the storage's patience.
        """
        self.storage.patience.call(self._index)

    def _index(self) -> None:
        while self._unindexed:
            first = self._unindexed[0]
            self._remove_files(
                checkpoint_index.add_checkpoint(self.storage, first.attempt, first.row, self.budget_bytes)
            )
            del self._unindexed[0]

    def leave(self) -> None:
        """Note beside the files what the database never learned, for the next attempt at the same recipe to find."""
        for name in {each.note for each in self._unindexed}:
            rows = [each.row for each in self._unindexed if each.note == name]
            try:
                self.artifacts.write_note(name, json.dumps(rows).encode())
            except ArtifactsUnavailable as error:
                log.warning("%s; %d checkpoints are lost", error, len(rows))
        self._unindexed.clear()

    def adopt(self, attempt: Attempt, path: Sequence[Segment]) -> None:
        """Tell the database of what an earlier attempt at the same recipe had to leave.

        Raises:
            StorageUnavailable: It did not answer for longer than the storage's patience.
        """
        name = _note_name(path)
        try:
            note = self.artifacts.find_note(name)
            if note is None:
                return
            self._unindexed += [Unindexed(attempt, name, row) for row in json.loads(note)]
        except (ArtifactsUnavailable, ValueError) as error:  # ValueError: it was not written to its end
            log.warning("note %s cannot be read: %s", name, error)
        self.index()
        self._remove_files([name])

    def enter(self, attempt: Attempt, segment: Segment) -> bool:
        """Take the lease on a segment; where another has it, mark the trial as waiting for the segment.

        Raises:
            LeaseLost: The attempt has ended.
        """
        return take_segment(self.storage, attempt, segment.key, segment.end)

    def collect_garbage(self) -> int:
        """Bring the files under the cap, and return how many bytes are left."""
        unnamed, left_bytes = checkpoint_index.evict(self.storage, self.budget_bytes)
        self._remove_files(unnamed)
        return left_bytes

    def _drop(self, artifact_id: str) -> None:
        self.storage.patience.call(lambda: checkpoint_index.drop_checkpoint(self.storage, artifact_id))
        self._remove_files([artifact_id])

    def _remove_files(self, artifact_ids: Sequence[str]) -> None:
        """Delete files that no row names any more."""
        for artifact_id in artifact_ids:
            try:
                self.artifacts.remove(artifact_id)
            except ArtifactsUnavailable as error:
                log.warning("%s; file %s is left over", error, artifact_id)


@dataclass(frozen=True, slots=True)
class Sharing:
    """Give one attempt its access to the checkpoints of all."""

    checkpoints: Checkpoints
    attempt: Attempt


Blocked = Literal["stopped", "parked"]


class Trajectory:
    """Walk along a recipe's trajectory, training only what no checkpoint holds.

    Args:
        sharing: None to train everything from scratch.
        stop: Asked before each optimizer step whether to stop.
        advanced: Told of optimizer steps: the iteration reached, and how many steps were executed.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        precision: Precision,
        plan: Evaluation,
        *,
        compiled: bool,
        sharing: Sharing | None,
        stop: Callable[[], bool],
        advanced: Callable[[int, int], None],
    ) -> None:
        self._recipe, self._dataset, self._plan = recipe, dataset, plan
        self._precision, self._compiled = precision, compiled
        self._sharing, self._stop, self._advanced = sharing, stop, advanced
        self._path = segments(recipe, dataset, plan, numerics(dataset.train.images.device, precision, compiled))
        self._grid = frozenset(grid(recipe.iterations))
        self._entered: Segment | None = None
        self._training: Training | None = None
        self._kept: State | None = None
        self._saved = 0
        self.position = 0
        self.curve: list[CurvePoint] = []
        if sharing is not None:
            sharing.checkpoints.adopt(sharing.attempt, self._path)

    def measure_at(self, iteration: int) -> CurvePoint | Blocked:
        """Go to an iteration of the plan and measure there, or take the measurement from a checkpoint.

        Returns:
            The measurement; `stopped` when `stop` said so; `parked` when a live worker trains what would come next.
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
        """Remember the present state, so that `evaluate_at` need not find or train it again."""
        if self._training is not None and self._training.iteration == self.position:
            self._kept = self._training.state()

    def evaluate_at(self, iteration: int) -> Measurement | Blocked:
        """Measure the state at an iteration that was passed, on the whole validation split."""
        if iteration == self._recipe.iterations or self._plan.images == len(self._dataset.validation):
            point = next(point for point in self.curve if point.iteration == iteration)
            images = len(self._dataset.validation)
            return Measurement(loss=point.val_loss, accuracy=point.val_accuracy, images=images)
        training = self.training_at(iteration)
        return training.evaluate(self._dataset.validation) if isinstance(training, Training) else training

    def training_at(self, iteration: int) -> Training | Blocked:
        """Give the training in its state at an iteration that was passed."""
        if not self._go_to(iteration):
            return "stopped"
        assert self._training is not None
        return self._training

    def save(self) -> None:
        """Store the present state, unless it is in the store or was never made here."""
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
        """Begin a segment: go on from the deepest checkpoint that there is by now, or lease the segment.

        Where the database does not answer, a trial that holds its state goes on without the lease, at the risk that
        another trains the same; one that would have to begin from scratch waits.
        """
        if self._sharing is None:
            self._entered = segment
            return True
        sharing, patience = self._sharing, self._sharing.checkpoints.storage.patience
        if self._training is None or self._training.iteration != self.position:
            return patience.call(lambda: self._join(sharing, segment))
        try:
            return patience.once(lambda: self._join(sharing, segment))
        except StorageUnavailable as error:
            log.info("iteration %d: %s; the segment is trained without a lease", self.position, error)
            self._entered = segment
            return True

    def _join(self, sharing: Sharing, segment: Segment) -> bool:
        if self._adopt_deeper(sharing):
            return True
        if not sharing.checkpoints.enter(sharing.attempt, segment):
            return False
        if not self._adopt_deeper(sharing):  # what was saved between the look and the lease
            self._entered = segment
        return True

    def _adopt_deeper(self, sharing: Sharing) -> bool:
        found = sharing.checkpoints.find(self._path, self._recipe.iterations)
        if found is None or found.iteration <= self.position:
            return False
        sharing.checkpoints.note_use(sharing.attempt, found)
        self.position, self.curve = found.iteration, list(found.curve)
        return True

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
        """Train up to an iteration; False when stopped before."""
        assert self._training is not None
        steps = self._training.advance(iteration, self._stop)
        self.position = max(self.position, self._training.iteration)
        self._advanced(self.position, steps)
        return self._training.iteration == iteration

    def _go_to(self, iteration: int) -> bool:
        """Bring the training to a state that the curve covers, from the deepest checkpoint that can be read."""
        if self._training is not None and self._training.iteration == iteration:
            return True
        self._training = Training(self._recipe, self._dataset, self._precision, self._compiled)
        state = self._load_deepest(iteration)
        if state is not None:
            self._training.restore(state)
            self._saved = state.iteration
        for point in self._plan.iterations:
            if self._training.iteration < point <= iteration:
                if not self._advance(point):
                    return False
                self._training.restart_loss()
        return self._advance(iteration)

    def _load_deepest(self, iteration: int) -> State | None:
        if self._kept is not None and self._kept.iteration == iteration:
            return self._kept
        if self._sharing is None:
            return None
        return self._sharing.checkpoints.load_deepest(self._path, iteration)


def training_at(
    recipe: Recipe, iteration: int, dataset: Dataset, precision: Precision, checkpoints: Checkpoints, compiled: bool
) -> Training:
    """Bring a training to an iteration, from the deepest checkpoint that can be read, or else from scratch."""
    plan = evaluation(recipe.iterations, recipe.batch_size, len(dataset.validation))
    path = segments(recipe, dataset, plan, numerics(dataset.train.images.device, precision, compiled))
    training = Training(recipe, dataset, precision, compiled)
    state = checkpoints.load_deepest(path, iteration)
    if state is not None:
        training.restore(state)
    training.advance(iteration)
    return training


def compare_with_scratch(
    recipe: Recipe,
    dataset: Dataset,
    precision: Precision,
    stored: Sequence[CurvePoint],
    checkpoints: Checkpoints,
    compiled: bool = False,
) -> str:
    """Train a recipe from scratch along a stored curve, and compare curve and last checkpoint with it.

    Returns:
        What was compared, in one line.

    Raises:
        VerificationFailed: Naming the first iteration at which they differ.
    """
    plan = evaluation(recipe.iterations, recipe.batch_size, len(dataset.validation))
    training = Training(recipe, dataset, precision, compiled)
    for point in stored:
        training.advance(point.iteration)
        last = point.iteration == recipe.iterations
        found = training.measure(len(dataset.validation) if last else plan.images)
        if found != point:
            raise VerificationFailed(f"the curve differs at iteration {point.iteration}: {point} stored, {found} now")
    path = segments(recipe, dataset, plan, numerics(dataset.train.images.device, precision, compiled))
    kept = checkpoints.find(path, training.iteration)
    compared = f"{len(stored)} points of the curve up to iteration {training.iteration} are equal bit for bit"
    if kept is None or kept.iteration != training.iteration:
        return f"{compared}; the checkpoint of the last is no longer kept"
    if checkpoints.artifacts.read(kept.artifact) != encode(training.state()):
        raise VerificationFailed(f"the state at iteration {training.iteration} differs from the checkpoint")
    return f"{compared}, and so are weights, momentum and BatchNorm statistics at its end"


def encode(state: State) -> bytes:
    """Write a state as safetensors, a format that holds tensors and text and runs nothing when it is read."""
    tensors = {f"weights/{name}": tensor.contiguous() for name, tensor in state.weights.items()}
    tensors |= {f"momentum/{name}": tensor.contiguous() for name, tensor in state.momentum.items()}
    facts = {"iteration": state.iteration, "loss_sum": state.loss_sum.hex(), "loss_count": state.loss_count}
    return save_tensors(tensors, metadata={"state": json.dumps(facts)})


def decode(content: bytes) -> State:
    """Read what `encode` wrote.

    Raises:
        SafetensorError: The content is something else.
    """
    tensors = load_tensors(content)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    facts = json.loads(header["__metadata__"]["state"])
    parts: dict[str, dict[str, Any]] = {"weights": {}, "momentum": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        parts[part][rest] = tensor
    return State(
        iteration=facts["iteration"],
        weights=parts["weights"],
        momentum=parts["momentum"],
        loss_sum=float.fromhex(facts["loss_sum"]),
        loss_count=facts["loss_count"],
    )
