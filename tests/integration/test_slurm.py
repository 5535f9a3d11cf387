"""Run the job script for Slurm with a stand-in for `srun`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.integration.deployment import ROOT


@pytest.mark.parametrize(
    ("settings", "device"),
    [({}, "auto"), ({"SLURM_GPUS_ON_NODE": "4"}, "cuda"), ({"SLURM_GPUS_PER_TASK": "1"}, "cuda")],
)
def test_a_job_with_gpus_trains_on_them_alone(tmp_path: Path, settings: dict[str, str], device: str) -> None:
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)
    ours = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    done = subprocess.run(
        ["bash", ROOT / "docs" / "hpo.sbatch", "--study", "two words"],
        env=ours | {"PATH": f"{tmp_path}:{ours['PATH']}"} | settings,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    options = ["--kill-on-bad-exit=0", "--label"]
    assert done.stdout.splitlines() == [*options, "hpo", "worker", "--device", device, "--study", "two words"]
