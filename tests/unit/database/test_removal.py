"""Test which files a study's attributes name."""

import json

import optuna
import pytest

from hpo.database.note_attrs import figure_attrs
from hpo.database.optuna_tables import ARTIFACT_PREFIX
from hpo.database.removal import _artifact_id


def test_the_file_of_a_figure_is_known_by_the_attribute_that_was_written_for_it():
    [(key, value)] = figure_attrs("0a1b").items()

    assert key == f"{ARTIFACT_PREFIX}0a1b"
    assert _artifact_id(json.dumps(value)) == "0a1b"


@pytest.mark.parametrize("about", [{"artifact_id": "0a1b"}, '{"artifact_id": "0a1b"}'])
def test_an_attribute_names_its_file_whether_its_json_is_nested_or_not(about):
    assert _artifact_id(json.dumps(about)) == "0a1b"


def test_a_file_that_optuna_has_stored_is_known_too(tmp_path):
    study = optuna.create_study()
    (tmp_path / "notes.txt").write_text("notes")
    store = optuna.artifacts.FileSystemArtifactStore(str(tmp_path))

    stored = optuna.artifacts.upload_artifact(
        artifact_store=store, file_path=str(tmp_path / "notes.txt"), study_or_trial=study
    )

    study_id = study._storage.get_study_id_from_name(study.study_name)
    [value] = study._storage.get_study_system_attrs(study_id).values()
    assert _artifact_id(json.dumps(value)) == stored
