"""Search spaces in YAML files: read them, and report mistakes with their line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from hpo.errors import SpaceError
from hpo.paths import expand_path
from hpo.recipes.ranges import IntRange
from hpo.recipes.recipe import short_repr
from hpo.recipes.space import Search, SearchSpace
from hpo.recipes.yaml_numbers import NumberLoader, load_yaml


def shipped_dir() -> Path:
    """Return the folder of the shipped spaces: inside the installed package, or next to it in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "search_spaces"
    return installed if installed.is_dir() else package.parent / "search_spaces"


def list_shipped() -> list[str]:
    """List the names of the shipped spaces."""
    return sorted(path.stem for path in shipped_dir().glob("*.yaml"))


def load_space(name_or_file: str) -> SearchSpace:
    """Load a shipped space by name, or one from a YAML file.

    Raises:
        SpaceError: The space does not exist or is malformed.
    """
    if name_or_file in list_shipped():
        return parse_space((shipped_dir() / f"{name_or_file}.yaml").read_text("utf-8"), f"{name_or_file}.yaml")
    path = expand_path(name_or_file)
    if not path.is_file():
        raise SpaceError(
            f"space {name_or_file!r} is neither a file nor a shipped space; shipped: {', '.join(list_shipped())}"
        )
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpaceError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    return parse_space(text, str(path))


def parse_space(text: str, source: str) -> SearchSpace:
    """Read a space from YAML.

    Raises:
        SpaceError: The space is malformed; the message names source, line, key, bad value and what is allowed.
    """
    try:
        root = yaml.compose(text, Loader=NumberLoader)
        content = load_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SpaceError(f"{source}: {_yaml_problem(error)}") from error
    if not isinstance(content, dict) or not isinstance(root, yaml.MappingNode):
        raise SpaceError(f"{source}: line 1: a space is a mapping with the keys {', '.join(SearchSpace.model_fields)}")
    _refuse_repeated_keys(root, source)
    try:
        return SearchSpace.model_validate(content)
    except ValidationError as error:
        problems = [_problem(entry, root) for entry in error.errors()]
        raise SpaceError("; ".join(f"{source}: {problem}" for problem in problems)) from error


def _yaml_problem(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f"not YAML: {' '.join(str(error).split())}"
    return f"line {mark.line + 1}, column {mark.column + 1}: not YAML: {getattr(error, 'problem', error)}"


def _refuse_repeated_keys(node: yaml.Node, source: str, above: tuple[yaml.Node, ...] = ()) -> None:
    if node in above:
        raise SpaceError(f"{source}: line {node.start_mark.line + 1}: recursive alias")
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                raise SpaceError(f"{source}: line {key.start_mark.line + 1}: duplicate key {key.value!r}")
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
            _refuse_repeated_keys(value, source, (*above, node))
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _refuse_repeated_keys(value, source, (*above, node))


def _problem(entry: Mapping[str, Any], root: yaml.Node) -> str:
    place = entry.get("ctx", {}).get("place", entry["loc"])
    keys = [key for key in place if key not in ("range", "choices", "str", "dict[str,any]")]
    where = ".".join(map(str, keys)) or "space"
    message = entry["msg"].removeprefix("Value error, ")
    if entry["type"] == "extra_forbidden":
        message = f"unknown key; allowed: {', '.join(_allowed_keys(keys[:-1]))}"
    shown = "" if entry["type"] in ("missing", "value_error", "space") else f" is {short_repr(entry['input'])}"
    return f"line {_line(root, keys)}: {where}{shown}: {message}"


def _allowed_keys(parents: list[Any]) -> list[str]:
    if not parents:
        return list(SearchSpace.model_fields)
    return list(Search.model_fields if parents == ["search"] else IntRange.model_fields)


def _line(node: yaml.Node, keys: list[Any]) -> int:
    """Return the line of the deepest node on the path that `keys` describes."""
    line = node.start_mark.line + 1
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            entry = next(((k, v) for k, v in node.value if k.value == str(key)), None)
            if entry is None:
                break
            line, node = entry[0].start_mark.line + 1, entry[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            line = node.start_mark.line + 1
        else:
            break
    return line


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a space, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | SearchSpace.model_json_schema()
