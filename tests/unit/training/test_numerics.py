"""Test what a key says of processor and libraries, and that other processors get other keys."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from hpo.errors import BadInput
from hpo.training import numerics
from hpo.training.numerics import Numerics, describe_cpu, kernel_variables, prepare_torch, require_precision

EPYC = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 17
model name\t: AMD EPYC
flags\t\t: fpu vme sse sse2 avx avx2 avx512f avx512_bf16 fma f16c

processor\t: 1
vendor_id\t: AuthenticAMD
flags\t\t: fpu
"""
GRAVITON = """processor\t: 0
BogoMIPS\t: 2100.00
Features\t: fp asimd sve bf16 i8mm
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x1
CPU part\t: 0xd40
"""
CACHES = "32K/32K/1024K/32768K"


def test_a_processor_is_described_by_what_its_kernels_are_chosen_by():
    assert describe_cpu(EPYC, CACHES, "AVX512") == (
        "AuthenticAMD 25-17, AVX512, instruction sets 749c168f, caches 32K/32K/1024K/32768K"
    )
    assert describe_cpu(GRAVITON, "64K", "SVE256").startswith("0x41 8-0x1-0xd40, SVE256, instruction sets ")


@pytest.mark.parametrize(
    ("changed", "caches", "capability"),
    [
        (EPYC.replace("AuthenticAMD", "GenuineIntel"), CACHES, "AVX512"),
        (EPYC.replace(": 25", ": 26"), CACHES, "AVX512"),
        (EPYC.replace(": 17", ": 1"), CACHES, "AVX512"),
        (EPYC.replace(" avx512_bf16", ""), CACHES, "AVX512"),
        (EPYC, "32K/32K/512K/32768K", "AVX512"),
        (EPYC, CACHES, "AVX2"),
    ],
    ids=["vendor", "family", "model", "instruction set", "cache", "ATen's capability"],
)
def test_processors_that_may_choose_other_kernels_are_told_apart(changed, caches, capability):
    assert describe_cpu(changed, caches, capability) != describe_cpu(EPYC, CACHES, "AVX512")


@pytest.mark.parametrize(
    "changed",
    [EPYC.replace("AMD EPYC", "AMD EPYC 9654"), EPYC.replace("fpu vme", "vme fpu"), EPYC.partition("\n\n")[0]],
    ids=["its name in a virtual machine", "the order of its flags", "the number of its cores"],
)
def test_what_chooses_no_kernel_is_not_part_of_it(changed):
    assert describe_cpu(changed, CACHES, "AVX512") == describe_cpu(EPYC, CACHES, "AVX512")


def test_the_variables_that_choose_kernels_are_part_of_the_key_and_those_that_do_not_are_not():
    environment = {
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "DNNL_DEFAULT_FPMATH_MODE": "BF16",
        "MKL_CBWR": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "NVIDIA_TF32_OVERRIDE": "0",
        "ONEDNN_VERBOSE": "1",
        "MKL_NUM_THREADS": "4",
        "HOME": "/root",
    }

    assert list(kernel_variables(environment)) == [
        "ATEN_CPU_CAPABILITY",
        "DNNL_DEFAULT_FPMATH_MODE",
        "MKL_CBWR",
        "NVIDIA_TF32_OVERRIDE",
        "ONEDNN_MAX_CPU_ISA",
    ]


@pytest.mark.slow
def test_a_process_that_computes_with_other_instruction_sets_says_so():
    script = (
        "import json, torch; from hpo.training.numerics import numerics\n"
        "print(json.dumps(numerics(torch.device('cpu'), 'fp32').to_dict()))"
    )
    other = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}

    done = subprocess.run([sys.executable, "-c", script], env=os.environ | other, capture_output=True, check=True)

    here, there = numerics.numerics(torch.device("cpu"), "fp32"), Numerics(**json.loads(done.stdout))
    assert ", DEFAULT, " in there.processor
    assert "ATEN_CPU_CAPABILITY=default, ONEDNN_MAX_CPU_ISA=SSE41" in there.libraries
    assert there.processor.partition(",")[0] == here.processor.partition(",")[0]


@pytest.mark.parametrize(
    ("card", "multiprocessors"), [("NVIDIA H100 PCIe", 114), ("NVIDIA H100 80GB HBM3", 132), ("H100 MIG 1g.10gb", 16)]
)
def test_a_gpu_is_described_with_its_multiprocessors(monkeypatch, card, multiprocessors):
    properties = SimpleNamespace(name=card, major=9, minor=0, multi_processor_count=multiprocessors)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: properties)

    described = numerics.numerics(torch.device("cuda:0"), "bf16")

    assert described.processor == f"{card}, 9.0, {multiprocessors} multiprocessors"
    assert described.libraries.startswith(
        f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, convolutions "
    )


@pytest.fixture
def _kept_settings():
    """Leave torch as it was."""
    cudnn, products = torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    deterministic, filled = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic
    fill = filled.fill_uninitialized_memory
    yield
    torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision = cudnn, products
    torch.use_deterministic_algorithms(deterministic)
    filled.fill_uninitialized_memory = fill


@pytest.mark.usefixtures("_kept_settings")
@pytest.mark.parametrize(("precision", "tf32"), [("fp32", "ieee"), ("bf16", "ieee"), ("tf32", "tf32")])
def test_fp32_is_ieee_and_tf32_a_choice_of_its_own(precision, tf32):
    prepare_torch(precision)

    assert (torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision) == (tf32, tf32)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.parametrize(
    ("precision", "capability", "refused"),
    [("bf16", (7, 5), True), ("tf32", (7, 0), True), ("fp32", (7, 0), False), ("bf16", (8, 0), False)],
)
def test_a_card_without_a_native_precision_is_refused(monkeypatch, precision, capability, refused):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "Tesla T4")
    if not refused:
        require_precision(torch.device("cuda:0"), precision)
        return

    with pytest.raises(BadInput, match=f"has no native {precision}"):
        require_precision(torch.device("cuda:0"), precision)


def test_tf32_is_refused_on_a_cpu():
    with pytest.raises(BadInput, match="tf32 needs a GPU"):
        require_precision(torch.device("cpu"), "tf32")
