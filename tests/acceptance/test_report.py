"""Run `hpo report`, and read what it wrote in a real browser."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, Request, expect

from hpo.results.figures import DARK, LIGHT
from tests.acceptance.support import Shell

MEGABYTE = 10**6


@pytest.fixture(scope="module")
def folder(finished: Shell, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of a report on the finished study."""
    copied = finished.copy_to(tmp_path_factory.mktemp("reported") / "folder")
    done = copied.hpo("report")
    assert (done.code, done.err) == (0, "")
    assert done.out.split() == ["smooth_lr-digits-report/report.html", "smooth_lr-digits-report/report.md"]
    return copied.folder / "smooth_lr-digits-report"


@pytest.mark.parametrize(("scheme", "palette"), [("light", LIGHT), ("dark", DARK)])
def test_the_page_needs_nothing_but_itself_and_follows_the_readers_system(
    folder: Path, browser: Callable[..., Page], scheme: str, palette: dict[str, str]
) -> None:
    page = browser(color_scheme=scheme)
    asked_for: list[Request] = []
    said: list[str] = []
    page.on("request", lambda request: asked_for.append(request))  # noqa: PLW0108 - playwright marks its handlers
    page.on("console", lambda message: said.append(message.text))
    page.goto(f"file://{folder}/report.html")
    expect(page.get_by_role("heading", name="Study smooth_lr-digits")).to_be_visible()
    expect(page.get_by_role("heading", name=re.compile(r"Best trial: \d"))).to_be_visible()
    expect(page.get_by_role("heading", name=re.compile("Documented run 5: A smoother learning-rate"))).to_be_visible()
    assert [request.url for request in asked_for] == [f"file://{folder}/report.html"]
    assert said == []
    shown = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert shown == rgb(palette["paper"])
    text = page.locator("figure svg text").first
    assert text.evaluate("text => getComputedStyle(text).fill") in (rgb(palette["soft"]), rgb(palette["ink"]))
    for figure in page.locator("figure svg").all():
        box = figure.bounding_box()
        assert box is not None and box["width"] > 600 and box["height"] > 100
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out"
    page.close()


def rgb(colour: str) -> str:
    return f"rgb({', '.join(str(int(colour[at : at + 2], 16)) for at in (1, 3, 5))})"


def test_a_report_is_small_and_its_markdown_names_figures_that_are_there(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    named = re.findall(r"!\[.*\]\((.*)\)", (folder / "report.md").read_text())
    assert sum(path.stat().st_size for path in files) < 2 * MEGABYTE
    assert sorted(named) == sorted(str(path.relative_to(folder)) for path in files if path.suffix == ".png")
    assert {"figures/history.png", "figures/tree.png", "figures/trial_0.png"} <= set(named)


def test_a_report_that_cannot_be_written_says_why_in_one_line(finished: Shell) -> None:
    absent = finished.hpo("report", "--study", "nothing")
    assert (absent.code, absent.out, absent.err.count("\n")) == (2, "", 1)
    assert "has no hpo study 'nothing'" in absent.err
    occupied = finished.hpo("report", "--out", "hpo.db")
    assert (occupied.code, occupied.out, occupied.err.count("\n")) == (2, "", 1)
    assert "--out hpo.db: cannot write the report: " in occupied.err
