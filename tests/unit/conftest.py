"""Share the data set and the reference material between the unit tests."""

from pathlib import Path

import hypothesis
import pytest
import torch

from hpo.training.data import Dataset, Split, split_dataset
from hpo.training.datasets import load_dataset

REFERENCE = Path(__file__).parents[3] / "shared" / "reference"

hypothesis.settings.register_profile("hpo", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("hpo")


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Train as workers do: several processes of many threads stand in each other's way."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def reference():
    """Give the path of a file of the reference material, which is not part of the project."""

    def find(name):
        path = REFERENCE / name
        if not path.is_file():
            pytest.skip(f"the reference material is not here: there is no {path}")
        return path

    return find


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load_dataset("digits", Path("/nonexistent"))


@pytest.fixture(scope="session")
def few_digits(digits) -> Dataset:
    """Give 200 of the digits: 180 to train, 20 to validate, so that an epoch is short."""
    whole = Split(images=digits.train.images[:200], labels=digits.train.labels[:200])
    return split_dataset("digits", whole, classes=tuple("0123456789"), augment="crop")
