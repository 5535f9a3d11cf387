"""Break the promise of equal bits on purpose, for tests of what notices it."""

from dataclasses import replace

import torch

from hpo.training.train import State

DISTURBED = "conv.weight"
"""The first tensor of the network."""


def one_bit_off(state: State) -> State:
    """Give the same state with the last bit of one weight turned over."""
    tensor = state.weights[DISTURBED].contiguous().clone()
    tensor.view(torch.int32).view(-1)[0] ^= 1
    return replace(state, weights=state.weights | {DISTURBED: tensor})
