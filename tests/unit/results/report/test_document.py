"""Test both ways to write a document."""

from html.parser import HTMLParser

from matplotlib.figure import Figure

from hpo.results.figures import DARK, LIGHT
from hpo.results.report import document
from hpo.results.report.document import Grid, Heading, Paragraph, Plate, to_html, to_markdown

BLOCKS = [
    Heading(1, "Study <a> & b"),
    Paragraph("1 < 2"),
    Grid(rows=[("a|b", "<1>"), ("c", "2")]),
    Grid(header=("name", "number"), rows=[("one", "1")]),
    Plate(name="curve", caption='The "curve"', figure=Figure()),
]


def test_markdown_has_headings_tables_and_images_and_what_it_was_given_is_text():
    assert to_markdown(BLOCKS, lambda name: f"figures/{name}.png").splitlines() == [
        "# Study &lt;a&gt; &amp; b",
        "",
        "1 &lt; 2",
        "",
        "|  |  |",
        "| --- | --- |",
        "| a&#124;b | &lt;1&gt; |",
        "| c | 2 |",
        "",
        "| name | number |",
        "| --- | --- |",
        "| one | 1 |",
        "",
        '![The "curve"](figures/curve.png)',
        "",
        '*The "curve"*',
    ]


def test_a_page_escapes_what_it_was_given_and_holds_its_figures(monkeypatch):
    monkeypatch.setattr(document, "to_svg", lambda _figure: '<svg width="1"></svg>\n')
    body = to_html("t", BLOCKS).split("<body>\n")[1].split("\n</body>")[0]

    assert body.splitlines() == [
        "<h1>Study &lt;a&gt; &amp; b</h1>",
        "<p>1 &lt; 2</p>",
        '<div class="scroll"><table>',
        '<tr><th scope="row">a|b</th><td>&lt;1&gt;</td></tr>',
        '<tr><th scope="row">c</th><td>2</td></tr>',
        "</table></div>",
        '<div class="scroll"><table>',
        '<tr><th scope="col">name</th><th scope="col">number</th></tr>',
        '<tr><th scope="row">one</th><td>1</td></tr>',
        "</table></div>",
        "<figure>",
        '<svg role="img" aria-label="The &quot;curve&quot;" width="1"></svg>',
        "<figcaption>The &quot;curve&quot;</figcaption>",
        "</figure>",
    ]


def test_a_page_sets_every_colour_for_light_and_dark():
    page = to_html("a & b", [])

    light, dark = page.split("@media (prefers-color-scheme: dark)")
    assert [f"--{name}: {colour};" for name, colour in LIGHT.items() if f"--{name}: {colour};" not in light] == []
    assert [f"--{name}: {colour};" for name, colour in DARK.items() if f"--{name}: {colour};" not in dark] == []
    assert "<title>a &amp; b</title>" in page


def test_the_elements_of_a_page_are_closed_in_order():
    open_elements = []

    class Checker(HTMLParser):
        def handle_starttag(self, tag, _attrs):
            if tag != "meta":
                open_elements.append(tag)

        def handle_endtag(self, tag):
            assert open_elements.pop() == tag

    Checker().feed(to_html("t", BLOCKS))

    assert open_elements == []
