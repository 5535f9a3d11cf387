"""Install what is published into a fresh environment, and use it."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from hpo import DISTRIBUTION, __version__

ROOT = Path(__file__).parents[2]
LIMIT_S = 300.0


def run(*command: str | Path, folder: Path) -> str:
    done = subprocess.run(
        [str(word) for word in command], cwd=folder, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_of_the_source_archive_runs_a_study_in_a_fresh_environment(tmp_path: Path) -> None:
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path / "dist", ROOT, folder=tmp_path)
    assert {path.suffix for path in (tmp_path / "dist").iterdir()} == {".gz", ".whl"}
    [wheel] = (tmp_path / "dist").glob("*.whl")
    environment = tmp_path / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", environment, folder=tmp_path)
    python, hpo = environment / "bin" / "python", environment / "bin" / "hpo"
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, folder=tmp_path)
    # Torch and the like come from the environment of the tests, whose own `hpo` is not on that path.
    [packages] = environment.glob("lib/python*/site-packages")
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib"))

    where = run(python, "-c", "import hpo; print(hpo.__file__)", folder=tmp_path)
    assert where.strip() == str(packages / "hpo" / "__init__.py")
    assert f"{DISTRIBUTION} {__version__}" in run(*pip, "list", "--format=freeze", folder=tmp_path).replace("==", " ")
    assert run(hpo, "--version", folder=tmp_path) == f"{__version__}\n"
    study = ("--space", "smooth_lr", "--dataset", "digits", "--iterations", "32", "--trials", "1", "--workers", "1")
    assert "1 of 1 finished: 1 complete" in run(hpo, "run", *study, folder=tmp_path)
    assert (packages / "hpo" / "py.typed").is_file()
