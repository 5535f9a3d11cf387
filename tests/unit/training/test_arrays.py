"""Test which `.npz` files are read, and what is named of the others."""

import numpy as np
import pytest

from hpo.errors import BadInput, DataDamaged
from hpo.training.arrays import read_headers, read_images, read_labels
from tests.unit.training.pictures import small_arrays, write_arrays


@pytest.mark.parametrize(("shape", "expected"), [((8, 9), (8, 9, 1)), ((8, 9, 1), (8, 9, 1)), ((8, 9, 3), (8, 9, 3))])
def test_images_and_labels_are_those_of_the_file_with_the_test_split_last(tmp_path, shape, expected):
    arrays = small_arrays(shape=shape)
    arrays["y_train"] = arrays["y_train"][:, None]  # as Keras has those of CIFAR-10
    arrays["x_more"] = np.zeros(3)

    file = read_headers(write_arrays(tmp_path / "small.npz", **arrays))

    assert (file.shape, file.images, file.tests, file.passed_over) == (expected, 24, 4, 1)
    assert np.array_equal(
        read_images(file), np.concatenate([arrays["x_train"], arrays["x_test"]]).reshape(-1, *expected)
    )
    assert read_labels(file).tolist() == [0, 1] * 12


def test_a_file_may_have_no_test_split(tmp_path):
    arrays = small_arrays()
    del arrays["x_test"], arrays["y_test"]

    file = read_headers(write_arrays(tmp_path / "small.npz", **arrays))

    assert (file.images, file.tests) == (20, None)
    assert len(read_images(file)) == len(read_labels(file)) == 20


class Trap:
    """An object whose unpickling is noticed."""

    def __reduce__(self):
        return pytest.fail, ("the pickle was loaded",)


BAD = [
    ({"y_train": None}, "has no array y_train; it has x_test, x_train, y_test"),
    ({"y_test": None}, "has no array y_test; it has x_test, x_train, y_train"),
    ({"x_train": np.zeros((20, 8, 8))}, "x_train is float64 of shape (20, 8, 8); allowed: uint8"),
    ({"x_train": np.zeros((20, 8, 8, 2), np.uint8)}, "x_train is uint8 of shape (20, 8, 8, 2); allowed: uint8"),
    ({"x_test": np.zeros((4, 64), np.uint8)}, "x_test is uint8 of shape (4, 64); allowed: uint8 [N, H, W]"),
    ({"x_test": np.zeros((4, 9, 9), np.uint8)}, "images of x_train are (8, 8, 1), of x_test (9, 9, 1); allowed: equal"),
    ({"y_train": np.zeros((20, 10), int)}, "y_train is int64 of shape (20, 10); allowed: whole numbers"),
    ({"y_train": np.zeros(20)}, "y_train is float64 of shape (20,); allowed: whole numbers"),
    ({"y_train": np.arange(19) % 2}, "x_train has 20 images and y_train 19 labels; allowed: equal"),
    ({"x_train": np.array([Trap()] * 20)}, "x_train.npy contains a pickle, which is never loaded"),
    ({"y_train": np.array([Trap()] * 20)}, "y_train.npy contains a pickle, which is never loaded"),
]


@pytest.mark.parametrize(("change", "problem"), BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_arrays_that_cannot_be_a_data_set_are_refused_before_they_are_read(tmp_path, change, problem):
    arrays = {name: array for name, array in (small_arrays() | change).items() if array is not None}
    path = write_arrays(tmp_path / "small.npz", **arrays)

    with pytest.raises(BadInput) as refused:
        read_headers(path)

    assert str(refused.value).startswith(f"{path}: {problem}")


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ({"y_train": np.arange(20) % 2 + 1}, "labels of y_train are 1, 2; allowed: 0 to n-1, each of them used"),
        ({"y_train": np.arange(20) % 2 * 2}, "labels of y_train are 0, 2; allowed: 0 to n-1"),
        ({"y_train": np.arange(20) - 5}, "labels of y_train are -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, ...; allowed"),
        ({"y_train": np.zeros(20, int)}, "all labels of y_train are 0; allowed: two or more classes"),
        ({"y_test": np.arange(4) % 3}, "labels of y_test are 0, 1, 2, of y_train 0, 1; allowed: the same"),
        ({"y_test": np.zeros(4, int)}, "labels of y_test are 0, of y_train 0, 1; allowed: the same"),
    ],
)
def test_labels_are_the_numbers_of_the_classes(tmp_path, labels, problem):
    path = write_arrays(tmp_path / "small.npz", **small_arrays() | labels)

    with pytest.raises(BadInput) as refused:
        read_labels(read_headers(path))

    assert str(refused.value).startswith(f"{path}: {problem}")


@pytest.mark.parametrize("content", [b"", b"PK", b"no archive", None])
def test_a_file_that_is_no_archive_or_cut_short_is_named(tmp_path, content):
    path = write_arrays(tmp_path / "small.npz", **small_arrays())
    path.write_bytes(path.read_bytes()[:-200] if content is None else content)

    with pytest.raises(DataDamaged, match=r"small\.npz cannot be read as \.npz: "):
        read_headers(path)


def test_altered_pixels_are_noticed(tmp_path):
    path = write_arrays(tmp_path / "small.npz", **small_arrays())
    file = read_headers(path)
    content = bytearray(path.read_bytes())
    content[400] ^= 255
    path.write_bytes(content)

    with pytest.raises(DataDamaged, match=r"cannot be read as \.npz: Bad CRC-32"):
        read_images(file)
