"""Run the installed programs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAMS = Path(sys.executable).parent
LIMIT_S = 240.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True, slots=True)
class Shell:
    """Run programs in a folder of its own, without the caller's settings."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("HPO_", "XDG_"))}
        return ours | {"HPO_DATA": str(self.folder / "data"), "COLUMNS": "200"}

    def copy_to(self, folder: Path) -> Shell:
        """Give a copy that may be spoilt."""
        return Shell(Path(shutil.copytree(self.folder, folder)))

    def run(self, *arguments: str | Path, typed: str = "", **settings: str) -> Result:
        program, *rest = arguments
        done = subprocess.run(
            [PROGRAMS / str(program), *map(str, rest)],
            cwd=self.folder,
            env=self.environment | settings,
            input=typed,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        return Result(code=done.returncode, out=done.stdout, err=done.stderr)

    def hpo(self, *arguments: str | Path, typed: str = "", **settings: str) -> Result:
        return self.run("hpo", *arguments, typed=typed, **settings)
