"""Reading a working directory: what may be missing, and what is refused with a clear error."""

import json

import pytest

from sdtt_jax.errors import DataError
from sdtt_jax.reporting.record import read_animation, read_curves, read_run


def test_a_directory_without_config_is_no_run(tmp_path):
    with pytest.raises(DataError, match=r"no config\.json"):
        read_run(tmp_path)


def test_everything_but_the_config_may_be_missing(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    run = read_run(tmp_path)
    assert (run.curves, run.teacher, run.rounds, run.animation) == ((), {}, (), None)


def test_steps_logged_twice_keep_the_later_line(tmp_path):
    """A resumed run repeats the steps after its checkpoint; only the second pass counts."""
    path = tmp_path / "metrics.jsonl"
    lines = [(1, 5.0), (2, 4.0), (3, 3.0), (2, 4.5), (3, 3.5)]
    path.write_text(
        "".join(json.dumps({"stage": "teacher", "step": s, "loss": v}) + "\n" for s, v in lines)
    )
    (curve,) = read_curves(path)
    assert curve.steps == (1, 2, 3)
    assert curve.losses == (5.0, 4.5, 3.5)


def test_a_line_cut_by_a_kill_is_passed_over_and_others_are_not(tmp_path):
    path = tmp_path / "metrics.jsonl"
    good = '{"stage": "judge", "step": 1, "loss": 2.0}\n'
    path.write_text(good + '{"stage": "judge", "st')
    assert len(read_curves(path)) == 1
    path.write_text('{"stage": "judge", "st\n' + good)
    with pytest.raises(DataError, match=r"Line 1 of .* column \d+\)\)\. Delete that line"):
        read_curves(path)


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({}, ["teacher", "judge", "distill", "idlm"]),
        ({"distillers": ["sdtt", "idlm"]}, ["teacher", "judge", "distill", "idlm"]),
        ({"distillers": ["idlm"], "judge": {"checkpoint": "x"}}, ["teacher", "idlm"]),
        ({"distillers": ["sdtt"], "teacher": {"checkpoint": "x"}}, ["judge", "distill"]),
        ({"distill": {"num_rounds": 1}}, ["teacher", "judge", "idlm"]),
        ({"distill": {"num_rounds": 2}}, ["teacher", "judge", "distill", "idlm"]),
    ],
)
def test_trainings_that_are_not_the_runs_any_more_are_not_shown(tmp_path, fields, shown):
    """A teacher that was then taken from elsewhere, and a distiller or a round that was taken away."""
    stages = {"teacher": 0, "judge": 0, "distill": 2, "idlm": 1}
    lines = [{"stage": s, "round": r, "step": 1, "loss": 2.0} for s, r in stages.items()]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "config.json").write_text(json.dumps({"config": fields}))
    assert [curve.stage for curve in read_run(tmp_path).curves] == shown


def test_values_that_are_not_numbers_count_as_not_measured(make_workdir):
    def spoil(results):
        results["teacher"]["steps"]["4"]["gen_ppl"] = float("nan")
        results["rounds"][0]["gain_share"] = float("nan")

    run = read_run(make_workdir(change_results=spoil))
    assert 4 not in run.teacher
    assert run.rounds[0].gain_share is None


def test_malformed_results_name_the_file(make_workdir):
    with pytest.raises(DataError, match=r"results\.json is not of the expected form"):
        read_run(make_workdir(change_results=lambda r: r.update(rounds=[{"dt": 1}])))


def test_frames_become_the_step_at_which_each_piece_was_revealed(tmp_path):
    frames = [[None, None, None], [" a", None, None], [" a", None, " b"]]
    animation = read_animation({"title": "x", "frames": frames}, tmp_path)
    assert animation is not None
    assert animation.pieces == (" a", " ", " b")
    assert animation.revealed == (1, 3, 2)
    assert animation.num_steps == 2


def test_a_last_denoising_that_reveals_nothing_is_no_step(tmp_path):
    frames = [[None], ["a"], ["a"]]
    animation = read_animation({"title": "x", "frames": frames}, tmp_path)
    assert animation is not None
    assert animation.num_steps == 1


def test_frames_of_different_lengths_are_refused(tmp_path):
    with pytest.raises(DataError, match="differ in length"):
        read_animation({"frames": [[None], ["a", "b"]]}, tmp_path)


def test_pieces_show_as_the_text_that_they_are(tmp_path):
    """Letters by which byte-level vocabularies write bytes are letters of Maltese; an end is a pilcrow."""
    pieces = ["Ġimgħa", " Ċentru", "\n", "\u2581", ""]
    animation = read_animation({"title": "x", "frames": [[None] * 5, pieces]}, tmp_path)
    assert animation is not None
    assert animation.pieces == ("Ġimgħa", " Ċentru", "\n", "\u2581", "¶")
