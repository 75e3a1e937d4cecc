"""What a figure shows, apart from how it is drawn: series, axes, labels and intervals.

Each figure is described once. `layout` places it in pixels; the report page takes the result as
SVG (`drawing`), files take it as a picture (`picture`). Colours are names of the palette.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tip:
    """What the page shows when the pointer is at `at`, a value of the horizontal axis."""

    at: float
    title: str
    rows: tuple[tuple[str, str, str], ...]  # (colour or "", name, value)


@dataclass(frozen=True)
class Axis:
    """An axis of a panel. It covers the series, the `ticks` and the values that it `reaches`.

    A horizontal axis without a label is drawn without a line.
    """

    label: str = ""
    log: bool = False
    ticks: tuple[float, ...] = ()  # about `num_ticks` round numbers if empty
    num_ticks: int = 5
    reaches: tuple[float, ...] = ()


@dataclass(frozen=True)
class Series:
    """A line, a set of points, or (without `x`) a horizontal line across the panel."""

    label: str  # at its end; "" for none
    colour: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()  # the interval at each point, with `high`; empty for none
    high: tuple[float, ...] = ()
    line: str = "line"  # a style of lines, or "" for points alone
    marker: str = "dot"  # a style of points, or "" for a line alone
    bars: bool = False  # intervals are bars at the points instead of a band along the line
    notes: tuple[str, ...] = ()  # a word at each point; empty for none


@dataclass(frozen=True)
class Panel:
    """Values against values on two axes."""

    title: str
    description: str  # for those who cannot see it
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    strip: tuple[float, float] | None = None  # a range of y, shaded in the colour of real text
    note: str = ""  # small print under the title
    result: str = ""  # at the upper right, in the colour of the first series
    key: tuple[Series, ...] = ()  # what lines and points mean: series without values
    tips: tuple[Tip, ...] = ()


@dataclass(frozen=True)
class Row:
    """One row of `RowChart`: a point with its interval, or a bar from zero."""

    head: str  # at the left; "" if it is the same as in the row above
    name: str
    colour: str
    value: float
    low: float
    high: float
    details: tuple[
        tuple[str, str], ...
    ]  # (name, value) each; the first value is written next to it
    note: str = ""  # small print under a bar


@dataclass(frozen=True)
class RowChart:
    """Values side by side on one axis: points with intervals, or bars on a track from 0 to 1."""

    title: str
    description: str  # for those who cannot see it
    rows: tuple[Row, ...]
    span: tuple[float, float]  # a bar that goes beyond is cut
    ticks: tuple[tuple[float, str], ...]
    bars: bool = False
    directions: tuple[str, str] = ("", "")  # what lies left and right of zero
