"""Train on fake tensors of `cuda:0`, which carry shapes, types, strides and devices but no numbers, without a GPU.

This uses private interfaces of torch, so another release of torch may want other stand-ins. It changes torch for the
whole process, so tests run it as a program of its own; it prints what it saw as JSON. It cannot see wrong numbers, nor
what only a kernel checks, nor time.

`FakeTensorMode` raises an error where devices are mixed, as a GPU would. What asks the absent driver is replaced:

1. The autograd engine asks whether GPU 0 has a context: a preloaded library and a stub of libcuda answer.
2. A generator on CUDA: a stand-in with a device, which is compared with that of the tensor it is to fill.
3. `torch.autocast("cuda")` turns itself off without CUDA.
4. Numbers of fake tensors are 0; that they were asked for is noted, as a GPU would be waited for.
5. `Module.to` cannot swap fake parameters.
6. Fused SGD has no kernel without numbers.
7. Without a GPU, torch takes bf16 convolutions away from cuDNN.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

# A backward pass compares the device with the number of GPUs, which must be 0 before and after it, so that
# FakeTensorMode puts a guard in place that does nothing.
PRELOADED_C = """
signed char fake_devices = 0;
signed char _ZN3c104cuda12device_countEv(void) { return fake_devices; }
"""
DRIVER = (
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDevicePrimaryCtxGetState",
    "cuDevicePrimaryCtxRetain",
    "cuFuncGetAttribute",
    "cuFuncSetAttribute",
    "cuFuncSetCacheConfig",
    "cuGetErrorString",
    "cuLaunchCooperativeKernel",
    "cuLaunchKernel",
    "cuLinkAddData_v2",
    "cuLinkComplete",
    "cuLinkCreate_v2",
    "cuModuleGetFunction",
    "cuModuleLoad",
    "cuModuleLoadData",
    "cuModuleLoadDataEx",
    "cuModuleUnload",
    "cuOccupancyMaxActiveBlocksPerMultiprocessor",
    "cuPointerGetAttribute",
    "cuTensorMapEncodeTiled",
)
DRIVER_C = "".join(f"int {name}(void) {{ return 0; }}\n" for name in DRIVER)
BUILD_ENV = "FAKE_CUDA_BUILD"


def compile_library(path: Path, code: str) -> None:
    command = [
        "gcc",
        "-w",
        "-shared",
        "-fPIC",
        "-nostdlib",
        f"-Wl,-soname,{path.name}",
        "-x",
        "c",
        "-",
        "-o",
        str(path),
    ]
    subprocess.run(command, input=code.encode(), check=True)


def run() -> dict:
    """Run this module as a program, and give what it saw."""
    with tempfile.TemporaryDirectory() as name:
        preloaded = Path(name, "preloaded.so")
        compile_library(preloaded, PRELOADED_C)
        compile_library(Path(name, "libcuda.so.1"), DRIVER_C)
        done = subprocess.run(
            [sys.executable, "-m", __name__],
            env=os.environ | {"LD_PRELOAD": str(preloaded), BUILD_ENV: name, "OMP_NUM_THREADS": "1"},
            cwd=Path(__file__).parents[3],
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def main() -> None:
    import torch
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode

    from hpo.recipes.recipe import documented_runs
    from hpo.training.data import Batches, Dataset, Split
    from hpo.training.train import Training

    folder = Path(os.environ[BUILD_ENV])
    ctypes.CDLL(str(folder / "libcuda.so.1"), mode=ctypes.RTLD_GLOBAL)
    devices = ctypes.c_int8.in_dll(ctypes.CDLL(str(folder / "preloaded.so")), "fake_devices")
    cuda = torch.device("cuda:0")
    waits: list[str] = []

    def stand_in_for_the_engine():
        real = torch.Tensor.backward

        def backward(self, *args, **kwargs):
            self.register_hook(lambda _gradient: setattr(devices, "value", 0))
            devices.value = 127
            try:
                with torch.autograd.set_multithreading_enabled(False):
                    return real(self, *args, **kwargs)
            finally:
                devices.value = 0

        torch.Tensor.backward = backward

    def stand_in_for_generators():
        real = torch.Generator

        class OnCuda:
            device = cuda

            def manual_seed(self, seed):
                assert -(2**63) <= seed < 2**64, f"torch refuses seed {seed}"
                return self

        class Generator:  # a class, as torch writes `Generator | None`
            def __new__(cls, device="cpu"):
                return OnCuda() if torch.device(device).type == "cuda" else real(device)

        def guarded(function):
            def draw(*args, generator=None, device=None, **kwargs):
                wanted = torch.device(device or "cpu")
                if generator is not None and generator.device != wanted:
                    raise RuntimeError(f"a generator on {generator.device} for a tensor on {wanted}")
                given = None if isinstance(generator, OnCuda) else generator
                return function(*args, generator=given, device=device, **kwargs)

            return draw

        torch.Generator = Generator
        for name in ("rand", "randint", "randperm"):
            setattr(torch, name, guarded(getattr(torch, name)))

    def stand_in_for_numbers():
        def noting(name, value):
            real = getattr(torch.Tensor, name)

            def convert(self, *args):
                if not isinstance(self, FakeTensor):
                    return real(self, *args)
                waits.append(name)
                return value

            return convert

        for name, value in (("__float__", 0.0), ("__int__", 0), ("__bool__", False), ("item", 0.0)):
            setattr(torch.Tensor, name, noting(name, value))

    def stand_in_for_moving_modules():
        def apply(self, function, recurse=True):
            for child in self.children():
                child._apply(function)
            for name, parameter in self._parameters.items():
                if parameter is not None:
                    with torch.no_grad():
                        self._parameters[name] = torch.nn.Parameter(function(parameter), parameter.requires_grad)
            for name, buffer in self._buffers.items():
                if buffer is not None:
                    self._buffers[name] = function(buffer)
            return self

        torch.nn.Module._apply = apply

    def stand_in_for_cudnn():
        real = torch._C._select_conv_backend

        def select(*args, **kwargs):
            tensor = kwargs.get("input", args[0] if args else None)
            return torch._C._ConvBackend.Cudnn if tensor.device.type == "cuda" else real(*args, **kwargs)

        torch._C._select_conv_backend = select

    stand_in_for_the_engine()
    stand_in_for_generators()
    stand_in_for_numbers()
    stand_in_for_moving_modules()
    stand_in_for_cudnn()
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.cuda.is_bf16_supported = lambda including_emulation=True: True
    kernels = torch.library.Library("aten", "IMPL", "Meta")
    kernels.impl("_fused_sgd_", lambda *_args, **_kwargs: None)

    def significant(tensor):
        return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]

    class Watch(TorchDispatchMode):
        """Note layouts of images, strides that fused SGD would refuse, and copies between devices."""

        def __init__(self):
            super().__init__()
            self.layers = Counter()
            self.updates = Counter()

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            name = function._schema.name.removeprefix("aten::")
            given = [value for value in args if isinstance(value, torch.Tensor)]
            if name in ("_local_scalar_dense", "nonzero"):
                waits.append(name)
            if name in ("_to_copy", "copy_") and {t.device.type for t in (*given, out)} == {"cpu", "cuda"}:
                waits.append(name)
            images = [tensor for tensor in given if tensor.dim() == 4]
            if images and ("convolution" in name or "batch_norm" in name):
                last = all(image.is_contiguous(memory_format=torch.channels_last) for image in images)
                kind = str(images[0].dtype).removeprefix("torch.")
                layer = name.removeprefix("native_").removeprefix("cudnn_")
                self.layers[f"{layer} {kind} {'channels last' if last else 'channels first'}"] += 1
            if name == "_fused_sgd_":
                for parameter, gradient, momentum in zip(*args[:3], strict=True):
                    same = significant(parameter) == significant(gradient) == significant(momentum)
                    where = {f"{t.device} {t.dtype}" for t in (parameter, gradient, momentum)}
                    self.updates[f"{sorted(where)} {'same' if same else 'other'} strides"] += 1
            return out

    def split(images):
        return Split(
            images=torch.empty(images, 32, 32, 3, dtype=torch.uint8, device=cuda),
            labels=torch.empty(images, dtype=torch.int64, device=cuda),
        )

    def make_dataset():
        return Dataset(
            name="cifar10",
            classes=tuple("0123456789"),
            train=split(45_000),
            validation=split(5_000),
            mean=torch.empty(3, device=cuda),
            std=torch.empty(3, device=cuda),
            padding=4,
            flip=True,
            checksum="0",
        )

    def momenta(training):
        return list(training._optimizer.momentum().values())

    def watch_steps(training):
        """Train two steps, and describe the second."""
        training.advance(training.iteration + 1)
        waits.clear()
        with Watch() as watch:
            training.advance(training.iteration + 1)
        return {"waits": list(waits), "layers": watch.layers, "updates": watch.updates}

    def watch_walk(recipe, precision):
        training = Training(recipe, dataset, precision)
        seen = watch_steps(training)
        training.measure(5_000)
        training.measure(1_000)
        state = training.state()
        restored = Training(recipe, dataset, precision)
        restored.restore(state)
        strides = [m.stride() for m in momenta(restored)] == [p.stride() for p in restored.model.parameters()]
        tensors = training.model.state_dict().values()
        return seen | {
            "restored": watch_steps(restored),
            "restored strides": "same" if strides else "other",
            "model on": sorted({str(tensor.device) for tensor in (*tensors, *momenta(training), *momenta(restored))}),
            "state on": sorted({str(tensor.device) for tensor in (*state.weights.values(), *state.momentum.values())}),
        }

    def plant_indices(training):
        real = Batches.order
        training._batches.order = lambda generator: torch.empty_like(real(training._batches, generator), device="cpu")

    def plant_mean(training):
        training._batches._dataset = replace(dataset, mean=torch.empty(3, device="cpu"))

    def plant_generator(training):
        training._generator = torch.Generator()

    def plant_wait(training):
        forward = training.model.forward

        def wait(images):
            logits = forward(images)
            logits.sum().item()
            return logits

        training.model.forward = wait

    def plant_channels_first(training):
        for parameter in training.model.parameters():
            parameter.data = parameter.data.contiguous()

    def plant_momentum(training):
        training.advance(1)
        buffers = training._optimizer._buffers
        buffers[:] = [torch.empty_like(buffer, device="cpu") for buffer in buffers]

    def plant_strides(training):
        training.advance(1)
        buffers = training._optimizer._buffers
        buffers[:] = [buffer.contiguous() for buffer in buffers]

    def watch_planted(plant):
        training = Training(base, dataset, "bf16")
        plant(training)
        try:
            return watch_steps(training)
        except Exception as error:  # noqa: BLE001 - what it is depends on torch; the test looks at it
            return {"error": str(error).strip().splitlines()[0]}

    base = documented_runs()["baseline"].recipe
    heads = {
        "linear": replace(base, head="linear", dropout=0.0),
        "dropout": replace(base, head="dropout", dropout=0.5),
        "dense": replace(
            base,
            head="dense",
            dropout=0.5,
            shortcut_norm=True,
            nesterov=True,
            weight_decay=5e-4,
            label_smoothing=0.1,
        ),
    }
    plants = (
        plant_indices,
        plant_mean,
        plant_generator,
        plant_wait,
        plant_channels_first,
        plant_momentum,
        plant_strides,
    )
    with FakeTensorMode(allow_non_fake_inputs=True):
        dataset = make_dataset()
        walks = {
            f"{precision} {head}": watch_walk(heads[head], precision)
            for precision in ("bf16", "fp32")
            for head in heads
        }
        planted = {plant.__name__.removeprefix("plant_"): watch_planted(plant) for plant in plants}
    print(json.dumps({"walks": walks, "planted": planted}))


if __name__ == "__main__":
    main()
