"""Test how a worker comes to its device, on a machine whose GPUs are made up."""

import logging

import pytest
import torch

from hpo.errors import BadInput, DeviceLost
from hpo.worker import device
from hpo.worker.device import find_gpu_file, open_device, pick_device, require_device, why_no_cuda

OLD_DRIVER = """\
The NVIDIA driver on your system is too old (found version 12020). Please update your GPU driver by downloading and \
installing a new version from the URL: http://www.nvidia.com/Download/index.aspx Alternatively, go to: \
https://pytorch.org to install a PyTorch version that has been compiled with your version of the CUDA driver."""
NO_DRIVER = """\
Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver from
http://www.nvidia.com/Download/index.aspx"""


@pytest.fixture
def cuda(monkeypatch):
    """Give a machine with so many GPUs, or one where CUDA does not start, and the calls that reach CUDA."""
    calls = []

    def make(count, failure=None):
        def start():
            if failure is not None:
                raise failure

        def ones(*shape, **_kwargs):
            calls.append("ones")
            return torch.zeros(*shape)

        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0 and failure is None)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "init", start)
        monkeypatch.setattr(torch.cuda, "set_device", lambda chosen: calls.append(f"set {chosen}"))
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("empty"))
        monkeypatch.setattr(torch, "ones", ones)
        return calls

    return make


@pytest.mark.parametrize(
    ("count", "name", "picked"),
    [
        (0, "auto", "cpu"),
        (0, "cpu", "cpu"),
        (2, "cpu", "cpu"),
        (2, "auto", "cuda:0"),
        (2, "cuda", "cuda:0"),
        (2, "cuda:1", "cuda:1"),
    ],
)
def test_a_device_is_picked_by_name(cuda, count, name, picked):
    cuda(count)
    assert pick_device(name) == torch.device(picked)


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (RuntimeError(OLD_DRIVER), "The NVIDIA driver on your system is too old (found version 12020)"),
        (RuntimeError(NO_DRIVER), "Found no NVIDIA driver on your system"),
        (RuntimeError("No CUDA GPUs are available"), "No CUDA GPUs are available"),
        (AssertionError("Torch not compiled with CUDA enabled"), "Torch not compiled with CUDA enabled"),
    ],
)
def test_where_cuda_does_not_start_torch_says_why(cuda, failure, reason):
    cuda(1, failure)  # the driver's library counts GPUs even where CUDA cannot use them
    with pytest.raises(BadInput) as refused:
        open_device("cuda")
    assert str(refused.value) == f"device 'cuda': CUDA does not start: {reason}"


def test_a_gpu_that_is_not_there_is_refused(cuda):
    cuda(2)
    with pytest.raises(BadInput, match=r"^device 'cuda:2': this machine has 2 GPUs$"):
        pick_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "meta", ""])
def test_other_names_are_refused(name):
    with pytest.raises(BadInput, match=r"allowed: auto, cpu, cuda and cuda:N$"):
        pick_device(name)


def test_a_worker_makes_its_gpu_the_current_one_and_frees_memory_before_it_tries_it(cuda):
    calls = cuda(2)
    require_device(open_device("cuda:1"))
    assert calls == ["set cuda:1", "empty", "ones"]


def test_a_device_that_computes_nothing_is_told_at_the_start(cuda, monkeypatch):
    def fail(*_args, **_kwargs):
        raise RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable\nmore")

    cuda(1)
    monkeypatch.setattr(torch, "ones", fail)
    with pytest.raises(DeviceLost, match=r"^device cuda:0: CUDA error: CUDA-capable device\(s\) is/are busy"):
        require_device(open_device("cuda"))


def test_the_processor_computes():
    assert require_device(torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ([], None),
        (["null", "nvidiactl", "nvidia-uvm"], None),
        (["nvidia1", "nvidia0", "nvidiactl"], "nvidia0"),
        (["dxg"], "dxg"),
    ],
)
def test_a_gpu_shows_itself_by_its_device_file(tmp_path, files, found):
    for name in files:
        (tmp_path / name).touch()
    assert find_gpu_file(tmp_path) == (found and tmp_path / found)


@pytest.mark.parametrize(
    ("file", "visible", "warned"),
    [
        (None, None, []),
        ("/dev/nvidia0", "", []),
        (
            "/dev/nvidia0",
            None,
            [
                "this machine has a GPU (/dev/nvidia0), but CUDA does not start: "
                "Found no NVIDIA driver on your system; "
                "training on the CPU"
            ],
        ),
    ],
)
def test_auto_takes_the_cpu_beside_a_gpu_that_cannot_be_used_and_says_so(
    cuda, monkeypatch, caplog, file, visible, warned
):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    cuda(0, RuntimeError(NO_DRIVER))
    monkeypatch.setattr(device, "find_gpu_file", lambda: file)
    with caplog.at_level(logging.INFO):
        assert open_device("auto") == torch.device("cpu")
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == warned


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA starts here")
def test_torch_itself_gives_a_reason_of_one_line():
    assert len(why_no_cuda()) > 10
    assert "\n" not in why_no_cuda()
