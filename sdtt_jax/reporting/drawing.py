"""A drawing: marks at pixels, each in a named style, and its SVG for the report page.

All styles are defined here. The page gets them as CSS rules over the palette's colours, which are CSS
variables, so that one drawing serves light and dark mode; `picture` paints files with them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from markupsafe import Markup


@dataclass(frozen=True)
class Style:
    """How a mark is painted. Colours are names of the palette; "own" is the colour of the mark."""

    stroke: str = ""
    fill: str = ""
    width: float = 1.0  # of the stroke, pixels
    dash: tuple[float, ...] = ()  # lengths of strokes and gaps, pixels
    opacity: float = 1.0
    size: float = 0.0  # of text, pixels
    weight: int = 400  # of text; 400 is regular
    ink: float = 0.0  # the share of ink that is mixed into the fill


STYLES = {
    "title": Style(fill="ink", size=14, weight=600),
    "group": Style(fill="ink", size=13),
    "tick": Style(fill="muted", size=12),
    "axis": Style(fill="muted", size=12),
    "note": Style(fill="muted", size=12),
    # So much ink makes words in the palest colour legible: a contrast of 4.5.
    "label": Style(fill="own", size=13, weight=550, ink=0.4),
    "value": Style(fill="ink", size=13, weight=600),
    "result": Style(fill="own", size=13, weight=600, ink=0.4),
    "grid": Style(stroke="grid"),
    "zero": Style(stroke="muted"),
    "baseline": Style(stroke="muted"),
    "tickmark": Style(stroke="muted"),
    "strip": Style(fill="own", opacity=0.07),
    "band": Style(fill="own", opacity=0.13),
    "reference": Style(stroke="own", width=1.5, dash=(5, 4)),
    # Dotted, since one that crosses the figure would be read as measured.
    "leader": Style(stroke="own", dash=(1.5, 3), opacity=0.6),
    "interval": Style(stroke="own", width=3.5, opacity=0.45),
    "line": Style(stroke="own", width=2),
    "heavy": Style(stroke="own", width=3),
    "raw": Style(stroke="own", opacity=0.28),
    "dot": Style(fill="own", stroke="page", width=1.5),
    "square": Style(fill="own", stroke="page", width=1.5),
    "open": Style(fill="page", stroke="own", width=1.8),
    "ring": Style(fill="page", stroke="own", width=1.8),
    "track": Style(fill="page", ink=0.07),
    "bar": Style(fill="own"),
    "cut": Style(stroke="page", width=2.5),
}


@dataclass(frozen=True)
class Polyline:
    """A polyline through pixels, or the area within it."""

    style: str
    points: tuple[tuple[float, float], ...]
    colour: str = ""
    closed: bool = False

    def svg(self) -> Markup:
        line = "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in self.points)
        return _element("path", self, d=line + "Z" * self.closed)


@dataclass(frozen=True)
class Box:
    """A rectangle by its upper left corner; with a radius of half its sides, a circle."""

    style: str
    x: float
    y: float
    width: float
    height: float
    colour: str = ""
    radius: float = 0.0

    def svg(self) -> Markup:
        width, height, radius = self.width, self.height, self.radius or None
        return _element("rect", self, x=self.x, y=self.y, width=width, height=height, rx=radius)


@dataclass(frozen=True)
class Text:
    """A line of text, placed by its baseline and its "start", "middle" or "end"."""

    style: str
    x: float
    y: float
    text: str
    colour: str = ""
    anchor: str = "start"

    def svg(self) -> Markup:
        anchor = None if self.anchor == "start" else self.anchor
        return _element("text", self, self.text, x=self.x, y=self.y, text_anchor=anchor)


Mark = Polyline | Box | Text


@dataclass(frozen=True)
class Drawing:
    """Marks in pixels, in the order in which they are painted, and a description of what they show."""

    width: float
    height: float
    marks: tuple[Mark, ...]
    description: str
    tips: tuple[Mapping[str, object], ...]  # what the pointer shows: `at` (pixel), `title`, `rows`
    axis: str  # the axis along which tips lie, "x" or "y"
    span: tuple[float, float]  # of the line that marks the pointer's place, across the axis

    def svg(self) -> Markup:
        """The element for a page that has the rules of `css` and the palette's variables."""
        tips = json.dumps(self.tips, separators=(",", ":"), ensure_ascii=False)
        return Markup(
            '<svg viewBox="0 0 {:.0f} {:.0f}" role="img" aria-label="{}" data-hover="{}" '
            'data-axis="{}" data-span="{:.0f} {:.0f}">{}</svg>'
        ).format(
            *(self.width, self.height, self.description, tips, self.axis, *self.span),
            Markup("").join(mark.svg() for mark in self.marks),
        )


def css() -> str:
    """The style sheet's rules for marks: one for each style; own colours are the variable --c."""
    return "\n".join(f"svg .{name} {{ {_rule(s)} }}" for name, s in STYLES.items())


def both_widths(wide: Drawing, narrow: Drawing) -> Markup:
    """A figure for wide and for narrow screens; the style sheet shows the one that fits.

    Two drawings instead of one that is scaled, so that text keeps its size on a telephone.
    """
    page = Markup('<div class="wide">{}</div><div class="narrow">{}</div>')
    return page.format(wide.svg(), narrow.svg())


def _element(name: str, mark: Mark, text: str = "", **attributes: object) -> Markup:
    """A mark's element in its style and colour. Numbers have one decimal, or none."""
    colour = f"--c: var(--{mark.colour})" if mark.colour else None
    given = {"class": mark.style, "style": colour, **attributes}
    written = Markup("").join(
        Markup(' {}="{}"').format(key.replace("_", "-"), _plain(value))
        for key, value in given.items()
        if value is not None
    )
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), written, text)


def _plain(value: object) -> object:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value


def _rule(style: Style) -> str:
    fill = _variable(style.fill) if style.fill else "none"
    if style.ink:
        fill = f"color-mix(in srgb, var(--ink) {style.ink:.0%}, {fill})"
    parts = [f"fill: {fill};"]
    if style.stroke:
        parts.append(f"stroke: {_variable(style.stroke)}; stroke-width: {style.width:g};")
    if style.dash:
        parts.append(f"stroke-dasharray: {' '.join(f'{d:g}' for d in style.dash)};")
    if style.opacity < 1:
        parts.append(f"opacity: {style.opacity:g};")
    if style.size:
        parts.append(f"font-size: {style.size:g}px; font-weight: {style.weight};")
    return " ".join(parts)


def _variable(colour: str) -> str:
    return "var(--c)" if colour == "own" else f"var(--{colour})"
