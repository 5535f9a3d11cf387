"""Test the files of tensors: found by name and checksum, mapped, and checked."""

from functools import partial
from pathlib import Path

import pytest

from hpo.errors import BadInput, DataDamaged, DataUnavailable
from hpo.training.images import prepare
from hpo.training.tensor_file import list_own, load_own, read_own_test
from tests.unit.training.pictures import write_classes


def write(tmp_path, name="mine", first=0):
    folder = tmp_path / f"{name}-{first}"
    write_classes(folder, 40, shape=(32, 32, 3), first=first)
    return prepare(folder, tmp_path / "data", name=name, image_size=None, report=lambda done, total: None).checksum


def test_images_are_mapped_rather_than_read(tmp_path):
    dataset = load_own("mine", write(tmp_path), tmp_path / "data", None)

    address = dataset.train.images.data_ptr()
    ranges = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    holding = [row for row in ranges if int(row[0].split("-")[0], 16) <= address < int(row[0].split("-")[1], 16)]
    assert [Path(row[-1]).suffix for row in holding] == [".safetensors"]


def test_everybody_may_read_the_file(tmp_path):
    write(tmp_path)

    [file] = (tmp_path / "data" / "images").iterdir()
    assert file.stat().st_mode & 0o777 == 0o644


def test_all_data_sets_of_a_folder_are_listed(tmp_path):
    checksums = {(name, write(tmp_path, name, first)) for name, first in (("a", 0), ("b", 0), ("a", 500))}

    assert set(list_own(tmp_path / "data")) == checksums
    assert len(checksums) == 3
    assert list_own(tmp_path / "nowhere") == []


@pytest.mark.parametrize("read", [partial(load_own, augment=None), read_own_test])
def test_another_data_set_of_the_name_is_refused_with_both_checksums(tmp_path, read):
    checksum = write(tmp_path)

    with pytest.raises(BadInput) as refused:
        read("mine", "0" * 64, tmp_path / "data")

    assert str(refused.value) == (
        f"data set mine in {tmp_path}/data: its checksum is {checksum[:12]}, the study was created with 000000000000"
    )


def test_a_data_set_that_is_not_there_is_unavailable(tmp_path):
    checksum = write(tmp_path)

    with pytest.raises(DataUnavailable) as missing:
        load_own("other", checksum, tmp_path / "data", None)

    assert str(missing.value) == (
        f"data set other is not in {tmp_path}/data; `hpo worker --dataset PATH` decodes its folder or .npz file"
    )


@pytest.mark.parametrize("position", [-1, -100_000, 20_000])
def test_an_altered_file_is_named(tmp_path, position):
    checksum = write(tmp_path)
    [file] = (tmp_path / "data" / "images").iterdir()
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)

    for read in (partial(load_own, augment=None), read_own_test):
        with pytest.raises(DataDamaged) as refused:
            read("mine", checksum, tmp_path / "data")
        assert str(refused.value).startswith(f"{file} is damaged: its checksum is ")


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_file_cut_short_is_named(tmp_path, keep):
    checksum = write(tmp_path)
    [file] = (tmp_path / "data" / "images").iterdir()
    file.write_bytes(file.read_bytes()[:keep])

    for read in (lambda: load_own("mine", checksum, tmp_path / "data", None), lambda: list_own(tmp_path / "data")):
        with pytest.raises(DataDamaged) as refused:
            read()
        assert str(refused.value).startswith(f"{file} cannot be read: ")
