"""The report on a study: one self-contained HTML page, and the same in Markdown with PNG figures."""

from __future__ import annotations

from pathlib import Path

from hpo.artifacts import write_whole
from hpo.errors import BadInput
from hpo.results.figures import to_png
from hpo.results.report.document import Plate, to_html, to_markdown
from hpo.results.report.facts import load_facts
from hpo.results.report.pages import write_blocks
from hpo.study import Study

PAGE, MARKDOWN, FIGURES = "report.html", "report.md", "figures"


def write_report(study: Study, folder: Path) -> tuple[Path, Path]:
    """Write the report of a study into a folder, replacing an earlier one.

    Returns:
        The paths of the page and of the Markdown file.

    Raises:
        BadInput: The folder cannot be created or written to.
        StudyNotFound: No trial is finished yet; nothing is written.

    Side effects:
        Creates the folder; each file appears whole.
    """
    facts = load_facts(study)
    try:
        (folder / FIGURES).mkdir(parents=True, exist_ok=True)  # before the figures, which take seconds
        blocks = write_blocks(facts)
        page = to_html(f"Study {study.name}", blocks)
        markdown = to_markdown(blocks, lambda name: f"{FIGURES}/{name}.png")
        for block in blocks:
            if isinstance(block, Plate):
                write_whole(folder / FIGURES / f"{block.name}.png", to_png(block.figure))
        write_whole(folder / MARKDOWN, markdown.encode())
        write_whole(folder / PAGE, page.encode())
    except OSError as error:
        raise BadInput(f"--out {folder}: cannot write the report: {error.strerror or error}") from error
    return folder / PAGE, folder / MARKDOWN
