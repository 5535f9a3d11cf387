"""Test that image files become the pixels that they hold, in one process or several."""

import numpy as np
import pytest
from PIL import Image

from hpo.errors import DataDamaged
from hpo.training import decoding
from hpo.training.decoding import Picture, decode_files, inspect_files
from tests.unit.training.pictures import pixels, write_image


def paths_of(folder, images):
    return [str(write_image(folder / f"{number}.png", image)) for number, image in enumerate(images)]


@pytest.mark.parametrize("shape", [(8, 9, 3), (8, 9, 1)])
def test_pixels_of_files_of_the_size_stay_as_they_are(tmp_path, shape):
    images = [pixels(number, shape) for number in range(5)]
    done = []

    decoded = decode_files(paths_of(tmp_path, images), shape, done.append)

    assert np.array_equal(decoded, np.stack(images))
    assert done == [5]


def test_many_files_are_decoded_by_several_processes_in_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "CHUNK", 2)
    monkeypatch.setattr(decoding, "MIN_PARALLEL", 2)
    images = [pixels(number) for number in range(5)]
    done = []

    decoded = decode_files(paths_of(tmp_path, images), (8, 8, 3), done.append)

    assert np.array_equal(decoded, np.stack(images))
    assert done == [2, 2, 1]


def test_an_error_in_another_process_comes_back_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "MIN_PARALLEL", 1)
    path = tmp_path / "1.png"
    path.write_text("no image")

    with pytest.raises(DataDamaged) as refused:
        inspect_files([str(path)], lambda _: None)

    assert str(refused.value) == f"{path} is not an image that Pillow can read"


@pytest.mark.parametrize(
    ("mode", "grey"), [("RGB", False), ("RGBA", False), ("P", False), ("L", True), ("1", True), ("LA", True)]
)
def test_a_header_says_size_and_whether_there_is_colour(tmp_path, mode, grey):
    path = tmp_path / "1.png"
    Image.new(mode, (12, 8)).save(path)

    assert inspect_files([str(path)], lambda _: None) == [Picture(width=12, height=8, grey=grey)]


@pytest.mark.parametrize("size", [(16, 16), (40, 16), (16, 40), (8, 24), (9, 11)])
def test_an_image_of_another_size_is_scaled_to_the_shorter_side_and_cropped_at_its_centre(tmp_path, size):
    width, height = size
    image = np.zeros((height, width, 3), np.uint8)
    side = min(size)
    top, left = (height - side) // 2, (width - side) // 2
    image[top : top + side, left : left + side] = 200  # the centre is bright, whatever is beside it dark

    [decoded] = decode_files(paths_of(tmp_path, [image]), (8, 8, 3), lambda _: None)

    assert decoded[2:6, 2:6].min() > 190
    assert decoded.mean() > 170


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "ppm"])
def test_an_image_cut_short_is_named(tmp_path, suffix):
    path = write_image(tmp_path / f"1.{suffix}", pixels(1, (64, 64, 3)))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])

    with pytest.raises(DataDamaged) as refused:
        decode_files([str(path)], (64, 64, 3), lambda _: None)

    assert str(refused.value).startswith(f"{path} ")


def test_pixels_of_16_bits_are_refused_rather_than_cut(tmp_path):
    path = tmp_path / "1.png"
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(path)

    with pytest.raises(DataDamaged, match="its pixels are of mode I;16; allowed: 8 bits per channel"):
        inspect_files([str(path)], lambda _: None)
