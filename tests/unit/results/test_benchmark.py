"""Test how test splits are read, and what is said of figures on them."""

import gzip
import hashlib
import pickle
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10

from hpo.cli.benchmark import benchmark as command
from hpo.cli.options import AugmentChoice, PrecisionChoice
from hpo.errors import BadInput, DataDamaged, DataUnavailable
from hpo.recipes.recipe import documented_runs
from hpo.results import test_split
from hpo.results.benchmark import Result, Run, to_dict, verdict
from hpo.results.test_split import load_test_split
from hpo.training.datasets import DEBIAN_FASHION_MNIST

NOWHERE = Path("/nonexistent")
DOCUMENTED = documented_runs()
BASE = DOCUMENTED["smooth_lr"].recipe.at(iterations=640, seed=0)


# Test splits


def rows_of(split):
    return [(image.numpy().tobytes(), int(label)) for image, label in zip(split.images, split.labels, strict=True)]


def test_the_test_split_of_the_digits_is_what_the_search_leaves(digits):
    images, labels = load_digits(return_X_y=True)
    whole = {(np.rint(i * (255 / 16)).astype(np.uint8).tobytes(), int(n)) for i, n in zip(images, labels, strict=True)}

    found = load_test_split("digits", NOWHERE)

    assert len(found) == 360
    assert set(rows_of(found)) == whole - set(rows_of(digits.train)) - set(rows_of(digits.validation))


@pytest.fixture
def cifar_test(tmp_path, monkeypatch):
    """Write a test batch of 20 images, and no training batches."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 3_072), dtype=np.uint8)
    content = pickle.dumps({"data": pixels, "labels": [i % 10 for i in range(20)]}, protocol=2)
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    (folder / "test_batch").write_bytes(content)
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", hashlib.md5(content).hexdigest()]])
    return pixels


def test_the_test_split_of_cifar10_has_the_pixels_and_labels_of_its_file(tmp_path, cifar_test):
    found = load_test_split("cifar10", tmp_path)

    assert found.labels.tolist() == [i % 10 for i in range(20)]
    assert torch.equal(found.images.permute(0, 3, 1, 2).reshape(20, 3_072), torch.from_numpy(cifar_test))


def test_a_test_batch_that_is_missing_or_altered_is_named(tmp_path, cifar_test):
    path = tmp_path / CIFAR10.base_folder / "test_batch"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataDamaged, match=f"^{path} is damaged: its md5 is "):
        load_test_split("cifar10", tmp_path)
    path.unlink()
    with pytest.raises(DataDamaged, match=f"^{path} is missing; "):
        load_test_split("cifar10", tmp_path)
    path.parent.rmdir()
    with pytest.raises(DataUnavailable, match=r"^cifar10 is not in "):
        load_test_split("cifar10", tmp_path)


def test_the_test_split_of_fashion_mnist_has_the_pixels_and_labels_of_its_files(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (30, 28, 28), dtype=np.uint8)
    sums, folder = {}, tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for name, array in zip(test_split.FASHION_MNIST_TEST, (images, np.arange(30, dtype=np.uint8) % 10), strict=True):
        content = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        sums[name] = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(test_split, "FASHION_MNIST_TEST", sums)

    found = load_test_split("fashion_mnist", tmp_path)

    assert found.labels.tolist() == [i % 10 for i in range(30)]
    assert torch.equal(found.images[..., 0], torch.from_numpy(images))


def test_debians_test_split_of_fashion_mnist_is_whole():
    if not DEBIAN_FASHION_MNIST.is_dir():
        pytest.skip(f"Debian's dataset-fashion-mnist is not installed: there is no {DEBIAN_FASHION_MNIST}")

    found = load_test_split("fashion_mnist", NOWHERE)

    assert found.images.shape == (10_000, 28, 28, 1)
    assert torch.bincount(found.labels).tolist() == [1_000] * 10


# What is said


def run(name, accuracies, recipe=BASE, documented=None):
    losses = tuple(1 - accuracy for accuracy in accuracies)
    return Run(name=name, recipe=recipe, documented=documented, test_accuracy=tuple(accuracies), test_loss=losses)


def result(candidate, baseline, **changed):
    made = Result(
        study="s.benchmark",
        dataset="digits",
        iterations=640,
        trial=7,
        seeds=tuple(range(11, 11 + len(baseline))),
        runs=(
            run("candidate", candidate, replace(BASE, dropout=0.3)),
            run("baseline", baseline, documented=DOCUMENTED["smooth_lr"]),
        ),
        missing=(),
        waiting=0,
    )
    return replace(made, **changed)


@pytest.mark.parametrize(
    ("candidate", "baseline", "words"),
    [
        (
            (0.92, 0.93, 0.95),
            (0.90, 0.90, 0.91),
            "better than the base recipe: its test accuracy differs by +0.0300 "
            "(95% interval +0.0052 to +0.0548, 3 seeds, p = 0.035).",
        ),
        (
            (0.90, 0.90, 0.91),
            (0.92, 0.93, 0.95),
            "worse than the base recipe: its test accuracy differs by -0.0300 "
            "(95% interval -0.0548 to -0.0052, 3 seeds, p = 0.035).",
        ),
        (
            (0.92, 0.93, 0.90),
            (0.90, 0.94, 0.89),
            "not shown to be better than the base recipe: its test accuracy differs by +0.0067 "
            "(95% interval -0.0313 to +0.0446, 3 seeds, p = 0.53).",
        ),
        ((), (), "not shown to be better than the base recipe: this needs at least two seeds, or better five."),
        ((0.9,), (0.8,), "not shown to be better than the base recipe: this needs at least two seeds, or better five."),
        (
            (0.92, 0.93),
            (0.90, 0.91),
            "not shown to be better than the base recipe: the difference is the same on every seed.",
        ),
    ],
)
def test_the_verdict_says_better_worse_or_not_shown_to_be_better(candidate, baseline, words):
    assert verdict(result(candidate, baseline)) == f"The best recipe (trial 7) is {words}"


def test_a_candidate_some_of_whose_runs_have_no_figure_is_not_called_better():
    found = result((0.92, 0.93, 0.95), (0.90, 0.90, 0.91), missing=("candidate on seed 5: diverged",))

    assert verdict(found) == (
        "The best recipe (trial 7) is not shown to be better than the base recipe: 1 of its and the base recipe's runs "
        "have no result."
    )


def test_a_best_trial_that_is_the_baseline_is_called_so_and_has_a_difference_of_zero():
    found = result((), (0.90, 0.95), runs=(run("baseline", (0.90, 0.95)),))

    assert verdict(found) == "The best recipe (trial 7) is the base recipe itself, so there is nothing to compare."
    assert found.candidate is found.baseline
    assert to_dict(found)["difference"] == {"mean": 0, "ci95": None, "p_value": None}


def test_the_document_has_what_the_contract_names():
    found = to_dict(result((0.92, 0.94), (0.90, 0.91)))

    assert {name: found[name] for name in ("seeds", "comparable", "documented")} == {
        "seeds": [11, 12],
        "comparable": False,
        "documented": {"accuracy": 0.8934999704360962, "loss": 0.6009443402290344},
    }
    assert found["candidate"] == {
        "recipe": replace(BASE, dropout=0.3).to_dict(),
        "test_accuracy": [0.92, 0.94],
        "test_loss": [1 - 0.92, 1 - 0.94],
        "mean": pytest.approx(0.93),
        "ci95": pytest.approx((0.8029, 1.0571), abs=1e-4),
        "loss_mean": pytest.approx(0.07),
        "loss_ci95": pytest.approx((-0.0571, 0.1971), abs=1e-4),
    }
    assert found["baseline"].keys() == found["candidate"].keys()
    assert found["difference"].keys() == {"mean", "ci95", "p_value"}


@pytest.mark.parametrize(
    ("dataset", "iterations", "comparable"),
    [("cifar10", 64_000, True), ("cifar10", 32_000, False), ("fashion_mnist", 64_000, False)],
)
def test_documented_figures_are_compared_at_their_own_data_and_budget_only(dataset, iterations, comparable):
    assert result((), (), dataset=dataset, iterations=iterations).comparable == comparable


# Options


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            {"all_documented": True, "study_name": "mine"},
            "--study mine: cannot be combined with --all-documented; use --name to name the new study",
        ),
        (
            {"dataset": "digits"},
            "--dataset digits: only valid with --all-documented; otherwise the study's setting is used",
        ),
        (
            {"image_size": 32},
            "--image-size 32: only valid with --all-documented; otherwise the study's setting is used",
        ),
        (
            {"augment": AugmentChoice.crop_flip},
            "--augment crop,flip: only valid with --all-documented; otherwise the study's setting is used",
        ),
        (
            {"precision": PrecisionChoice.bf16},
            "--precision bf16: only valid with --all-documented; otherwise the study's setting is used",
        ),
        (
            {"name": "a/b"},
            "study name 'a/b': allowed: 1 to 100 letters, digits, '.', '_' and '-', the first a letter",
        ),
        ({"artifacts": "ftp://x"}, "artifacts 'ftp://x': allowed: a folder, "),
    ],
)
def test_options_that_go_with_nothing_are_refused_before_anything_is_opened(options, problem):
    with pytest.raises(BadInput) as refused:
        command(**options, storage="no URL")

    assert str(refused.value).startswith(problem)
