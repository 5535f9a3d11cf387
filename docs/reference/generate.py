"""Write the pages of the reference from the code: `make reference`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
import yaml

from hpo.cli import app
from hpo.cli.help import group_records
from hpo.recipes.space_file import json_schema

FOLDER = Path(__file__).parent
WRITTEN = "<!-- `make reference` writes this page. -->"
ENVIRONMENT = (
    ("HPO_STORAGE", "Default of `--storage`: the database of the studies."),
    ("HPO_ARTIFACTS", "Default of `--artifacts`: where checkpoints and figures are kept."),
    ("HPO_DATA", "Default of `--data-dir`: the folder of the data sets."),
    ("HPO_DASHBOARD_USER", "User of the dashboard's login, instead of `--auth`."),
    ("HPO_DASHBOARD_PASSWORD", "Password of the dashboard's login, instead of `--auth`."),
    ("HPO_DRIVER_PID", "Set by drivers for their workers: the process id to watch. Do not set it yourself."),
    ("HPO_PASSWORD_FILE", "In containers: file with PostgreSQL's password."),
    ("HPO_GPU_LOCKS", "In containers: folder of the locks with which workers share GPUs."),
    ("HPO_SITE", "In `docker/compose.yaml`: name of the site (default: localhost)."),
    ("HPO_TLS", "In `docker/compose.yaml`: e-mail address for Let's Encrypt (default: Caddy's own authority)."),
    ("RAY_ADDRESS", "Default of `--address`: the Ray cluster."),
    (
        "XDG_CACHE_HOME",
        "Folder that contains the default data folder, and remembered self-checks of workers (default: `~/.cache`).",
    ),
    ("PGPASSWORD, PGPASSFILE", "Read by PostgreSQL's client, like its other variables."),
    ("AWS_ENDPOINT_URL", "Read by Amazon's client, like its other variables: another server that speaks S3."),
)
"""Variables of the environment, in the order of the page."""

Node = dict[str, Any]


def pages() -> dict[str, str]:
    """Return the text of each file of the reference, by name."""
    notation = yaml.safe_load((FOLDER / "json-output.yaml").read_text("utf-8"))
    return {
        "cli.md": "\n".join(_command_line()),
        "environment.md": "\n".join(_environment()),
        "json.md": "\n".join(_json_page(notation)),
        "json-output.schema.json": json.dumps(schemas(notation), indent=2) + "\n",
        "space-schema.md": "\n".join(_space_page()),
    }


def _command_line() -> Iterator[str]:
    yield from (WRITTEN, "", "# Command line", "")
    yield "Exit codes: 0 done, 1 failed, 2 bad input, 3 database unreachable, 130 and 143 interrupted by"
    yield "SIGINT and SIGTERM. After an interruption the same command continues. `--json` prints one"
    yield "[JSON document](json.md) on stdout and nothing else there."
    root: Any = typer.main.get_command(app)
    context = typer.Context(root, info_name="hpo")
    for name, command in _walk("hpo", root):
        yield from ("", f"## {name}", "", command.help.strip())
        records = [
            (_group_of(param), record)
            for param in command.get_params(context)
            if "--help" not in param.opts and (record := param.get_help_record(context)) is not None
        ]
        for title, lines in group_records(records).items():
            yield from ("", f"**{title}**", "")
            yield from (f"- `{option}`: {text}" if text else f"- `{option}`" for option, text in lines)
    yield ""


def _walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """List the commands, those of a group after the group's place."""
    if not hasattr(command, "commands"):
        yield name, command
        return
    for word, inner in command.commands.items():
        yield from _walk(f"{name} {word}", inner)


def _group_of(param: Any) -> str:
    return "Arguments" if param.param_type_name == "argument" else param.rich_help_panel or "Options"


def _environment() -> Iterator[str]:
    yield from (WRITTEN, "", "# Environment variables", "", "| variable | meaning |", "| --- | --- |")
    yield from (f"| `{name.replace(', ', '`, `')}` | {meaning} |" for name, meaning in ENVIRONMENT)
    yield ""


def _space_page() -> Iterator[str]:
    yield from (WRITTEN, "", "# Schema of search spaces", "")
    yield "`hpo spaces schema` prints this JSON Schema. [Search spaces](../guides/search-spaces.md) explains"
    yield from ("the fields.", "", "```json", json.dumps(json_schema(), indent=2), "```", "")


def _json_page(notation: Node) -> Iterator[str]:
    yield from (WRITTEN, "", "# JSON output", "")
    yield "The documents that `--json` prints, and the shapes that they have in common. The same as JSON"
    yield "Schemas: [json-output.schema.json](json-output.schema.json). Accuracies are in [0, 1]."
    for part, title in (("documents", None), ("shapes", "Shape: ")):
        for name, fields in notation[part].items():
            heading = f"{title}{name}" if title else fields["_"]
            yield from ("", f"## {heading}", "")
            if title and "_" in fields:
                yield from (f"{fields['_']}.", "")
            yield from _field_lines(fields, "")
    yield ""


def _field_lines(fields: Node, indent: str) -> Iterator[str]:
    if "_same" in fields:
        yield f"{indent}- {_link(fields['_same'])}"
    if "_map" in fields:
        yield f"{indent}- a map of {_described(fields['_map'])}"
    if "_list" in fields:
        yield f"{indent}- a list of objects:"
        yield from _field_lines(fields["_list"], indent + "  ")
    for name, field in fields.items():
        if name.startswith("_"):
            continue
        title = f"{indent}- `{name.removesuffix('?')}`"
        if isinstance(field, str):
            yield f"{title} ({_described(field, parenthesis=True)}"
            continue
        [inner] = field if isinstance(field, list) else [field]
        kind = "list of objects" if isinstance(field, list) else "object or null" if "_null" in inner else "object"
        yield f"{title} ({kind})" + (f": {inner['_']}." if "_" in inner else "")
        yield from _field_lines(inner, indent + "  ")


def _described(field: str, *, parenthesis: bool = False) -> str:
    kind, _, meaning = field.partition(": ")
    words = " ".join(_link(word) for word in kind.replace("[", "list of ").replace("]", "").split())
    return words + (")" if parenthesis else "") + (f": {meaning}." if meaning else "")


SHAPES = ("recipe", "difference", "figures", "documented", "contender", "confirmation", "range", "forecast")


def _link(word: str) -> str:
    return f"[{word}](#shape-{word})" if word in SHAPES else word


def schemas(notation: Node) -> Node:
    """Return one JSON Schema with each document, and each shape in common, among its `$defs`."""
    definitions = {
        name: _object_schema(fields) for part in ("documents", "shapes") for name, fields in notation[part].items()
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$defs": definitions}


def _object_schema(fields: Node) -> Node:
    if "_same" in fields:
        return {"$ref": f"#/$defs/{fields['_same']}"}
    if "_list" in fields:
        return {"type": "array", "items": _object_schema(fields["_list"])}
    if "_map" in fields:
        return {"type": "object", "additionalProperties": _type_schema(fields["_map"])}
    named = {name: field for name, field in fields.items() if not name.startswith("_")}
    return {
        "type": "object",
        "properties": {name.removesuffix("?"): _field_schema(field) for name, field in named.items()},
        "required": [name for name in named if not name.endswith("?")],
        "additionalProperties": False,
    }


def _field_schema(field: Any) -> Node:
    if isinstance(field, list):
        return {"type": "array", "items": _object_schema(field[0])}
    if isinstance(field, str):
        return _type_schema(field)
    schema = _object_schema(field)
    return {"anyOf": [schema, {"type": "null"}]} if "_null" in field else schema


def _type_schema(field: str) -> Node:
    kind = field.partition(": ")[0]
    if kind.endswith(" or null"):
        return {"anyOf": [_type_schema(kind.removesuffix(" or null")), {"type": "null"}]}
    if kind.startswith("["):
        return {"type": "array", "items": _type_schema(kind[1:-1])}
    if kind.startswith("map of "):
        return {"type": "object", "additionalProperties": _type_schema(kind.removeprefix("map of "))}
    if kind == "scalar":
        return {"type": ["string", "number", "boolean"]}
    return {"$ref": f"#/$defs/{kind}"} if kind in SHAPES else {"type": kind}


def main() -> None:
    """Write the files.

    Side effects:
        Overwrites the pages of this folder.
    """
    for name, text in pages().items():
        (FOLDER / name).write_text(text, "utf-8")
        print(f"docs/reference/{name}")


if __name__ == "__main__":
    main()
