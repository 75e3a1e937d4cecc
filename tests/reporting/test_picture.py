"""Figures as files: in both formats, and the same file for the same figure."""

import pytest

from sdtt_jax.errors import DataError
from sdtt_jax.reporting.evaluations import Point
from sdtt_jax.reporting.picture import write_exact, write_quality, write_race

POINTS = [Point(name, 8, False, 0.5, 16.0, 15.0, 17.0, 2.5) for name in ("student", "teacher")]
STEPS = {str(n): {"kl": 1 / n} for n in (1, 2, 4)}
RECORD = {
    "world": {"length": 2},
    "teacher": {"steps": STEPS},
    "rounds": {
        "kl-bwd": [{"steps": STEPS, "trained": {"steps": STEPS}}],
        "kl-fwd": [{"steps": STEPS}],
    },
}


@pytest.fixture
def writers(make_workdir):
    workdir = make_workdir(rounds=1, coupled_log_ratios={1: -0.8, 2: -0.5})
    return {
        "quality": lambda path: write_quality(workdir, path),
        "race": lambda path: write_race(POINTS, 8, path),
        "exact": lambda path: write_exact(RECORD, path),
    }


@pytest.mark.parametrize("figure", ["quality", "race", "exact"])
def test_every_figure_is_written_as_png_and_reproducibly_as_svg(writers, tmp_path, figure):
    write = writers[figure]
    assert write(tmp_path / "pictures" / "a.png").read_bytes().startswith(b"\x89PNG")
    first = write(tmp_path / "a.svg").read_bytes()
    assert first.startswith(b"<?xml")
    assert first == write(tmp_path / "b.svg").read_bytes()


def test_a_dollar_in_a_name_begins_no_formula(tmp_path):
    """Oracle: matplotlib, which could not read `t$x^$` as one."""
    points = [
        Point(name, steps, False, 0.1 * steps, 20.0, 19.0, 21.0, 2.6)
        for name in ("t$x^$", "lr$1$")
        for steps in (4, 8)
    ]
    assert "<!-- t$x^$ -->" in write_race(points, 1, tmp_path / "x.svg").read_text()


def test_a_run_that_is_not_evaluated_has_no_picture(make_workdir, tmp_path):
    with pytest.raises(DataError, match="evaluate stage"):
        write_quality(make_workdir(evaluated=False), tmp_path / "a.png")
