"""What the figures of a run show. Oracle: the numbers of the fixture."""

import itertools
import math

import numpy as np
import pytest

from sdtt_jax.reporting.layout import draw_panel
from sdtt_jax.reporting.record import LossCurve, Paired, read_run
from sdtt_jax.reporting.run_figures import (
    few_calls_panel,
    forest_chart,
    gain_chart,
    loss_panel,
    quality_panel,
    running_mean,
)


@pytest.fixture
def run(make_workdir):
    return read_run(make_workdir())


def test_every_model_has_a_line_a_band_and_a_label_and_teachers_points_are_open(run):
    panel = quality_panel(run)
    models = panel.series[:4]
    assert [s.label for s in panel.series] == [
        "teacher", "round 1", "round 2", "round 3", "causal", "real text",
    ]  # fmt: skip
    assert all(len(s.x) == len(s.y) == len(s.low) == len(s.high) == 5 for s in models)
    assert [s.marker for s in models] == ["open", "dot", "dot", "dot"]


def test_the_pointer_shows_every_value_with_its_interval(run):
    at_8 = quality_panel(run).tips[1]
    assert at_8.title == "8 steps"
    assert at_8.rows[0] == ("teacher", "teacher", "243 (234–252)")
    assert len(at_8.rows) == 6


def test_the_strip_is_within_two_per_cent_of_the_datas_entropy_and_lies_in_the_axis(run):
    panel = quality_panel(run, entropy=True)
    assert panel.strip == pytest.approx((0.98 * 3.68, 1.02 * 3.68))
    assert panel.y.reaches == panel.strip
    assert [s.y for s in panel.series[-2:]] == [(3.61,), (3.68,)]


def test_a_value_that_was_not_measured_is_left_out(make_workdir):
    def forget(results):
        del results["teacher"]["steps"]["8"]["entropy"]
        del results["teacher"]["steps"]["8"]["gen_ppl_low"]

    run = read_run(make_workdir(change_results=forget))
    assert quality_panel(run, entropy=True).series[0].x == (4, 16, 32, 64)
    teacher = quality_panel(run).series[0]
    assert teacher.low[1] == teacher.y[1] < teacher.high[1]


def test_few_calls_show_the_teacher_beside_the_noise_coupled_student_with_the_pairs_bars(
    make_workdir,
):
    panel = few_calls_panel(read_run(make_workdir(coupled_log_ratios={1: -0.8, 2: -0.5})))
    assert [s.label for s in panel.series] == ["teacher", "noise-coupled", "causal", "real text"]
    teacher, student = panel.series[:2]
    assert teacher.x == student.x == panel.x.ticks == (1.0, 2.0)
    assert teacher.y == (80.0, 40.0)
    assert student.y == pytest.approx((80 * math.exp(-0.8), 40 * math.exp(-0.5)))
    assert student.low == pytest.approx((80 * math.exp(-0.85), 40 * math.exp(-0.55)))
    assert student.high == pytest.approx((80 * math.exp(-0.75), 40 * math.exp(-0.45)))


def test_the_teacher_stands_at_the_entropy_of_real_text_where_it_was_measured_there(make_workdir):
    def match(results):
        for calls, entry in results["coupled"]["calls"].items():
            entry["teacher_matched"] = {"gen_ppl": 70 / int(calls), "entropy": 3.68}

    workdir = make_workdir(coupled_log_ratios={1: -0.8, 2: -0.5}, change_results=match)
    assert few_calls_panel(read_run(workdir)).series[0].y == (70.0, 35.0)


def test_the_teachers_curve_goes_on_to_the_calls_at_which_it_was_measured_alone(make_workdir):
    def go_on(results):
        results["coupled"]["teacher_calls"] = {"4": {"teacher_matched": {"gen_ppl": 20.0}}}

    workdir = make_workdir(coupled_log_ratios={1: -0.8, 2: -0.5}, change_results=go_on)
    panel = few_calls_panel(read_run(workdir))
    teacher, student = panel.series[:2]
    assert teacher.x == panel.x.ticks == (1.0, 2.0, 4.0)
    assert (teacher.y, student.x) == ((80.0, 40.0, 20.0), (1.0, 2.0))


def test_a_noise_coupled_student_stands_beside_the_one_that_it_went_on_from(make_workdir):
    first, last = {1: -0.8, 2: -0.5}, {1: -1.2, 2: -0.9}
    run = read_run(make_workdir(coupled_log_ratios=first, idlm_log_ratios=last))
    _, before, student = few_calls_panel(run).series[:3]
    assert (before.label, student.label) == ("noise-coupled", "and IDLM")
    assert before.y == pytest.approx((80 * math.exp(-0.8), 40 * math.exp(-0.5)))
    assert student.y == pytest.approx((80 * math.exp(-1.2), 40 * math.exp(-0.9)))


def test_a_run_without_a_noise_coupled_student_has_no_figure_of_few_calls(run):
    assert few_calls_panel(run) is None


def test_the_forest_has_an_interval_for_each_round_and_number_of_steps(run):
    forest = forest_chart(run)
    assert len(forest.rows) == 3 * 5
    assert [row.head for row in forest.rows[:4]] == ["4 steps", "", "", "8 steps"]
    assert all(row.low < row.value < row.high for row in forest.rows)
    assert "0" in [text for _, text in forest.ticks]
    first = forest.rows[0].details
    assert first == (("change", "−5.8\u202f%"), ("95 %", "−8.1\u202f% to −3.6\u202f%"))


@pytest.mark.parametrize("scale", [1.0, 0.03, 0.01, 0.005, 0.001])
def test_the_forests_ticks_say_where_they_are(make_workdir, scale):
    """Also where students are next to their teacher. Oracle: the number in the text of each tick."""

    def shrink(results):
        for record in results["rounds"]:
            for pair in record["paired"].values():
                pair.update({name: scale * value for name, value in pair.items()})

    ticks = forest_chart(read_run(make_workdir(change_results=shrink))).ticks
    step = 100 * min(b - a for (a, _), (b, _) in itertools.pairwise(ticks))
    for place, text in ticks:
        shown = float(text.removesuffix("\u202f%").replace("−", "-"))
        assert shown == pytest.approx(100 * np.expm1(place), abs=1e-3 * step)


def test_an_interval_says_on_which_side_of_nothing_it_ends():
    pairs = (-0.002, -3e-5), (-0.002, 3e-5), (-0.002, 1e-17), (-0.002, 0.0)
    said = [Paired(-0.001, *ends).change[1].split(" to ")[1] for ends in pairs]
    assert said == ["just below 0\u202f%", "just above 0\u202f%", *["0.0\u202f%"] * 2]


def test_a_share_off_the_scale_is_written_in_full(make_workdir):
    spoil = {"gain_share": -128.0}
    run = read_run(make_workdir(change_results=lambda r: r["rounds"][0].update(spoil)))
    gain = gain_chart(run)
    assert gain.rows[0].details[0] == ("gain share", "−12\u202f800\u202f%")
    assert gain.span == (-1.0, 1.0)


def test_a_teacher_at_its_floor_has_no_share(make_workdir):
    def flat(results):
        results["rounds"][0].update(teacher_divergence=1e-6, floor=2e-6, gain_share=15.9)

    run = read_run(make_workdir(change_results=flat))
    assert run.rounds[0].gain_share is None
    assert gain_chart(run).rows[0].details[0][1] == "at floor"


def test_a_running_mean_keeps_constants_and_follows_lines():
    assert running_mean([3.0] * 50) == pytest.approx([3.0] * 50)
    line = [float(i) for i in range(100)]
    assert running_mean(line)[10:90] == pytest.approx(line[10:90])


def test_losses_that_no_log_axis_can_show_are_left_out():
    """A divergence estimated by sampling may dip below zero."""
    curve = LossCurve("distill", 1, (1, 2, 3), (0.2, -0.01, 0.1), None)
    raw, mean = loss_panel(curve, "Round 1", "r1").series
    assert (raw.x, raw.y) == ((1, 3), (0.2, 0.1))
    assert (raw.line, mean.line) == ("raw", "line")
    assert loss_panel(LossCurve("distill", 1, (1,), (0.0,), None), "Round 1", "r1") is None


def test_long_curves_are_thinned():
    steps = tuple(range(1, 20_001))
    curve = LossCurve("teacher", 0, steps, tuple(5 + math.sin(s) for s in steps), None)
    drawing = draw_panel(loss_panel(curve, "Teacher", "teacher"), 300, 200)
    assert len(str(drawing.svg())) < 40_000


def test_nothing_measured_is_nothing_drawn(make_workdir):
    run = read_run(make_workdir(evaluated=False))
    assert [quality_panel(run), quality_panel(run, entropy=True)] == [None, None]
    assert [forest_chart(run), gain_chart(run)] == [None, None]
