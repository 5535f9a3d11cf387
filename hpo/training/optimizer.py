"""Stochastic gradient descent by torch's own kernels, without loading torch's compiler."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd

from hpo.recipes.recipe import Recipe


class SGD:
    """The steps of `torch.optim.SGD`, bit for bit, with momentum by the names of parameters.

    `torch.optim.SGD` loads `torch._dynamo` when it is made, which takes every new process two seconds and more.

    Args:
        model: On the device to train on.
    """

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        self._recipe = recipe
        self._names, parameters = zip(*model.named_parameters(), strict=True)
        self._parameters = list(parameters)
        self._fused = parameters[0].device.type in ("cpu", "cuda")
        self._buffers: list[Tensor | None] = []
        self.restore({})

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move the parameters against their gradients, which are there, and drop these.

        Args:
            rate: The learning rate.
        """
        sgd(
            self._parameters,
            [parameter.grad for parameter in self._parameters],
            self._buffers,
            fused=self._fused,
            weight_decay=self._recipe.weight_decay,
            momentum=self._recipe.momentum,
            lr=rate,
            dampening=0.0,
            nesterov=self._recipe.nesterov,
            maximize=False,
        )
        for parameter in self._parameters:
            parameter.grad = None

    def momentum(self) -> dict[str, Tensor]:
        """Return the buffers by the names of their parameters; none before the first step, or without momentum."""
        pairs = zip(self._names, self._buffers or [None] * len(self._names), strict=True)
        return {name: buffer for name, buffer in pairs if buffer is not None}

    def restore(self, momentum: Mapping[str, Tensor]) -> None:
        """Copy buffers that `momentum` returned at another time, from any device."""
        self._buffers = []
        if not self._recipe.momentum:
            return
        for name, parameter in zip(self._names, self._parameters, strict=True):
            buffer = torch.empty_like(parameter, memory_format=torch.preserve_format).detach_()
            self._buffers.append(buffer.copy_(momentum[name]) if name in momentum else None)
