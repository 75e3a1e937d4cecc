"""Where things are placed. Oracle: hand calculation on small panels."""

import dataclasses
import itertools

import pytest

from sdtt_jax.reporting.drawing import STYLES, Box, Polyline, Text
from sdtt_jax.reporting.figures import Axis, Panel, Row, RowChart, Series, Tip
from sdtt_jax.reporting.layout import draw_panel, draw_rows, tick_texts

SERIES = Series("a", "r1", (1.0, 10.0, 100.0), (3.0, 2.0, 1.0))


def panel(*series: Series, x: Axis | None = None, **fields) -> Panel:
    return Panel("title", "words", x or Axis("steps", log=True), Axis(), series, **fields)


def marks(drawing, style):
    return [mark for mark in drawing.marks if mark.style == style]


def test_better_is_lower_and_more_steps_are_to_the_right_on_a_log_axis():
    (line,) = marks(draw_panel(panel(SERIES), 600, 400), "line")
    (x0, y0), (x1, y1), (x2, y2) = line.points
    assert x1 == pytest.approx((x0 + x2) / 2)
    assert y0 < y1 < y2  # pixels grow downwards


@pytest.mark.parametrize(("marker", "radius"), [("dot", 3.8), ("open", 0.0), ("ring", 3.8)])
def test_markers_are_centred_on_their_points(marker, radius):
    series = Series("", "r1", (1.0, 10.0), (3.0, 2.0), marker=marker)
    drawing = draw_panel(panel(series), 600, 400)
    (line,) = marks(drawing, "line")
    for box, point in zip(marks(drawing, marker), line.points, strict=True):
        assert isinstance(box, Box)
        assert (box.x + box.width / 2, box.y + box.height / 2) == pytest.approx(point)
        assert box.radius == radius


def test_intervals_are_a_band_along_a_line_or_bars_at_points():
    fields = {"low": (2.0, 1.0), "high": (4.0, 3.0)}
    band = Series("", "r1", (1.0, 10.0), (3.0, 2.0), **fields)
    (area,) = marks(draw_panel(panel(band), 600, 400), "band")
    assert area.closed
    assert len(area.points) == 4
    bars = Series("", "r1", (1.0, 10.0), (3.0, 2.0), bars=True, **fields)
    assert len(marks(draw_panel(panel(bars), 600, 400), "interval")) == 2


def test_a_series_without_places_runs_across_and_is_labelled_at_the_edge():
    floor = Series("floor", "data", (), (1.5,), line="reference", marker="")
    drawing = draw_panel(panel(SERIES, floor), 600, 400)
    (line,) = marks(drawing, "reference")
    (baseline,) = marks(drawing, "baseline")
    assert [x for x, _ in line.points] == [x for x, _ in baseline.points]
    assert [label.text for label in marks(drawing, "label")] == ["a", "floor"]


def test_labels_have_room_and_keep_apart():
    series = [Series(f"a rather long name {i}", "r1", (1.0, 2.0), (1.0, 1.0)) for i in range(5)]
    labels = marks(draw_panel(panel(*series), 600, 400), "label")
    places = [label.y for label in labels]
    assert all(b - a >= 16 - 1e-6 for a, b in itertools.pairwise(places))
    assert all(label.x + 7 * len(label.text) <= 600 for label in labels)


def test_a_label_that_does_not_fit_loses_its_middle():
    """On a phone it stuck out of the page. Oracle: letters of 7 pixels, more than they are wide."""
    series = Series("round_02, entropy-bounded", "r1", (1.0, 2.0), (1.0, 1.0))
    (label,) = marks(draw_panel(panel(series), 344, 280), "label")
    assert label.text.startswith("round_02")
    assert label.text.endswith("ounded")
    assert label.x + 7 * len(label.text) <= 344


def test_labels_that_are_many_make_the_figure_higher_and_differ():
    """24 of them stood in the next figure on a phone, as "round_0…hitting". Oracle: places, and the names."""
    names = [
        f"round_{n:02d}, {mode}" for n in range(1, 9) for mode in ("grid", "first-hitting", "remdm")
    ]
    every = [Series(name, "r1", (1.0, 2.0), (3.0, 4.0 + at)) for at, name in enumerate(names)]
    for width in (344, 720):
        drawn = draw_panel(panel(*every), width, 320)
        labels = [mark for mark in drawn.marks if mark.style == "label"]
        assert len({label.text for label in labels}) == len(names)
        places = sorted(label.y for label in labels)
        assert 0 < places[0] < places[-1] < drawn.height - 30
        assert min(b - a for a, b in itertools.pairwise(places)) >= 15.9


def test_labels_of_the_vertical_axis_have_room():
    """ "1.5·10⁻⁵" used to stick out at the left. Oracle: letters of 7 pixels, more than they are wide."""
    small = draw_panel(panel(Series("a", "r1", (1.0, 2.0), (1.5e-5, 3.45e-5))), 300, 200)
    texts = [m for m in marks(small, "tick") if m.anchor == "end"]
    assert max(len(m.text) for m in texts) == 8
    assert all(m.x - 7 * len(m.text) >= 0 for m in texts)


def test_ticks_that_are_too_near_keep_their_mark_and_lose_their_label():
    axis = Axis("steps", ticks=(1.0, 2.0, 3.0, 1000.0))
    drawing = draw_panel(panel(Series("", "r1", (1.0, 1000.0), (1.0, 2.0)), x=axis), 300, 200)
    labels = [m.text for m in marks(drawing, "tick") if m.anchor == "middle"]
    assert labels == ["1", "1\u202f000"]
    assert len(marks(drawing, "tickmark")) == 4


@pytest.mark.parametrize(("width", "least"), [(430, 9), (300, 5), (150, 1)])
def test_labels_of_a_horizontal_axis_have_room_and_the_last_tick_has_one(width, least):
    """256, 512 and 1 024 stood in one another, or the last was missing. Oracle: letters of 7 pixels, more
    than they are wide."""
    steps = tuple(2.0**power for power in range(11))
    series = Series("round 12", "r1", steps, steps)
    drawing = draw_panel(panel(series, x=Axis("steps", log=True, ticks=steps)), width, 330)
    labels = [m for m in marks(drawing, "tick") if m.anchor == "middle"]
    assert len(labels) >= least
    assert labels[-1].text == "1\u202f024"
    for a, b in itertools.pairwise(labels):
        assert a.x + 3.5 * len(a.text) < b.x - 3.5 * len(b.text)


def test_an_axis_reaches_what_it_is_asked_to_and_the_strip_lies_on_it():
    wide = Panel("t", "d", Axis(), Axis(reaches=(0.0, 8.0)), (SERIES,), strip=(2.0, 4.0))
    drawing = draw_panel(wide, 600, 400)
    (strip,) = marks(drawing, "strip")
    grid = {text.text: line for line, text in zip(*_grid(drawing), strict=True)}
    assert strip.y == pytest.approx(grid["4"].points[0][1])
    assert strip.y + strip.height == pytest.approx(grid["2"].points[0][1])


def _grid(drawing) -> tuple[list[Polyline], list[Text]]:
    return marks(drawing, "grid"), [m for m in marks(drawing, "tick") if m.anchor == "end"]


def test_the_pointer_finds_tips_in_order_at_the_points_they_speak_of():
    tips = (Tip(100.0, "last", ()), Tip(1.0, "first", ()))
    drawing = draw_panel(panel(SERIES, tips=tips), 600, 400)
    (line,) = marks(drawing, "line")
    assert [tip["title"] for tip in drawing.tips] == ["first", "last"]
    assert drawing.tips[0]["at"] == pytest.approx(line.points[0][0], abs=0.05)


def test_a_key_says_what_lines_and_points_mean():
    key = (Series("exact", "ink", (), ()), Series("trained", "ink", (), (), line="", marker="ring"))
    drawing = draw_panel(panel(SERIES, key=key), 600, 400)
    assert [text.text for text in marks(drawing, "group")] == ["trained", "exact"]
    assert len(marks(drawing, "ring")) == 1


def rows(*values: float, bars: bool, span=(-1.0, 1.5)) -> RowChart:
    each = [
        Row(f"h{i}", f"n{i}", "r1", v, v - 0.1, v + 0.1, (("n", "t"),))
        for i, v in enumerate(values)
    ]
    return RowChart("title", "words", tuple(each), span, ((0.0, "0"),), bars)


def test_bars_grow_from_zero_in_proportion_and_are_cut_at_the_edge():
    left, right, cut = marks(draw_rows(rows(-0.5, 0.5, -128.0, bars=True), 720), "bar")
    (zero,) = marks(draw_rows(rows(0.5, bars=True), 720), "zero")
    assert left.x + left.width == pytest.approx(right.x) == zero.points[0][0]
    assert left.width == pytest.approx(right.width)
    assert cut.width == pytest.approx(2 * left.width)


def test_a_bar_that_is_cut_has_a_break_near_its_end():
    """It used to look like one that ends there. Oracle: the bar's own pixels."""
    drawing = draw_rows(rows(-0.5, 0.5, -128.0, 9.0, bars=True), 720)
    *_, low, high = marks(drawing, "bar")
    breaks = [[x for x, _ in line.points] for line in marks(drawing, "cut")]
    assert len(breaks) == 4
    assert all(low.x < x < low.x + 25 for line in breaks[:2] for x in line)
    end = high.x + high.width
    assert all(end - 25 < x < end for line in breaks[2:] for x in line)


@pytest.mark.parametrize("last", [0, 2, 4])
def test_labels_of_percentages_are_at_equal_distances_and_one_is_zero(last):
    """It was -6, -2, 0: each that had room. Oracle: ticks are 31 pixels apart, labels need 46."""
    ticks = tuple((p / 100, str(p)) for p in range(-6, last + 1, 2))
    chart = dataclasses.replace(rows(0.0, bars=False, span=(-0.1, 0.04)), ticks=ticks)
    drawing = draw_rows(chart, 344, narrow=True)
    labels = [mark.text for mark in marks(drawing, "tick") if mark.anchor == "middle"]
    assert labels == ["-4", "0", *(["4"] if last == 4 else [])]
    assert len(marks(drawing, "grid")) + len(marks(drawing, "zero")) == len(ticks)


def test_a_leader_that_crosses_the_figure_is_no_line_of_measured_values():
    short = dataclasses.replace(SERIES, x=(1.0, 10.0), y=(3.0, 2.0))
    (leader, _) = marks(draw_panel(panel(short, SERIES), 600, 400), "leader")
    assert leader.points[1][0] - leader.points[0][0] > 100
    assert STYLES["leader"].dash


@pytest.mark.parametrize("narrow", [False, True])
def test_no_line_of_the_axis_runs_through_a_note(narrow):
    """Oracle: a note's letters, 12 pixels high. Lines used to stand between its digits."""
    chart = rows(-0.5, 0.5, bars=True)
    noted = (dataclasses.replace(row, note="teacher 0.2234") for row in chart.rows)
    drawing = draw_rows(dataclasses.replace(chart, rows=tuple(noted)), 344, narrow=narrow)
    lines = [line for style in ("zero", "grid") for line in marks(drawing, style)]
    for note in marks(drawing, "note"):
        assert all(line.points[1][1] <= note.y - 9 or line.points[0][1] > note.y for line in lines)


def test_rows_of_a_group_stand_closer_than_groups():
    chart = rows(0.1, 0.2, 0.3, bars=False)
    rest = (dataclasses.replace(row, head="") for row in chart.rows[1:])
    one_group = dataclasses.replace(chart, rows=(chart.rows[0], *rest))
    assert draw_rows(chart, 720).height == draw_rows(one_group, 720).height + 2 * 12


@pytest.mark.parametrize("narrow", [False, True])
def test_points_have_names_and_values_which_narrow_rows_put_under_their_head(narrow):
    """A narrow chart used to leave them out: only colours told its points apart. Oracle: their pixels."""
    chart = rows(0.1, 0.2, bars=False, span=(-1.5, 0.2))
    named = [dataclasses.replace(row, name="coupled_idlm") for row in chart.rows]
    chart = dataclasses.replace(chart, rows=tuple(named), directions=("better", "worse"))
    drawing = draw_rows(chart, 344 if narrow else 720, narrow=narrow)
    names = [mark for mark in marks(drawing, "tick") if mark.text == "coupled_idlm"]
    values = marks(drawing, "value")
    heads = marks(drawing, "group")
    assert [mark.text for mark in values] == ["t", "t"]
    for name, value, head in zip(names, values, heads, strict=True):
        assert (name.y, value.x) == (value.y, drawing.width)
        assert head.y == name.y - (19 if narrow else 0)
    starts = [line.points[0][0] for line in marks(drawing, "interval")]
    assert not narrow or min(starts) > 7 * len("coupled_idlm")
    assert [mark.text for mark in marks(drawing, "axis")] == ["better", "worse"]
    assert drawing.tips[0]["rows"] == [("r1", "n", "t")]


def test_ticks_are_told_apart_with_no_digit_too_many():
    assert tick_texts([2.5, 2.55, 2.6]) == ["2.5", "2.55", "2.6"]
    assert tick_texts([0.001, 10.0, 2000.0]) == ["0.001", "10", "2\u202f000"]
    assert tick_texts([0.0, 5e-5]) == ["0", "5.0·10⁻⁵"]
