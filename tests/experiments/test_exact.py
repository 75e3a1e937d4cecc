"""The exact laboratory's command. Oracles: evaluation's exact sums, and the files it promises."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from experiments import exact
from sdtt_jax.errors import ConfigError, DataError
from sdtt_jax.laboratory import optimum as exact_round
from sdtt_jax.laboratory import world as exact_world
from sdtt_jax.laboratory.student import StudentConfig, TrainedRound
from sdtt_jax.laboratory.world import World

ROOT = Path(__file__).parent.parent.parent
WORLD = World((0.5, 0.5), ((0.9, 0.1), (0.2, 0.8)), 3, (0.1, 0.2), name="weather")


def command(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "experiments.exact", *arguments],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )


def test_the_record_holds_every_round_and_step_and_the_figure_is_drawn(tmp_path: Path) -> None:
    truth = exact.Truth.of(WORLD)
    record, optima = exact.closed_form(truth, ("kl-bwd", "tvd"), WORLD.dts)
    paths = exact.write(record, tmp_path / "out")
    assert [path.name for path in paths] == ["exact.json", "exact.svg", "exact.png"]
    assert all(path.stat().st_size > 1000 for path in paths)
    stored = json.loads(paths[0].read_text())
    assert stored["world"]["num_states"] == 27
    assert [entry["dt"] for entry in stored["rounds"]["tvd"]] == [0.1, 0.2]
    last = stored["rounds"]["kl-bwd"][1]
    measured = exact_world.sampler_measures(WORLD, optima["kl-bwd"][1], truth.evidence, [8])[8]
    assert last["steps"]["8"] == pytest.approx(measured._asdict())
    assert last["floor"] < last["teacher_divergence"]


def test_the_figure_of_the_same_record_is_the_same_file(tmp_path: Path) -> None:
    record, _ = exact.closed_form(exact.Truth.of(WORLD), ("kl-fwd",), WORLD.dts)
    first = exact.write(record, tmp_path / "a")[1].read_bytes()
    assert exact.write(record, tmp_path / "b")[1].read_bytes() == first


class PerfectLaboratory:
    """Stands in for training: copies the teacher and lands on every optimum, but for a blur."""

    def __init__(self, world: World, config: StudentConfig, progress: object) -> None:
        del config, progress
        self.teacher = exact_world.true_denoiser(world)[0]

    def copy_teacher(self) -> None:
        return None

    def predictions(self, params: None) -> np.ndarray:
        del params
        return self.teacher

    def rounds(self, params: None, dts: tuple[float, ...], divergence: str) -> Iterator:
        del params
        teacher = self.teacher
        for dt in dts:
            teacher = exact_round.round_optimum(teacher, dt, divergence)
            blurred = np.where(teacher < 1, 0.99 * teacher + 0.005, teacher)
            yield TrainedRound(dt, blurred * (teacher > 0), 0.5)


def test_a_student_is_measured_by_its_distance_to_the_optimum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: mean_kl of the blurred optimum, and a figure with rings."""
    monkeypatch.setattr(exact, "Laboratory", PerfectLaboratory)
    truth = exact.Truth.of(WORLD)
    record, optima = exact.closed_form(truth, ("kl-bwd",), WORLD.dts)
    exact.train_beside(truth, record, optima, WORLD.dts, StudentConfig())
    assert record["training"]["copy_kl"] == 0
    first = record["rounds"]["kl-bwd"][0]
    optimum = optima["kl-bwd"][0]
    blurred = np.where((optimum > 0) & (optimum < 1), 0.99 * optimum + 0.005, optimum)
    distance = exact_round.mean_kl(optimum, blurred, truth.probabilities)
    assert first["trained"]["kl_to_optimum"] == pytest.approx(distance)
    assert first["trained"]["own_kl"] == pytest.approx(distance)
    assert first["trained"]["relative"] == pytest.approx(distance / first["kl_from_teacher"])
    assert set(first["trained"]["steps"]) == {str(n) for n in exact.TRAINED_STEPS}
    assert all(path.exists() for path in exact.write(record, tmp_path))


def test_rounds_beyond_the_worlds_double_up_to_one_half() -> None:
    assert exact.round_dts(WORLD, None) == (0.1, 0.2)
    assert exact.round_dts(WORLD, 1) == (0.1,)
    assert exact.round_dts(WORLD, 5) == (0.1, 0.2, 0.4, 0.5, 0.5)
    with pytest.raises(ConfigError, match="--rounds=0"):
        exact.round_dts(WORLD, 0)


def test_divergences_are_named_or_all() -> None:
    assert exact.parse_divergences("mse, kl-bwd") == ("mse", "kl-bwd")
    assert len(exact.parse_divergences("all")) == 5
    with pytest.raises(ConfigError, match="'kl' is none of kl-bwd"):
        exact.parse_divergences("kl")


def test_an_output_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(DataError, match=r"--output=.*out cannot be written to"):
        exact.write({}, tmp_path / "out")


def test_a_wrong_world_is_one_line_and_status_2(tmp_path: Path) -> None:
    (tmp_path / "w.json").write_text(
        json.dumps({"initial": [0.5, 0.5], "transition": [[0.9, 0.2], [0.2, 0.8]], "length": 3})
    )
    done = command(f"--world={tmp_path / 'w.json'}", f"--output={tmp_path / 'out'}")
    assert done.returncode == 2
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
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "exact.json").read_text())
    assert record["training"]["copy_steps"] == 60
    for entry in record["rounds"]["kl-bwd"]:
        assert 0 < entry["trained"]["kl_to_optimum"] < 0.1
        assert set(entry["trained"]["steps"]) <= set(entry["steps"])
