"""Hyperparameter search for small convolutional networks that trains each trajectory once.

See `README.md` for how to use it, and `docs/decisions.md` for why it is built as it is.
"""

__version__ = "0.1.0"
