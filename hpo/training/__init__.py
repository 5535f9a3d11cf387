"""The training loop, the network, and data sets as tensors."""
