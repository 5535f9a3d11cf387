"""Test how a command finds its data set: by name, by path, or by the name of what is decoded already."""

import json
from types import SimpleNamespace

import pytest

from hpo.cli.catalog import data_check
from hpo.cli.data import choose_data, data_settings, decode_for
from hpo.cli.worker import worker
from hpo.errors import BadInput
from tests.unit.training.pictures import small_arrays, write_arrays, write_classes


@pytest.fixture
def own(tmp_path):
    """Write a folder of images, and give it and the folder of the data sets."""
    write_classes(tmp_path / "cats", 13)
    return tmp_path / "cats", tmp_path / "data"


def settings_of(dataset):
    return SimpleNamespace(name="mine", settings=SimpleNamespace(**data_settings(dataset)))


def test_a_path_is_decoded_with_progress_and_later_known_by_its_name(own, capsys):
    folder, data_dir = own
    (folder / "cat" / "notes.txt").touch()

    by_path = choose_data(str(folder), data_dir)
    first = capsys.readouterr().err
    by_name = choose_data("cats", data_dir, augment="none")
    choose_data(str(folder), data_dir)
    later = capsys.readouterr().err

    assert "reading cats" in first and "100%" in first
    assert f"{folder}: skipped 1 entry without images" in first
    assert "reading cats" not in later
    assert data_settings(by_path) == {
        "dataset": "cats",
        "split": by_path.checksum,
        "image_shape": (8, 8, 3),
        "classes": 2,
        "augment": "crop,flip",
    }
    assert data_settings(by_name) == data_settings(by_path) | {"augment": "none"}


@pytest.mark.parametrize(
    ("wanted", "image_size", "problem"),
    [
        (
            "mnist",
            None,
            "--dataset mnist: allowed: auto, cifar10, cifar100, fashion_mnist, digits, "
            "or the path of a folder of images or an .npz file",
        ),
        ("no/such/folder", None, "--dataset no/such/folder: allowed: auto, cifar10"),
        ("x" * 300, None, "--dataset xxx"),
        ("digits", 8, "--image-size 8: only valid with the path of a folder; digits has a fixed size"),
        ("auto", 8, "--image-size 8: only valid with the path of a folder; auto has a fixed size"),
        ("cats", 8, "--image-size 8: only valid with the path of a folder; cats has been decoded"),
    ],
)
def test_a_data_set_that_cannot_be_used_is_named(own, wanted, image_size, problem):
    folder, data_dir = own
    choose_data(str(folder), data_dir)

    with pytest.raises(BadInput) as refused:
        choose_data(wanted, data_dir, image_size)

    assert str(refused.value).startswith(problem)


def test_a_name_that_several_data_sets_have_is_refused(own):
    folder, data_dir = own
    checksums = [choose_data(str(folder), data_dir).checksum]
    write_classes(folder, 15, first=7)
    checksums.append(choose_data(str(folder), data_dir).checksum)

    with pytest.raises(BadInput) as refused:
        choose_data("cats", data_dir)

    listed = ", ".join(sorted(checksum[:12] for checksum in checksums))
    assert str(refused.value) == f"--dataset cats: {data_dir} has several with that name ({listed}); give the path"


@pytest.mark.parametrize("image_size", [None, 9])
def test_a_worker_elsewhere_decodes_the_same_images_under_the_name_of_the_study(own, tmp_path, image_size):
    folder, data_dir = own
    study = settings_of(choose_data(str(folder), data_dir, image_size))
    folder = folder.rename(tmp_path / "copy")

    decode_for(study, folder, tmp_path / "other")

    files = [{path.name for path in (place / "images").iterdir()} for place in (data_dir, tmp_path / "other")]
    assert files[0] == files[1]


def test_a_worker_refuses_other_images_with_both_checksums(own, tmp_path):
    folder, data_dir = own
    study = settings_of(choose_data(str(folder), data_dir))
    other = choose_data(str(write_arrays(tmp_path / "dogs.npz", **small_arrays())), data_dir)

    with pytest.raises(BadInput) as refused:
        decode_for(study, tmp_path / "dogs.npz", tmp_path / "other")

    there, here = study.settings.split[:12], refused.value.args[0].split("its checksum is ")[1][:12]
    assert here == other.checksum[:12]
    assert str(refused.value) == (
        f"--dataset {tmp_path}/dogs.npz: its checksum is {here}, study mine was created with {there}"
    )


def test_a_worker_of_a_known_data_set_needs_no_path(own, digits):
    with pytest.raises(BadInput) as refused:
        decode_for(settings_of(digits), *own)

    assert str(refused.value) == f"--dataset {own[0]}: study mine is on digits, which needs no path"


def test_a_worker_for_all_studies_takes_no_path(own):
    with pytest.raises(BadInput, match="only valid without --forever, as it belongs to one study"):
        worker(forever=True, dataset=own[0])


def test_what_is_decoded_is_checked_with_the_others(own, capsys):
    folder, data_dir = own
    checksum = choose_data(str(folder), data_dir).checksum
    capsys.readouterr()

    data_check(data_dir, json_output=True)

    states = json.loads(capsys.readouterr().out)
    assert states[f"cats ({checksum[:12]})"] == "complete: 18 training and 2 validation images"
    assert list(states)[:4] == ["cifar10", "cifar100", "fashion_mnist", "digits"]
