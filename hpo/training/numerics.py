"""What decides the last bit of a result: processor, libraries, precision; and how torch is set up for equal bits."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from hpo.errors import BadInput
from hpo.settings import Precision

CPU_THREADS = 1  # two processes of one thread train nearly twice the images of one process of two

CUBLAS_WORKSPACE = ":4096:8"
"""The setting under which cuBLAS repeats its results with several streams (cuBLAS guide, §2.1.4)."""

KERNEL_VARIABLES = ("ONEDNN_", "DNNL_", "MKL_", "ATEN_", "NVIDIA_TF32_OVERRIDE", "CUDNN_", "CUBLASLT_")
"""Beginnings of the environment variables that make the libraries choose other kernels."""

IRRELEVANT_VARIABLES = ("VERBOSE", "LOG", "NUM_THREADS", "CACHE_DIR")
"""Ends of those that change no result; the number of threads is part of the key by itself."""

INSTRUCTION_SETS = ("avx", "amx", "fma", "sse", "f16c", "vnni", "asimd", "sve", "sme", "bf16", "i8mm", "fphp", "fp")
"""Beginnings of the processor flags for which oneDNN, MKL and ATEN have kernels of their own."""

BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Numerics:
    """What decides the last bit of a result, apart from the recipe and the data.

    Attributes:
        processor: A GPU with its compute capability and number of multiprocessors, or a CPU with vendor, family, model,
            caches and instruction sets. cuDNN and cuBLAS promise equal bits on equal GPUs alone, and torch draws random
            numbers in an order that depends on the number of multiprocessors.
        libraries: Versions and settings of CUDA, cuDNN and cuBLAS, and the environment variables of
            `KERNEL_VARIABLES`.
        threads: Of one training process on a CPU; 0 on other devices.
    """

    device_type: str
    processor: str
    libraries: str
    precision: Precision
    threads: int
    torch_version: str

    def __str__(self) -> str:
        how = [self.precision, f"torch {self.torch_version}"]
        how += [f"{self.threads} threads"] if self.threads != CPU_THREADS and self.device_type == "cpu" else []
        return f"{self.processor} ({', '.join(how)}; {self.libraries})"

    def to_dict(self) -> dict[str, str | int]:
        """Return the fields as JSON values."""
        return asdict(self)


def numerics(device: torch.device, precision: Precision) -> Numerics:
    """Describe how this process computes on a device."""
    return Numerics(
        device_type=device.type,
        processor=_gpu(device) if device.type == "cuda" else describe_cpu(_cpuinfo(), cpu_caches(), _aten_capability()),
        libraries=_libraries(device, os.environ),
        precision=precision,
        threads=torch.get_num_threads() if device.type == "cpu" else 0,
        torch_version=str(torch.__version__),
    )


def prepare_torch(precision: Precision) -> None:
    """Let a recipe give the same bits every time, in every process of one kind of processor.

    To be called before anything is computed on a GPU.

    Args:
        precision: `fp32` computes as IEEE 754 has it on GPUs too, whose convolutions torch would round to TF32.

    Side effects:
        Sets torch's number of threads, its choice of kernels for the whole process, and an environment variable that
        cuBLAS reads when it starts.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", CUBLAS_WORKSPACE)
    torch.set_num_threads(CPU_THREADS)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    rounding = "tf32" if precision == "tf32" else "ieee"
    torch.backends.cudnn.conv.fp32_precision = rounding  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.fp32_precision = rounding
    torch.set_deterministic_debug_mode("error")  # `use_deterministic_algorithms` would load torch's compiler as well
    # Else each new tensor costs a kernel.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def native_precision(device: torch.device) -> Precision:
    """Choose bf16 where the device computes it natively, else fp32."""
    return "bf16" if computes_bf16(device) else "fp32"


def computes_bf16(device: torch.device) -> bool:
    """Return whether a device computes bf16 natively; torch itself also counts emulation as support."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and bool(_cpu_flags(_cpuinfo()) & BF16_FLAGS)


def require_precision(device: torch.device, precision: Precision) -> None:
    """Refuse a device on which a precision does not exist, or would be emulated very slowly.

    Raises:
        BadInput: bf16 on a GPU without it, or TF32 on a device without it.
    """
    if device.type == "cpu" and precision == "tf32":
        raise BadInput("device cpu: tf32 needs a GPU; use fp32 or bf16")
    if device.type != "cuda" or precision == "fp32" or torch.cuda.get_device_capability(device) >= (8, 0):
        return
    name, (major, minor) = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    raise BadInput(
        f"device {device}: {name} (compute capability {major}.{minor}) has no native {precision}, "
        "which takes 8.0 or later; use another device, or create the study with --precision fp32"
    )


def describe_cpu(cpuinfo: str, caches: str, aten_capability: str) -> str:
    """Describe a processor by what the kernels of oneDNN, MKL and ATEN are chosen by.

    Args:
        cpuinfo: The text of Linux's /proc/cpuinfo.
        caches: Sizes of its caches: oneDNN blocks by them.
        aten_capability: The instruction set that torch's own kernels use.
    """
    facts = _first_processor(cpuinfo)
    x86 = [facts.get(name, "?") for name in ("vendor_id", "cpu family", "model")]
    arm = [facts.get(name, "?") for name in ("CPU implementer", "CPU architecture", "CPU variant", "CPU part")]
    vendor, *model = arm if "CPU implementer" in facts else x86
    sets = sorted(flag for flag in _cpu_flags(cpuinfo) if flag.startswith(INSTRUCTION_SETS))
    digest = sha256(" ".join(sets).encode()).hexdigest()[:8]
    return f"{vendor} {'-'.join(model)}, {aten_capability}, instruction sets {digest}, caches {caches}"


def cpu_caches(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> str:
    """List the sizes of the first core's caches, such as `32K/32K/1024K/32768K`; `?` where Linux does not say."""
    sizes = [_read(path) for path in sorted(folder.glob("index*/size"))]
    return "/".join(size.strip() for size in sizes if size) or "?"


def _gpu(device: torch.device) -> str:
    card = torch.cuda.get_device_properties(device)  # MIG slices and clients of MPS see their own multiprocessors
    return f"{card.name}, {card.major}.{card.minor}, {card.multi_processor_count} multiprocessors"


def _libraries(device: torch.device, environment: Mapping[str, str]) -> str:
    variables = [f"{name}={value}" for name, value in kernel_variables(environment).items()]
    if device.type != "cuda":
        return ", ".join(variables) or "no variables set"
    cudnn: Any = torch.backends.cudnn
    versions = [f"CUDA {torch.version.cuda}", f"cuDNN {cudnn.version()}", f"convolutions {cudnn.conv.fp32_precision}"]
    workspace = f"cuBLAS {environment.get('CUBLAS_WORKSPACE_CONFIG', 'without workspace')}"
    return ", ".join([*versions, workspace, *variables])


def kernel_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Select the environment variables that make oneDNN, MKL, ATEN and cuDNN choose other kernels."""
    return {
        name: value
        for name, value in sorted(environment.items())
        if name.startswith(KERNEL_VARIABLES) and not name.endswith(IRRELEVANT_VARIABLES)
    }


def _aten_capability() -> str:
    return str(torch.backends.cpu.get_cpu_capability())


@cache
def _cpuinfo() -> str:
    return _read(Path("/proc/cpuinfo"))


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:  # another system than Linux, or a container that hides it
        return ""


def _first_processor(cpuinfo: str) -> dict[str, str]:
    lines = [line.partition(":") for line in cpuinfo.partition("\n\n")[0].splitlines()]
    return {name.strip(): value.strip() for name, _, value in lines}


def _cpu_flags(cpuinfo: str) -> set[str]:
    """List what the first processor can do, as Linux names it."""
    facts = _first_processor(cpuinfo)
    return set((facts.get("flags") or facts.get("Features") or "").split())
