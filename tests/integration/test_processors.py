"""Two kinds of processor on one storage: other keys, each verifiable on its own, and refused on the other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.integration.support import SPACE

OTHER = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
"""What makes the libraries compute as on a processor with fewer instruction sets."""

LIMIT_S = 480.0
RUN = (
    "run",
    "--no-confirm",
    "--space",
    "small.yaml",
    "--trials",
    "1",
    "--workers",
    "1",
    "--dataset",
    "digits",
    "--iterations",
    "32",
)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_processors_of_two_kinds_share_a_storage_and_no_state(tmp_path: Path, precision: str) -> None:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SPACE))

    def hpo(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HPO_")}
        return subprocess.run(
            [sys.executable, "-m", "hpo", *arguments],
            cwd=tmp_path,
            env=kept | {"HPO_DATA": str(tmp_path)} | variables,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )

    for name, variables in (("native", {}), ("other", OTHER)):
        done = hpo(*RUN, "--study", name, "--precision", precision, "--json", **variables)
        assert done.returncode == 0, done.stderr
        status = json.loads(done.stdout)
        assert status["iterations_spent"] == {"naive": 32, "requested": 32, "trained": 32}, "neither took a state"

    for name, variables in (("native", {}), ("other", OTHER)):
        done = hpo("verify", "--study", name, **variables)
        assert (done.returncode, "bit for bit" in done.stdout) == (0, True), done.stderr

    refused = hpo("verify", "--study", "other")
    assert (refused.returncode, refused.stdout) == (2, "")
    [line] = refused.stderr.splitlines()
    assert line.startswith("error: --trial 0: it was computed on ")
    assert "ATEN_CPU_CAPABILITY=avx2, ONEDNN_MAX_CPU_ISA=AVX2" in line
    assert line.endswith("no variables set). Only a machine of that kind can verify it")

    exported = hpo("best", "--study", "other", "--export", "model")
    assert (exported.returncode, exported.stderr) == (0, "wrote trial 0 to model\n"), "nothing was trained for it"
