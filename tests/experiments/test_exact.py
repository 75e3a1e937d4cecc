"""The exact laboratory's command. Oracles: the record it writes, and the files it promises."""

import functools
import json
from pathlib import Path

import pytest

from experiments import exact
from sdtt_jax.errors import ConfigError, DataError
from sdtt_jax.laboratory.matched import matched_measures
from sdtt_jax.laboratory.record import Truth, closed_form
from sdtt_jax.laboratory.world import World
from tests.forking import Finished, run_module

ROOT = Path(__file__).parent.parent.parent
WORLD = World((0.5, 0.5), ((0.9, 0.1), (0.2, 0.8)), 3, (0.1, 0.2), name="weather")


def command(*arguments: str) -> Finished:
    return run_module("experiments.exact", arguments)


def test_the_record_and_its_figure_are_written_the_same_for_the_same_world(tmp_path: Path) -> None:
    record, _ = closed_form(Truth.of(WORLD), ("kl-bwd", "tvd"), WORLD.dts, print)
    paths = exact.write(record, tmp_path / "out")
    assert [path.name for path in paths] == ["results.json", "exact.svg", "exact.png"]
    assert all(path.stat().st_size > 1000 for path in paths)
    assert json.loads(paths[0].read_text()) == json.loads(json.dumps(record))
    assert exact.write(record, tmp_path / "b")[1].read_bytes() == paths[1].read_bytes()


def test_rounds_beyond_the_worlds_double_up_to_one_half() -> None:
    assert exact.round_dts(WORLD, None) == (0.1, 0.2)
    assert exact.round_dts(WORLD, 1) == (0.1,)
    assert exact.round_dts(WORLD, 5) == (0.1, 0.2, 0.4, 0.5, 0.5)
    with pytest.raises(ConfigError, match="--rounds must be positive, not 0"):
        exact.ExactPlan("out", rounds=0)


def test_divergences_are_named_or_all() -> None:
    plan = exact.ExactPlan("out", divergence=("mse", "kl-bwd", "mse"))
    assert plan.divergences == ("mse", "kl-bwd")
    assert len(exact.ExactPlan("out", divergence=("all",)).divergences) == 5
    with pytest.raises(ConfigError, match=r"--divergence='kl' is unknown.*one of kl-bwd.*, all"):
        exact.ExactPlan("out", divergence=("kl",))


def test_distillers_and_calls_are_named() -> None:
    exact.ExactPlan("out", distillers=("sdtt", "coupled"), train=True, calls=(1, 2, 4))
    with pytest.raises(ConfigError, match="--distillers='couple' is unknown"):
        exact.ExactPlan("out", distillers=("couple",), train=True)
    with pytest.raises(ConfigError, match="--distillers=coupled is measured by training a student"):
        exact.ExactPlan("out", distillers=("coupled",))
    with pytest.raises(ConfigError, match="--calls must be positive, not 0"):
        exact.ExactPlan("out", calls=(0, 1))
    with pytest.raises(ConfigError, match="--calls must name at least one"):
        exact.ExactPlan("out", calls=())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"copy_steps": 0}, "--copy_steps must be positive, not 0"),
        ({"steps_per_round": -1}, "--steps_per_round must be positive, not -1"),
        ({"coupled_steps": 0}, "--coupled_steps must be positive, not 0"),
        ({"student_steps": 2.5}, "--student_steps must be a whole number, not 2.5"),
        ({"calls": (1, 2.5)}, "--calls must be a whole number, not 2.5"),
        ({"rounds": 1.5}, "--rounds must be a whole number, not 1.5"),
        ({"seed": -1}, "seed=-1 must be a whole number from 0"),
    ],
)
def test_steps_calls_and_seed_are_counts(fields, message) -> None:
    with pytest.raises(ConfigError, match=message):
        exact.ExactPlan("out", **fields)


@pytest.mark.parametrize(
    ("field", "asked", "said"),
    [
        ("copy_steps", {"train": True}, "--train without --distillers"),
        ("student_steps", {"train": True, "distillers": ("mmd",)}, "--distillers that are trained"),
        ("coupled_steps", {"train": True, "distillers": ("coupled",)}, "--distillers that are"),
        ("mixtures", {"floor": True}, "--floor"),
        ("seed", {"floor": True}, "--train or --floor"),
    ],
)
def test_flags_that_would_change_nothing_are_refused(field, asked, said) -> None:
    value = (3,) if field == "mixtures" else 3
    exact.ExactPlan("out", **{field: value}, **asked)
    with pytest.raises(ConfigError, match=f"--{field} is for {said}.*; add that, or leave it out"):
        exact.ExactPlan("out", **{field: value})


def test_mixtures_are_sizes_from_two_or_none() -> None:
    exact.ExactPlan("out", mixtures=(2, 4), floor=True)
    exact.ExactPlan("out", mixtures=(), floor=True)
    with pytest.raises(ConfigError, match="--mixtures must be at least 2, not 1"):
        exact.ExactPlan("out", mixtures=(1, 4))


@pytest.mark.parametrize(
    ("calls", "said"),
    [("1,x", "--calls: 'x' is not a whole number"), ("4,-8", "--calls must be positive, not -8.")],
)
def test_numbers_are_read_from_flags_as_they_are_listed(
    tmp_path: Path, calls: str, said: str
) -> None:
    done = command(f"--output={tmp_path / 'out'}", f"--calls={calls}")
    assert (done.status, done.stdout) == (2, "")
    assert said in done.stderr


def test_the_table_has_a_section_for_each_number_of_calls() -> None:
    record, _ = closed_form(Truth.of(WORLD), ("kl-bwd",), WORLD.dts, print)
    record["floor"] = {"2": {"kl": record["teacher"]["steps"]["3"]}}
    record["mixtures"] = {"4": {"2": {"sum": record["teacher"]["steps"]["4"]}}}
    table = exact.measures_table(record, (1, 2, 100))
    calls, names, kl = (list(column.cells) for column in table.columns[:3])
    assert calls == ["1", "", "2", "", "", ""]
    assert names[2:] == [
        "teacher",
        "SDTT kl-bwd, round 2",
        "floor, best kl",
        "mixture of 4, best sum",
    ]
    assert kl[4] == f"{record['teacher']['steps']['3']['kl']:.4f}"
    assert table.caption is None


def test_a_counted_law_is_marked_and_may_have_an_estimate_below_zero() -> None:
    """Its KL(samples ‖ chain) is extrapolated; of a perfect sampler it scatters around zero."""
    record, _ = closed_form(Truth.of(WORLD), ("kl-bwd",), WORLD.dts, print)
    exactly = record["teacher"]["steps"]["2"]
    record["distillers"] = {
        name: {"2": exactly | {"kl": kl, "samples": 131_072}}
        for name, kl in (("below", -0.0123), ("zero", -2.9e-5))
    }
    table = exact.measures_table(record, (2,))
    _, names, kl = (list(column.cells) for column in table.columns[:3])
    assert names[0] == "teacher"
    found = dict(zip(names, kl, strict=True))
    assert (found["below †"], found["zero †"]) == ("-0.0123", "0.0000")
    assert "counted over samples" in str(table.caption)


def test_what_is_matched_has_a_table_with_every_round() -> None:
    truth = Truth.of(WORLD)
    record, optima = closed_form(truth, ("kl-bwd",), WORLD.dts, print)
    record["matched"] = "joint"
    measure = functools.partial(matched_measures, truth, calls=(1, 2))
    exact.add_matched([record["teacher"]], [truth.teacher], measure)
    exact.add_matched(record["rounds"]["kl-bwd"], optima["kl-bwd"], measure)
    record["distillers"] = {"alpha": {}, "alpha-matched": measure([truth.teacher])}
    record["teacher"]["matched"]["2"]["reached"] = False
    table = exact.measures_table(record, (1, 2), matched=True)
    calls, names, temperature = (list(column.cells) for column in table.columns[:3])
    assert calls == ["1", "", "", "", "2", "", "", ""]
    rounds = ["SDTT kl-bwd, round 1", "SDTT kl-bwd, round 2", "alpha-matched"]
    assert names == ["teacher", *rounds, "teacher *", *rounds]
    found = record["rounds"]["kl-bwd"][1]["matched"]["2"]
    assert temperature[6] == f"{found['temperature']:.4f}"
    assert found["entropy"] == pytest.approx(record["data_entropy"], abs=1e-3)
    assert list(exact.measures_table(record, (1,)).columns[1].cells)[-1] == rounds[1]


def test_an_output_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(DataError, match=r"--output=.*out cannot be written to"):
        exact.write({}, tmp_path / "out")


def test_an_output_that_is_a_file_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    done = command(f"--output={tmp_path / 'out'}")
    assert (done.status, done.stdout) == (2, "")
    assert done.stderr == f"Error: --output={tmp_path / 'out'} is a file; name a folder.\n"


def test_a_wrong_world_is_one_line_and_status_2(tmp_path: Path) -> None:
    (tmp_path / "w.json").write_text(
        json.dumps({"initial": [0.5, 0.5], "transition": [[0.9, 0.2], [0.2, 0.8]], "length": 3})
    )
    done = command(f"--world={tmp_path / 'w.json'}", f"--output={tmp_path / 'out'}")
    assert done.status == 2
    assert done.stderr.count("\n") == 1
    assert "row 0, sums to 1.1" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_training_stands_beside_the_optimum(tmp_path: Path) -> None:
    path = tmp_path / "w.json"
    path.write_text(
        json.dumps({"initial": [0.5, 0.5], "transition": [[0.9, 0.1], [0.2, 0.8]], "length": 3})
    )
    done = command(
        f"--world={path}",
        f"--output={tmp_path}",
        "--divergence=kl-bwd",
        "--rounds=2",
        "--train",
        "--copy_steps=60",
        "--steps_per_round=40",
        "--decoders=grid first-hitting",
        "--decoders_of=optimum,trained",
        "--calls=2",
    )
    assert done.status == 0, done.stderr
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["training"]["copy_steps"] == 60
    for entry in record["rounds"]["kl-bwd"]:
        assert 0 < entry["trained"]["kl_to_optimum"] < 0.1
        assert set(entry["trained"]["steps"]) <= set(entry["steps"])
    # The law of the grid must be the sum over reveals that is recorded with the rounds.
    last = record["rounds"]["kl-bwd"][-1]
    laws = record["decoders_of"]
    for whose, steps in (
        ("round 2,", last["steps"]),
        ("round 2, trained,", last["trained"]["steps"]),
    ):
        grid = laws[f"kl-bwd, {whose}"]["grid"]["2"]
        assert {name: grid[name] for name in ("kl", "kl_reverse", "tv")} == pytest.approx(
            {name: steps["2"][name] for name in ("kl", "kl_reverse", "tv")}, abs=1e-6
        )
    assert "decoders" not in record
    assert "kl-bwd, round 2, trained," in done.stdout


def test_laws_are_of_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"--decoders_of='student' is unknown"):
        exact.ExactPlan("out", decoders="grid", decoders_of=("student",))
    with pytest.raises(ConfigError, match=r"--decoders_of=trained .* add --train"):
        exact.ExactPlan("out", decoders="grid", decoders_of=("trained",))
    with pytest.raises(ConfigError, match=r"--decoders_of needs --decoders"):
        exact.ExactPlan("out", decoders_of=("optimum",))
