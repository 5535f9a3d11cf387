"""Hyperparameter search for ResNets on small images that trains common beginnings only once.

`README.md` and `docs/` say how to use it; `docs/development/decisions.md` says why it is built as it is.
"""

__version__ = "0.2.0"

DISTRIBUTION = "hpo-trajectories"
"""The name to install by; `hpo` is another project's."""


def name_extra(extra: str) -> str:
    """Write the command that installs an extra."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"
