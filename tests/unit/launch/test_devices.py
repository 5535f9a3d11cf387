"""Test which device of a machine each worker gets, from what NVIDIA's tool lists."""

import logging

import pytest
import torch

from hpo.errors import BadInput
from hpo.launch import devices
from hpo.launch.devices import (
    VISIBLE,
    WorkerDevice,
    choose_devices,
    find_gpus,
    find_native_precision,
    parse_listing,
    restrict,
)
from hpo.launch.local import LocalPlace
from hpo.training.numerics import native_precision

TWO = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aaaa-0)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-bbbb-1)
"""
SLICED = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaa-0)
  MIG 1g.10gb     Device  0: (UUID: MIG-cccc-0)
  MIG 1g.10gb+me  Device  1: (UUID: MIG-dddd-1)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bbbb-1)
GPU 2: NVIDIA A100-SXM4-40GB (UUID: GPU-eeee-2)
  MIG 3g.20gb Device 0: (UUID: MIG-GPU-eeee-2/1/0)
"""


@pytest.mark.parametrize(
    ("text", "listed"),
    [
        ("", []),
        ("No devices found.\n", []),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", []),
        ("GPU 0: NVIDIA A100 (UUID: aaaa)\n", []),
        ("  MIG 1g.10gb Device 0: (UUID: MIG-cccc)\n", []),
        (TWO, [("GPU 0", "GPU-aaaa-0", "GPU-aaaa-0"), ("GPU 1", "GPU-bbbb-1", "GPU-bbbb-1")]),
        (
            "Unable to determine the device handle for GPU 0000:17:00.0\n" + TWO.splitlines()[1],
            [("GPU 1",) + ("GPU-bbbb-1",) * 2],
        ),
        (
            SLICED,
            [
                ("GPU 0 MIG 0", "MIG-cccc-0", "GPU-aaaa-0"),
                ("GPU 0 MIG 1", "MIG-dddd-1", "GPU-aaaa-0"),
                ("GPU 1", "GPU-bbbb-1", "GPU-bbbb-1"),
                ("GPU 2 MIG 0", "MIG-GPU-eeee-2/1/0", "GPU-eeee-2"),
            ],
        ),
    ],
)
def test_gpus_are_read_from_the_listing_and_a_sliced_one_counts_as_its_slices(text, listed):
    assert [(device.name, device.uuid, device.gpu_uuid) for device in parse_listing(text)] == listed


@pytest.mark.parametrize(
    ("visible", "left"),
    [
        (None, ["MIG-cccc-0", "MIG-dddd-1", "GPU-bbbb-1", "MIG-GPU-eeee-2/1/0"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("GPU-bbbb-1", ["GPU-bbbb-1"]),
        ("GPU-b", ["GPU-bbbb-1"]),
        ("GPU-aaaa-0", ["MIG-cccc-0", "MIG-dddd-1"]),
        ("MIG-dddd-1, MIG-cccc-0", ["MIG-dddd-1", "MIG-cccc-0"]),
        ("GPU-bbbb-1,GPU-bbbb-1", ["GPU-bbbb-1"]),
        ("GPU-bbbb-1,GPU-gone,MIG-cccc-0", ["GPU-bbbb-1"]),
        ("2,0", ["2", "0"]),
        ("1,3,0", ["1"]),
        ("1,²", ["1"]),
    ],
)
def test_of_the_listed_devices_those_are_taken_that_cuda_may_see(visible, left):
    found = restrict(parse_listing(SLICED), visible)
    assert [device.environment for device in found] == [{VISIBLE: entry} for entry in left]
    assert {device.option for device in found} <= {"cuda"}


def gpu(index):
    return WorkerDevice(name=f"GPU {index}", option="cuda", environment={VISIBLE: f"GPU-{index}"})


CPU = WorkerDevice(name="cpu", option="cpu")


@pytest.mark.parametrize(
    ("workers", "gpus", "chosen"),
    [
        (None, [], [CPU, CPU, CPU]),
        (1, [], [CPU]),
        (None, [gpu(0), gpu(1)], [gpu(0), gpu(1)]),
        (1, [gpu(0), gpu(1)], [gpu(0)]),
        (5, [gpu(0), gpu(1)], [gpu(0), gpu(1), gpu(0), gpu(1), gpu(0)]),
    ],
)
def test_each_worker_gets_a_device_and_more_workers_share_them_in_turn(workers, gpus, chosen):
    assert choose_devices(workers, gpus, cores=3) == chosen


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Give a machine on which torch counts so many GPUs and `nvidia-smi`, where there is one, is this script."""

    def make(count, script=None):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv(VISIBLE, raising=False)
        if script is not None:
            (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
            (tmp_path / "nvidia-smi").chmod(0o755)

    return make


def listing(text):
    return f"[ \"$*\" = -L ] && echo '{text}'"


def test_workers_get_gpus_by_uuid(machine, caplog):
    machine(2, listing(TWO))
    assert [(device.name, device.environment) for device in find_gpus()] == [
        ("GPU 0", {VISIBLE: "GPU-aaaa-0"}),
        ("GPU 1", {VISIBLE: "GPU-bbbb-1"}),
    ]
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("script", "visible", "reason"),
    [
        (None, None, "[Errno 2] No such file or directory: 'nvidia-smi'"),
        ("exit 9", None, "Command '('nvidia-smi', '-L')' returned non-zero exit status 9."),
        ("echo No devices found.", None, "`nvidia-smi -L` lists no GPU"),
        ("exec /bin/sleep 60", None, "Command '('nvidia-smi', '-L')' timed out after 0.5 seconds"),
        (listing(TWO), "GPU-other", "CUDA_VISIBLE_DEVICES names no listed GPU"),
    ],
)
def test_without_a_listing_workers_get_what_torch_counts_and_the_log_says_why(
    machine, monkeypatch, caplog, script, visible, reason
):
    machine(2, script)
    monkeypatch.setattr(devices, "LISTING_S", 0.5 if script and "sleep" in script else 60.0)
    if visible:
        monkeypatch.setenv(VISIBLE, visible)

    assert find_gpus() == [WorkerDevice(name=f"cuda:{index}", option=f"cuda:{index}") for index in range(2)]

    assert caplog.record_tuples == [
        ("hpo.launch.devices", logging.WARNING, f"{reason}; using the 2 devices that torch counts")
    ]


@pytest.mark.parametrize(("file", "warnings"), [(None, 0), ("/dev/nvidia0", 1)])
def test_where_torch_has_no_use_for_gpus_nothing_is_asked_and_the_log_says_so(
    machine, monkeypatch, caplog, file, warnings
):
    machine(0, "exit 9")
    monkeypatch.setattr("hpo.worker.device.find_gpu_file", lambda: file)
    assert find_gpus() == []
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * warnings


def test_a_worker_is_started_on_its_device_alone(monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr("hpo.launch.local.start_worker", lambda *given: started.append(given[:2]))
    place = LocalPlace(gpu(1), ["--study", "small"], {"HPO_STORAGE": "sqlite:///hpo.db"}, tmp_path / "small.log")

    place.start()

    options, environment = (
        ["--study", "small", "--device", "cuda"],
        {"HPO_STORAGE": "sqlite:///hpo.db", VISIBLE: "GPU-1"},
    )
    assert (place.name, started) == ("GPU 1", [(options, environment)])


@pytest.mark.slow
@pytest.mark.parametrize("gpus", [0, 1])
def test_the_precision_is_found_without_starting_cuda_in_the_driver(monkeypatch, gpus):
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr("torch.cuda.init", lambda: pytest.fail("CUDA is started"))

    assert find_native_precision() == native_precision(torch.device("cpu"))  # what the other process sees here, too


def test_a_gpu_that_does_not_tell_its_precision_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr(devices, "_ASK_PRECISION", "raise RuntimeError('all CUDA-capable devices are busy')")

    with pytest.raises(BadInput) as refused:
        find_native_precision()

    assert str(refused.value) == (
        "--precision auto: cannot find out what the GPU supports (RuntimeError: all CUDA-capable devices are busy); "
        "pass fp32, tf32 or bf16"
    )
