"""Notes in the artifact store that list the checkpoints which a worker could not add to the database.

What a note says becomes a trial's curve and value, so it is believed only with a signature whose key the database
holds: whoever writes to the artifact store alone can make up files, but no results.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from hpo.artifacts import Artifact
from hpo.errors import ArtifactDamaged
from hpo.recipes.schedule import CurvePoint
from hpo.trial.segments import Segment, segment_of

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern="^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
Count = Annotated[int, Field(ge=1, lt=1 << 31)]


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedCheckpoint:
    """A stored state, and the curve up to it."""

    segment: Sha256
    iteration: Count
    curve: tuple[CurvePoint, ...]
    artifact_id: FileName
    size_bytes: Count
    sha256: Sha256

    def to_row(self) -> dict[str, Any]:
        """Return the columns of its row in the database."""
        return asdict(self) | {"curve": json.dumps([asdict(point) for point in self.curve])}


_NOTE = TypeAdapter(list[SavedCheckpoint])


def describe_saved(segment: str, iteration: int, curve: Sequence[CurvePoint], artifact: Artifact) -> SavedCheckpoint:
    """Describe a state that has just been stored."""
    return SavedCheckpoint(segment=segment, iteration=iteration, curve=tuple(curve), **asdict(artifact))


def note_name(path: Sequence[Segment], key: bytes) -> str:
    """Return the name of a recipe's note, which contains the key of its last segment.

    The databases that use one artifact store have notes of different names, so none deletes another's.
    """
    return f"unindexed-{_sign(path[-1].key, key)}"


def write_note(name: str, saved: Sequence[SavedCheckpoint], key: bytes) -> bytes:
    """Write the content of a note: its signature, and the checkpoints as JSON."""
    listed = json.dumps([asdict(each) for each in saved])
    return f"{_sign(name, key, listed)}\n{listed}".encode()


def read_note(name: str, content: bytes, key: bytes) -> list[SavedCheckpoint]:
    """Read what `write_note` wrote under a name.

    Raises:
        ArtifactDamaged: It has no signature with this key, or is none of this release's notes.
    """
    signature, _, listed = content.decode(errors="replace").partition("\n")
    if not hmac.compare_digest(signature.encode(), _sign(name, key, listed).encode()):
        raise ArtifactDamaged("its signature is wrong")
    try:
        return _NOTE.validate_json(listed, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ArtifactDamaged(f"{place}: {first['msg']}" if place else first["msg"]) from error


def lies_on(saved: SavedCheckpoint, path: Sequence[Segment], evaluated: Sequence[int]) -> bool:
    """Return whether a checkpoint lies on a path, with the whole curve of a run that did not diverge.

    Args:
        evaluated: The iterations of the evaluations, ascending.
    """
    return (
        saved.iteration <= path[-1].end
        and saved.segment == segment_of(path, saved.iteration).key
        and [point.iteration for point in saved.curve] == [each for each in evaluated if each <= saved.iteration]
        and all(_is_plausible(asdict(point)) for point in saved.curve)
    )


def _is_plausible(point: Mapping[str, float | None]) -> bool:
    """Return whether a point's losses are finite, and its accuracies in [0, 1]."""
    limits = {name: 1.0 if name.endswith("accuracy") else math.inf for name in point}
    return all(
        value is None or (0.0 <= value <= limits[name] and math.isfinite(value)) for name, value in point.items()
    )


def _sign(name: str, key: bytes, text: str = "") -> str:
    return hmac.new(key, f"{name}\n{text}".encode(), hashlib.sha256).hexdigest()
