"""Test data sets of one's own from the folder or file to the splits that are trained and tested on."""

import os
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpo.errors import BadInput, DataDamaged
from hpo.training import images
from hpo.training.datasets import load_dataset
from hpo.training.decoding import decode_files
from hpo.training.images import Collection, cut, min_images, name_of, prepare
from hpo.training.tensor_file import read_own_test
from tests.unit.training.pictures import pixels, small_arrays, write_arrays, write_classes, write_image

PLENTY = 10**9


def prepared(path, data_dir, image_size=None, available_bytes=PLENTY):
    return prepare(
        path,
        data_dir,
        name="mine",
        image_size=image_size,
        report=lambda done, total: None,
        available_bytes=available_bytes,
    )


def loaded(path, data_dir, image_size=None, **options):
    own = prepared(path, data_dir, image_size)
    return load_dataset("mine", data_dir, checksum=own.checksum, **options), own


def counted(split, classes):
    """Count (class, pixels), so that sets of images can be compared."""
    pairs = zip(split.labels.tolist(), split.images.numpy(), strict=True)
    return Counter((classes[label], image.tobytes()) for label, image in pairs)


def test_a_folder_with_a_test_split_keeps_it(tmp_path):
    train = write_classes(tmp_path / "own" / "train", 20)
    test = write_classes(tmp_path / "own" / "test", 3, first=500)

    dataset, own = loaded(tmp_path / "own", tmp_path / "data")
    tests = read_own_test("mine", own.checksum, tmp_path / "data")

    assert (dataset.name, dataset.classes, dataset.image_shape) == ("mine", ("cat", "dog"), (8, 8, 3))
    assert (len(dataset.train), len(dataset.validation), len(tests)) == (36, 4, 6)
    assert torch.bincount(dataset.validation.labels).tolist() == [2, 2]
    assert counted(dataset.train, dataset.classes) + counted(dataset.validation, dataset.classes) == Counter(
        (name, image.tobytes()) for name, images in train.items() for image in images
    )
    assert counted(tests, dataset.classes) == Counter(
        (name, image.tobytes()) for name, images in test.items() for image in images
    )


def test_a_folder_without_one_has_a_fifth_of_each_class_set_aside(tmp_path):
    written = write_classes(tmp_path / "own", 25, shape=(8, 10, 1), classes=("a", "b", "c"))

    dataset, own = loaded(tmp_path / "own", tmp_path / "data")
    tests = read_own_test("mine", own.checksum, tmp_path / "data")

    assert dataset.image_shape == (8, 10, 1)
    assert torch.bincount(tests.labels).tolist() == [5, 5, 5]
    assert (len(dataset.train), len(dataset.validation)) == (54, 6)
    parts = [counted(split, dataset.classes) for split in (dataset.train, dataset.validation, tests)]
    assert sum(parts, Counter()) == Counter((n, image.tobytes()) for n, images in written.items() for image in images)


@pytest.mark.parametrize("with_test", [False, True])
def test_an_array_file_gives_the_same_splits_as_a_folder_of_the_same_images(tmp_path, with_test):
    arrays = small_arrays(train=40, test=6, shape=(8, 8, 3))
    if not with_test:
        del arrays["x_test"], arrays["y_test"]
    for part in ("train", "test")[: 1 + with_test]:
        root = tmp_path / "own" / part if with_test else tmp_path / "own"
        order = Counter()
        for image, label in zip(arrays[f"x_{part}"], arrays[f"y_{part}"], strict=True):
            write_image(root / str(label) / f"{order[label]:03}.png", image)
            order[label] += 1
        by_class = np.argsort(arrays[f"y_{part}"], kind="stable")
        arrays |= {f"{letter}_{part}": arrays[f"{letter}_{part}"][by_class] for letter in "xy"}

    folder, _ = loaded(tmp_path / "own", tmp_path / "data")
    file, _ = loaded(write_arrays(tmp_path / "own.npz", **arrays), tmp_path / "data")

    assert file.checksum == folder.checksum
    assert file.classes == ("0", "1")


def test_mean_and_deviation_are_those_of_the_training_images(tmp_path):
    write_classes(tmp_path / "own", 25)

    dataset, _ = loaded(tmp_path / "own", tmp_path / "data")

    train = dataset.train.images.to(torch.float64)
    assert torch.allclose(dataset.mean, train.mean((0, 1, 2)).float(), rtol=1e-6)
    assert torch.allclose(dataset.std, train.std((0, 1, 2)).float(), rtol=1e-6)


def test_a_channel_without_contrast_is_not_divided_by_zero(tmp_path):
    for number in range(13):
        for name in "ab":
            write_image(tmp_path / "own" / name / f"{number}.png", np.full((8, 8, 3), 7, np.uint8))

    dataset, _ = loaded(tmp_path / "own", tmp_path / "data")

    assert dataset.std.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("shape", "augment", "padding", "flip"),
    [
        ((8, 8, 3), None, 1, True),
        ((8, 8, 1), None, 1, False),
        ((32, 40, 3), None, 4, True),
        ((20, 20, 3), "crop", 3, False),
        ((8, 8, 1), "crop,flip", 1, True),
        ((8, 8, 3), "none", 0, False),
    ],
)
def test_augmentation_follows_the_data_unless_it_is_said(tmp_path, shape, augment, padding, flip):
    write_classes(tmp_path / "own", 13, shape=shape)

    dataset, _ = loaded(tmp_path / "own", tmp_path / "data", augment=augment)

    assert (dataset.padding, dataset.flip) == (padding, flip)
    assert augment in (None, dataset.augment)


def test_images_are_decoded_again_only_if_one_has_changed(tmp_path, monkeypatch):
    write_classes(tmp_path / "own", 13)
    first = prepared(tmp_path / "own", tmp_path / "data")
    decoded = []
    monkeypatch.setattr(images, "decode_files", lambda *args: decoded.append(len(args[0])) or decode_files(*args))

    assert prepared(tmp_path / "own", tmp_path / "data") == first
    assert decoded == []

    write_image(tmp_path / "own" / "cat" / "000.png", pixels(77))
    os.utime(tmp_path / "own" / "cat" / "000.png", (1, 1))  # whatever the resolution of the file system's clock
    second = prepared(tmp_path / "own", tmp_path / "data")

    assert decoded == [26]
    assert second.checksum != first.checksum
    assert load_dataset("mine", tmp_path / "data", checksum=first.checksum).checksum == first.checksum


def test_a_copy_of_the_images_elsewhere_has_the_same_checksum(tmp_path):
    for place in ("one", "two"):
        write_classes(tmp_path / place, 13)
    os.utime(tmp_path / "two" / "cat" / "000.png", (1, 1))

    first, second = (prepared(tmp_path / place, tmp_path / "data") for place in ("one", "two"))

    assert first == second
    assert len(list((tmp_path / "data" / "images").iterdir())) == 1


def test_other_names_of_classes_make_another_data_set(tmp_path):
    write_classes(tmp_path / "one", 13, classes=("cat", "dog"))
    write_classes(tmp_path / "two", 13, classes=("cow", "pig"))

    first, second = (prepared(tmp_path / place, tmp_path / "data") for place in ("one", "two"))

    assert first.checksum != second.checksum


def test_progress_counts_each_image_when_it_is_inspected_and_when_it_is_decoded(tmp_path):
    write_classes(tmp_path / "own", 13)
    reports = []

    prepare(
        tmp_path / "own",
        tmp_path / "data",
        name="mine",
        image_size=None,
        report=lambda done, total: reports.append((done, total)),
    )

    assert reports == [(26, 52), (26, 52)]


def test_different_sizes_need_a_size(tmp_path):
    write_classes(tmp_path / "own", 13, shape=(12, 10, 3))
    odd = write_image(tmp_path / "own" / "dog" / "x.png", pixels(1, (30, 20, 3)))

    with pytest.raises(BadInput) as refused:
        prepared(tmp_path / "own", tmp_path / "data")
    dataset, _ = loaded(tmp_path / "own", tmp_path / "data", image_size=9)

    assert str(refused.value) == (
        f"{tmp_path}/own/cat/000.png is 10x12 and {odd} 20x30; --image-size N scales and crops all images to one size"
    )
    assert dataset.image_shape == (9, 9, 3)


def test_one_image_with_colour_makes_the_data_set_one_with_colour(tmp_path):
    write_classes(tmp_path / "own", 13, shape=(8, 8, 1))
    write_image(tmp_path / "own" / "dog" / "x.png", pixels(1, (8, 8, 3)))

    dataset, _ = loaded(tmp_path / "own", tmp_path / "data")

    assert dataset.image_shape == (8, 8, 3)


@pytest.mark.parametrize("shape", [(7, 8, 3), (8, 7, 3), (97, 96, 3), (96, 97, 3)])
def test_images_that_are_too_small_or_too_large_are_refused(tmp_path, shape):
    write_classes(tmp_path / "own", 1, shape=shape)
    write_arrays(tmp_path / "own.npz", **small_arrays(shape=shape))

    for path, where in ((tmp_path / "own", "own/cat/000.png"), (tmp_path / "own.npz", "own.npz")):
        with pytest.raises(BadInput) as refused:
            prepared(path, tmp_path / "data")
        assert str(refused.value).startswith(
            f"{tmp_path}/{where}: images are {shape[1]}x{shape[0]}; allowed: 8 to 96 pixels a side"
        )


def test_arrays_are_not_scaled(tmp_path):
    path = write_arrays(tmp_path / "own.npz", **small_arrays())

    with pytest.raises(BadInput, match=r"^--image-size 9: the images of .*own\.npz are 8x8, and are not scaled"):
        prepared(path, tmp_path / "data", image_size=9)
    assert prepared(path, tmp_path / "data", image_size=8).checksum == prepared(path, tmp_path / "data").checksum


@pytest.mark.parametrize("kind", ["folder", "array file"])
def test_what_does_not_fit_in_memory_is_refused_before_it_is_decoded(tmp_path, monkeypatch, kind):
    write_classes(tmp_path / "own", 13)
    path = (
        tmp_path / "own" if kind == "folder" else write_arrays(tmp_path / "own.npz", **small_arrays(26, 4, (8, 8, 3)))
    )
    count = 26 if kind == "folder" else 30
    for reader in (images, "decode_files"), (images.arrays, "read_images"):
        monkeypatch.setattr(*reader, lambda *_: pytest.fail("it was decoded"))

    with pytest.raises(BadInput) as refused:
        prepared(path, tmp_path / "data", available_bytes=3 * count * 192 - 1)

    assert str(refused.value) == (
        f"{path}: {count} images of 8x8x3 are {count * 192:,} bytes; decoding them takes {3 * count * 192:,} bytes of "
        f"memory, and {3 * count * 192 - 1:,} are free"
    )
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("with_test", "few", "problem"),
    [
        (True, 9, "class dog has 9 images to train on; the splits need 10 of each class"),
        (False, 12, "class dog has 12 images in all; the splits need 13 of each class"),
    ],
)
def test_a_class_with_too_few_images_is_named(tmp_path, with_test, few, problem):
    root = tmp_path / "own" / "train" if with_test else tmp_path / "own"
    write_classes(root, 20, classes=("cat",))
    write_classes(root, few, classes=("dog",), first=100)
    if with_test:
        write_classes(tmp_path / "own" / "test", 1)

    with pytest.raises(BadInput) as refused:
        prepared(tmp_path / "own", tmp_path / "data")

    assert str(refused.value) == f"{tmp_path}/own: {problem}"
    assert not (tmp_path / "data").exists()


COLLECTION = Collection(
    classes=(),
    labels=np.zeros(0, np.int64),
    tests=None,
    shape=(8, 8, 3),
    decode=lambda _: np.zeros((0, 8, 8, 3), np.uint8),
)


@given(st.lists(st.integers(0, 60), min_size=2, max_size=6), st.booleans())
def test_every_split_has_an_image_of_each_class_that_has_enough(tmp_path_factory, extra, with_test):
    needed = min_images(with_test=with_test)
    labels = np.repeat(np.arange(len(extra)), [needed + more for more in extra])
    tests = np.arange(len(extra)) if with_test else labels[:0]
    collection = replace(
        COLLECTION,
        classes=tuple(map(str, range(len(extra)))),
        labels=np.concatenate([labels, tests]),
        tests=len(tests) if with_test else None,
    )

    parts = cut("own", collection)

    assert all(set(collection.labels[positions]) == set(range(len(extra))) for positions in parts.values())
    assert sorted(np.concatenate(list(parts.values()))) == list(range(len(collection.labels)))


def test_a_damaged_image_leaves_nothing_behind(tmp_path):
    write_classes(tmp_path / "own", 13, shape=(32, 32, 3))
    path = tmp_path / "own" / "dog" / "007.png"
    path.write_bytes(path.read_bytes()[:1000])

    with pytest.raises(DataDamaged) as refused:
        prepared(tmp_path / "own", tmp_path / "data")

    assert str(refused.value).startswith(f"{path} cannot be decoded: ")
    assert not (tmp_path / "data").exists()


def test_an_image_that_is_a_link_to_nothing_is_named(tmp_path):
    write_classes(tmp_path / "own", 13)
    path = tmp_path / "own" / "cat" / "gone.png"
    path.symlink_to(tmp_path / "nowhere")

    with pytest.raises(BadInput) as refused:
        prepared(tmp_path / "own", tmp_path / "data")

    assert str(refused.value) == f"{path}: cannot be read: No such file or directory"


def test_a_file_that_is_no_data_set_is_refused(tmp_path):
    path = tmp_path / "images.tar"
    path.touch()

    with pytest.raises(BadInput) as refused:
        prepared(path, tmp_path / "data")

    assert str(refused.value) == f"--dataset {path}: allowed: a folder of images and an .npz file"


def test_a_folder_of_data_sets_that_cannot_be_written_is_named(tmp_path):
    write_classes(tmp_path / "own", 13)
    (tmp_path / "data").touch()

    with pytest.raises(BadInput, match=r"^--data-dir .*/data: .* cannot be written: "):
        prepared(tmp_path / "own", tmp_path / "data")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/data/cats", "cats"),
        ("/data/cats/", "cats"),
        ("cats.npz", "cats"),
        ("my holiday (2024)", "my-holiday-2024"),
        ("v1.5", "v1.5"),
        (".hidden", "hidden"),
        ("x" * 100, "x" * 60),
    ],
)
def test_a_data_set_is_named_after_its_folder_or_file(path, name):
    assert name_of(images.Path(path)) == name


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("/", "--dataset /: its name needs a letter (a to z) or a digit, because studies are named after it"),
        ("犬", "--dataset 犬: its name needs a letter"),
        ("old/digits", "--dataset old/digits: digits is the name of a known data set; rename the folder or file"),
        ("cifar10.npz", "--dataset cifar10.npz: cifar10 is the name of a known data set"),
    ],
)
def test_a_name_that_cannot_be_used_is_refused(path, problem):
    with pytest.raises(BadInput) as refused:
        name_of(images.Path(path))

    assert str(refused.value).startswith(problem)
