"""Options in a YAML file, under the names that they have on the command line, which overrides the file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hpo.cli.help import STUDY
from hpo.errors import BadInput
from hpo.paths import expand_path

if TYPE_CHECKING:
    from typer.core import TyperOption


def read_config(ctx: typer.Context, path: Path | None) -> Path | None:
    """Take what a file says as the defaults of a command's options.

    Raises:
        BadInput: The file cannot be read, or a key or value is not allowed; the message names file, line and key.

    Side effects:
        Sets the defaults of the command that is about to run.
    """
    if path is None or ctx.resilient_parsing:
        return path
    from hpo.recipes.yaml_file import find_line, read_mapping

    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"--config {path}: cannot be read as UTF-8 text: {error}") from error
    options = _options(ctx)
    allowed = f"allowed keys: {', '.join(options)}"
    root, content = read_mapping(text, str(path), f"a file of options is a mapping; {allowed}")
    defaults = {}
    for key, value in content.items():
        place = f"{path}: line {find_line(root, [key])}: {key}"
        if key not in options:
            raise BadInput(f"{place}: unknown key; {allowed}")
        option = options[key]
        if option.name is not None:
            defaults[option.name] = _read_value(ctx, option, value, place)
    ctx.default_map = defaults
    return path


def _options(ctx: typer.Context) -> dict[str, TyperOption]:
    """Return the options of a command by their long names, without dashes."""
    from typer.core import TyperOption

    options = [param for param in ctx.command.params if isinstance(param, TyperOption)]
    named = {max(option.opts, key=len).removeprefix("--"): option for option in options}
    return {name: option for name, option in named.items() if name not in ("config", "help")}


def _read_value(ctx: typer.Context, option: TyperOption, value: Any, place: str) -> Any:
    """Check a value as if it were given on the command line, and return it as the command line would give it.

    Raises:
        BadInput: The option does not allow it.
    """
    if isinstance(value, bool) != option.is_flag:
        wanted = "true or false" if option.is_flag else "a number or a text"
        raise BadInput(f"{place} is {value!r}; allowed: {wanted}")
    if not isinstance(value, (bool, int, float, str)):
        raise BadInput(f"{place} is {value!r}; allowed: a number or a text")
    given = value if isinstance(value, bool) else _as_typed(value)
    try:
        option.process_value(ctx, given)
    except (typer.BadParameter, BadInput) as error:
        reason = error.message if isinstance(error, typer.BadParameter) else str(error)
        raise BadInput(f"{place} is {value!r}: {reason.removeprefix('Value error, ')}") from error
    return given


def _as_typed(value: float | str) -> str:
    """Write a value as a person would type it: 2e4 is a whole number."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        parser=expand_path,
        callback=read_config,
        is_eager=True,
        metavar="FILE",
        help="YAML file of options by their names; the command line wins.",
        show_default=False,
        rich_help_panel=STUDY,
    ),
]
