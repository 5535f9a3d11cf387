"""The search spaces that are shipped with the package."""

from __future__ import annotations

from pathlib import Path


def shipped_dir() -> Path:
    """Return the folder of the shipped spaces: inside the installed package, or next to it in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "search_spaces"
    return installed if installed.is_dir() else package.parent / "search_spaces"


def list_shipped() -> list[str]:
    """List the names of the shipped spaces."""
    return sorted(path.stem for path in shipped_dir().glob("*.yaml"))
