"""The README's picture: written in both formats, the same for the same run."""

import pytest

from sdtt_jax.errors import DataError
from sdtt_jax.reporting import write_picture


def test_a_png_is_written(make_workdir, tmp_path):
    path = write_picture(make_workdir(), tmp_path / "pictures" / "quality.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_svg_of_a_run_is_reproducible(make_workdir, tmp_path):
    workdir = make_workdir(rounds=1)
    first = write_picture(workdir, tmp_path / "a.svg").read_bytes()
    assert first.startswith(b"<?xml")
    assert first == write_picture(workdir, tmp_path / "b.svg").read_bytes()


def test_a_run_that_is_not_evaluated_has_no_picture(make_workdir, tmp_path):
    with pytest.raises(DataError, match="evaluate stage"):
        write_picture(make_workdir(evaluated=False), tmp_path / "a.png")
