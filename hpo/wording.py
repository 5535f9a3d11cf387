"""How messages write numbers of things."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Write a number with its noun: "1 trial", "1,200 trials".

    Args:
        plural: Of a noun that takes more than an "s".
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
