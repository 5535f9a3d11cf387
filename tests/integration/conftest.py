"""Share a few of the digits between the integration tests."""

from pathlib import Path

import pytest
import torch

from hpo.data import Dataset, Split, load_dataset, split_dataset


@pytest.fixture(scope="session")
def digits() -> Dataset:
    """Give 200 of the digits, trained on as workers do, with one thread."""
    torch.set_num_threads(1)
    whole = load_dataset("digits", Path("/nonexistent")).train
    return split_dataset("digits", Split(images=whole.images[:200], labels=whole.labels[:200]), padding=1, flip=False)
