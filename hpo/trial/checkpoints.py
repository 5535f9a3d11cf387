"""Checkpoints that the trials of all workers share: files in the artifact store, and their index in the database."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field, Json
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from hpo.artifacts import Artifacts
from hpo.database import checkpoint_index
from hpo.database.attempt import Attempt
from hpo.database.checkpoint_index import Checkpoint
from hpo.database.parking import take_segment
from hpo.database.storage import Storage
from hpo.errors import ArtifactDamaged, ArtifactMissing, ArtifactsUnavailable, StorageUnavailable
from hpo.recipes.schedule import CurvePoint, Evaluation
from hpo.settings import DEFAULT_CHECKPOINT_GB, GIGABYTE
from hpo.training.train import State, Training
from hpo.trial.checkpoint_note import SavedCheckpoint, describe_saved, lies_on, note_name, read_note, write_note
from hpo.trial.segments import Segment, segment_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Unindexed:
    """A stored checkpoint that the database does not know of yet.

    Attributes:
        note: Name of the note in the artifact store that can list it for a later attempt.
    """

    attempt: Attempt
    note: str
    saved: SavedCheckpoint


class Checkpoints:
    """Checkpoints: files in an artifact store, and an index of them in the database.

    Args:
        budget_bytes: Cap on the total size of the files; the least recently used are deleted first.
    """

    def __init__(
        self, storage: Storage, artifacts: Artifacts, budget_bytes: int = int(DEFAULT_CHECKPOINT_GB * GIGABYTE)
    ) -> None:
        self.storage = storage
        self.artifacts = artifacts
        self.budget_bytes = budget_bytes
        self._missing: set[str] = set()
        self._warned = False
        self._unindexed: list[Unindexed] = []
        self._note_key: bytes | None = None

    def find(self, path: Sequence[Segment], at_most: int) -> Checkpoint | None:
        """Find the deepest checkpoint on a path, up to an iteration."""
        reached = [(s.key, min(s.end, at_most)) for s in path if s.start < at_most]
        return checkpoint_index.find_checkpoint(self.storage, reached, self._missing)

    def note_use(self, attempt: Attempt, checkpoint: Checkpoint) -> None:
        """Note that an attempt needs a checkpoint, so that it is kept."""
        checkpoint_index.note_use(self.storage, attempt, checkpoint)

    def restore(self, training: Training, checkpoint: Checkpoint) -> bool:
        """Bring a training to a checkpoint's state; return False if its file is missing, damaged or of another state.

        A file that cannot be used is removed for every process. A missing file is skipped by this process alone, since
        the artifact store of another process may hold it.
        """
        artifact_id = checkpoint.artifact.artifact_id
        try:
            training.restore(_require_fit(decode(self.artifacts.read(checkpoint.artifact)), checkpoint, training))
            return True
        except (ArtifactMissing, ArtifactsUnavailable) as error:
            log.warning("%s", error)
            self._missing.add(artifact_id)
        except ArtifactDamaged as error:
            log.warning("checkpoint %s of iteration %d: %s; ignoring it", artifact_id, checkpoint.iteration, error)
            self._drop(artifact_id)
        return False

    def restore_deepest(self, training: Training, path: Sequence[Segment], at_most: int) -> bool:
        """Bring a training to the deepest state on a path that can be restored, up to an iteration.

        Returns:
            Whether there is such a state.
        """
        while (checkpoint := self.storage.retry_policy.call(lambda: self.find(path, at_most))) is not None:
            if self.restore(training, checkpoint):
                return True
        return False

    def save(self, attempt: Attempt, path: Sequence[Segment], state: State, curve: Sequence[CurvePoint]) -> None:
        """Store a state.

        If the store is full, training continues without new checkpoints, after one warning. If the database does not
        answer, the checkpoint is added to its index later.
        """
        try:
            artifact = self.artifacts.write(encode(state))
        except ArtifactsUnavailable as error:
            if not self._warned:
                log.warning("%s; training continues without new checkpoints", error)
            self._warned = True
            return
        saved = describe_saved(segment_of(path, state.iteration).key, state.iteration, curve, artifact)
        self._unindexed.append(Unindexed(attempt, note_name(path, self._load_note_key()), saved))
        try:
            self.storage.retry_policy.once(self._index)
        except StorageUnavailable as error:
            log.info("checkpoint %s of iteration %d: %s", artifact.artifact_id, state.iteration, error)

    def index(self) -> None:
        """Add the checkpoints that the database does not know of yet to its index.

        Raises:
            StorageUnavailable: The database did not answer for longer than the storage's retry policy allows.
        """
        self.storage.retry_policy.call(self._index)

    def _index(self) -> None:
        while self._unindexed:
            first = self._unindexed[0]
            row = first.saved.to_row()
            self._remove_files(checkpoint_index.add_checkpoint(self.storage, first.attempt, row, self.budget_bytes))
            del self._unindexed[0]

    def leave(self) -> None:
        """List the unindexed checkpoints in notes next to the files, for the next attempt at the same recipe."""
        for name in {each.note for each in self._unindexed}:
            saved = [each.saved for each in self._unindexed if each.note == name]
            try:
                self.artifacts.write_note(name, write_note(name, saved, self._load_note_key()))
            except ArtifactsUnavailable as error:
                log.warning("%s; %d checkpoints are lost", error, len(saved))
        self._unindexed.clear()

    def adopt(self, attempt: Attempt, path: Sequence[Segment], plan: Evaluation) -> None:
        """Add the checkpoints that an earlier attempt at the same recipe left unindexed to the index.

        What does not belong to the recipe, or was not written by a worker of this database, is dropped.

        Raises:
            StorageUnavailable: The database did not answer for longer than the storage's retry policy allows.
        """
        key = self._load_note_key()
        name = note_name(path, key)
        try:
            note = self.artifacts.find_note(name)
            if note is None:
                return
            for saved in read_note(name, note, key):
                if lies_on(saved, path, plan.iterations):
                    self._unindexed.append(Unindexed(attempt, name, saved))
                else:
                    log.warning("note %s: checkpoint %s is none of this recipe; it is dropped", name, saved.artifact_id)
        except ArtifactsUnavailable as error:
            log.warning("%s", error)
            return
        except ArtifactDamaged as error:
            log.warning("note %s: %s; ignoring it", name, error)
        self.index()
        self._remove_files([name])

    def _load_note_key(self) -> bytes:
        """Load the key of notes; it is kept, since it is needed while the database does not answer."""
        if self._note_key is None:
            self._note_key = self.storage.retry_policy.call(lambda: checkpoint_index.load_note_key(self.storage))
        return self._note_key

    def enter(self, attempt: Attempt, segment: Segment) -> bool:
        """Take the lease on a segment; if another attempt has it, mark the trial as waiting for the segment.

        Returns:
            Whether the attempt holds the lease.

        Raises:
            LeaseLost: The attempt has ended.
        """
        return take_segment(self.storage, attempt, segment.key, segment.end)

    def collect_garbage(self) -> int:
        """Delete files until the rest fit the cap, and return the size of the rest in bytes."""
        unnamed, left_bytes = checkpoint_index.evict(self.storage, self.budget_bytes)
        self._remove_files(unnamed)
        return left_bytes

    def _drop(self, artifact_id: str) -> None:
        self.storage.retry_policy.call(lambda: checkpoint_index.drop_checkpoint(self.storage, artifact_id))
        self._remove_files([artifact_id])

    def _remove_files(self, artifact_ids: Sequence[str]) -> None:
        """Delete files that no row refers to any more."""
        for artifact_id in artifact_ids:
            try:
                self.artifacts.remove(artifact_id)
            except ArtifactsUnavailable as error:
                log.warning("%s; file %s could not be deleted", error, artifact_id)


@dataclass(frozen=True, slots=True)
class Sharing:
    """One attempt's access to the shared checkpoints."""

    checkpoints: Checkpoints
    attempt: Attempt


def encode(state: State) -> bytes:
    """Write a state as safetensors, a format that holds tensors and text and runs no code when it is read."""
    tensors = {f"weights/{name}": tensor.contiguous() for name, tensor in state.weights.items()}
    tensors |= {f"momentum/{name}": tensor.contiguous() for name, tensor in state.momentum.items()}
    facts: dict[str, int | str] = {
        "iteration": state.iteration,
        "loss_sum": state.loss_sum.hex(),
        "loss_count": state.loss_count,
    }
    if state.correct_count is not None:  # so that a checkpoint of a release without it keeps its bytes
        facts["correct_count"] = state.correct_count
    return save_tensors(tensors, metadata={"state": json.dumps(facts)})


def decode(content: bytes) -> State:
    """Read what `encode` wrote.

    Raises:
        ArtifactDamaged: The content is something else.
    """
    parts: dict[str, dict[str, Tensor]] = {"weights": {}, "momentum": {}}
    try:
        for name, tensor in load_tensors(content).items():
            part, _, rest = name.partition("/")
            parts[part][rest] = tensor
        facts = _Header.model_validate_json(content[8 : 8 + int.from_bytes(content[:8], "little")]).metadata.state
        loss_sum = float.fromhex(facts.loss_sum)
    except (SafetensorError, KeyError, ValueError, OverflowError) as error:
        raise ArtifactDamaged(f"it is not a training state ({type(error).__name__})") from error
    return State(
        iteration=facts.iteration,
        **parts,
        loss_sum=loss_sum,
        loss_count=facts.loss_count,
        correct_count=facts.correct_count,
    )


class _Facts(BaseModel):
    """The numbers of a state that are not tensors."""

    model_config = ConfigDict(strict=True)

    iteration: int
    loss_sum: str
    loss_count: int
    correct_count: int | None = None


class _Metadata(BaseModel):
    """The texts of a checkpoint file."""

    state: Json[_Facts]


class _Header(BaseModel):
    """The header of a checkpoint file."""

    metadata: _Metadata = Field(alias="__metadata__")


def _require_fit(state: State, checkpoint: Checkpoint, training: Training) -> State:
    """Return a state that a checkpoint's file holds.

    Raises:
        ArtifactDamaged: It is the state of another iteration or of another network.
    """
    if state.iteration != checkpoint.iteration:
        raise ArtifactDamaged(f"its state is of iteration {state.iteration:,}")
    if (misfit := training.misfit(state)) is not None:
        raise ArtifactDamaged(misfit)
    return state
