"""Small folders of images and arrays, in the layouts that can be searched."""

from pathlib import Path

import numpy as np
from PIL import Image


def pixels(number, shape=(8, 8, 3)):
    """Make an image, each time the same, and different for each number."""
    return np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)


def write_image(path: Path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.squeeze()).save(path)
    return path


def write_classes(root: Path, images: int, shape=(8, 8, 3), classes=("cat", "dog"), first=0):
    """Write images of each class as PNG files, which keep every pixel, and return the images of each class."""
    written = {}
    for index, name in enumerate(classes):
        written[name] = [pixels(first + 1000 * index + number, shape) for number in range(images)]
        for number, image in enumerate(written[name]):
            write_image(root / name / f"{number:03}.png", image)
    return written


def write_arrays(path: Path, **arrays):
    """Write an .npz file."""
    np.savez(path, **arrays)
    return path


def small_arrays(train=20, test=4, shape=(8, 8)):
    """Make the arrays of two classes, as Keras keeps them."""
    return {
        "x_train": pixels(1, (train, *shape)),
        "y_train": np.arange(train) % 2,
        "x_test": pixels(2, (test, *shape)),
        "y_test": np.arange(test) % 2,
    }
