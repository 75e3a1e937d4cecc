"""The laboratory's figure. Oracle: records made by hand."""

from sdtt_jax.reporting.exact_figure import exact_panels


def steps(scale: float) -> dict:
    return {"steps": {str(n): {"kl": scale / n} for n in (1, 2, 3, 4)}}


def record(*rounds: dict) -> dict:
    return {"world": {"length": 2}, "teacher": steps(1.0), "rounds": {"kl-bwd": list(rounds)}}


def test_optima_are_lines_and_trained_students_rings_on_common_axes():
    made = record({**steps(0.5), "trained": steps(0.6)}, steps(0.25))
    made["rounds"]["kl-fwd"] = [steps(1.0)]
    panel, other = exact_panels(made)
    assert [(s.label, s.line, s.marker) for s in panel.series] == [
        ("teacher", "heavy", ""),
        ("round 1", "line", ""),
        ("round 2", "line", ""),
        ("", "", "ring"),
    ]
    assert panel.y.reaches == other.y.reaches
    assert (min(panel.y.reaches), max(panel.y.reaches)) == (0.0625, 1.0)
    assert panel.x.ticks == (1, 2, 4)
    assert [s.label for s in panel.key] == ["exact optimum", "trained student"]
    assert other.key == ()


def test_the_small_print_says_what_the_rounds_change_at_one_step_per_token():
    assert exact_panels(record(steps(0.5)))[0].note.endswith("2 steps: 0.50 → 0.25")
    panel = exact_panels(record(steps(1.01), steps(1.0)))[0]
    assert panel.note.endswith("no round changes anything")
    assert [s.label for s in panel.series] == ["teacher", "", "all rounds"]


def test_samples_that_are_exact_have_no_place_on_a_log_axis():
    made = record(steps(0.5))
    made["teacher"]["steps"]["4"]["kl"] = 0.0
    assert exact_panels(made)[0].series[0].x == (1, 2, 3)
