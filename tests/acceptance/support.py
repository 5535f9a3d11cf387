"""Run the installed programs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jsonschema

from tests.acceptance import forking

PROGRAMS = Path(sys.executable).parent
SCHEMAS = Path(__file__).parents[2] / "docs" / "reference" / "json-output.schema.json"
LIMIT_S = 480.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def check_document(document: Any, name: str) -> None:
    """Check what `--json` printed against the schema of the reference."""
    schema = json.loads(SCHEMAS.read_text("utf-8"))
    jsonschema.validate(document, schema | {"$ref": f"#/$defs/{name}"})


class Forking:
    """Start `hpo` as `forking.py` does, from a process that is started when it is first wanted."""

    process: ClassVar[subprocess.Popen[str] | None] = None

    @classmethod
    def hpo(cls, arguments: list[str], folder: Path, environment: dict[str, str], typed: str) -> Result:
        if cls.process is None:
            cls.process = subprocess.Popen(
                [sys.executable, forking.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        assert cls.process.stdin is not None and cls.process.stdout is not None
        with tempfile.TemporaryDirectory() as name:
            stdin, stdout, stderr = (Path(name, stream) for stream in ("stdin", "stdout", "stderr"))
            stdin.write_text(typed)
            print(
                json.dumps([arguments, str(folder), environment, [str(stdin), str(stdout), str(stderr)]]),
                file=cls.process.stdin,
                flush=True,
            )
            code = int(cls.process.stdout.readline())
            return Result(code=code, out=stdout.read_text(), err=stderr.read_text())

    @classmethod
    @contextmanager
    def ended(cls) -> Iterator[None]:
        """End the process, if there is one, when the context ends."""
        yield
        if cls.process is not None:
            cls.process.communicate()
            cls.process = None


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
        """Run an installed program."""
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
        """Run `hpo` in a forked process, which spares it the seconds that loading torch and the like takes."""
        return Forking.hpo([str(argument) for argument in arguments], self.folder, self.environment | settings, typed)
