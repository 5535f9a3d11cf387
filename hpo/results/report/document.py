"""A document as a list of blocks, written as HTML or as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from matplotlib.figure import Figure

from hpo.results.figures import DARK, LIGHT, css_variables, to_svg
from hpo.results.formatting import in_markdown

CSS = """
:root { color-scheme: light dark; %(light)s }
@media (prefers-color-scheme: dark) { :root { %(dark)s } }
body { background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; margin: 0 auto;
       max-width: 50rem; padding: 2rem 1rem 4rem; }
h1, h2, h3 { line-height: 1.2; margin: 2.5rem 0 .75rem; }
h1 { margin-top: 0; }
h2 { border-top: 1px solid var(--rule); padding-top: 1.5rem; }
figure { margin: 1.5rem 0; }
figure svg { display: block; height: auto; width: 100%%; }
figure svg text { font-family: system-ui, sans-serif !important; }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--rule); padding: .3rem 1rem .3rem 0; text-align: left; vertical-align: top; }
th { color: var(--soft); font-weight: normal; white-space: nowrap; }
"""


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading; level 1 is the title."""

    level: int
    text: str


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A paragraph of plain text."""

    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """A table; without a header, the first column names the rows."""

    rows: Sequence[Sequence[str]]
    header: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Plate:
    """A figure with its caption.

    Attributes:
        name: Name of the PNG file, without its suffix.
    """

    name: str
    caption: str
    figure: Figure


Block = Heading | Paragraph | Grid | Plate


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """Write a self-contained page, light or dark as its reader's system is."""
    style = CSS % {"light": css_variables(LIGHT), "dark": css_variables(DARK)}
    body = "\n".join(_html(block) for block in blocks)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def to_markdown(blocks: Sequence[Block], image_path: Callable[[str], str]) -> str:
    """Write Markdown as GitHub reads it.

    Args:
        image_path: Gives a figure's path, relative to the Markdown file, by its name.
    """
    return "\n\n".join(_markdown(block, image_path) for block in blocks) + "\n"


def _html(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"<h{level}>{escape(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{escape(text)}</p>"
        case Grid():
            return f'<div class="scroll"><table>\n{_html_rows(block)}\n</table></div>'
        case Plate():
            label = escape(block.caption, quote=True)
            element = to_svg(block.figure).replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
            return f"<figure>\n{element}<figcaption>{escape(block.caption)}</figcaption>\n</figure>"


def _html_rows(grid: Grid) -> str:
    head = ["".join(f'<th scope="col">{escape(cell)}</th>' for cell in grid.header)] if grid.header else []
    body = [
        f'<th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        for row in grid.rows
    ]
    return "\n".join(f"<tr>{cells}</tr>" for cells in head + body)


def _markdown(block: Block, image_path: Callable[[str], str]) -> str:
    match block:
        case Heading(level, text):
            return f"{'#' * level} {in_markdown(text)}"
        case Paragraph(text):
            return in_markdown(text)
        case Grid():
            header = block.header or [""] * len(block.rows[0])
            lines = [header, ["---"] * len(header), *block.rows]
            cells = ([in_markdown(cell).replace("|", "&#124;") for cell in line] for line in lines)
            return "\n".join(f"| {' | '.join(line)} |" for line in cells)
        case Plate():
            caption = in_markdown(block.caption)
            return f"![{caption}]({image_path(block.name)})\n\n*{caption}*"
