"""The command line: parse it, call, and print.

Nothing heavy is imported at the top: `hpo --help` must feel instant.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Never

import typer

from hpo import __version__
from hpo.cli import catalog, results, run, studies
from hpo.cli.benchmark import benchmark
from hpo.cli.confirm import confirm
from hpo.cli.doctor import doctor
from hpo.cli.enqueue import enqueue
from hpo.cli.export import export
from hpo.cli.help import GroupedCommand
from hpo.cli.output import exit_without_device, prepare_output, say_error
from hpo.cli.plan import plan
from hpo.cli.retry import retry
from hpo.cli.status import status
from hpo.cli.worker import worker
from hpo.errors import BadInput, DeviceLost, HpoError
from hpo.masking import mask_secrets
from hpo.settings import EXIT_INTERRUPTED

app = typer.Typer(
    name="hpo",
    help="Tune ResNets for small images; train common beginnings only once.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
spaces_app = typer.Typer(help="List, show and check search spaces.", no_args_is_help=True, rich_markup_mode=None)
data_app = typer.Typer(help="Download and check data sets.", no_args_is_help=True, rich_markup_mode=None)
storage_app = typer.Typer(help="Manage the database schema.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(spaces_app, name="spaces")
app.add_typer(data_app, name="data")
app.add_typer(storage_app, name="storage")

COMMANDS: dict[str, Callable[..., None]] = {
    "plan": plan,
    "doctor": doctor,
    "run": run.run,
    "worker": worker,
    "status": status,
    "studies": studies.list_studies,
    "workers": studies.workers,
    "pause": studies.pause,
    "resume": studies.resume,
    "stop": studies.stop,
    "enqueue": enqueue,
    "retry": retry,
    "reclaim": studies.reclaim,
    "delete": studies.delete,
    "best": results.best,
    "verify": results.verify,
    "confirm": confirm,
    "benchmark": benchmark,
    "report": results.report,
    "export": export,
    "dashboard": results.dashboard,
    "gc": results.gc,
    "model": catalog.model,
}
"""The commands in the order of the help page, by their names."""

for name, command in COMMANDS.items():
    app.command(name, cls=GroupedCommand)(command)
spaces_app.command("list", cls=GroupedCommand)(catalog.spaces_list)
spaces_app.command("show", cls=GroupedCommand)(catalog.spaces_show)
spaces_app.command("check", cls=GroupedCommand)(catalog.spaces_check)
spaces_app.command("schema", cls=GroupedCommand)(catalog.spaces_schema)
data_app.command("fetch", cls=GroupedCommand)(catalog.data_fetch)
data_app.command("check", cls=GroupedCommand)(catalog.data_check)
storage_app.command("upgrade", cls=GroupedCommand)(results.storage_upgrade)


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Tune ResNets for small images; train common beginnings only once."""


def main() -> Never:
    """Run the command line; an error is one line on stderr, and each kind has its exit code."""
    prepare_output()
    _hide_secrets(sys.orig_argv)
    code = _run()
    gc.freeze()  # or the interpreter searches all of torch and scipy for garbage before it ends, for a second
    sys.exit(code)


def _hide_secrets(command: Sequence[str]) -> None:
    """Mask the secrets of this command's line in process lists.

    Side effects:
        Sets the process title.
    """
    words = ["_".join(word.split()) for word in command]  # a secret of several words would end with the first
    shown = [mask_secrets(word) for word in words]
    if shown != words:
        from setproctitle import setproctitle

        setproctitle(" ".join(shown))


def _run() -> int:
    try:
        return app(standalone_mode=False) or 0
    except DeviceLost as error:
        exit_without_device(error)
    except HpoError as error:
        say_error(str(error))
        return error.exit_code
    except typer.Exit as error:
        return error.exit_code
    except typer.TyperException as error:
        say_error(error.format_message())
        return BadInput.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
