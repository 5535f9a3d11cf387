"""Pin what the package relies on in Optuna's private tables: where a release changes one, this says which."""

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy import inspect as inspect_table

from hpo.database import optuna_tables

COLUMNS = {
    "StudyModel": {"study_id", "study_name"},
    "StudyDirectionModel": {"study_direction_id", "direction", "study_id", "objective"},
    "StudyUserAttributeModel": {"study_user_attribute_id", "study_id", "key", "value_json"},
    "StudySystemAttributeModel": {"study_system_attribute_id", "study_id", "key", "value_json"},
    "TrialModel": {"trial_id", "number", "study_id", "state", "datetime_start", "datetime_complete"},
    "TrialParamModel": {"param_id", "trial_id", "param_name", "param_value", "distribution_json"},
    "TrialValueModel": {"trial_value_id", "trial_id", "objective", "value", "value_type"},
    "TrialIntermediateValueModel": {
        "trial_intermediate_value_id",
        "trial_id",
        "step",
        "intermediate_value",
        "intermediate_value_type",
    },
    "TrialUserAttributeModel": {"trial_user_attribute_id", "trial_id", "key", "value_json"},
    "TrialSystemAttributeModel": {"trial_system_attribute_id", "trial_id", "key", "value_json"},
    "TrialHeartbeatModel": {"trial_heartbeat_id", "trial_id", "heartbeat"},
}
ATTRIBUTES = {
    "TrialModel": ("_datetime_start_utc", "_datetime_complete_utc", "datetime_start", "datetime_complete"),
    "TrialValueModel": ("TrialValueType", "stored_repr_to_value"),
    "TrialIntermediateValueModel": ("TrialIntermediateValueType", "stored_repr_to_intermediate_value"),
    "CachedStorage": ("get_all_trials", "set_trial_param", "set_trial_system_attr"),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_a_table_has_exactly_the_columns_that_are_written(name):
    table = inspect_table(getattr(optuna_tables, name)).local_table

    assert {column.name for column in table.columns} == COLUMNS[name]


@pytest.mark.parametrize(("name", "attributes"), ATTRIBUTES.items())
def test_a_class_has_the_attributes_that_are_used(name, attributes):
    owner = getattr(optuna_tables, name)

    assert [each for each in attributes if not hasattr(owner, each)] == []


def test_the_cached_storage_keeps_the_storage_behind_it(tmp_path):
    behind = RDBStorage(f"sqlite:///{tmp_path}/optuna.db")

    assert optuna_tables.CachedStorage(behind)._backend is behind
    behind.engine.dispose()


def test_every_table_that_is_used_is_pinned():
    assert {name for name in optuna_tables.__all__ if name.endswith("Model")} == COLUMNS.keys()


def test_optuna_knows_the_states_that_the_queue_sets():
    names = ("WAITING", "RUNNING", "COMPLETE", "PRUNED", "FAIL")

    assert {state.name for state in TrialState} == set(names)


def test_optuna_writes_and_reads_the_keys_under_these_names():
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1))
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        study.set_metric_names(["accuracy"])
    study.enqueue_trial({"rate": 0.1})
    trial = study.ask()
    trial.report(0.5, 1)
    trial.should_prune()

    [held] = study.get_trials()
    assert held.system_attrs[optuna_tables.FIXED_PARAMS] == {"rate": 0.1}
    assert [key for key in held.system_attrs if key.startswith(optuna_tables.COMPLETED_RUNG_PREFIX)] == [
        "completed_rung_0"
    ]
    assert study._storage.get_study_system_attrs(study._study_id)[optuna_tables.METRIC_NAMES] == ["accuracy"]


def test_optuna_keeps_the_ids_of_artifacts_under_their_prefix(tmp_path):
    study = optuna.create_study()
    (tmp_path / "figure.png").write_bytes(b"figure")
    store = optuna.artifacts.FileSystemArtifactStore(str(tmp_path))

    artifact_id = optuna.artifacts.upload_artifact(
        artifact_store=store, file_path=str(tmp_path / "figure.png"), study_or_trial=study
    )

    attrs = study._storage.get_study_system_attrs(study._study_id)
    assert list(attrs) == [f"{optuna_tables.ARTIFACT_PREFIX}{artifact_id}"]
