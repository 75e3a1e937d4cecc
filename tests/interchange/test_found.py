"""Which model of a run is found. Oracle: the folders that were made."""

import shutil

import pytest

import sdtt_jax


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ([], None),
        (["rounds/01/10/state"], "has no finished round of SDTT: this is its teacher."),
        (["rounds/01/10", "coupled/01/final"], "teacher; for its student give {}/coupled/01."),
        (["coupled/01/final"], "teacher; for its student give {}/coupled/01."),
    ],
)
def test_a_teacher_in_place_of_a_student_is_said(run, tmp_path, caplog, others, said):
    """Of a run that was stopped, or has students of other distillers alone."""
    for name in ("tokenizer", "teacher"):
        shutil.copytree(run / name, tmp_path / name)
    for other in others:
        (tmp_path / other).mkdir(parents=True)
    assert sdtt_jax.load(tmp_path).facts["stage"] == "teacher"
    warned = [record.getMessage() for record in caplog.records]
    assert len(warned) == (said is not None)
    assert not said or said.format(tmp_path) in warned[0]
    sdtt_jax.load(tmp_path / "teacher")  # as named
    assert len(caplog.records) == len(warned)
