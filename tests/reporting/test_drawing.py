"""Drawings as SVG. Oracle: the standard library's XML parser, and hand-written elements."""

import json
import re
from xml.etree import ElementTree

import pytest

from sdtt_jax.reporting.drawing import STYLES, Box, Drawing, Polyline, Text, both_widths, css
from sdtt_jax.reporting.palette import DARK, LIGHT, colours, mix

ATTACK = '<script>"&'
MARKS = (
    Polyline("line", ((0, 1), (2.25, 3)), "teacher"),
    Polyline("band", ((0, 0), (1, 0), (1, 1)), "r1", closed=True),
    Box("dot", 1, 2, 7.6, 7.6, "r1", 3.8),
    Text("tick", 5.0, 6, ATTACK, anchor="end"),
)
DRAWING = Drawing(100, 50, MARKS, ATTACK, ({"at": 3, "title": ATTACK, "rows": ()},), "x", (0, 9))


def test_text_and_attributes_are_escaped():
    assert str(MARKS[3].svg()) == (
        '<text class="tick" x="5" y="6" text-anchor="end">&lt;script&gt;&#34;&amp;</text>'
    )
    assert 'aria-label="&lt;script&gt;&#34;&amp;"' in str(DRAWING.svg())


def test_every_mark_is_an_element_in_its_style_and_colour():
    root = ElementTree.fromstring(str(DRAWING.svg()))
    line, band, dot, text = root
    assert line.attrib == {"class": "line", "style": "--c: var(--teacher)", "d": "M0.0,1.0L2.2,3.0"}
    assert band.get("d") == "M0.0,0.0L1.0,0.0L1.0,1.0Z"
    assert (dot.tag, dot.get("rx"), dot.get("width")) == ("rect", "3.8", "7.6")
    assert (text.text, text.get("text-anchor"), text.get("x")) == (ATTACK, "end", "5")


def test_a_drawing_tells_its_size_what_it_shows_and_what_the_pointer_shows():
    root = ElementTree.fromstring(str(DRAWING.svg()))
    assert root.get("viewBox") == "0 0 100 50"
    assert (root.get("role"), root.get("aria-label")) == ("img", ATTACK)
    assert json.loads(root.get("data-hover"))[0]["title"] == ATTACK
    assert (root.get("data-axis"), root.get("data-span")) == ("x", "0 9")


def test_every_style_has_a_rule_over_colours_that_the_palette_has():
    rules = css().splitlines()
    assert [rule.split()[1] for rule in rules] == [f".{name}" for name in STYLES]
    used = set(re.findall(r"var\(--(\w+)\)", css()))
    assert used - {"c"} <= set(colours(LIGHT, 1))


def test_a_figure_comes_in_two_widths():
    wide, narrow = (Drawing(width, 9, (), "", (), "x", (0, 9)) for width in (600, 300))
    page = str(both_widths(wide, narrow))
    assert page.index('class="wide"') < page.index("0 0 600") < page.index('class="narrow"')
    assert page.index('class="narrow"') < page.index("0 0 300")


@pytest.mark.parametrize("mode", [LIGHT, DARK])
def test_words_are_legible_in_every_colour(mode):
    """The last loss of round 1 had contrast 2.2. Oracle: WCAG 2, contrast at least 4.5 for small text."""

    def luminance(colour):
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(map(float.__mul__, (0.2126, 0.7152, 0.0722), linear))

    named = colours(mode, 7)
    for style in filter(lambda style: style.size, STYLES.values()):
        own = set(named) - {"page", "grid"} if style.fill == "own" else {style.fill}
        for colour in own:
            painted = mix(named[colour], named["ink"], style.ink)
            low, high = sorted(luminance(each) + 0.05 for each in (painted, named["page"]))
            assert high / low >= 4.5, (style, colour)
