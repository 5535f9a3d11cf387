"""How notes, reports and model cards write values for people."""

from __future__ import annotations

from html import escape


def show_value(value: object) -> str:
    """Write the value of a recipe's field or of a setting.

    Lists and tuples are joined by commas, counts have thousands separators, and floats are as short as `%g` makes them.
    """
    match value:
        case list() | tuple():
            return ", ".join(map(show_value, value))
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:g}"
        case _:
            return str(value)


def show_measured(value: float, standard_error: float) -> str:
    """Write an accuracy in [0, 1] with its standard error."""
    return f"{value:.4f} ± {standard_error:.4f} (standard error)"


def in_markdown(text: str) -> str:
    """Write what somebody else wrote as text of one line in Markdown, in which HTML would be HTML."""
    return escape(" ".join(text.split()), quote=False)
