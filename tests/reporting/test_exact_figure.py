"""The laboratory's figure. Oracle: records made by hand."""

from sdtt_jax.reporting.exact_figure import exact_panels, measured
from sdtt_jax.reporting.picture import write_exact


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


def test_a_world_without_dependence_is_exact_everywhere_and_has_no_figure(tmp_path):
    """The teacher of independent tokens samples them exactly, and no round changes that."""
    made = record(steps(0.0)) | {"teacher": steps(0.0)}
    assert exact_panels(made) == []
    assert write_exact(made, tmp_path / "exact.png") is None


def test_what_is_exact_at_every_number_of_steps_is_left_out_beside_what_is_not(tmp_path):
    """In a world without dependence the search for the floor ends near 0, and the teacher is at 0."""
    made = record(steps(0.0)) | {"teacher": steps(0.0), "floor": {"1": {"kl": {"kl": 1e-12}}}}
    assert [s.colour for s in exact_panels(made)[0].series] == ["causal"]
    assert write_exact(made, tmp_path / "exact.svg") is not None


def test_the_floor_and_other_distillers_are_drawn_at_their_calls():
    made = record(steps(0.5)) | {
        "floor": {"1": {"kl": {"kl": 0.3}, "tv": {"kl": 0.4}}, "2": {"kl": {"kl": 0.1}}},
        "distillers": {"sdtt": {"1": {"kl": 0.5}}, "coupled": {"1": {"kl": 0.05}}},
    }
    panel = exact_panels(made)[0]
    drawn = {s.colour: (s.x, s.y) for s in panel.series}
    assert list(drawn) == ["teacher", "r1", "data", "causal"]
    assert drawn["causal"] == ((1, 2), (0.3, 0.1))
    assert drawn["data"] == ((1,), (0.05,))
    key = [(s.label, s.colour) for s in panel.key[1:]]
    assert key == [("coupled", "data"), ("best factorised", "causal")]


def test_a_measure_is_drawn_where_the_record_has_it():
    made = record(steps(0.5))
    assert measured(made) == ["kl"]
    for entry in (made["teacher"], *made["rounds"]["kl-bwd"]):
        for measures in entry["steps"].values():
            measures["tv"] = measures["kl"] / 2
    assert measured(made) == ["kl", "tv"]
    assert exact_panels(made, "tv")[0].series[0].y == (0.5, 0.25, 1 / 6, 0.125)
