"""The charts as drawings: what stands in them, and that they are well-formed XML.

Oracle: the standard library's XML parser, and counts that follow from the fixture.
"""

import json
import math
from xml.etree import ElementTree

import pytest

from sdtt_jax.reporting.charts import entropy_chart, perplexity_chart, quality_references
from sdtt_jax.reporting.loss_charts import loss_chart, running_mean
from sdtt_jax.reporting.record import LossCurve, read_run
from sdtt_jax.reporting.round_charts import forest_chart, gain_chart


def by_class(drawing, name):
    return [
        e for e in ElementTree.fromstring(str(drawing)).iter() if name in e.get("class", "").split()
    ]


@pytest.fixture
def run(make_workdir):
    return read_run(make_workdir())


def test_every_model_has_a_line_and_a_label_and_teachers_points_are_open(run):
    drawing = perplexity_chart(run, 600, 400)
    assert len(by_class(drawing, "line")) == len(by_class(drawing, "band")) == 4
    assert len(by_class(drawing, "dot")) == 4 * 5
    assert len(by_class(drawing, "open")) == 5
    labels = [e.text for e in by_class(drawing, "label")]
    assert labels == ["teacher", "round 1", "round 2", "round 3", "autoregressive", "real text"]


def test_better_is_lower_and_more_steps_are_to_the_right(run):
    dots = by_class(perplexity_chart(run, 600, 400), "open")
    places = [(float(d.get("x")), float(d.get("y"))) for d in dots]
    assert places == sorted(places)  # SVG's y grows downwards


def test_the_pointer_shows_every_value_with_its_interval(run):
    root = ElementTree.fromstring(str(perplexity_chart(run, 600, 400)))
    at_8 = json.loads(root.get("data-hover"))[1]
    assert at_8["title"] == "8 steps"
    assert at_8["rows"][0] == ["teacher", "teacher", "243 (234–252)"]
    assert len(at_8["rows"]) == 6


def test_the_strip_near_the_datas_entropy_is_five_per_cent_wide_each_way(run):
    (strip,) = by_class(entropy_chart(run, 400, 400), "near")
    assert strip.get("d").startswith("M")
    assert [r.value for r in quality_references(run, entropy=True)] == [3.61, 3.68]


def test_the_forest_has_an_interval_for_each_round_and_number_of_steps(run):
    drawing = forest_chart(run, 720, False)
    assert len(by_class(drawing, "interval")) == 3 * 5
    assert len(by_class(drawing, "zero")) == 1


def test_gain_bars_grow_from_zero_in_proportion_also_below_it(make_workdir):
    def spoil(results):
        results["rounds"][0]["gain_share"] = -0.5
        results["rounds"][1]["gain_share"] = 0.5

    bars = by_class(gain_chart(read_run(make_workdir(change_results=spoil)), 720, False), "bar")
    edges = [(float(b.get("x")), float(b.get("width"))) for b in bars]
    assert edges[0][1] == pytest.approx(edges[1][1], abs=0.2)
    assert edges[0][0] + edges[0][1] == pytest.approx(edges[1][0], abs=0.2)


def test_a_running_mean_keeps_constants_and_follows_lines():
    assert running_mean([3.0] * 50) == pytest.approx([3.0] * 50)
    line = [float(i) for i in range(100)]
    assert running_mean(line)[10:90] == pytest.approx(line[10:90])


def test_losses_that_no_log_axis_can_show_are_left_out():
    """A divergence estimated by sampling may dip below zero."""
    curve = LossCurve("distill", 1, (1, 2, 3), (0.2, -0.01, 0.1), None)
    assert len(by_class(loss_chart(curve, "Round 1", "r1", 300, 200), "line")) == 1
    nothing = LossCurve("distill", 1, (1,), (0.0,), None)
    assert loss_chart(nothing, "Round 1", "r1", 300, 200) == ""


def test_long_curves_are_thinned():
    steps = tuple(range(1, 20_001))
    curve = LossCurve("teacher", 0, steps, tuple(5 + math.sin(s) for s in steps), None)
    assert len(str(loss_chart(curve, "Teacher", "teacher", 300, 200))) < 40_000


def test_nothing_measured_is_nothing_drawn(make_workdir):
    run = read_run(make_workdir(evaluated=False))
    for drawing in (
        perplexity_chart(run, 600, 400),
        entropy_chart(run, 600, 400),
        forest_chart(run, 700, False),
        gain_chart(run, 700, True),
    ):
        assert drawing == ""


def test_a_share_off_the_scale_is_cut_and_written_in_full(make_workdir):
    drawing = gain_chart(
        read_run(make_workdir(change_results=lambda r: r["rounds"][0].update(gain_share=-128.0))),
        720,
        False,
    )
    assert by_class(drawing, "value")[0].text == "−12800\u202f%"
    assert all(0 <= float(bar.get("x")) <= 720 for bar in by_class(drawing, "bar"))


def test_a_teacher_at_its_floor_has_no_share(make_workdir):
    def flat(results):
        results["rounds"][0].update(teacher_divergence=1e-6, floor=2e-6, gain_share=15.9)

    run = read_run(make_workdir(change_results=flat))
    assert run.rounds[0].gain_share is None
    assert by_class(gain_chart(run, 720, False), "value")[0].text == "at floor"
