"""YAML in which numbers are written as people write them: PyYAML takes 1e-4 and 2e4 for text."""

from __future__ import annotations

import re
from typing import Any

import yaml


class NumberLoader(yaml.SafeLoader):
    """PyYAML's safe loader with the floats of YAML 1.2 (§10.3.2), which need neither point nor sign."""


NumberLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+\Z"),
    list("-+.0123456789"),
)


def load_yaml(text: str) -> Any:
    """Load a YAML document of plain values."""
    return yaml.load(text, NumberLoader)
