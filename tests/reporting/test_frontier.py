"""The frontier as figures. Oracle: the points they are made of."""

import dataclasses

from sdtt_jax.reporting.evaluations import Evaluation, Judging, tables
from sdtt_jax.reporting.frontier import frontier_panels
from sdtt_jax.reporting.layout import draw_panel
from sdtt_jax.reporting.picture import write_frontier


def item(mode, steps, perplexity):
    points = [
        {"temperature": t, "entropy": 2.5 + t / 10, "gen_ppl": perplexity * t}
        | {"gen_ppl_low": perplexity * t - 1, "gen_ppl_high": perplexity * t + 1}
        for t in (1.0, 0.8)
    ]
    return {"kind": "diffusion", "mode": mode, "num_steps": steps, "points": points} | {
        "entropy": 2.59, "nfe": float(steps), "gen_ppl": perplexity * 0.9, "temperature": 0.9,
    }  # fmt: skip


def evaluation(name, factor, numbers=(4, 8)):
    matched = {
        f"frontier/matched/{mode}/steps_{steps:04d}": item(mode, steps, factor * 64 / steps)
        for mode in ("grid", "confidence")
        for steps in numbers
    }
    clean = {"kind": "diffusion", "mode": "grid", "clean_calls": 8.0, "gen_ppl": 7.2, "best": 7.0}
    return Evaluation(name, matched | {"frontier/clean/grid": clean})


EVALUATIONS = [evaluation("teacher", 1.0), evaluation("round_01", 0.5)]


def test_the_only_model_leaves_its_label_to_the_decoders():
    """ "round_01, confidence" needed more room than a phone has."""
    for panel in frontier_panels(EVALUATIONS[1:]):
        assert {s.label for s in panel.series[:-1]} == {"grid", "confidence"}


def test_a_panel_for_each_number_of_steps_a_line_for_each_model_and_decoder():
    four, eight = frontier_panels(EVALUATIONS, {"teacher": "teacher"})
    assert four.title == "Perplexity against entropy, 4 steps"
    assert {s.label for s in four.series[:-1]} == {
        f"{name}, {mode}" for name in ("teacher", "round_01") for mode in ("grid", "confidence")
    }
    grid = next(s for s in eight.series if s.label == "teacher, grid")
    assert (grid.x, grid.y) == ((2.58, 2.6), (6.4, 8.0))
    assert grid.low == (5.4, 7.0)
    assert (four.series[-1].label, four.series[-1].x) == ("real text", (2.59, 2.59))
    assert four.y.reaches == eight.y.reaches == (3.2, 16.0)
    assert draw_panel(four, 720, 400) is not None


def test_tables_have_a_row_for_each_setting_and_each_checkpoint():
    matched, clean = tables(EVALUATIONS)
    assert matched.columns == ("model", "decoder", "steps", "calls", "perplexity", "temperature")
    assert len(matched.rows) == 8
    assert clean.rows[0] == ("teacher", "grid", "8.00", "7.20", "7.00")


def test_lines_of_different_judges_say_so():
    judged = [
        dataclasses.replace(each, judgings=dict.fromkeys(each.items, Judging("x", digest, ())))
        for each, digest in zip(EVALUATIONS, ("one", "two"), strict=True)
    ]
    labels = {series.label for panel in frontier_panels(judged) for series in panel.series[:-1]}
    of = {"teacher, judge a", "round_01, judge b"}
    assert labels == {f"{name}, {mode}" for name in of for mode in ("grid", "confidence")}
    assert [row[2] for row in tables(judged)[1].rows] == ["a", "b"]


def test_models_at_the_entropies_of_different_real_texts_have_each_its_upright_line():
    other = Evaluation("other", dict(EVALUATIONS[0].items))
    for name, each in other.items.items():
        other.items[name] = each | {"entropy": 2.9}
    for panel in frontier_panels([*EVALUATIONS, other]):
        lines = {s.label: s.x for s in panel.series if s.colour == "data"}
        assert lines == {
            "real text of teacher, round_01": (2.59, 2.59),
            "real text of other": (2.9, 2.9),
        }
        assert max(panel.x.reaches) == 2.9
        assert draw_panel(panel, 720, 400)


def test_lines_far_off_are_named_and_do_not_squeeze_the_others():
    """One decoder at half the entropy of text made one line of all others. Oracle: the figure without it."""
    [alone] = frontier_panels([evaluation("teacher", 1.0, (4,))])
    far = item("blocks", 4, 2.0)
    for point in far["points"]:
        point["entropy"] -= 1.5
    both = evaluation("teacher", 1.0, (4,))
    both.items["frontier/matched/blocks/steps_0004"] = far
    both.items["frontier/matched/skeleton/steps_0004"] = item("skeleton", 4, 5000.0)
    [four] = frontier_panels([both])
    assert (four.x, four.y) == (alone.x, alone.y)
    assert sorted((s.label, s.x) for s in four.series) == sorted(
        (s.label, s.x) for s in alone.series
    )
    assert four.note == (
        "Too far off to draw (perplexity at entropy): blocks (2.00 at 1.10); skeleton (4\u202f000 at 2.58)"
    )
    assert len(four.tips) == len(alone.tips)
    assert four.description == f"{alone.description}. {four.note}"
    for width, lines in ((720, 1), (344, 2)):  # the small print keeps within the figure
        notes = [m.text for m in draw_panel(four, width, 320).marks if m.style == "note"]
        assert (len(notes), " ".join(notes)) == (lines, four.note)
        assert max(map(len, notes)) * 7 <= width


def test_one_text_has_no_interval_and_a_judge_may_give_none_any_perplexity():
    lone = item("grid", 4, 16.0)
    for point in lone["points"]:
        point |= {"gen_ppl_low": None, "gen_ppl_high": None}
    without = item("grid", 8, 16.0)
    without["points"] = [{**point, "gen_ppl": None} for point in without["points"]]
    name = "frontier/matched/grid/steps_{:04d}"
    drawn = {name.format(4): lone, name.format(8): without}
    [four] = frontier_panels([Evaluation("teacher", drawn)])
    assert four.series[0].low == four.series[0].y == four.series[0].high
    assert draw_panel(four, 610, 440)
    assert not frontier_panels([Evaluation("teacher", {name.format(8): without})])


def test_an_odd_number_of_panels_leaves_a_place_free(tmp_path):
    path = write_frontier([evaluation("teacher", 1.0, (4, 8, 16))], tmp_path / "frontier.svg")
    assert path.read_text().count("Perplexity against entropy") == 3


def test_evaluations_without_the_suite_do_not_make_the_others_pale(tmp_path):
    """Beside a file of another suite the only model was drawn in the palest blue. Oracle: its own figure."""
    one, others = evaluation("teacher", 1.0), [Evaluation(name, {}) for name in ("a", "b")]
    alone, beside = tmp_path / "alone.svg", tmp_path / "beside.svg"
    write_frontier([one], alone)
    write_frontier([*others, one], beside)
    assert alone.read_text() == beside.read_text()


def test_without_the_suite_there_is_no_figure():
    assert frontier_panels([]) == []
