"""Test the settings of a study: kept, read back, compared, and the limits of names."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from hpo.errors import BadInput, StudyMismatch
from hpo.settings import StudySettings, check_study_name, default_data_dir

SETTINGS = StudySettings(
    space={"name": "mine", "base": "dropout", "search": {"head": ["linear", "dropout"]}},
    dataset="digits",
    split="0f0e",
    image_shape=(8, 8, 1),
    classes=10,
    augment="crop",
    iterations=640,
    seed=7,
    precision="fp32",
    sampler="tpe",
    pruner="asha-stop",
    align="phase",
)


def test_settings_come_back_from_the_attributes_of_a_study():
    assert StudySettings.from_attrs(json.loads(json.dumps(SETTINGS.to_attrs()))) == SETTINGS


def test_settings_are_kept_under_names_that_a_person_can_read():
    assert SETTINGS.to_attrs() == {
        "search space": {"name": "mine", "base": "dropout", "search": {"head": ["linear", "dropout"]}},
        "data set": "digits",
        "split checksum": "0f0e",
        "image shape": [8, 8, 1],
        "classes": 10,
        "augment": "crop",
        "iterations": 640,
        "seed": 7,
        "precision": "fp32",
        "sampler": "tpe",
        "pruner": "asha-stop",
        "align": "phase",
    }


@pytest.mark.parametrize(
    ("dataset", "shape", "augment"),
    [
        ("cifar10", (32, 32, 3), "crop,flip"),
        ("fashion_mnist", (28, 28, 1), "crop,flip"),
        ("digits", (8, 8, 1), "crop"),
    ],
)
def test_a_study_from_before_images_of_ones_own_has_the_shape_and_augmentation_that_its_data_had(
    dataset, shape, augment
):
    attrs = replace(SETTINGS, dataset=dataset).to_attrs()
    for title in ("image shape", "classes", "augment"):
        del attrs[title]

    read = StudySettings.from_attrs(attrs)

    assert read == replace(SETTINGS, dataset=dataset, image_shape=shape, classes=10, augment=augment)


def test_what_is_not_a_study_of_this_program_is_noticed():
    with pytest.raises(BadInput, match="it has no attribute 'search space', so hpo did not create it"):
        StudySettings.from_attrs({})


@pytest.mark.parametrize(
    ("title", "value", "allowed"),
    [
        ("search space", "smooth_lr", "the fields of a space"),
        ("data set", 7, "text"),
        ("image shape", [8, 8], "three whole numbers from 0"),
        ("image shape", [8, 8, "1"], "three whole numbers from 0"),
        ("iterations", "640", "whole numbers from 0"),
        ("iterations", -1, "whole numbers from 0"),
        ("seed", True, "whole numbers from 0"),
        ("sampler", "best", "tpe, random, qmc, gp, cmaes"),
        ("precision", None, "fp32, tf32, bf16"),
    ],
)
def test_an_attribute_that_somebody_edited_is_named_with_what_is_allowed(title, value, allowed):
    with pytest.raises(BadInput) as refused:
        StudySettings.from_attrs(SETTINGS.to_attrs() | {title: value})
    shown = tuple(value) if isinstance(value, list) else value
    assert str(refused.value) == f"its attribute {title!r} is {shown!r}; allowed: {allowed}"


def test_of_a_long_attribute_the_start_is_shown():
    with pytest.raises(BadInput) as refused:
        StudySettings.from_attrs(SETTINGS.to_attrs() | {"precision": "x" * 100_000})
    assert len(str(refused.value)) < 200


def test_a_study_with_the_same_settings_goes_on():
    assert SETTINGS.require(replace(SETTINGS), "mine-digits") is None


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"dataset": "cifar10"}, "data set is cifar10 in the study and digits here"),
        ({"split": "aaaa"}, "split checksum is aaaa in the study and 0f0e here"),
        ({"augment": "none"}, "augment is none in the study and crop here"),
        ({"image_shape": (8, 8, 3)}, "image shape is 8 x 8 x 3 in the study and 8 x 8 x 1 here"),
        ({"iterations": 64}, "iterations is 64 in the study and 640 here"),
        ({"seed": 0}, "seed is 0 in the study and 7 here"),
        ({"precision": "bf16"}, "precision is bf16 in the study and fp32 here"),
        ({"sampler": "gp"}, "sampler is gp in the study and tpe here"),
        ({"pruner": "none"}, "pruner is none in the study and asha-stop here"),
        ({"align": "iteration"}, "align is iteration in the study and phase here"),
        (
            {"space": {"name": "mine", "base": "dense", "description": ""}},
            "the search space differs in base, description, search",
        ),
        (
            {"seed": 0, "pruner": "none"},
            "seed is 0 in the study and 7 here; pruner is none in the study and asha-stop here",
        ),
    ],
)
def test_a_study_with_other_settings_is_refused_with_each_that_differs(changed, problem):
    with pytest.raises(StudyMismatch) as refused:
        SETTINGS.require(replace(SETTINGS, **changed), "mine-digits")

    assert str(refused.value) == (
        f"study mine-digits was created with other settings: {problem}. "
        "Use the study's settings, or another name with --study."
    )


def test_no_setting_can_differ_unnoticed():
    for field in fields(StudySettings):
        other = "another" if field.name != "space" else {}
        with pytest.raises(StudyMismatch):
            SETTINGS.require(replace(SETTINGS, **{field.name: other}), "mine-digits")


@pytest.mark.parametrize("name", ["a", "smooth_lr-digits", "7.b-C_d", "x" * 100])
def test_a_name_that_can_stand_in_a_file_name_is_taken(name):
    assert check_study_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", ".a", "_a", "a b", "a/b", "a\n", "ä", "x" * 101])
def test_a_name_that_cannot_stand_in_a_file_name_is_refused(name):
    with pytest.raises(BadInput) as refused:
        check_study_name(name)

    assert str(refused.value) == (
        f"study name {name!r}: allowed: 1 to 100 letters, digits, '.', '_' and '-', the first a letter or digit"
    )


@pytest.mark.parametrize(("cache", "folder"), [("/caches", "/caches/hpo"), ("", "/home/me/.cache/hpo")])
def test_data_sets_are_kept_in_the_users_cache(monkeypatch, cache, folder):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_CACHE_HOME", cache)

    assert default_data_dir() == Path(folder)


def test_a_study_made_with_an_option_that_was_withdrawn_is_refused():
    attrs = SETTINGS.to_attrs()

    assert StudySettings.from_attrs(attrs | {"compiled": False}) == SETTINGS
    with pytest.raises(BadInput, match="created with --compile, which was withdrawn"):
        StudySettings.from_attrs(attrs | {"compiled": True})
