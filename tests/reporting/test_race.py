"""The race as a figure. Oracle: the points it is made of."""

from sdtt_jax.reporting.evaluations import Point
from sdtt_jax.reporting.layout import draw_panel
from sdtt_jax.reporting.race import race_panel

POINTS = [
    Point("causal", 0, True, 2.0, 4.0, 3.0, 5.0, 2.6),
    Point("round_02", 16, False, 1.0, 12.0, 11.0, 13.0, 2.5),
    Point("round_02", 8, False, 0.5, 16.0, 15.0, 17.0, 2.4),
    Point("teacher", 8, False, 0.5, 24.0, 23.0, 25.0, 2.5),
]


def test_every_model_is_a_series_from_few_steps_to_many_and_causal_ones_come_last():
    series = {s.label: s for s in race_panel(POINTS, 8).series}
    assert list(series) == ["round_02", "teacher", "causal"]
    round_2 = series["round_02"]
    assert (round_2.x, round_2.y, round_2.notes) == ((0.5, 1.0), (16.0, 12.0), ("8", "16"))
    assert (round_2.low, round_2.high) == ((15.0, 11.0), (17.0, 13.0))
    assert (series["causal"].marker, round_2.marker) == ("square", "dot")


def test_models_have_the_colours_of_their_run_or_each_its_own():
    named = race_panel(POINTS, 8, {"teacher": "teacher"})
    assert [s.colour for s in named.series] == ["accent", "teacher", "causal"]
    assert [s.colour for s in race_panel(POINTS, 8).series] == ["r1", "r2", "causal"]


def test_the_pointer_shows_entropy_beside_perplexity():
    tip = race_panel(POINTS, 8).tips[1]
    assert tip.title == "round_02, 16 steps"
    assert [row[1:] for row in tip.rows] == [
        ("perplexity", "12.0"), ("entropy", "2.50"), ("seconds", "1.00"),
    ]  # fmt: skip


def test_small_differences_of_entropy_look_small():
    """The axis covers at least five per cent on either side of the mean, 2.5."""
    panel = race_panel(POINTS, 8, entropy=True)
    assert panel.y.reaches == (0.95 * 2.5, 1.05 * 2.5)
    assert [s.y for s in panel.series] == [(2.4, 2.5), (2.5,), (2.6,)]


def test_every_point_is_drawn():
    drawing = draw_panel(race_panel(POINTS, 8), 720, 400)
    styles = [mark.style for mark in drawing.marks]
    assert (styles.count("dot"), styles.count("square"), styles.count("interval")) == (3, 1, 4)


def test_one_point_is_no_race():
    assert race_panel(POINTS[:1], 8) is None
