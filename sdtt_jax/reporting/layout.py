"""Places a described figure in pixels: frame, axes, marks, and labels that do not overlap."""

import itertools
import math
import textwrap
from collections.abc import Iterator, Sequence

from sdtt_jax.progress import shortened
from sdtt_jax.reporting.drawing import Box, Drawing, Mark, Polyline, Text
from sdtt_jax.reporting.figures import Axis, Panel, Row, RowChart, Series
from sdtt_jax.reporting.palette import number
from sdtt_jax.reporting.scales import Scale, linear_ticks, log_ticks, padded, spread

# Pixels, as all that follow: between neighbouring labels at the ends of lines.
LABEL_GAP = 16.0
# At least between neighbouring labels of a horizontal axis; one that is nearer is left out.
TICK_GAP, PERCENT_GAP = 27.0, 46.0
# Where the plot begins; further right if the labels of its vertical axis need more room.
LEFT, TOP = 40.0, 34.0
# For a letter of a label and of a name in `RowChart`, enough for the widest common font.
LETTER, SMALL_LETTER = 7.5, 7.0
# `RowChart`: where the axis begins; heights of a row, a row with a bar, and a bar; gap between groups.
HEAD, PITCH, BAR_PITCH, BAR, GROUP_GAP = 74.0, 19.0, 54.0, 18.0, 12.0
# Room at the right of `RowChart`.
VALUE, NAME_AND_VALUE = 60.0, 190.0


def draw_panel(panel: Panel, width: float, height: float) -> Drawing:
    """Draws a panel; width and height are those of the whole, in pixels.

    It is higher if its labels, or more than a line of small print, need that.
    """
    # Room for the labels of the series, at most two fifths of the width.
    longest = max(len(s.label) for s in panel.series)
    right = width - (min(20 + LETTER * longest, 0.4 * width) if longest else 10)
    notes = textwrap.wrap(panel.note, int(width / SMALL_LETTER))
    top, below = TOP + 18 * len(notes), 42 if panel.x.label else 24
    labels = LABEL_GAP * sum(bool(s.label) for s in panel.series)
    height = max(height + 18 * max(0, len(notes) - 1), top + labels + below)
    bottom = height - below
    inset = 12 if any(s.marker for s in panel.series) else 0
    values = [v for s in panel.series for v in (*s.y, *s.low, *s.high)] + [*panel.y.reaches]
    y = Scale(*padded(values, log=panel.y.log), bottom, top, panel.y.log)
    left = max(LEFT, 7 + SMALL_LETTER * max(map(len, tick_texts(_ticks(panel.y, y))), default=0))
    values = [v for s in panel.series for v in s.x] + [*panel.x.reaches]
    x = Scale(min(values), max(values), left + inset, right - inset, panel.x.log)
    marks = [
        Text("title", 0, 14, panel.title),
        *(Text("note", 0, 32 + 18 * i, line) for i, line in enumerate(notes)),
        Text("result", right, 14, panel.result, panel.series[0].colour, "end"),
        *_y_axis(panel.y, y, left, right),
        *_x_axis(panel.x, x, left, right, bottom),
        *_backdrop(panel, y, left, right),
        *(mark for s in panel.series for mark in _intervals(s, x, y)),
        *(mark for s in panel.series if s.x for mark in _points(s, x, y)),
        *_end_labels(panel, x, y, right, int((width - right - 18) / LETTER)),
        *_key(panel.key, left, bottom),
    ]
    tips = [{"at": round(x(t.at), 1), "title": t.title, "rows": t.rows} for t in panel.tips]
    tips.sort(key=lambda tip: float(str(tip["at"])))
    return Drawing(width, height, _shown(marks), panel.description, tuple(tips), "x", (top, bottom))


def draw_rows(chart: RowChart, width: float, *, narrow: bool = False) -> Drawing:
    """Draws rows in a width of pixels; the height follows from their number.

    In a narrow chart the head of a group of points stands above them, and their names at the left.
    """
    bars, stacked = chart.bars, narrow and not chart.bars
    left, right = HEAD, width - (VALUE if bars or narrow else NAME_AND_VALUE)
    if stacked:
        left = max(left, SMALL_LETTER * max(len(row.name) for row in chart.rows) + 8)
    x = Scale(*chart.span, left, right)
    pitch = BAR_PITCH if bars else PITCH
    begins: list[float] = []
    end = 30.0
    for row in chart.rows:
        gap = GROUP_GAP if row.head and begins and not bars else 0
        begins.append(end + gap + (pitch if stacked and row.head else 0))
        end = begins[-1] + pitch
    middles = [begin + (BAR / 2 + 6 if bars else pitch / 2) for begin in begins]
    # Where notes stand under bars, lines would run through them.
    lines = [(m - BAR / 2 - 4, m + BAR / 2 + 4) for m in middles] if bars else [(26.0, end)]
    marks = [Text("title", 0, 14, chart.title), *_row_ticks(chart, x, lines, end, width)]
    tips = []
    for row, middle in zip(chart.rows, middles, strict=True):
        marks.append(Text("group", 0, middle + 4 - (pitch if stacked else 0), row.head))
        marks += _bar(row, x, middle, narrow) if bars else _point(row, x, middle)
        if not bars:
            marks.append(Text("tick", 0 if narrow else right + 16, middle + 4, row.name))
        marks.append(Text("value", width, middle + 4, row.details[0][1], anchor="end"))
        details = [(row.colour, *row.details[0]), *(("", *d) for d in row.details[1:])]
        tips.append({"at": round(middle, 1), "title": row.name, "rows": details})
    height = end + (42 if any(chart.directions) else 26)
    return Drawing(width, height, _shown(marks), chart.description, tuple(tips), "y", (left, right))


def tick_texts(ticks: Sequence[float]) -> list[str]:
    """Ticks in words, with as many digits as tell them apart."""
    digits = 3 if len({number(t, 2) for t in ticks}) < len(ticks) else 2
    texts = [number(tick, digits) for tick in ticks]
    return [t.rstrip("0").rstrip(".") if "." in t and "·" not in t else t for t in texts]


def _shown(marks: Sequence[Mark]) -> tuple[Mark, ...]:
    """All marks except empty texts."""
    return tuple(mark for mark in marks if not isinstance(mark, Text) or mark.text)


def _ticks(axis: Axis, scale: Scale) -> Sequence[float]:
    choose = log_ticks if axis.log else linear_ticks
    return axis.ticks or choose(scale.low, scale.high, axis.num_ticks)


def _y_axis(axis: Axis, y: Scale, left: float, right: float) -> Iterator[Mark]:
    ticks = _ticks(axis, y)
    for tick, text in zip(ticks, tick_texts(ticks), strict=True):
        yield Polyline("grid", ((left, y(tick)), (right, y(tick))))
        yield Text("tick", left - 7, y(tick) + 4, text, anchor="end")


def _x_axis(axis: Axis, x: Scale, left: float, right: float, bottom: float) -> Iterator[Mark]:
    """The labels of the ticks; if the axis has a name, also the name, the line and the tick marks.

    The last tick has a label in any case, which says how far the axis goes.
    """
    ticks, free = _ticks(axis, x), -math.inf
    texts = tick_texts(ticks)
    halves = [max(SMALL_LETTER * len(text) + 6, TICK_GAP) / 2 for text in texts]
    last = len(ticks) - 1
    for index, (tick, text, half) in enumerate(zip(ticks, texts, halves, strict=True)):
        at = x(tick)
        if axis.label:
            yield Polyline("tickmark", ((at, bottom), (at, bottom + 4)))
        if index == last or (free <= at - half and at + half <= x(ticks[last]) - halves[last]):
            yield Text("tick", at, bottom + 18, text, anchor="middle")
            free = at + half
    if axis.label:
        yield Polyline("baseline", ((left, bottom), (right, bottom)))
        yield Text("axis", (left + right) / 2, bottom + 36, axis.label, anchor="middle")


def _backdrop(panel: Panel, y: Scale, left: float, right: float) -> Iterator[Mark]:
    """The shaded strip and the reference lines."""
    if panel.strip:
        low, high = (y(value) for value in panel.strip)
        yield Box("strip", left, high, right - left, low - high, "data")
    for series in panel.series:
        if not series.x:
            at = y(series.y[0])
            yield Polyline(series.line, ((left, at), (right, at)), series.colour)


def _intervals(series: Series, x: Scale, y: Scale) -> Iterator[Mark]:
    lower = [(x(a), y(b)) for a, b in zip(series.x, series.low, strict=False)]
    upper = [(x(a), y(b)) for a, b in zip(series.x, series.high, strict=False)]
    if series.bars:
        for ends in zip(lower, upper, strict=True):
            yield Polyline("interval", ends, series.colour)
    elif lower:
        yield Polyline("band", (*upper, *reversed(lower)), series.colour, closed=True)


def _points(series: Series, x: Scale, y: Scale) -> Iterator[Mark]:
    places = [(x(a), y(b)) for a, b in zip(series.x, series.y, strict=True)]
    if series.line and len(places) > 1:
        yield Polyline(series.line, tuple(places), series.colour)
    if series.marker:
        for at in places:
            yield _marker(series, *at)
    for (px, py), note in zip(places, series.notes, strict=False):
        yield Text("tick", px + 6, py - 6, note)


def _marker(series: Series, x: float, y: float) -> Mark:
    if series.marker in ("open", "square"):
        return Box(series.marker, x - 3.5, y - 3.5, 7, 7, series.colour)
    return _circle(series.marker, x, y, 3.8, series.colour)


def _circle(style: str, x: float, y: float, radius: float, colour: str) -> Mark:
    return Box(style, x - radius, y - radius, 2 * radius, 2 * radius, colour, radius)


def _end_labels(panel: Panel, x: Scale, y: Scale, right: float, letters: int) -> Iterator[Mark]:
    """Labels in the right margin, moved apart, each with a thin line to what it names.

    One of more letters than fit there loses its middle.
    """
    named = [s for s in panel.series if s.label]
    places = spread([y(s.y[-1]) for s in named], LABEL_GAP, y.end + 2, y.start - 2)
    for s, place in zip(named, places, strict=True):
        start, at = x(s.x[-1]) if s.x else right, y(s.y[-1])
        leader = ((start + 6, at), (right + 2, at), (right + 12, place), (right + 15, place))
        yield Polyline("leader", leader, s.colour)
        yield Text("label", right + 18, place + 4, shortened(s.label, letters), s.colour)


def _key(key: Sequence[Series], left: float, bottom: float) -> Iterator[Mark]:
    """What lines and markers mean, from the lower left corner upwards."""
    for index, entry in enumerate(reversed(key)):
        at = bottom - 16 - 19 * index
        if entry.line:
            yield Polyline(entry.line, ((left + 12, at), (left + 36, at)), entry.colour)
        if entry.marker:
            yield _marker(entry, left + 24, at)
        yield Text("group", left + 44, at + 4, entry.label)


def _row_ticks(
    chart: RowChart, x: Scale, lines: Sequence[tuple[float, float]], bottom: float, width: float
) -> Iterator[Mark]:
    """The vertical `lines`, top to bottom, at each tick; the labels that have room: every n-th from 0 on."""
    places = [x(value) for value, _ in chart.ticks]
    nearest = min((b - a for a, b in itertools.pairwise(places)), default=PERCENT_GAP)
    every = math.ceil(PERCENT_GAP / nearest)
    zero = next((index for index, (value, _) in enumerate(chart.ticks) if not value), 0)
    for index, (at, (value, text)) in enumerate(zip(places, chart.ticks, strict=True)):
        for start, stop in lines:
            yield Polyline("grid" if value else "zero", ((at, start), (at, stop)))
        if (index - zero) % every == 0:
            yield Text("tick", at, bottom + 18, text, anchor="middle")
    below, above = chart.directions
    yield Text("axis", x(0) - 8, bottom + 36, below, anchor="end")
    if width - x(0) > LETTER * len(above):
        yield Text("axis", x(0) + 8, bottom + 36, above)


def _point(row: Row, x: Scale, middle: float) -> list[Mark]:
    return [
        Polyline("interval", ((x(row.low), middle), (x(row.high), middle)), row.colour),
        _circle("dot", x(row.value), middle, 4.5, row.colour),
    ]


def _bar(row: Row, x: Scale, middle: float, narrow: bool) -> list[Mark]:
    """A bar on its track; one that goes beyond the axis is cut there, with a break to show it."""
    shown = max(x.low, min(x.high, row.value))
    start, end = x(0), x(shown)
    width, inwards = max(abs(end - start), 1.5), 10 if end < start else -10
    top, bottom = middle - BAR / 2 - 1, middle + BAR / 2 + 1
    breaks = [end + inwards, end + 1.7 * inwards] if shown != row.value else []
    return [
        Box("track", start, middle - BAR / 2, x(1) - start, BAR, radius=3),
        Box("bar", min(start, end), middle - BAR / 2, width, BAR, row.colour, 3),
        *(Polyline("cut", ((at - 3, bottom), (at + 3, top))) for at in breaks),
        Text("note", 0 if narrow else x.start + 7, middle + BAR / 2 + 16, row.note),
    ]
