"""YAML files of mappings: read one, and find the line of a key."""

from __future__ import annotations

from typing import Any

import yaml

from hpo.errors import BadInput
from hpo.recipes.yaml_numbers import NumberLoader, load_yaml


def read_mapping(
    text: str, source: str, what: str, error: type[BadInput] = BadInput
) -> tuple[yaml.Node, dict[Any, Any]]:
    """Read a mapping, and return its tree with positions, and its content.

    Args:
        source: Name of the file, for messages.
        what: What the file should hold, for messages.
        error: The kind of error that is raised.

    Raises:
        BadInput: The text is not YAML, is no mapping, or repeats a key; the message names source and line.
    """
    try:
        root = yaml.compose(text, Loader=NumberLoader)
        content = load_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError) as problem:
        raise error(f"{source}: {_describe(problem)}") from problem
    if not isinstance(content, dict) or not isinstance(root, yaml.MappingNode):
        raise error(f"{source}: line 1: {what}")
    _refuse_repeated_keys(root, source, error)
    return root, content


def find_line(node: yaml.Node, keys: list[Any]) -> int:
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


def _describe(problem: Exception) -> str:
    mark = getattr(problem, "problem_mark", None)
    if mark is None:
        return f"not YAML: {' '.join(str(problem).split())}"
    return f"line {mark.line + 1}, column {mark.column + 1}: not YAML: {getattr(problem, 'problem', problem)}"


def _refuse_repeated_keys(
    node: yaml.Node, source: str, error: type[BadInput], above: tuple[yaml.Node, ...] = ()
) -> None:
    if node in above:
        raise error(f"{source}: line {node.start_mark.line + 1}: recursive alias")
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                raise error(f"{source}: line {key.start_mark.line + 1}: duplicate key {key.value!r}")
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
            _refuse_repeated_keys(value, source, error, (*above, node))
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _refuse_repeated_keys(value, source, error, (*above, node))
