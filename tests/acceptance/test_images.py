"""Search on a folder of the user's own images as a user would, from the folder to a model that names their classes."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.acceptance.support import Shell

CLASSES = ("blue", "green", "red")


def write_colours(root: Path, images: int) -> None:
    """Write JPEG files of different sizes, in each of which one colour is bright."""
    draw = np.random.default_rng(0)
    for channel, name in enumerate(reversed(CLASSES)):
        (root / name).mkdir(parents=True)
        for number in range(images):
            pixels = draw.integers(0, 100, (10 + number % 3, 12, 3), dtype=np.uint8)
            pixels[..., channel] += 150
            Image.fromarray(pixels).save(root / name / f"{number}.jpg")


@pytest.mark.slow
def test_a_folder_of_images_is_searched_benchmarked_reported_and_exported(shell: Shell) -> None:
    folder = shell.folder / "colours"
    write_colours(folder / "train", 20)
    write_colours(folder / "test", 4)
    (folder / "train" / "red" / "license.txt").touch()
    options = ("run", "--space", "baseline", "--iterations", "32", "--precision", "fp32", "--augment", "crop")
    line: tuple[str, ...] = (*options, "--dataset", "colours")

    refused = shell.hpo(*line, "--trials", "1")
    assert refused.code == 2
    assert refused.err.endswith("--image-size N scales and crops all images to one size\n")
    assert not (shell.folder / "hpo.db").exists()

    submitted = shell.hpo(*line, "--trials", "1", "--image-size", "8", "--submit", "--json")
    assert "skipped 1 entry without images" in submitted.err
    assert submitted.json["study"] == "baseline-colours"

    shutil.rmtree(shell.folder / "data")
    missing = shell.hpo("worker")
    assert (missing.code, "data set colours is not in" in missing.err) == (1, True)
    trained = shell.hpo("worker", "--dataset", "colours")
    assert (trained.code, "finished 1 trial of baseline-colours" in trained.err) == (0, True)

    folder.rename(shell.folder / "moved")
    benchmarked = shell.hpo("benchmark", "--seeds", "1", "--workers", "1", "--json")
    assert benchmarked.json["dataset"] == "colours"
    assert len(benchmarked.json["seeds"]) == 1
    assert shell.hpo("report").code == 0
    assert shell.hpo("best", "--export", "model").code == 0
    card = (shell.folder / "model" / "README.md").read_text()
    assert "images of 8x8x3 (height, width, channels) into the classes blue, green, red." in card
    assert "--dataset colours --augment crop --iterations 32" in card
    classified = shell.run(sys.executable, "model/classify.py", "moved/test/red/1.jpg")
    assert classified.out.strip() in CLASSES
