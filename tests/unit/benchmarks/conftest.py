"""The scripts of `benchmarks/`, which are no package."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def script(name: str) -> Any:
    """Make the fixture that imports a script."""

    @pytest.fixture(name=name)
    def load(monkeypatch: pytest.MonkeyPatch) -> Any:
        monkeypatch.syspath_prepend(str(BENCHMARKS))
        return importlib.import_module(name)

    return load


replay = script("replay")
truth_table = script("truth_table")
true_regret = script("true_regret")
truth = script("truth")
live_comparison = script("live_comparison")
live_searches = script("live_searches")
fresh_seeds = script("fresh_seeds")
plain_training = script("plain_training")
documented_curves = script("documented_curves")
