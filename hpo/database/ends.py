"""The ends of a study: optimizer steps, trials without a better one, or an accuracy, after which it trains no more.

Every claim and every heartbeat of a study that has ends looks whether one is reached, in the same transaction.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from hpo.database.optuna_tables import TrialModel
from hpo.database.overview import select_best
from hpo.database.retry import retried
from hpo.database.storage import Storage
from hpo.database.tables import AttemptRow, StudyRow, described, now_s
from hpo.settings import StudyState
from hpo.wording import counted

LOOKED_AT = ("complete", "pruned", "waiting")
"""The outcomes of attempts whose trials have been compared with others, at their end or at a rung."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ends:
    """The reasons for which a study ends before it has had all its trials; None where there is no such reason.

    Attributes:
        budget: Optimizer steps of all its workers together.
        stop_after: Trials in a row without a better one.
        target_accuracy: Validation accuracy in [0, 1] of its best trial.
    """

    budget: int | None = None
    stop_after: int | None = None
    target_accuracy: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Reached:
    """How far a study has come.

    Attributes:
        steps: Optimizer steps of all its attempts.
        since_best: Trials that have ended, or come to a rung, since the best one was complete.
        best: Number and validation accuracy in [0, 1] of the best trial; None while none is complete.
    """

    steps: int
    since_best: int
    best: tuple[int, float] | None


def find_reason(ends: Ends, reached: Reached) -> str | None:
    """State which end a study has reached; None if it has reached none."""
    if ends.budget is not None and reached.steps >= ends.budget:
        return f"its workers have trained {reached.steps:,} optimizer steps of {ends.budget:,}"
    if reached.best is None:
        return None
    number, value = reached.best
    if ends.target_accuracy is not None and value >= ends.target_accuracy:
        return f"trial {number} has reached a validation accuracy of {value:.4f}, at least {ends.target_accuracy:g}"
    if ends.stop_after is not None and reached.since_best >= ends.stop_after:
        return f"trial {number} ({value:.4f}) is still the best after {counted(reached.since_best, 'more trial')}"
    return None


@retried
def set_ends(storage: Storage, study_id: int, given: Mapping[str, float | None]) -> None:
    """Set the ends of a study.

    Args:
        given: Values of fields of `Ends`; 0 removes an end, None leaves it as it is.
    """
    with storage.transaction() as session:
        at = StudyRow.study_id == study_id
        before = _parse(session.scalar(select(StudyRow.ends).where(at).with_for_update()))
        changed = {name: value or None for name, value in given.items() if value is not None}
        session.execute(update(StudyRow).where(at).values(ends=_write(asdict(before) | changed)))


@retried
def find_ends(storage: Storage, study_id: int) -> tuple[Ends, str | None]:
    """Return the ends of a study, and why it has ended; None if it has not."""
    with storage.transaction() as session:
        row = session.execute(select(StudyRow.ends, StudyRow.state).where(*described(study_id))).first()
        if row is None:
            return Ends(), None
        ends = _parse(row.ends)
        return ends, find_reason(ends, _reached(session, study_id)) if row.state == "ended" else None


def end_if_reached(session: Session, study_id: int, state: StudyState, ends: str | None) -> StudyState:
    """End a study that runs if one of its ends is reached, and return its state.

    Args:
        state: As in the study's row, like `ends`.
    """
    if state != "running" or not ends or find_reason(_parse(ends), _reached(session, study_id)) is None:
        return state
    running = (StudyRow.study_id == study_id, StudyRow.state == "running")
    session.execute(update(StudyRow).where(*running).values(state="ended", changed_s=now_s()))
    return "ended"


def _reached(session: Session, study_id: int) -> Reached:
    of_study = TrialModel.study_id == study_id
    attempts = select(func.sum(AttemptRow.trained_iterations))
    steps = session.scalar(attempts.join(TrialModel, TrialModel.trial_id == AttemptRow.trial_id).where(of_study))
    best = session.execute(select_best(study_id)).first()
    if best is None:
        return Reached(steps=steps or 0, since_best=0, best=None)
    complete_s = (
        select(func.max(AttemptRow.ended_s))
        .where(AttemptRow.trial_id == best.trial_id, AttemptRow.outcome == "complete")
        .scalar_subquery()
    )
    since = session.scalar(
        select(func.count(AttemptRow.trial_id.distinct()))
        .join(TrialModel, TrialModel.trial_id == AttemptRow.trial_id)
        .where(of_study, AttemptRow.outcome.in_(LOOKED_AT), AttemptRow.ended_s > complete_s)
    )
    return Reached(steps=steps or 0, since_best=since or 0, best=(best.number, best.value))


def _parse(ends: str | None) -> Ends:
    return Ends(**json.loads(ends)) if ends else Ends()


def _write(ends: Mapping[str, float | None]) -> str | None:
    """Write ends as a study's row has them: nothing where there are none."""
    return json.dumps(ends) if any(value is not None for value in ends.values()) else None
