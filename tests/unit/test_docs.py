"""Test that the documentation is true where that can be checked: links, paths, commands, sizes, generated pages."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import typer

from hpo.cli import app

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / ".github").rglob("*.md")])
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs" / "guides").glob("*.md"))]
REPORTS = tuple(ROOT / "docs" / name for name in ("example", "documented", "modern"))
WRITTEN_BY_HAND = [path for path in PAGES if path.parent not in (REFERENCE, *REPORTS)]

WIDTH = 100  # columns
README_LINES, README_BYTES = 150, 7_000

COMMAND_LINE = typer.main.get_command(app)

PLACES = {"N": "1", "SECONDS": "10", "HOST:6379": "127.0.0.1:6379"}
"""Values in the place of what a reader fills in."""


def in_repository(path):
    return str(path.relative_to(ROOT))


def without_code(text):
    return re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(path):
    """List the anchors of a page's headings, as GitHub and MyST name them."""
    titles = re.findall(r"^#+ (.+)$", without_code(path.read_text()), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", title.lower()) for title in titles)
    return {title.replace(" ", "-") for title in plain}


def links():
    for page in PAGES:
        for target in re.findall(r"(?:\]\(|src=\")([^)\s\"]+)[)\"]", without_code(page.read_text())):
            if not re.match(r"[a-z]+:", target):
                yield page, target


def is_dead(page, target):
    name, _, anchor = target.partition("#")
    path = (page.parent / name).resolve() if name else page
    return not path.is_file() or (anchor and anchor not in anchors(path))


def code_lines(page):
    """List the command lines of a page's code blocks, continued lines as one; in a console they begin with a dollar."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE):
        lines = block.replace("\\\n", " ").splitlines()
        if language == "console":
            yield from (line.removeprefix("$ ") for line in lines if line.startswith("$ "))
        elif not language:
            yield from lines


def shown_files():
    """List the name and text of the YAML files that guides show under their names."""
    for page in GUIDES:
        yield from re.findall(r"^```yaml\n# (\S+)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def hpo_words(line):
    """Return the words after `hpo` of a command line, or None where it is another command."""
    words = [PLACES.get(word, word) for word in shlex.split(line, comments=True)]
    if words[:2] == ["docker", "compose"] and "hpo" in words:
        return words[words.index("hpo") + 1 :]
    return words[1:] if words[:1] == ["hpo"] else None


COMMANDS = [
    pytest.param(words, id=f"{page.stem}: hpo {' '.join(words)}")
    for page in GUIDES
    for line in code_lines(page)
    if (words := hpo_words(line)) is not None
]

MENTIONS = sorted(
    {
        mention
        for page in WRITTEN_BY_HAND
        if page.name != "CHANGELOG.md"  # it names what was withdrawn, too
        for mention in re.findall(r"`hpo ([a-z][^`]*)`", without_code(page.read_text()))
    }
)


def find_command(words):
    """Return a command and the words that are left for it."""
    command, words = COMMAND_LINE, list(words)
    while hasattr(command, "commands"):
        assert words and words[0] in command.commands, f"there is no command {words}"
        command = command.commands[words.pop(0)]
    return command, words


def test_every_link_resolves():
    assert len(list(links())) > 100

    assert [f"{in_repository(page)}: {target}" for page, target in links() if is_dead(page, target)] == []


def test_every_path_exists():
    named = [
        (page, path)
        for page in WRITTEN_BY_HAND
        if page.name != "CHANGELOG.md"
        for path in re.findall(r"`((?:hpo|tests|docs|benchmarks|docker)/[\w./-]+)`", page.read_text())
    ]
    assert named

    assert [f"{in_repository(page)}: {path}" for page, path in named if not (ROOT / path).exists()] == []


def test_every_test_that_reliability_names_exists():
    text = (ROOT / "docs" / "concepts" / "reliability.md").read_text()
    parts = [part.strip("…") for part in re.findall(r"`(…?[a-z0-9_]+…?)`", text) if "…" in part]
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(parts) > 50

    assert [part for part in parts if part not in sources] == []


@pytest.mark.parametrize("words", COMMANDS)
def test_commands_of_readme_and_guides_parse(words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name, text in shown_files():
        (tmp_path / name).write_text(text)
    for variable in ("HPO_STORAGE", "HPO_ARTIFACTS", "HPO_DATA"):
        monkeypatch.delenv(variable, raising=False)
    command, rest = find_command(words)

    command.make_context("hpo", rest)


@pytest.mark.parametrize("mention", MENTIONS)
def test_commands_in_sentences_exist_with_their_options(mention):
    command, rest = find_command(shlex.split(mention))
    known = {option for param in command.params for option in (*param.opts, *param.secondary_opts)} | {"--help"}

    assert [word for word in rest if word.startswith("--") and word not in known] == []


@pytest.mark.parametrize("page", WRITTEN_BY_HAND, ids=in_repository)
def test_pages_are_narrow(page):
    wide = [
        number
        for number, line in enumerate(page.read_text().splitlines(), 1)
        if len(line) > WIDTH and not re.search(r"\]\(\S+\)\S*$|https?://\S+$", line)
    ]

    assert wide == []


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text()

    assert len(text.splitlines()) <= README_LINES
    assert len(text.encode()) <= README_BYTES


def test_the_reference_is_what_the_code_says():
    spec = importlib.util.spec_from_file_location("generate", REFERENCE / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)

    stale = [name for name, text in generate.pages().items() if (REFERENCE / name).read_text() != text]

    assert stale == [], "`make reference` writes these anew"


def test_help_fits_a_terminal():
    """Summaries are whole on 80 columns, and no option is without a word about it."""
    everything = COMMAND_LINE.commands
    summaries = {name: command.get_short_help_str(1000) for name, command in everything.items()}
    commands = [command for command in everything.values() if not hasattr(command, "commands")]
    assert len(commands) > 15

    assert {name: text for name, text in summaries.items() if not 0 < len(text) <= 50} == {}
    assert [f"{c.name} {p.opts}" for c in commands for p in c.params if not getattr(p, "help", None)] == []
