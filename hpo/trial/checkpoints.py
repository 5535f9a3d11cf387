"""Checkpoints that the trials of all workers share: files in the artifact store, and their index in the database."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from hpo.artifacts import Artifacts
from hpo.database import checkpoint_index
from hpo.database.attempt import Attempt
from hpo.database.checkpoint_index import Checkpoint
from hpo.database.parking import take_segment
from hpo.database.storage import Storage
from hpo.errors import ArtifactDamaged, ArtifactMissing, ArtifactsUnavailable, StorageUnavailable
from hpo.recipes.schedule import CurvePoint
from hpo.settings import DEFAULT_CHECKPOINT_GB, GIGABYTE
from hpo.training.train import State
from hpo.trial.segments import Segment, segment_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Unindexed:
    """A stored checkpoint that the database does not know of yet.

    Attributes:
        note: Name of the note in the artifact store that can list it for a later attempt.
        row: The columns of its row in the database.
    """

    attempt: Attempt
    note: str
    row: dict[str, Any]


def _note_name(path: Sequence[Segment]) -> str:
    """Return the name of a recipe's note: the key of the last segment stands for the whole recipe."""
    return f"unindexed-{path[-1].key}"


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

    def find(self, path: Sequence[Segment], at_most: int) -> Checkpoint | None:
        """Find the deepest checkpoint on a path, up to an iteration."""
        reached = [(s.key, min(s.end, at_most)) for s in path if s.start < at_most]
        return checkpoint_index.find_checkpoint(self.storage, reached, self._missing)

    def note_use(self, attempt: Attempt, checkpoint: Checkpoint) -> None:
        """Note that an attempt needs a checkpoint, so that it is kept."""
        checkpoint_index.note_use(self.storage, attempt, checkpoint)

    def load(self, checkpoint: Checkpoint) -> State | None:
        """Read a checkpoint's state; return None if its file is missing or damaged.

        A damaged file is removed for every process. A missing file is skipped by this process alone, since the artifact
        store of another process may hold it.
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
        """Read the deepest checkpoint on a path, up to an iteration, whose file is intact."""
        while (checkpoint := self.storage.retry_policy.call(lambda: self.find(path, at_most))) is not None:
            state = self.load(checkpoint)
            if state is not None:
                return state
        return None

    def save(self, attempt: Attempt, path: Sequence[Segment], state: State, curve: Sequence[CurvePoint]) -> None:
        """Store a state.

        If the store is full, training continues without new checkpoints, after one warning. If the database does not
        answer, the checkpoint is added to its index later.
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
            self._remove_files(
                checkpoint_index.add_checkpoint(self.storage, first.attempt, first.row, self.budget_bytes)
            )
            del self._unindexed[0]

    def leave(self) -> None:
        """List the unindexed checkpoints in notes beside the files, for the next attempt at the same recipe."""
        for name in {each.note for each in self._unindexed}:
            rows = [each.row for each in self._unindexed if each.note == name]
            try:
                self.artifacts.write_note(name, json.dumps(rows).encode())
            except ArtifactsUnavailable as error:
                log.warning("%s; %d checkpoints are lost", error, len(rows))
        self._unindexed.clear()

    def adopt(self, attempt: Attempt, path: Sequence[Segment]) -> None:
        """Add the checkpoints that an earlier attempt at the same recipe left unindexed to the index.

        Raises:
            StorageUnavailable: The database did not answer for longer than the storage's retry policy allows.
        """
        name = _note_name(path)
        try:
            note = self.artifacts.find_note(name)
            if note is None:
                return
            self._unindexed += [Unindexed(attempt, name, row) for row in json.loads(note)]
        except (ArtifactsUnavailable, ValueError) as error:  # ValueError: the note is cut short
            log.warning("note %s cannot be read: %s", name, error)
        self.index()
        self._remove_files([name])

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
                log.warning("%s; file %s is left over", error, artifact_id)


@dataclass(frozen=True, slots=True)
class Sharing:
    """One attempt's access to the shared checkpoints."""

    checkpoints: Checkpoints
    attempt: Attempt


def encode(state: State) -> bytes:
    """Write a state as safetensors, a format that holds tensors and text and runs no code when it is read."""
    tensors = {f"weights/{name}": tensor.contiguous() for name, tensor in state.weights.items()}
    tensors |= {f"momentum/{name}": tensor.contiguous() for name, tensor in state.momentum.items()}
    facts: dict[str, Any] = {
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
        SafetensorError: The content is in another format.
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
        correct_count=facts.get("correct_count"),
    )
