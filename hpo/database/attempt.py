"""Records of an attempt at a trial: who trains it, how far it has come, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

FinalState = Literal["complete", "pruned", "failed", "refused"]
"""How a worker ends a trial; it refuses one whose parameters another client has chosen outside the search space."""

AttemptEnd = Literal[FinalState, "waiting"]
"""How a worker ends its attempt at a trial: the trial has ended, or waits at a rung."""

LossKind = Literal["device lost", "device full", "hung"]
"""The ways in which a worker loses an attempt through its device: it computes nothing any more, others have taken its
memory, or training makes no progress."""

LOSSES = frozenset({"lapsed", *get_args(LossKind)})
"""The outcomes of attempts that spend a retry."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerId:
    """The identity of a worker, as people see it and as its attempts record it."""

    name: str
    host: str
    device: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """A worker's claim of a trial, which gives it the right to write for that trial.

    Attributes:
        number: The trial's attempts count from 1.
    """

    attempt_id: int
    trial_id: int
    trial_number: int
    number: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """The progress of an attempt.

    Attributes:
        iteration: The iteration that the trial has reached.
        trained_iterations: Optimizer steps that this attempt has executed.
        val_accuracy: The last one measured, in [0, 1].
    """

    iteration: int
    trained_iterations: int
    val_accuracy: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """The result of a trial, or of an attempt after which the trial waits at a rung.

    Attributes:
        value: Validation accuracy in [0, 1]; None if none was measured, or if the trial waits.
        attrs: User attributes, shown by optuna-dashboard.
        trial_system_attrs: System attributes of the trial.
        study_system_attrs: System attributes of its study, among which optuna-dashboard keeps a trial's note.
    """

    state: AttemptEnd
    value: float | None
    attrs: dict[str, Any]
    trial_system_attrs: Mapping[str, Any] = field(default_factory=dict)
    study_system_attrs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """The end of an attempt for which its trial is not to blame, so that the trial is tried again.

    Attributes:
        reason: A sentence for people.
    """

    kind: LossKind
    reason: str


def overtaken_message(attempt: Attempt) -> str:
    """Return the message of `LeaseLost` for an attempt whose trial another client has ended."""
    return f"trial {attempt.trial_number}: ended by another client, or put it back in the queue"


def ended_message(attempt: Attempt) -> str:
    """Return the message of `LeaseLost` for an attempt that has ended."""
    return f"trial {attempt.trial_number}: attempt {attempt.number} has ended; another may be under way"
