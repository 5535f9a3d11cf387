"""The test splits, which only the final benchmark may read, once at the end of each run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hpo.recipes.comparison import Comparison
from hpo.study import Study
from hpo.training.data import Split
from hpo.training.datasets import read_cifar, read_digits, read_fashion_mnist
from hpo.training.tensor_file import read_own_test
from hpo.training.train import Training
from hpo.trial.objective import AtEnd

TEST_ACCURACY, TEST_LOSS, TEST_IMAGES = "test accuracy", "test loss", "test images"
"""User attributes in which a run's trial keeps its results."""

FASHION_MNIST_TEST = {
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""SHA-256 of the uncompressed files, as for the training split."""


def end_of_run(study: Study, data_dir: Path) -> AtEnd | None:
    """Make the function that measures a benchmark's runs on the test split at their ends; None for any other study.

    Raises:
        DataDamaged: A file of the test split is cut short or altered.
        DataUnavailable: The test split is not on this machine.
    """
    if not isinstance(study.space, Comparison) or study.space.is_confirmation:
        return None
    dataset, checksum = study.settings.dataset, study.settings.split
    load_test_split(dataset, data_dir, checksum)

    def measure(training: Training) -> dict[str, Any]:
        """Evaluate a run's final weights on the whole test split."""
        evaluated = training.evaluate(load_test_split(dataset, data_dir, checksum).to(training.device))
        return {TEST_ACCURACY: evaluated.accuracy, TEST_LOSS: evaluated.loss, TEST_IMAGES: evaluated.images}

    return measure


def load_test_split(name: str, data_dir: Path, checksum: str | None = None) -> Split:
    """Load a test split from this machine's disk.

    Args:
        checksum: Which of the images of that name; needed for one's own alone.

    Raises:
        BadInput: There are only other images of that name.
        DataDamaged: A file is cut short or altered.
        DataUnavailable: The data set is not on this machine.
    """
    match name:
        case "cifar10":
            from torchvision.datasets import CIFAR10

            return read_cifar("cifar10", data_dir, CIFAR10.test_list)
        case "cifar100":
            from torchvision.datasets import CIFAR100

            return read_cifar("cifar100", data_dir, CIFAR100.test_list)
        case "fashion_mnist":
            return read_fashion_mnist(data_dir, FASHION_MNIST_TEST)
        case "digits":
            return read_digits()[1]
        case _:
            assert checksum is not None
            return read_own_test(name, checksum, data_dir)
