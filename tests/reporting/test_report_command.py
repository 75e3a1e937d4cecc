"""`experiments.report`. Oracles: the files that it promises, and what it says of bad input."""

import json

import pytest

from experiments import exact, report
from sdtt_jax.errors import ConfigError, DataError
from sdtt_jax.laboratory.record import Truth, closed_form
from sdtt_jax.laboratory.world import World
from sdtt_jax.reporting.evaluations import Point
from tests.experiments.processes import call

PNG = b"\x89PNG"


def test_the_page_and_the_picture_are_written_and_named(make_workdir, tmp_path):
    workdir = make_workdir()
    picture = tmp_path / "pictures" / "a.png"
    done = call("report", f"--workdir={workdir}", f"--picture={picture}")
    assert done.status == 0, done.stderr
    assert done.stdout.splitlines() == [f"{workdir}/report.html", str(picture)]
    assert (workdir / "report.html").exists()
    assert picture.read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "Give either --workdir or --exact"),
        (
            {"workdir": "absent", "race": "a.json"},
            "--race=a.json must end .*: it is the picture to write",
        ),
        ({"workdir": "absent", "picture": "a.jpg"}, "--picture=a.jpg must end in .png or .svg"),
        ({"exact": "absent"}, "--exact needs --picture"),
    ],
)
def test_bad_flags_are_named(flags, message):
    with pytest.raises(ConfigError, match=message):
        report.report(**flags)


def test_a_record_of_the_laboratory_is_drawn_again(tmp_path):
    world = World((0.5, 0.5), ((0.9, 0.1), (0.2, 0.8)), 2, (0.1,))
    record, _ = closed_form(Truth.of(world), ("kl-bwd",), world.dts, print)
    results, svg, _ = exact.write(record, tmp_path)
    [again] = report.report(exact=str(results), picture=str(tmp_path / "again.svg"))
    assert again.read_bytes() == svg.read_bytes()


@pytest.mark.parametrize("content", [{"rounds": 3}, {"rounds": [], "teacher": {"steps": {}}}, []])
def test_what_is_no_record_is_named(tmp_path, content):
    """Also the results of a run, whose rounds are a list."""
    (tmp_path / "other.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"give the results\.json that .* wrote"):
        report.write_exact_from(str(tmp_path / "other.json"), tmp_path / "a.png")
    with pytest.raises(DataError, match="cannot be read: No such file"):
        report.write_exact_from(str(tmp_path / "absent.json"), tmp_path / "a.png")
    with pytest.raises(DataError, match=r"is a folder; give a file\. It holds other"):
        report.write_exact_from(str(tmp_path), tmp_path / "a.png")


def test_the_race_needs_two_points_of_its_batch_size(make_workdir, tmp_path, monkeypatch):
    points = [Point(name, 8, False, 0.5, 16.0, 15.0, 17.0, 2.5) for name in ("a", "b")]
    monkeypatch.setattr(
        report.evaluations, "race", lambda _, batch: points if batch == 8 else points[:1]
    )
    workdir = str(make_workdir())
    assert (
        report.report(workdir, race=str(tmp_path / "a.png"), batch=8)[1]
        .read_bytes()
        .startswith(PNG)
    )
    with pytest.raises(ConfigError, match=r"--batch=1: fewer than two"):
        report.report(workdir, race=str(tmp_path / "a.png"))
