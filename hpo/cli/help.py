"""The help pages of commands: options in groups, with defaults in parentheses."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from typer.core import TyperCommand

STUDY, SEARCH, TRAINING, WORKERS, STORAGE = "Study", "Search", "Training", "Workers", "Storage"
"""Groups of options, in the order of the help pages; options without a group come last."""

OTHERS = "Options"


class GroupedCommand(TyperCommand):
    """A command whose help lists its options by group."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, and then each group of options."""
        records = [(_group(param), param.get_help_record(ctx)) for param in self.get_params(ctx)]
        groups = group_records((group, record) for group, record in records if record is not None)
        for title, lines in groups.items():
            with formatter.section(title):
                formatter.write_dl(lines)


def group_records(records: Iterable[tuple[str, tuple[str, str]]]) -> dict[str, list[tuple[str, str]]]:
    """Collect the lines of each group in the order of the help pages; a group without options is left out."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for group, (name, text) in records:
        groups.setdefault(group, []).append((_without_type(name), describe(text)))
    order = ("Arguments", STUDY, SEARCH, TRAINING, WORKERS, STORAGE, OTHERS)
    return {group: groups[group] for group in order if group in groups}


def describe(text: str) -> str:
    """Write an option's help with its default in parentheses, and without the range, which an error names.

    Args:
        text: The help and then, in brackets, what typer adds to it.
    """
    match = re.fullmatch(r"(.*?)\s*\[([^\[\]]*)\]", text, re.DOTALL)
    if match is None:
        return text
    notes = [re.sub(r"^default: \((.*)\)$", r"default: \1", note) for note in match[2].split("; ")]
    kept = [re.sub(r"^(default: \d+)\.0$", r"\1", note) for note in notes if "<=x" not in note]
    return f"{match[1].removesuffix('.')} ({'; '.join(kept)})." if kept else match[1]


def _without_type(name: str) -> str:
    """Leave out what typer adds to an argument that is a text: the name of a Python type."""
    return re.sub(r" <(list\[)?str\]?>$", "", name)


def _group(param: Any) -> str:
    if param.param_type_name == "argument":
        return "Arguments"
    return param.rich_help_panel or OTHERS
