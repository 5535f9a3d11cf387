"""Test what the checks of a machine say, on machines that are made up."""

from importlib import metadata

import pytest
import torch
from packaging.requirements import Requirement

from hpo import DISTRIBUTION
from hpo.errors import ArtifactsUnavailable, DataDamaged, DeviceLost
from hpo.launch import doctor
from hpo.launch.doctor import (
    MEND,
    Finding,
    check_artifacts,
    check_data,
    check_devices,
    check_promise,
    check_training,
    describe_data,
    describe_space,
    list_mismatches,
)
from hpo.settings import DEFAULT_CHECKPOINT_GB, GIGABYTE
from hpo.training.datasets import DatasetState

CPU = torch.device("cpu")
BUDGET = int(DEFAULT_CHECKPOINT_GB * GIGABYTE)


@pytest.mark.parametrize(
    ("requirement", "version", "wanted"),
    [
        ("torch>=2.9,<3", "2.14.1", []),
        ("torch>=2.9,<3", "2.9.0+cpu", []),
        ("torch>=2.9,<3", "2.8.0", ["torch 2.8.0 (needs <3,>=2.9)"]),
        ("torch>=2.9,<3", "2.15.0rc1", []),
        ("torch>=2.9,<3", "3.0", ["torch 3.0 (needs <3,>=2.9)"]),
        ("torch>=2.9,<3", None, ["torch is not installed (needs <3,>=2.9)"]),
        ("boto3>=1.35; extra == 's3'", None, []),
        ("boto3>=1.35; extra == 's3'", "1.0", ["boto3 1.0 (needs >=1.35)"]),
        ("ruff>=0.12; extra == 'dev'", "0.1", []),
        ("tomli; python_version < '3'", None, []),
    ],
)
def test_versions_are_compared_with_the_ranges_of_the_distribution(requirement, version, wanted):
    assert list(list_mismatches([Requirement(requirement)], {requirement.split(">")[0]: version}.get)) == wanted


def test_the_ranges_are_those_of_the_installed_distribution(monkeypatch):
    needed = [Requirement(text) for text in metadata.requires(DISTRIBUTION)]
    assert {"torch", "optuna", "sqlalchemy"} <= {each.name for each in needed if each.marker is None}
    assert [finding.status for finding in doctor.check_versions()] == ["ok"]

    monkeypatch.setattr(doctor, "find_version", lambda name: None if name == "optuna" else metadata.version(name))
    [finding] = doctor.check_versions()

    assert (finding.status, finding.text) == ("failed", "optuna is not installed (needs <5.1,>=5.0)")
    assert finding.remedy == f"run `pip install --upgrade {DISTRIBUTION}`"


@pytest.mark.parametrize(
    ("states", "wanted"),
    [
        (["complete"], Finding(check="data", status="ok", text="a")),
        (
            ["complete", "missing", "missing"],
            Finding(check="data", status="ok", text="a; missing: b, c (`hpo data fetch NAME` downloads one)"),
        ),
        (
            ["complete", "damaged"],
            Finding(
                check="data",
                status="failed",
                text="b is damaged: why",
                remedy="delete the data set's files, then run `hpo data fetch NAME`",
            ),
        ),
    ],
)
def test_only_a_damaged_data_set_is_a_failure(states, wanted):
    found = [DatasetState(title=title, state=state, detail="why") for title, state in zip("abc", states, strict=False)]

    assert describe_data(found) == wanted


def test_a_damaged_file_of_ones_own_images_is_a_failure(monkeypatch, tmp_path):
    def damaged(_folder):
        raise DataDamaged("file x is cut short")

    monkeypatch.setattr(doctor, "list_states", damaged)

    [finding] = check_data(tmp_path)

    assert (finding.status, finding.text) == ("failed", "file x is cut short")


@pytest.mark.parametrize(
    ("free_bytes", "status"), [(None, "ok"), (BUDGET, "ok"), (BUDGET - 1, "failed"), (0, "failed")]
)
def test_artifacts_need_the_space_of_the_checkpoints(free_bytes, status):
    assert describe_space("done", free_bytes).status == status


def test_artifacts_are_left_as_they_were(tmp_path):
    assert [finding.status for finding in check_artifacts(str(tmp_path))] == ["ok"]
    [finding] = check_artifacts(str(tmp_path / "new" / "folder"))

    assert "new/folder does not exist yet; `hpo run` will create it, " in finding.text
    assert list(tmp_path.iterdir()) == []


def test_artifacts_below_a_file_are_a_failure(tmp_path):
    (tmp_path / "file").touch()

    [finding] = check_artifacts(f"{tmp_path}/file")

    assert (finding.status, finding.remedy) == ("failed", "choose another with --artifacts")
    assert finding.text.endswith("file is not a writable folder")


def test_artifacts_that_take_no_file_are_a_failure(monkeypatch, tmp_path):
    def full(_url):
        raise ArtifactsUnavailable("artifacts x: No space left on device")

    monkeypatch.setattr(doctor, "time_artifacts", full)

    [finding] = check_artifacts(str(tmp_path))

    assert (finding.status, finding.text) == ("failed", "artifacts x: No space left on device")
    assert finding.remedy == "free some space, or make the store reachable"


@pytest.mark.parametrize(
    ("file", "asked", "visible", "status"),
    [
        (None, "auto", None, "ok"),
        ("/dev/nvidia0", "auto", None, "failed"),
        ("/dev/nvidia0", "auto", "", "ok"),
        ("/dev/nvidia0", "cpu", None, "ok"),
    ],
)
def test_a_gpu_on_which_cuda_does_not_start_is_a_failure_unless_it_is_not_wanted(
    monkeypatch, file, asked, visible, status
):
    monkeypatch.setattr(doctor, "find_gpu_file", lambda: file)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "why_no_cuda", lambda: "the driver is too old")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    [finding] = check_devices(asked)

    assert finding.status == status
    assert ("the driver is too old" in finding.text) == (status == "failed")


def test_a_device_that_does_not_compute_is_a_failure(monkeypatch):
    def lost(_device):
        raise DeviceLost("device cpu: it is gone")

    monkeypatch.setattr(doctor, "require_device", lost)

    finding = check_promise(CPU, "fp32", None)

    assert (finding.status, finding.text) == ("failed", "cpu in fp32: training failed: device cpu: it is gone")


@pytest.mark.parametrize(
    ("broken", "status", "text", "remedy"),
    [
        (None, "ok", "cpu in fp32: 12 steps repeat bit for bit, interrupted 7 times, and in a new process", None),
        ("in a new process: a bit", "failed", "cpu in fp32: training does not repeat, in a new process: a bit", MEND),
    ],
)
def test_a_broken_promise_is_a_failure_that_says_what_differs(monkeypatch, broken, status, text, remedy):
    monkeypatch.setattr(doctor, "find_broken", lambda *_args: broken)

    assert check_promise(CPU, "fp32", None) == Finding(check="promise", status=status, text=text, remedy=remedy)


def test_a_new_process_that_cannot_train_is_a_failure(monkeypatch):
    def busy(_device):
        raise doctor.subprocess.CalledProcessError(1, "python", stderr="Traceback\nRuntimeError: all GPUs are busy\n")

    monkeypatch.setattr(doctor, "walk_in_new_process", busy)

    *_, finding = check_training(CPU, "cpu")

    assert (finding.status, finding.text) == (
        "failed",
        "a new process could not train on cpu: RuntimeError: all GPUs are busy",
    )
