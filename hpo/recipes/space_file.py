"""Search spaces in YAML files: read them, and report mistakes with their line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import ValidationError

from hpo.errors import SpaceError
from hpo.paths import expand_path
from hpo.recipes.ranges import IntRange
from hpo.recipes.recipe import short_repr
from hpo.recipes.search_fields import Search
from hpo.recipes.shipped import list_shipped, shipped_dir
from hpo.recipes.space import SearchSpace
from hpo.recipes.yaml_file import find_line, read_mapping


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
    what = f"a space is a mapping with the keys {', '.join(SearchSpace.model_fields)}"
    root, content = read_mapping(text, source, what, SpaceError)
    try:
        return SearchSpace.model_validate(content)
    except ValidationError as error:
        problems = [_problem(entry, root) for entry in error.errors()]
        raise SpaceError("; ".join(f"{source}: {problem}" for problem in problems)) from error


def _problem(entry: Mapping[str, Any], root: yaml.Node) -> str:
    place = entry.get("ctx", {}).get("place", entry["loc"])
    keys = [key for key in place if key not in ("range", "choices", "str", "dict[str,any]")]
    where = ".".join(map(str, keys)) or "space"
    message = entry["msg"].removeprefix("Value error, ")
    if entry["type"] == "extra_forbidden":
        message = f"unknown key; allowed: {', '.join(_allowed_keys(keys[:-1]))}"
    shown = "" if entry["type"] in ("missing", "value_error", "space") else f" is {short_repr(entry['input'])}"
    return f"line {find_line(root, keys)}: {where}{shown}: {message}"


def _allowed_keys(parents: list[Any]) -> list[str]:
    if not parents:
        return list(SearchSpace.model_fields)
    return list(Search.model_fields if parents == ["search"] else IntRange.model_fields)


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a space, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | SearchSpace.model_json_schema()
