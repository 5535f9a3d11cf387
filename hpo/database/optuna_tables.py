"""Optuna's private tables and keys, under the names that this package uses.

This is the only file that imports a private module of Optuna. A contract test pins the columns and attributes that the
package relies on, and shows which one another release of Optuna has changed.
"""

from __future__ import annotations

from datetime import UTC, datetime

from optuna.storages._cached_storage import _CachedStorage as CachedStorage
from optuna.storages._rdb.models import (
    StudyDirectionModel,
    StudyModel,
    StudySystemAttributeModel,
    StudyUserAttributeModel,
    TrialHeartbeatModel,
    TrialIntermediateValueModel,
    TrialModel,
    TrialParamModel,
    TrialSystemAttributeModel,
    TrialUserAttributeModel,
    TrialValueModel,
)

__all__ = [
    "ARTIFACT_PREFIX",
    "COMPLETED_RUNG_PREFIX",
    "DASHBOARD_PREFIX",
    "FIXED_PARAMS",
    "METRIC_NAMES",
    "RECORD",
    "CachedStorage",
    "StudyDirectionModel",
    "StudyModel",
    "StudySystemAttributeModel",
    "StudyUserAttributeModel",
    "TrialHeartbeatModel",
    "TrialIntermediateValueModel",
    "TrialModel",
    "TrialParamModel",
    "TrialSystemAttributeModel",
    "TrialUserAttributeModel",
    "TrialValueModel",
    "utc_now",
]

FIXED_PARAMS = "fixed_params"
"""The trial's system attribute that holds the parameters it was enqueued with; samplers return these."""

RECORD = "hpo:record"
"""The trial's system attribute that holds how it was trained, and goes with it when another client copies the trial."""

METRIC_NAMES = "study:metric_names"
"""The study's system attribute that holds the names of its values."""

COMPLETED_RUNG_PREFIX = "completed_rung_"
"""Start of the trial's system attributes in which the successive-halving pruner keeps its rungs."""

DASHBOARD_PREFIX = "dashboard:"
"""Start of the study's system attributes of optuna-dashboard, the notes among them."""

ARTIFACT_PREFIX = "artifacts:"
"""Start of the system attributes, of trials and studies, that name files in the artifact store."""


def utc_now() -> datetime:
    """Return the time in the form of Optuna's tables: UTC without a time zone."""
    return datetime.now(UTC).replace(tzinfo=None)
