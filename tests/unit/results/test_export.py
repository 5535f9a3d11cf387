"""Test what is written of a best trial for others to use."""

import csv
import io
import json
import subprocess
from pathlib import Path

import pytest
import torch

import hpo
from hpo.recipes.recipe import documented_runs
from hpo.recipes.schedule import CurvePoint
from hpo.recipes.space_file import load_space, parse_space
from hpo.results import export
from hpo.results.export import Exported
from hpo.settings import StudySettings
from hpo.study import Best, Study
from hpo.training.model import load_network
from hpo.training.train import Training

RECIPE = documented_runs()["dense"].recipe.at(iterations=32, seed=5)
CURVE = tuple(CurvePoint(iteration=i, train_loss=2.0 - i / 10, val_loss=2.5, val_accuracy=0.1 * i) for i in range(1, 4))


@pytest.fixture
def exported(few_digits):
    settings = StudySettings(
        space=load_space("dense").model_dump(mode="json", exclude_none=True),
        dataset="digits",
        split=few_digits.checksum,
        image_shape=(8, 8, 1),
        classes=10,
        augment="crop",
        iterations=32,
        seed=5,
        precision="fp32",
        sampler="random",
        pruner="none",
        align="phase",
    )
    training = Training(RECIPE, few_digits, "fp32")
    training.advance(2)
    return Exported(
        study=Study(storage=None, study_id=1, name="mine" * 25, settings=settings),
        best=Best(trial=4, value=0.75, standard_error=0.05, recipe=RECIPE, curve=CURVE),
        dataset=few_digits,
        training=training,
        val_accuracy=0.7,
        confirmed="Not confirmed: the trial was picked on one seed.",
        test=None,
    )


def test_a_network_is_loaded_with_what_prepares_its_images(exported, tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(export.weights(exported))
    dataset = exported.dataset

    network, facts = load_network(path)

    assert not network.training
    weights = exported.training.model.state_dict()
    assert network.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())
    assert facts == {
        "mode": "L",
        "size": [8, 8],
        "mean": dataset.mean[:, None, None].tolist(),
        "std": dataset.std[:, None, None].tolist(),
        "labels": list("0123456789"),
    }


def test_the_recipe_is_a_space_of_one_member_whatever_the_study_is_called(exported):
    space = parse_space(export.recipe_yaml(exported), "recipe.yaml")

    assert space.recipe({}, iterations=32, seed=5) == RECIPE
    assert space.distributions() == {}


def test_the_metrics_are_the_curve(exported):
    rows = list(csv.DictReader(io.StringIO(export.metrics_csv(exported.best.curve))))

    read = [{name: json.loads(text) if text else None for name, text in row.items()} for row in rows]
    assert [CurvePoint(**row) for row in read] == list(CURVE)


def test_the_model_card_says_that_the_accuracy_is_optimistic_and_the_test_split_closed(exported):
    card = export.model_card(exported)

    assert "- **Validation accuracy**: 0.7500 ± 0.0500 (standard error) on 20 images. This is optimistic" in card
    assert "measured when the folder was written: 0.7000." in card
    assert "- **Further seeds**: Not confirmed: the trial was picked on one seed." in card
    assert "- **Test split**: not opened; `hpo benchmark` does that, on fresh seeds." in card
    assert "| head | dense |" in card


def git(folder, *arguments):
    who = ("-c", "user.name=n", "-c", "user.email=e@example.org")
    return subprocess.run(["git", "-C", folder, *who, *arguments], check=True, capture_output=True, text=True).stdout


def test_the_revision_is_that_of_the_code_and_marked_where_it_was_changed(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "__init__.py").write_text("")
    assert export.find_revision(tmp_path) is None  # in a repository, but no part of it
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    revision = git(tmp_path, "rev-parse", "HEAD").strip()
    assert export.find_revision(tmp_path) == revision
    (tmp_path / "__init__.py").write_text("changed")
    assert export.find_revision(tmp_path) == f"{revision}-dirty"


def test_code_outside_of_a_repository_has_no_revision(tmp_path):
    assert export.find_revision(tmp_path / "nowhere") is None


def test_the_environment_names_versions_and_hardware(exported):
    found = export.environment(exported.training)

    assert found["versions"].keys() == {"hpo", "torch", "torchvision", "optuna", "numpy", "safetensors"}
    assert found["versions"]["hpo"] == hpo.__version__
    assert (found["device"], found["precision"]) == ("cpu", "fp32")
    assert found["git_revision"] == export.find_revision(Path(hpo.__file__).parent)
    assert json.loads(json.dumps(found)) == found
