"""The residual networks with their three heads, and a description of their layers."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor, nn

from hpo.recipes.recipe import Head, ParameterCounts, Recipe

WIDTHS = (16, 32, 64)
"""Channels of the three stages (He et al. 2015, §4.2)."""

DENSE_UNITS = 512
"""Width of the hidden layer in the `dense` head."""


class Add(nn.Module):
    """The sum of main branch and shortcut, computed in the memory of the main branch."""

    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """Add two tensors of one shape [N, C, H, W]."""
        return x.add_(shortcut)


class PadShortcut(nn.Module):
    """A shortcut that subsamples by 2 and doubles the channels with zeros (option A of He et al. 2015, §3.3)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, 2C, ceil(H/2), ceil(W/2)], C/2 zero channels on each side."""
        each_side = x.shape[1] // 2
        return nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, each_side, each_side))


class SeededDropout(nn.Module):
    """Dropout whose masks are drawn from a given generator, so that a mask can be drawn again."""

    def __init__(self, rate: float, generator: torch.Generator) -> None:
        super().__init__()
        self.rate = rate
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        """Zero each element with probability `rate` and scale the others by 1 / (1 - rate)."""
        if not self.training:
            return x
        keep = torch.rand(x.shape, generator=self.generator, device=x.device) >= self.rate
        return x * keep.to(x.dtype) / (1 - self.rate)


class Block(nn.Module):
    """A residual block: two 3x3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, shortcut_norm: bool) -> None:
        super().__init__()
        widens = inputs != outputs
        self.conv1 = _conv(inputs, outputs, stride=2 if widens else 1)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.activation1 = nn.ReLU(inplace=True)
        self.conv2 = _conv(outputs, outputs)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.pad = PadShortcut() if widens else None
        self.shortcut_norm = nn.BatchNorm2d(outputs) if widens and shortcut_norm else None
        self.add = Add()
        self.activation2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, inputs, H, W] to [N, outputs, H', W'], H' = ceil(H/2) where the width doubles."""
        y = self.activation1(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        shortcut = x if self.pad is None else self.pad(x)
        if self.shortcut_norm is not None:
            shortcut = self.shortcut_norm(shortcut)
        return cast(Tensor, self.activation2(self.add(y, shortcut)))


class ResNet(nn.Module):
    """A residual network of He et al. 2015, §4.2, with one of three heads.

    The convolutions have biases and the initial weights are He-normal with fan-in, drawn on the CPU, so
    that they are the same on every device.

    Args:
        channels: Number of channels of the input images.
        depth: Number of layers, 6n + 2: three stages of n blocks of two convolutions, a convolution before them, and
            what counts as one layer after them, whatever the head.
        generator: Draws the dropout masks; on the device that the model runs on.
        seed: Determines the initial weights.
    """

    def __init__(
        self,
        *,
        channels: int,
        classes: int,
        head: Head,
        dropout: float,
        shortcut_norm: bool,
        depth: int = 20,  # exports of earlier releases do not name it
        generator: torch.Generator,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.conv = _conv(channels, WIDTHS[0])
        self.norm = nn.BatchNorm2d(WIDTHS[0])
        self.activation = nn.ReLU(inplace=True)
        inputs = (WIDTHS[0], *WIDTHS)
        self.blocks = nn.Sequential(
            *(
                Block(inputs[stage] if block == 0 else width, width, shortcut_norm)
                for stage, width in enumerate(WIDTHS)
                for block in range((depth - 2) // 6)
            )
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Sequential(*_head(head, dropout, classes, generator))
        _initialise(self, torch.Generator().manual_seed(seed))

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images [N, C, H, W] to logits [N, classes]."""
        features = self.blocks(self.activation(self.norm(self.conv(images))))
        return cast(Tensor, self.head(self.flatten(self.pool(features))))


def network_fields(recipe: Recipe) -> dict[str, Any]:
    """List the fields of a recipe that determine its network, as arguments of `ResNet`."""
    return {name: getattr(recipe, name) for name in ("head", "dropout", "shortcut_norm", "depth")}


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1)


def _head(head: Head, dropout: float, classes: int, generator: torch.Generator) -> list[nn.Module]:
    width = WIDTHS[-1]
    if head == "linear":
        return [nn.Linear(width, classes)]
    if head == "dropout":
        return [SeededDropout(dropout, generator), nn.Linear(width, classes)]
    return [
        nn.Linear(width, DENSE_UNITS),
        nn.BatchNorm1d(DENSE_UNITS),
        nn.ReLU(inplace=True),
        SeededDropout(dropout, generator),
        nn.Linear(DENSE_UNITS, classes),
    ]


def _initialise(model: nn.Module, generator: torch.Generator) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, generator=generator)
            assert module.bias is not None
            nn.init.zeros_(module.bias)


def load_network(path: Path) -> tuple[ResNet, dict[str, Any]]:
    """Load a network from exported weights, ready to classify.

    Returns:
        The network, and what is needed to use it: Pillow's `mode` and `size` (width, height) of its images, `mean` and
        `std` of pixels in [0, 255], each [C, 1, 1], and the `labels` of its outputs.
    """
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["hpo"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is not a mapping
    network = ResNet(**facts.pop("network"), generator=torch.Generator())
    network.load_state_dict(tensors)
    return network.eval(), facts


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerRow:
    """One line of the layer table.

    Attributes:
        shape: Shape of the output, channels last, without the batch.
        params: Number of parameters, BatchNorm's moving statistics included.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    params: int


# Below the modules, from which it is built.
_KERAS_NAMES: dict[type[nn.Module], tuple[str, str]] = {
    nn.Conv2d: ("conv2d", "Conv2D"),
    nn.BatchNorm2d: ("batch_normalization", "BatchNormalization"),
    nn.BatchNorm1d: ("batch_normalization", "BatchNormalization"),
    nn.ReLU: ("activation", "Activation"),
    PadShortcut: ("lambda", "Lambda"),
    Add: ("add", "Add"),
    nn.AdaptiveAvgPool2d: ("global_average_pooling2d", "GlobalAveragePooling2D"),
    nn.Flatten: ("flatten", "Flatten"),
    nn.Linear: ("dense", "Dense"),
    SeededDropout: ("dropout", "Dropout"),
}


def layer_table(model: ResNet, image_shape: tuple[int, int, int]) -> list[LayerRow]:
    """List the layers in the order in which they run, under the names that Keras gives them.

    Args:
        image_shape: Height, width and channels of an input image.
    """
    rows = [LayerRow(name="input_1", kind="InputLayer", shape=image_shape, params=0)]
    seen: Counter[str] = Counter()

    def record(module: nn.Module, _inputs: object, output: Tensor) -> None:
        """Append the row of a layer that has just run."""
        name, kind = _KERAS_NAMES[type(module)]
        numbered = f"{name}_{seen[name]}" if seen[name] else name
        seen[name] += 1
        shape = (*output.shape[2:], output.shape[1])
        if isinstance(module, nn.AdaptiveAvgPool2d):
            shape = shape[-1:]
        rows.append(LayerRow(name=numbered, kind=kind, shape=shape, params=_params(module)))

    hooks = [m.register_forward_hook(record) for m in model.modules() if type(m) in _KERAS_NAMES]
    height, width, channels = image_shape
    device = next(model.parameters()).device
    was_training = model.training
    with torch.no_grad():
        model.eval()(torch.zeros(1, channels, height, width, device=device))
    model.train(was_training)
    for hook in hooks:
        hook.remove()
    return rows


def count_parameters(model: nn.Module) -> ParameterCounts:
    """Count the parameters of a model as Keras does."""
    trainable = sum(p.numel() for p in model.parameters())
    moving = sum(b.numel() for b in model.buffers() if b.is_floating_point())
    return ParameterCounts(total=trainable + moving, trainable=trainable, non_trainable=moving)


def _params(module: nn.Module) -> int:
    return count_parameters(module).total
