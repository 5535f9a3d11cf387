"""Test the training step on CUDA without a GPU, as far as devices, layouts and waits go.

It rests on private interfaces of torch; `fake_cuda.py` says which, and what it cannot see.
"""

import shutil

import pytest
import torch

from tests.unit.training import fake_cuda

pytestmark = pytest.mark.slow

NORMS = {"linear": 19, "dropout": 19, "dense": 21}  # the dense head is tried with BatchNorm on the two shortcuts
PARAMETERS = {"linear": 78, "dropout": 78, "dense": 86}
CONVOLUTIONS = 19
ON_GPU = "['cuda:0 torch.float32']"


@pytest.fixture(scope="module")
def seen():
    if shutil.which("gcc") is None:
        pytest.skip("there is no gcc, which compiles a stub of CUDA's driver")
    if torch.version.cuda is None:
        pytest.skip("torch is built without CUDA")
    if torch.cuda.is_available():
        pytest.skip("CUDA starts here, and would be asked instead of its stub")
    return fake_cuda.run()


def good_step(precision, head):
    kind = {"bf16": "bfloat16", "fp32": "float32"}[precision]
    layers = {"convolution": CONVOLUTIONS, "batch_norm": NORMS[head]}
    return {
        "waits": [],
        "layers": {
            f"{layer}{way} {kind} channels last": count for layer, count in layers.items() for way in ("", "_backward")
        },
        "updates": {f"{ON_GPU} same strides": PARAMETERS[head]},
    }


@pytest.mark.parametrize("head", ["linear", "dropout", "dense"])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_step_waits_for_nothing_mixes_no_devices_and_keeps_layouts(seen, precision, head):
    good = good_step(precision, head)
    assert seen["walks"][f"{precision} {head}"] == good | {
        "restored": good,  # from a state on the CPU, as from a checkpoint
        "restored strides": "same",
        "model on": ["cuda:0"],
        "state on": ["cpu"],
    }


@pytest.mark.parametrize(
    ("planted", "error"),
    [
        ("indices", "a generator on cuda:0 for a tensor on cpu"),
        ("mean", "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"),
        ("generator", "a generator on cpu for a tensor on cuda:0"),
    ],
)
def test_what_lies_on_the_wrong_device_is_an_error(seen, planted, error):
    assert seen["planted"][planted] == {"error": error}


@pytest.mark.parametrize(
    ("planted", "part", "found"),
    [
        ("wait", "waits", ["item"]),
        ("momentum", "updates", {"['cpu torch.float32', 'cuda:0 torch.float32'] same strides": 78}),
        ("strides", "updates", {f"{ON_GPU} other strides": 19, f"{ON_GPU} same strides": 59}),
        (
            "channels_first",
            "layers",
            {
                "convolution bfloat16 channels first": 19,
                "batch_norm bfloat16 channels last": 19,
                "batch_norm_backward bfloat16 channels last": 19,
                "convolution_backward bfloat16 channels first": 19,
            },
        ),
    ],
)
def test_a_planted_error_shows(seen, planted, part, found):
    assert seen["planted"][planted] == good_step("bf16", "linear") | {part: found}
