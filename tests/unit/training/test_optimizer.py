"""Compare the steps with those of `torch.optim.SGD`."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hpo.training.optimizer import SGD

RATES = (0.1, 0.1, 0.02, 0.5)

ONE_STEP = """
import sys, torch
from types import SimpleNamespace
from hpo.training.numerics import prepare_torch
from hpo.training.optimizer import SGD

prepare_torch("fp32")
model = torch.nn.Linear(3, 2)
model(torch.ones(1, 3)).sum().backward()
SGD(model, SimpleNamespace(weight_decay=0.0, momentum=0.9, nesterov=False)).step(0.1)
print([name for name in ("torch._dynamo", "torch._inductor") if name in sys.modules])
"""


def walk(model, step):
    """Step along the gradients of fixed batches; return the weights after each."""
    images = torch.Generator().manual_seed(1)
    weights = []
    for rate in RATES:
        model(torch.randn(8, 3, generator=images)).square().sum().backward()
        step(rate)
        weights.append([parameter.detach().clone() for parameter in model.parameters()])
    return weights


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))


@pytest.mark.parametrize(
    "fields",
    [
        {"momentum": 0.9},
        {"momentum": 0.0},
        {"momentum": 0.9, "weight_decay": 0.01},
        {"momentum": 0.5, "weight_decay": 0.01, "nesterov": True},
    ],
)
def test_steps_are_those_of_torch_bit_for_bit(fields):
    recipe = SimpleNamespace(**{"weight_decay": 0.0, "nesterov": False} | fields)
    theirs = make_model()
    optimizer = torch.optim.SGD(theirs.parameters(), lr=1.0, fused=True, **vars(recipe))

    def step(rate):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()

    ours = make_model()
    sgd = SGD(ours, recipe)

    for expected, weights in zip(walk(theirs, step), walk(ours, sgd.step), strict=True):
        assert all(map(torch.equal, expected, weights))
    buffers = {id(p): state.get("momentum_buffer") for p, state in optimizer.state.items()}
    expected = [buffers[id(p)] for p in theirs.parameters()] if recipe.momentum else []
    assert all(map(torch.equal, expected, sgd.momentum().values()))
    assert list(sgd.momentum()) == ([name for name, _ in ours.named_parameters()] if recipe.momentum else [])
    assert all(parameter.grad is None for parameter in ours.parameters())


@pytest.mark.slow
def test_a_step_does_not_load_torchs_compiler():
    done = subprocess.run([sys.executable, "-c", ONE_STEP], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
