"""Start `hpo` by forking a process that has torch and the like loaded, which takes seconds where each loads its own.

What it has loaded is others' alone: each `hpo` imports what is the project's, in its own order. It ends without taking
the interpreter apart, and may leave files of SQLite beside a database, as one that is killed. A line of JSON on stdin
starts one; its exit code is a line on stdout.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from importlib import import_module
from typing import Never

LIMIT_S = 480
OTHERS = (
    "alembic.command",
    "matplotlib.figure",
    "optuna.artifacts",
    "optuna.storages",
    "optuna_dashboard",
    "psycopg",
    "pydantic",
    "rich.progress",
    "safetensors.torch",
    "scipy.stats",
    "sklearn.datasets",
    "sklearn.model_selection",
    "sqlalchemy.orm",
    "torch",
    "typer",
)


def be_hpo(arguments: list[str], folder: str, environment: dict[str, str], streams: list[str]) -> Never:
    """Do what the script `hpo` does."""
    signal.alarm(LIMIT_S)
    for number, path in enumerate(streams):
        opened = os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT)
        os.dup2(opened, number)
        os.close(opened)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["hpo", *arguments]
    sys.orig_argv = [sys.executable, *sys.argv]

    code = 1
    try:
        from hpo.cli import main

        main()
    except SystemExit as end:
        assert isinstance(end.code, int)
        code = end.code
    except BaseException:  # noqa: BLE001 - as the interpreter does
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve() -> None:
    for name in OTHERS:
        import_module(name)
    assert not any(name.partition(".")[0] == "hpo" for name in sys.modules)
    gc.freeze()  # or each fork copies the memory that its garbage collector looks through
    orders = open(0, "rb", buffering=0)  # noqa: SIM115 - unbuffered, so that nothing of a next line is in a fork's stdin
    while line := orders.readline():
        pid = os.fork()
        if pid == 0:
            be_hpo(*json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
