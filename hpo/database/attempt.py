"""Records of an attempt at a trial: who trains it, how far it has come, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

FinalState = Literal["complete", "pruned", "failed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerId:
    """Name a worker, for people and for the trail that it leaves."""

    name: str
    host: str
    device: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """Be the right to write for a trial."""

    attempt_id: int
    trial_id: int
    trial_number: int
    number: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Say how far an attempt has come.

    Attributes:
        iteration: Where the trial stands.
        trained_iterations: Optimizer steps that this attempt has executed.
        val_accuracy: Last measured, in [0, 1].
    """

    iteration: int
    trained_iterations: int
    val_accuracy: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Say how a trial ended.

    Attributes:
        value: Validation accuracy in [0, 1]; None where none was measured.
        attrs: User attributes, shown by optuna-dashboard.
        trial_system_attrs: System attributes of the trial.
        study_system_attrs: System attributes of its study: that is where optuna-dashboard keeps a trial's note.
    """

    state: FinalState
    value: float | None
    attrs: dict[str, Any]
    trial_system_attrs: Mapping[str, Any] = field(default_factory=dict)
    study_system_attrs: Mapping[str, Any] = field(default_factory=dict)


def ended_message(attempt: Attempt) -> str:
    """Say that an attempt has ended, in the words of `LeaseLost`."""
    return f"trial {attempt.trial_number}: attempt {attempt.number} has ended; another may be under way"
