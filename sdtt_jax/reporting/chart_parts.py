"""What the report's charts share: frame, axes, markers, and labels at the ends of lines.

Colours are CSS variables, so one drawing serves light and dark mode. Each chart is drawn twice,
wide and narrow, and the style sheet shows the one that fits: text keeps its size on a phone.
`data-hover` holds what the page's script shows under the pointer.
"""

import json
import math
from collections.abc import Callable, Sequence

from markupsafe import Markup

from sdtt_jax.reporting.palette import number
from sdtt_jax.reporting.svg import Scale, path, spread, tag

LABEL_GAP = 16.0
"""Pixels between neighbouring direct labels."""


def both_widths(draw: Callable[[float, bool], Markup], wide: float, narrow: float = 344) -> Markup:
    """A chart in both widths; `draw` gets the width and whether it is the narrow one.

    Empty if there is nothing to draw.
    """
    drawing = draw(wide, False)
    if not drawing:
        return drawing
    return Markup('<div class="wide">{}</div><div class="narrow">{}</div>').format(
        drawing, draw(narrow, True)
    )


def colour_style(name: str) -> str:
    """The `style` that lets the style sheet paint an element in a colour of the palette."""
    return f"--c: var(--{name})"


def marker(label: str, x: float, y: float, style: str) -> Markup:
    """Teacher's points are open squares, so that the pair is told apart without colour."""
    if label == "teacher":
        return tag("rect", class_="dot open", x=x - 3.5, y=y - 3.5, width=7, height=7, style=style)
    return tag("circle", class_="dot", cx=x, cy=y, r=3.8, style=style)


def y_axis(ticks: Sequence[float], y: Scale, left: float, right: float) -> list[Markup]:
    """Grid lines and their labels, with as many digits as tell the ticks apart."""
    parts = []
    digits = 3 if len({number(t, 2) for t in ticks}) < len(ticks) else 2
    for tick in ticks:
        parts.append(tag("path", class_="grid", d=path([(left, y(tick)), (right, y(tick))])))
        text = number(tick, digits)
        if "." in text:
            text = text.rstrip("0").rstrip(".")
        parts.append(tag("text", text, class_="tick", x=left - 7, y=y(tick) + 4, text_anchor="end"))
    return parts


def steps_axis(measured: Sequence[int], x: Scale, bottom: float) -> list[Markup]:
    """A tick at each measured number of steps; labels that would touch are left out."""
    parts, last = [], -math.inf
    for k in measured:
        at = x(k)
        parts.append(tag("path", class_="tickmark", d=path([(at, bottom), (at, bottom + 4)])))
        if at - last > 26:
            parts.append(tag("text", k, class_="tick", x=at, y=bottom + 18, text_anchor="middle"))
            last = at
    return parts


def end_labels(
    ends: Sequence[tuple[str, str, float, float]], right: float, top: float, bottom: float
) -> list[Markup]:
    """Labels at the right of lines: (label, colour, y, x) each, moved apart, with leaders."""
    places = spread([y for _, _, y, _ in ends], LABEL_GAP, top + 2, bottom - 2)
    parts = []
    for (label, colour, y, x), place in zip(ends, places, strict=True):
        style = colour_style(colour)
        lead = [(x + 6, y), (right + 2, y), (right + 12, place), (right + 15, place)]
        parts.append(tag("path", class_="leader", d=path(lead), style=style))
        parts.append(tag("text", label, class_="label", x=right + 18, y=place + 4, style=style))
    return parts


def figure(
    width: float,
    height: float,
    parts: Sequence[Markup],
    description: str,
    hover: object,
    span: tuple[float, float],
    axis: str = "x",
) -> Markup:
    """The frame of a chart. `hover` lists what to show at which pixel along `axis`; `span` is
    the extent, in pixels along the other axis, of the line that marks it."""
    return tag(
        "svg",
        *parts,
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        role="img",
        aria_label=description,
        data_hover=json.dumps(hover, separators=(",", ":"), ensure_ascii=False),
        data_axis=axis,
        data_span=f"{span[0]:.0f} {span[1]:.0f}",
    )
